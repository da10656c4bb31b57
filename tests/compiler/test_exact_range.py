"""The range of the grid: what leaves it is an error that says what to change, never a wrong number;
and so is what cannot be exact."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from exact_stages import (
    TINY,
    assert_exact,
    assert_inverse,
    exact_stage,
    forms,
    grid_of,
    in_floats,
    one_pass,
    streams_on_grid,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_networks import STRATEGIES
from torch import Tensor

from compiler.exact import Monotone, RangeError
from compiler.information import Information
from compiler.stage import Stage

RANDOM = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=150
)
Constants = dict[str, Any]


def plain(update: list[str], constants: Constants | None = None, **keys: Any) -> Stage:
    """Two streams of two features."""
    return exact_stage(
        {
            "depth": 4,
            "streams": {"x": "input", "y": "input"},
            "functions": {"F": ["tanh"]} if any("F(" in line for line in update) else {},
            "constants": constants or {},
            "update": update,
            "output": "x",
            **keys,
        },
        **TINY,
    )


EDGES: dict[str, tuple[list[str], Constants]] = {
    "sums": (["x += 0.7*y", "y -= 1.3*x"], {}),
    "differences": (["x = 2*y - x", "y = -y + x/2"], {}),
    "bits": (["x = x/2 + y", "y = -y/4 - x"], {}),
    "remainders": (["x = 2/3*x + y", "y = 9/10*y - x"], {}),
    "large remainders": (["x = 3/2*x - y", "y = 7/5*y - 1.5*x"], {}),
    "indices": (["x = g*x + y", "y = 0.77*y - x"], {"g": {"learn": 0.9, "within": [0.5, 0.99]}}),
    "large scales": (["x = 2.55*x - 2.5*y", "y = 1.37*y - x"], {}),
    "scales that read": (["x = x*exp(tanh(y)) - y", "y = y*exp(-tanh(x)) + x"], {}),
    "gauge": (["y = 0.9*y + x", "x += 0.5*y"], {}),
    "all": (["x = 3*x - 3*y", "y = y/2 + 0.5*x", "x = 0.37*x - y", "x, y = y, x"], {}),
}
DOUBLING = ["x += y", "y += 2*x"]


def pair(x: float, y: float = 0.25) -> tuple[Tensor, Tensor]:
    return torch.tensor([[x, 0.5]]), torch.tensor([[y, -0.5]])


def message(stage: Stage, *streams: Tensor, **keys: Any) -> str:
    with pytest.raises(RangeError) as caught:
        stage(*streams, **keys)
    return str(caught.value)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_error_says_where_and_what(strategy: str) -> None:
    stage = plain(DOUBLING)
    stage.backward = strategy
    x, y = pair(100.0)
    text = message(stage, x.requires_grad_(), y)
    # x: 100.25, 300.75, 1103.25 at the third layer
    assert "stage `trunk`, at layer 2: stream `x` reached 1103" in text
    assert "`arithmetic: {exact: 14}` streams stay below 1024" in text
    with torch.no_grad():
        assert message(stage, x, y) == text


@pytest.mark.parametrize("size", [1.5, 100.0, 3e3, 2.0**20])
@pytest.mark.parametrize("depth", [1, 4, 9])
def test_what_the_error_suggests_passes(size: float, depth: int) -> None:
    bits = 14
    for _ in range(12):
        stage = plain(DOUBLING, depth=depth, arithmetic={"exact": bits})
        x, y = (grid_of(stage).rounded(stream) for stream in pair(size))
        try:
            assert_exact(stage, (x, y), {}, every_layer=False)
        except RangeError as error:
            text = str(error)
        else:
            return
        reached = float(text.split(" reached ")[1].split(",")[0])
        found = re.search(r"`\{exact: (\d+)\}` reaches (\S+)$", text)
        if not found:
            assert "Nothing reaches so far but `arithmetic: float`" in text
            assert reached >= 2**24
            return
        limit = 2.0 ** (24 - int(found[1]))
        assert math.isclose(float(found[2]), limit, rel_tol=1e-5)
        assert 0.99999 * reached < limit < 2.00001 * reached
        assert int(found[1]) < bits
        bits = int(found[1])
    raise AssertionError("the suggestions do not end")


@pytest.mark.parametrize("value", [1024.0, 1024.0 - 2.0**-16, -1024.0, 5e3, 1e30])
def test_streams_are_watched_as_they_enter(value: float) -> None:
    text = message(plain(DOUBLING), *pair(0.0, value))
    assert "before the first layer: stream `y` reached" in text


@pytest.mark.parametrize("value", [1024.0 - 2.0**-14, -1024.0 + 2.0**-14, 0.0])
def test_the_largest_values_are_in_the_range(value: float) -> None:
    assert_exact(plain(["x = -x", "x, y = y, x"]), pair(value, -value), {}, every_layer=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_no_number(strategy: str, value: float) -> None:
    stage = plain(DOUBLING)
    stage.backward = strategy
    text = message(stage, *pair(value))
    assert re.search("before the first layer: stream `x` reached (nan|inf)", text)
    assert "It is no number" in text
    assert "exact: " not in text.split("It is no number")[1]
    inside = plain(["y = -y", "x += F(y)/(y - 1/2)"])
    inside.backward = strategy
    text = message(inside, *pair(1.0, -0.5))  # 0.46/0
    assert re.search("at layer 0: stream `x` reached (nan|inf)", text)


@pytest.mark.parametrize("strategy", ["store", "checkpoint"])
def test_updates_without_an_inverse_are_watched(strategy: str) -> None:
    stage = plain(["x = 3/2*x + 3*F(x) - y"], backward="store")
    stage.backward = strategy
    assert re.search("at layer [0-3]: stream `x` reached", message(stage, *pair(900.0)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("program", ["sums", "bits", "remainders", "indices", "gauge"])
def test_an_empty_batch(program: str, strategy: str) -> None:
    update, constants = EDGES[program]
    stage, nothing = plain(update, constants, depth=40), torch.empty(0, 2)
    found = one_pass(stage, (nothing, nothing), {}, strategy)
    assert all(out.shape == (0, 2) for out in found.outputs)


def test_nothing_is_left_behind_by_an_error() -> None:
    """The next pass is not judged by the last."""
    stage = plain(DOUBLING)
    message(stage, *pair(1e4))
    assert_exact(stage, pair(1.0), {}, every_layer=False)


NEAR = st.one_of(
    st.floats(-1023.9, 1023.9), st.floats(800, 1023.999), st.floats(400, 520), st.floats(-2, 2)
)


@pytest.mark.parametrize("program", EDGES)
@settings(RANDOM, max_examples=25)
@given(st.lists(NEAR, min_size=24, max_size=24), st.integers(1, 4))
def test_exact_or_refused(program: str, values: list[float], depth: int) -> None:
    """Near the limit a pass either comes back bit for bit, or is an error."""
    update, constants = EDGES[program]
    stage = plain(update, constants, depth=depth)
    x, y = grid_of(stage).rounded(torch.tensor(values).view(2, 6, 2))
    for streams in zip(x.split(1), y.split(1), strict=True):
        try:
            with torch.no_grad():
                stage(*streams)
        except RangeError:
            with pytest.raises(RangeError):
                one_pass(stage, streams, {})
        else:
            with torch.no_grad():
                assert_inverse(stage, streams, {})


@pytest.mark.parametrize("factor", ["2.55", "3/2", "-3", "g", "exp(tanh(y/500))"])
def test_what_cancels_within_an_update(factor: str) -> None:
    """s*t alone is past the range, and s*t + r is not."""
    constants = {"g": {"learn": 2.5, "within": [2, 3]}} if factor == "g" else {}
    stage = plain([f"x = {factor}*x - {factor}*y", "x, y = y, x"], constants, depth=1)
    streams = streams_on_grid(stage, 2000)
    x = streams[0].clamp(-1, 1) * 60 + 900
    x = grid_of(stage).rounded(x)
    y = grid_of(stage).rounded(x + streams[1])
    with torch.no_grad():
        assert_inverse(stage, (x, y), {})


def test_scales_that_are_smaller_in_evaluation() -> None:
    """A coefficient drawn in training may have another value in evaluation: what holds the stream
    has to hold it there too, or the inverse is refused."""
    for evaluate in (0.2, 0.01, 1e-4):
        for updates in (["y = d*y + F(x)", "x += F(y)"], ["y = d*y + F(x)", "x = d*x + F(y)"]):
            gamma = {"draw": [0.9, -0.8], "per": "sample", "evaluate": evaluate}
            stage = plain(updates, {"d": gamma}, depth=40).eval()
            with torch.no_grad():
                assert_inverse(stage, streams_on_grid(stage, 50), {})


def test_scales_that_are_larger_in_evaluation() -> None:
    """The grid does not grow coarser with them."""
    gamma = {"draw": [0.9, -0.8], "per": "sample", "evaluate": 1.25}
    stage = plain(["y = d*y - F(x)/4", "x += F(y)/9"], {"d": gamma}, depth=20).eval()
    streams = tuple(grid_of(stage).rounded(s / 64) for s in streams_on_grid(stage, 50))
    with torch.no_grad():
        assert_inverse(stage, streams, {})
        wanted = in_floats(stage)(*(s.double() for s in streams))
        for found, exactly in zip(stage(*streams), wanted, strict=True):
            assert (found - exactly).abs().max() < 0.02 * exactly.abs().max()


def test_no_preimage_is_larger_than_its_form_allows() -> None:
    """1/50 as float32 is smaller than 1/50, and what rounds to one value may be 51."""
    for scale in (0.04, 0.02, 0.01):
        stage = plain(["y = s*y + F(x)", "x = s*x + F(y)"], {"s": scale})
        assert forms(stage) == {"Monotone"}
        exactly = float(torch.tensor(scale, dtype=torch.float32))
        largest = {c.form.largest for layer in stage.layers for c in layer.chosen}  # type: ignore[union-attr]
        images = torch.arange(-int(2**24 * scale), int(2**24 * scale)).double()
        first = ((images - 0.5) / exactly).ceil()
        count = int((((images + 0.5) / exactly).ceil() - first).max())
        assert min(largest) >= count
        assert isinstance(stage.layers[0].chosen[0].form, Monotone)  # type: ignore[union-attr]


# Information -------------------------------------------------------------------------------------


def test_an_inverse_wants_its_information() -> None:
    stage = plain(["x = 9/10*x + y", "y = 9/10*y + x"])
    outputs = stage(*pair(1.0))
    with pytest.raises(RuntimeError, match="and inverse what forward has made of it"):
        stage.inverse(*outputs)
    without = plain(["x = -x + y", "y += x"])
    for a, b in zip(without.inverse(*without(*pair(1.0))), pair(1.0), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("update", [["y = 0.9*y + x", "x += y"], ["x = 0.9*x + y", "y = 0.9*y"]])
def test_information_of_another_pass_is_refused(update: list[str]) -> None:
    """A gauge that is there already would change what the stage computes."""
    stage, information = plain(update), Information()
    with torch.no_grad():
        stage(*pair(1.0), information=information)
        with pytest.raises((RuntimeError, ValueError), match="empty"):
            stage(*pair(2.0), information=information)


def test_information_is_measured() -> None:
    stage = plain(["x = 1/2*x + F(y)", "y = 9/10*y + F(x)", "x, y = y, x"], depth=50)
    information = assert_inverse(stage, streams_on_grid(stage, 10), {})
    assert information.nbytes == 20 * (math.ceil(50 / 8) + 8)
    assert abs(information.bits_per_element() - 50 * (1 + math.log2(10 / 9))) < 3
