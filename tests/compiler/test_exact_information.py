"""What exact arithmetic keeps: that it comes back bit for bit, and how much of it there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler import kernels
from compiler.exact import Form, Gauge, Grid, Monotone, Parity, Remainder
from compiler.forms import preimage_bits
from compiler.information import SPILL, WORD, Bits, Information, Stack

RANDOM = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=150
)
GRID = Grid(14)


def empty(*shape: int) -> Stack:
    return Stack(torch.zeros(shape, dtype=torch.float64))


def push(stack: Stack, radix: Tensor | float, digit: Tensor, largest: int) -> Stack:
    """With a digit from 0 to radix - 1 on top."""
    room = stack.with_room(largest)
    return room.pushed(kernels.push(room.word, radix, digit), largest)


def pull(stack: Stack, radix: Tensor | float) -> tuple[Tensor, Stack]:
    """What was pushed last, and the stack before."""
    digit, word = kernels.pull(stack.word, radix)
    return digit, stack.before_push(word)


def take(stack: Stack, radix: int) -> tuple[Tensor, Stack]:
    """A digit that the stack happens to have."""
    digit, word = kernels.pull(stack.word, radix)
    return digit, stack.pulled_from(word, radix)


def put(stack: Stack, radix: int, digit: Tensor) -> Stack:
    """The stack before that."""
    return replace(stack, word=kernels.push(stack.word, radix, digit))


class Model:
    """The same stack by Python's integers, one for each element."""

    def __init__(self, count: int) -> None:
        self.words = [0] * count

    def push(self, radices: Sequence[int], digits: Sequence[int]) -> None:
        self.words = [w * r + d for w, r, d in zip(self.words, radices, digits, strict=True)]

    def pull(self, radices: Sequence[int]) -> list[int]:
        found = [w % r for w, r in zip(self.words, radices, strict=True)]
        self.words = [w // r for w, r in zip(self.words, radices, strict=True)]
        return found


def assert_sound(stack: Stack) -> None:
    """Words are integers that float64 holds exactly, below what they are bounded by."""
    assert stack.word.dtype == torch.float64
    assert (stack.word >= 0).all()
    assert (stack.word <= stack.bound).all()
    assert stack.bound < 2**WORD
    assert torch.equal(stack.word, stack.word.floor())


@st.composite
def operations(draw: Any) -> list[tuple[str, list[int], int]]:
    """Pushes of digits of mixed radices, now and then a digit taken, for six elements; each
    operation is repeated."""
    largest = draw(st.sampled_from([2, 3, 16, 50, 2**18]))
    radix = st.sampled_from([1, 2, largest]) if draw(st.booleans()) else st.integers(1, largest)
    one = st.tuples(
        st.sampled_from(["push", "push", "push", "take"]),
        st.lists(radix, min_size=6, max_size=6),
        st.integers(1, 40),
    )
    found: list[tuple[str, list[int], int]] = draw(st.lists(one, min_size=1, max_size=12))
    return found


@RANDOM
@given(operations(), st.integers(0, 2**32))
def test_a_stack_is_a_number_in_mixed_radix(
    chosen: list[tuple[str, list[int], int]], seed: int
) -> None:
    """By Python's integers, as long as no digit is taken past what has spilled; and everything
    that was done is undone."""
    random = torch.Generator().manual_seed(seed)
    stack, model, done = empty(6), Model(6), []
    only_pushes = {name for name, _, _ in chosen} == {"push"}
    for name, radices, times in chosen:
        for _ in range(times):
            before = stack
            if name == "push":
                share = torch.rand(6, generator=random, dtype=torch.float64)
                radix = torch.tensor(radices, dtype=torch.float64)
                digit = torch.floor(share * radix)
                stack = push(stack, radix, digit, max(radices))
                model.push(radices, [int(d) for d in digit])
                done.append((name, radix, digit, before))
            else:
                digit, stack = take(stack, radices[0])
                assert ((digit >= 0) & (digit < radices[0])).all()
                done.append((name, radices[0], digit, before))
            assert_sound(stack)
    for name, radix, digit, before in reversed(done):
        if name == "push":
            found, stack = pull(stack, radix)
            assert torch.equal(found, digit)
            if only_pushes:
                assert found.tolist() == model.pull([int(r) for r in radix])
        else:
            stack = put(stack, radix, digit)
        assert torch.equal(stack.word, before.word)
        assert stack.pushes == before.pushes
        assert len(stack.spills) == len(before.spills)
    assert not stack.word.any()


RADICES: dict[str, Callable[[int], Tensor | float]] = {
    "of two": lambda step: 2.0,
    "of ten": lambda step: 10.0,
    "mixed": lambda step: float(2 + step * 7 % 15),
    "mixed by element": lambda step: 2.0 + torch.arange(40, dtype=torch.float64) * (step % 7) % 15,
    "a third without": lambda step: torch.where(torch.arange(40) % 3 == 0, 1.0, 16.0).double(),
    "one with": lambda step: torch.where(torch.arange(40) == 7, 16.0, 1.0).double(),
}
SPILLING = {"of two": {True}, "of ten": {True}, "one with": {False}, "a third without": {False}}


@pytest.mark.parametrize("radices", RADICES)
def test_thousands_of_pushes_come_back(radices: str) -> None:
    torch.manual_seed(0)
    stack, done = empty(40), []
    for step in range(4000):
        radix = RADICES[radices](step)
        digit = torch.floor(torch.rand(40, dtype=torch.float64) * radix)
        done.append((stack.word, radix, digit))
        stack = push(stack, radix, digit, 16)
        assert_sound(stack)
    assert {spill.everywhere for spill in stack.spills} >= SPILLING.get(radices, set())
    assert len(stack.spills) > 50
    for word, radix, digit in reversed(done):
        found, stack = pull(stack, radix)
        assert torch.equal(found, digit)
        assert torch.equal(stack.word, word)
    assert not stack.spills


def test_words_of_channels_last_images_spill_in_their_own_order() -> None:
    torch.manual_seed(0)
    like = torch.zeros(3, 4, 5, 2).contiguous(memory_format=torch.channels_last)
    stack, done = Information().stack(like), []
    assert stack.word.stride() == like.stride()
    radix = torch.where(torch.rand(3, 4, 5, 2) < 0.4, 1.0, 9.0).double()
    for _ in range(100):
        digit = torch.floor(torch.rand(3, 4, 5, 2, dtype=torch.float64) * radix)
        done.append(digit)
        stack = push(stack, radix, digit, 9)
    assert {spill.everywhere for spill in stack.spills} == {False}
    for digit in reversed(done):
        found, stack = pull(stack, radix)
        assert torch.equal(found, digit)


def test_a_stack_is_never_changed() -> None:
    """Other passes hold the same one."""
    stack = push(empty(3), 7.0, torch.tensor([1.0, 6.0, 3.0], dtype=torch.float64), 7)
    word = stack.word.clone()
    push(stack, 3.0, torch.ones(3, dtype=torch.float64), 3)
    pull(stack, 7.0)
    take(stack, 2)
    put(stack, 2, torch.ones(3, dtype=torch.float64))
    assert torch.equal(stack.word, word)
    full = Stack(torch.full((3,), 2.0**WORD - 1, dtype=torch.float64), 9, 2**WORD - 1)
    pull(push(full, 3.0, torch.ones(3, dtype=torch.float64), 3), 3.0)
    assert torch.equal(full.word, torch.full((3,), 2.0**WORD - 1, dtype=torch.float64))


@RANDOM
@given(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=60), st.integers(0, 2**32))
def test_bits_are_packed_and_come_back(counts: list[int], seed: int) -> None:
    random, bits, digits = torch.Generator().manual_seed(seed), Bits(), []
    for count in counts:
        digit = torch.randint(2**count, (5, 3), generator=random, dtype=torch.uint8)
        digits.append(digit)
        bits = bits.push(count, digit.clone())
    assert bits.bits == sum(counts)
    for count, digit in reversed(list(zip(counts, digits, strict=True))):
        found, bits = bits.pull(count)
        assert torch.equal(found, digit)
    assert bits == Bits()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("depth", [1, 7, 8, 9, 48, 1000])
def test_packed_bits_fill_their_bytes(count: int, depth: int) -> None:
    form, kept, value = Parity(count), Information(), torch.zeros(20, 3)
    for _ in range(depth):
        value = form.advance(value, 2.0**-count, torch.randn(20, 3), GRID, kept)
    assert kept.nbytes == value.numel() * math.ceil(depth * count / 8)
    assert kept.bits_per_element() == depth * count


# How much it is ----------------------------------------------------------------------------------

DEPTHS = (12, 48, 200, 1000)
ELEMENTS = 20_000


def filled(form: Form, scale: Tensor | float) -> dict[int, Information]:
    """What is kept of a stream v = scale*v + noise, after so many layers."""
    torch.manual_seed(0)
    kept, value = Information(), GRID.rounded(torch.randn(ELEMENTS // 20, 20))
    found = {}
    for layer in range(1, max(DEPTHS) + 1):
        value = form.advance(value, scale, torch.randn(ELEMENTS // 20, 20), GRID, kept)
        if layer in DEPTHS:
            found[layer] = kept.copy()
    assert value.abs().max() < GRID.limit
    return found


@pytest.mark.parametrize("rational", [(9, 10), (3, 4), (2, 3), (1, 3), (15, 16)])
def test_remainders_cost_what_is_lost(rational: tuple[int, int]) -> None:
    numerator, denominator = rational
    lost = math.log2(denominator / numerator)
    for depth, kept in filled(Remainder(*rational), numerator / denominator).items():
        assert abs(kept.bits_per_element() - depth * lost) < 2 + flags(kept)
        assert kept.nbytes / ELEMENTS <= depth * lost / 8 + 8


def flags(kept: Information) -> float:
    """Bits an element that say which of them have spilled."""
    (stack,) = kept.stacks.values()
    return sum(not spill.everywhere for spill in stack.spills)


@pytest.mark.parametrize("scale", [0.95, 0.9, 0.99, 0.6, 0.3, 0.9371, -0.77])
def test_indices_cost_little_more_than_is_lost(scale: float) -> None:
    """At most 1/ln 2 times as much; a scale near 1 comes near to that."""
    size = abs(float(torch.tensor(scale)))
    lost, stated = -math.log2(size), preimage_bits(size)
    assert lost <= stated <= 1.4427 * lost
    for depth, kept in filled(Monotone(math.ceil(1 / size)), scale).items():
        bits = kept.bits_per_element() - flags(kept)
        assert bits < 1.4427 * depth * lost + 2
        assert abs(bits - depth * stated) < 2 + 0.01 * depth * stated
        assert kept.nbytes / ELEMENTS <= depth * stated / 8 * allowance(depth) + 8


def test_indices_of_learned_scales_cost_little_more_than_is_lost() -> None:
    """A scale for each channel."""
    scale = torch.linspace(0.5, 0.99, 20)
    stated = sum(preimage_bits(float(s)) for s in scale) / len(scale)
    lost = -float(scale.log2().mean())
    for depth, kept in filled(Monotone(2), scale).items():
        bits = kept.bits_per_element() - flags(kept)
        assert bits < 1.4427 * depth * lost + 2
        # Channels fill their words at different rates, and more often tell which have spilled.
        spread = 1.08 if depth > 200 else 1.0
        assert kept.nbytes / ELEMENTS <= depth * stated / 8 * allowance(depth) * spread + 8


def allowance(depth: int) -> float:
    """For the bits that say which elements have spilled, where many spills follow one another."""
    return 1.02 if depth > 200 else 1.0


def test_a_gauge_costs_a_word_at_any_depth() -> None:
    for depth, kept in filled(Gauge("v"), 0.99).items():
        assert kept.nbytes == 8 * ELEMENTS
        assert len(kept.gauged["v"].gauges) == depth


def test_streams_of_one_shape_share_a_stack() -> None:
    kept, value = Information(), torch.zeros(6, 3)
    for _ in range(10):
        for change in (torch.randn(6, 3), torch.randn(6, 3)):
            Remainder(9, 10).advance(GRID.rounded(value + change), 0.9, change, GRID, kept)
            Parity(1).advance(GRID.rounded(value + change), 0.5, change, GRID, kept)
    Remainder(9, 10).advance(torch.zeros(6, 4), 0.9, torch.zeros(6, 4), GRID, kept)
    assert set(kept.stacks) == {(6, 3), (6, 4)}
    assert kept.nbytes == 6 * 3 * (8 + math.ceil(20 / 8)) + 6 * 4 * 8


# The container -----------------------------------------------------------------------------------


def everything() -> Information:
    """With stacks that have spilled in both ways, packed bits and gauges of tensors."""
    torch.manual_seed(0)
    kept = Information()
    for layer in range(60):
        value, change = GRID.rounded(torch.randn(6, 3)), torch.randn(6, 3)
        Monotone(3).advance(value, 0.4, change, GRID, kept)
        scale = torch.where(torch.arange(4) % 2 == 0, 1.0, 0.2)
        Monotone(5).advance(torch.ones(6, 4), scale, torch.zeros(6, 4), GRID, kept)
        Parity(2).advance(value, 0.25, change, GRID, kept)
        gauge = torch.rand(3) if layer % 2 else 1.0
        Gauge("v").advance(value, gauge, change, GRID, kept)
    spills = [spill for stack in kept.stacks.values() for spill in stack.spills]
    assert {spill.everywhere for spill in spills} == {True, False}
    return kept


def test_tensors_are_all_there_in_one_order() -> None:
    kept = everything()
    tensors = kept.tensors()
    assert kept.nbytes == sum(t.nbytes for t in tensors)
    again = kept.with_tensors(tensors)
    assert all(a is b for a, b in zip(again.tensors(), tensors, strict=True))
    assert again.keeps == kept.keeps
    assert again.stacks.keys() == kept.stacks.keys()
    nothing = kept.with_tensors([torch.empty(0)] * len(tensors))
    assert nothing.nbytes == 0
    back = nothing.with_tensors(tensors)
    assert back.bits_per_element() == kept.bits_per_element()


def test_a_copy_goes_its_own_way() -> None:
    kept = everything()
    before = [t.clone() for t in kept.tensors()]
    other = kept.copy()
    for shape in ((6, 3), (6, 4)):
        Monotone(3).advance(torch.ones(shape), 0.4, torch.zeros(shape), GRID, other)
        Parity(1).advance(torch.ones(shape), 0.5, torch.zeros(shape), GRID, other)
    Gauge("v").retreat(torch.ones(6, 3), 0.5, torch.zeros(6, 3), GRID, other)
    assert all(torch.equal(a, b) for a, b in zip(kept.tensors(), before, strict=True))


def test_what_is_not_kept_takes_nothing() -> None:
    """Where no inverse will ask, only what later layers read."""
    kept, value = Information(keeps=False), torch.ones(6, 3)
    Monotone(3).advance(value, 0.4, value, GRID, kept)
    Parity(2).advance(value, 0.25, value, GRID, kept)
    assert kept.nbytes == 0


def test_spilled_digits_take_a_quarter_of_a_word() -> None:
    stack = Stack(torch.full((7,), 2.0**WORD - 1, dtype=torch.float64), 5, 2**WORD - 1)
    stack = push(stack, 2.0, torch.ones(7, dtype=torch.float64), 2)
    (spill,) = stack.spills
    assert spill.everywhere
    assert spill.values.dtype == torch.int16
    assert stack.bound < 2 ** (WORD - SPILL + 2)
