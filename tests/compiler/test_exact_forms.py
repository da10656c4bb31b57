"""The forms of exact arithmetic by themselves: their values, undone bit for bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.check import SMALLEST_EXACT
from compiler.exact import Form, Gauge, Grid, Monotone, Parity, Remainder, Unit
from compiler.forms import LARGEST_TERM
from compiler.information import Bits, Information
from compiler.kernels import _preimage

RANDOM = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=150
)
GRID = Grid(14)
LAST = 2**24 - 1
"""Units of the largest values."""
Scale = Tensor | float


def neighbours(value: float, count: int = 2) -> list[float]:
    """A number as float32, and those next to it."""
    found = [torch.tensor(value)]
    for direction in (-math.inf, math.inf):
        near = found[0]
        for _ in range(count):
            near = torch.nextafter(near, torch.tensor(direction))
            found.append(near)
    return [float(number) for number in found]


ODD_SCALES = sorted(
    {
        *itertools.chain.from_iterable(neighbours(1 / n) for n in (1, 2, 3, 4, 5, 6, 7, 16, 25)),
        *itertools.chain.from_iterable(neighbours(2.0**n) for n in (-18, -10, -1, 0, 1, 5)),
        *(0.9, 0.95, 0.99, 0.6, 0.3, 2 / 3, 0.04, 0.02, 0.01, math.exp(2), math.pi, 100.5, 1e3),
        *(1 - 2**-24, 1 + 2**-24, 1 - 2**-20),
    }
)
SCALES = sorted(s for s in ODD_SCALES if s >= SMALLEST_EXACT)


def monotone(smallest: float) -> Monotone:
    """For a scale no smaller."""
    exactly = float(torch.tensor(smallest, dtype=torch.float32))
    return Monotone(max(1, math.ceil(1 / exactly)))


def in_units(integers: Sequence[int] | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of the grid."""
    return torch.as_tensor(integers, dtype=torch.float64).mul(GRID.unit).to(dtype)


def assert_undone(form: Form, value: Tensor, scale: Scale, change: Tensor) -> Tensor:
    """The new values in units. Where they stay in the range, the old ones come back."""
    kept = Information()
    new = form.advance(value, scale, change, GRID, kept)
    assert new.dtype == value.dtype
    inside = new.abs() < GRID.limit
    back = form.retreat(new, scale, change, GRID, kept)
    assert torch.equal(back[inside], value[inside])
    return new.double() / GRID.unit


EVERY: list[tuple[Form, list[float]]] = [
    (Unit(), [1.0]),
    *((Parity(count), [2.0**-count]) for count in (1, 2, 4)),
    *(
        (Remainder(n, d), [n / d])
        for n, d in ((9, 10), (3, 4), (2, 3), (1, 3), (15, 16), (1, 16), (16, 15), (3, 2), (7, 1))
    ),
    *((monotone(scale), [scale]) for scale in SCALES),
]
BOTH_SIGNS = [(form, sign * size) for form, sizes in EVERY for size in sizes for sign in (1, -1)]
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": torch.zeros_like,
    "off the grid": lambda value: torch.sin(12345 * value) * 3.7,
    "ties": lambda value: (torch.arange(value.numel()) + 0.5) * GRID.unit,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_small_integer_comes_back(change: str, dtype: torch.dtype) -> None:
    value = in_units(torch.arange(-1500, 1501), dtype)
    for form, scale in BOTH_SIGNS:
        for number in (scale, torch.tensor(scale, dtype=dtype)):
            assert_undone(form, value, number, CHANGES[change](value).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_ends_of_the_range_come_back(dtype: torch.dtype) -> None:
    ends = torch.cat([torch.arange(LAST - 600, LAST + 1), torch.arange(2**23 - 300, 2**23 + 300)])
    value = in_units(torch.cat([ends, -ends]), dtype)
    for form, scale in BOTH_SIGNS:
        assert_undone(form, value, scale, torch.zeros_like(value))
        # What is added takes the new values far away, or back from far away.
        for factor in (-scale, -scale + 0.5, -scale - 0.9, 1 - scale):
            assert_undone(form, value, scale, value * factor)


@st.composite
def values_and_scales(draw: Any) -> tuple[Tensor, Scale, Tensor]:
    """Values on the grid, a scale for them (one, or of some or all elements), and a change."""
    shape = draw(st.sampled_from([(4,), (2, 3), (3, 2, 2), (2, 3, 2, 2)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    size = math.prod(shape)
    integers = st.one_of(
        st.integers(-LAST, LAST), st.integers(-20, 20), st.integers(LAST - 9, LAST)
    )
    value = in_units(draw(st.lists(integers, min_size=size, max_size=size)), dtype).view(shape)
    sizes = st.one_of(st.sampled_from(SCALES), st.floats(SMALLEST_EXACT, 1e3))
    kinds = [(1,) * len(shape), (shape[0], *(1,) * (len(shape) - 1)), shape, (shape[-1],), None]
    kind = draw(st.sampled_from(kinds))
    count = 1 if kind is None else math.prod(kind)
    numbers = draw(st.lists(sizes, min_size=count, max_size=count))
    signs = draw(st.lists(st.sampled_from([1, -1]), min_size=count, max_size=count))
    scale: Scale = numbers[0] * signs[0]
    if kind is not None:
        signed = [number * sign for number, sign in zip(numbers, signs, strict=True)]
        scale = torch.tensor(signed, dtype=dtype).view(kind)
    near = draw(st.sampled_from([0.0, 1.0]))  # so that much cancels
    noise = torch.tensor(draw(st.lists(st.floats(-40, 40), min_size=size, max_size=size)))
    change = -near * scale * value + noise.view(shape).to(dtype)
    return value, scale, change.to(dtype)


@RANDOM
@given(values_and_scales())
@example((in_units([2**23 + 1]), 3.0, in_units([-(2**24)])))
@example((in_units([LAST]), -math.exp(2), in_units([LAST]) * math.exp(2)))
def test_any_scale_comes_back(case: tuple[Tensor, Scale, Tensor]) -> None:
    value, scale, change = case
    smallest = float(torch.as_tensor(scale).abs().min())
    assert_undone(monotone(smallest), value, scale, change)


@RANDOM
@given(
    st.lists(st.integers(-LAST, LAST), min_size=1, max_size=8),
    st.integers(1, LARGEST_TERM),
    st.integers(1, LARGEST_TERM),
    st.booleans(),
    st.floats(-1.5, 1.5),
)
@example([2**23 + 1], 3, 1, True, -2.0)
@example([LAST], 16, 1, True, -16.0)
def test_any_small_rational_comes_back(
    integers: list[int], numerator: int, denominator: int, positive: bool, share: float
) -> None:
    scale = Fraction(numerator, denominator)
    form = Remainder(scale.numerator, scale.denominator)
    value = in_units(integers)
    signed = float(scale) if positive else -float(scale)
    assert_undone(form, value, signed, share * value - (value * signed) * (share > 1))


@RANDOM
@given(
    st.lists(st.integers(-LAST, LAST), min_size=4, max_size=4),
    st.lists(st.tuples(st.sampled_from(BOTH_SIGNS), st.floats(-9, 9)), min_size=1, max_size=60),
)
def test_one_after_another_come_back(
    integers: list[int], steps: list[tuple[tuple[Form, float], float]]
) -> None:
    """All forms on one stack, many times, with spills."""
    kept, value = Information(), in_units(integers)
    done: list[tuple[Form, float, Tensor, Tensor]] = []
    for (form, scale), number in steps:
        trial, change = kept.copy(), torch.full_like(value, number)
        new = form.advance(value, scale, change, GRID, trial)
        if (new.abs() < GRID.limit).all():
            done.append((form, scale, change, value))
            kept, value = trial, new
    assume(done)
    for form, scale, change, old in reversed(done):
        value = form.retreat(value, scale, change, GRID, kept)
        assert torch.equal(value, old)
    assert not any(stack.word.any() or stack.spills for stack in kept.stacks.values())
    assert all(bits == Bits() for bits in kept.packed.values())


# Values ------------------------------------------------------------------------------------------

WIDE = torch.cat([torch.arange(-3000, 3001), torch.randint(-LAST, LAST, (3000,))])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scale", [s for s in SCALES if s <= 1])
def test_monotone_is_within_half_a_unit_and_keeps_the_order(scale: float, sign: int) -> None:
    units = torch.sort(WIDE).values
    value, form = in_units(units), monotone(scale)
    new = assert_undone(form, value, sign * scale, torch.zeros_like(value))
    exactly = units.double() * torch.tensor(scale, dtype=torch.float32).double() * sign
    assert (new - exactly).abs().max() <= 0.5
    assert (sign * new.diff() >= 0).all()


@pytest.mark.parametrize("scale", [s for s in SCALES if s > 1])
def test_monotone_larger_than_one(scale: float) -> None:
    units = torch.arange(-2000, 2001)
    new = assert_undone(Monotone(1), in_units(units), scale, torch.zeros(len(units)))
    exactly = units.double() * torch.tensor(scale, dtype=torch.float32).double()
    assert (new - exactly).abs().max() <= 0.5
    assert (new.diff() >= 1).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_parity_is_within_a_unit(count: int, sign: float) -> None:
    new = assert_undone(Parity(count), in_units(WIDE), sign * 2.0**-count, torch.zeros(len(WIDE)))
    assert (new - WIDE.double() * sign * 2.0**-count).abs().max() < 1


@pytest.mark.parametrize(("numerator", "denominator"), [(9, 10), (2, 3), (1, 3), (15, 16), (16, 9)])
def test_remainder_is_within_its_numerator(numerator: int, denominator: int) -> None:
    """Whatever lies on the stack."""
    form, kept = Remainder(numerator, denominator), Information()
    units = torch.randint(-(2**23), 2**23, (3000,))
    kept.stacks[tuple(units.shape)] = kept.stack(units)
    for _ in range(30):  # fill the stack
        value = in_units(torch.randint(-LAST, LAST, (3000,))) * min(1, denominator / numerator)
        Remainder(3, 4).advance(GRID.rounded(value), 0.75, torch.zeros(3000), GRID, kept)
    new = form.advance(in_units(units), numerator / denominator, torch.zeros(3000), GRID, kept)
    exactly = units.double() * numerator / denominator
    assert (new.double() / GRID.unit - exactly).abs().max() < numerator


SEQUENCES: dict[str, list[Any]] = {
    "one number": [0.9] * 60,
    "many": [0.99, -0.5, 0.37, -0.99, 1.0, 0.123] * 4,
    "by sample": [torch.tensor([[0.9], [-0.8], [0.7]]) for _ in range(40)],
    "by channel": [torch.tensor([0.5, 0.99, -0.9, 0.61]) for _ in range(24)],
    "by element": [torch.rand(3, 4) * 0.3 + 0.7 for _ in range(24)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_gauge(sequence: str, dtype: torch.dtype) -> None:
    """Within half a unit of its step's exact value, and undone: at every layer."""
    torch.manual_seed(0)
    scales = [s if isinstance(s, float) else s.to(dtype) for s in SEQUENCES[sequence]]
    form, kept = Gauge("v"), Information()
    values = [in_units(torch.randint(-(2**22), 2**22, (3, 4)), dtype)]
    changes = [torch.randn(3, 4, dtype=dtype) * 10 for _ in scales]
    exactly = values[0].double()
    for scale, change in zip(scales, changes, strict=True):
        before = kept.gauged["v"].units * kept.gauged["v"].gauge if "v" in kept.gauged else None
        exactly = exactly if before is None else before * GRID.unit
        new = form.advance(values[-1], scale, change, GRID, kept)
        number = scale.double() if isinstance(scale, Tensor) else scale
        wanted = exactly * number + change.double()
        rounding = 2.0**-24 * wanted.abs().max() if dtype == torch.float32 else 1e-12
        assert ((new.double() - wanted).abs() <= GRID.unit / 2 + rounding).all()
        values.append(new)
    for scale, change in reversed(list(zip(scales, changes, strict=True))):
        after = values.pop()
        back = form.retreat(after, scale, change, GRID, kept)
        assert torch.equal(back, values[-1])
    assert kept.gauged["v"].gauges == ()


def test_gauge_at_its_smallest() -> None:
    """26 bits below a stream of 24, at the ends of its range, with changes that cancel."""
    form, kept = Gauge("v"), Information()
    value = in_units([LAST, -LAST, 12345, 0])
    values, changes = [value], []
    for scale in [0.5] * 26:
        new = torch.tensor([GRID.limit - GRID.unit, GRID.unit - GRID.limit, 0.3, -1e-3])
        changes.append(new - scale * values[-1])
        values.append(form.advance(values[-1], scale, changes[-1], GRID, kept))
        assert (values[-1].abs() < GRID.limit * 1.01).all()
    for change in reversed(changes):
        after = values.pop()
        assert torch.equal(form.retreat(after, 0.5, change, GRID, kept), values[-1])


# Preimages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [s for s in SCALES if s >= 2**-10])
def test_preimages_by_brute_force(scale: float) -> None:
    """Every integer within a range, by rational arithmetic."""
    exactly = Fraction(float(torch.tensor(scale, dtype=torch.float32)))
    found: dict[int, list[int]] = {}
    for t in range(-1200, 1201):
        found.setdefault(math.floor(exactly * t + Fraction(1, 2)), []).append(t)
    images = sorted(found)[1:-1]  # the whole preimages of these are known
    if images:
        size = float(exactly)
        first, count = _preimage(torch.tensor(images, dtype=torch.float64), size)
        assert first.tolist() == [found[v][0] for v in images]
        assert count.tolist() == [len(found[v]) for v in images]
        assert count.max() <= monotone(scale).largest


@pytest.mark.parametrize("scale", SCALES)
def test_preimages_at_the_ends_of_the_range(scale: float) -> None:
    exactly = Fraction(float(torch.tensor(scale, dtype=torch.float32)))
    for t in (LAST, LAST - 1, LAST - 7, 2**23 + 1, 2**23, -LAST, -LAST + 12, -(2**22) - 3):
        v = math.floor(exactly * t + Fraction(1, 2))
        lowest = math.ceil((v - Fraction(1, 2)) / exactly)
        beyond = math.ceil((v + Fraction(1, 2)) / exactly)
        assert lowest <= t < beyond
        first, count = _preimage(torch.tensor([v], dtype=torch.float64), float(exactly))
        assert (int(first), int(first + count)) == (lowest, beyond)
