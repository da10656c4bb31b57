"""From a network's input to what reaches its head, and back: what is checked, and what is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import network

from compiler.body import body, body_obstacles, invert_body
from compiler.network import Network

PAIR = {"x": "chunk(input, 1, 2)", "y": "chunk(input, 2, 2)"}
TANH = [{"linear": "channels"}, "tanh"]
HALVES: dict[str, Any] = {
    "depth": 2,
    "streams": PAIR,
    "functions": {"F": TANH, "G": TANH},
    "output": "concat(x, y)",
}
ADDED = {**HALVES, "update": ["x += F(y)", "y += G(x)"]}
MOMENTUM = ["x = gamma*x + (1 - gamma)*F(y)", "y += G(x)"]
WARMING = {
    **HALVES,
    "constants": {"gamma": "0.9*progress"},
    "update": MOMENTUM,
    "backward": {"reversible": {"from": 0.25}},
}
EXACT = {**HALVES, "constants": {"gamma": 0.9}, "update": MOMENTUM, "arithmetic": "exact"}
DRAWN = {
    **HALVES,
    "constants": {"gamma": {"draw": [0.5, 0.9], "evaluate": 0.7}},
    "update": MOMENTUM,
}


def tokens(*sizes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*sizes, generator=generator, dtype=torch.float64)


def assert_returns(model: Network, **side: torch.Tensor) -> None:
    value = tokens(3, 5, 6)
    with torch.no_grad():
        features = body(model, value, **side)
        assert torch.equal(model.head(features), model(value, **side))
        back = invert_body(model, features, **side)
    torch.testing.assert_close(back, value, rtol=0, atol=1e-10)


def test_inputs_that_the_network_does_not_take_are_refused() -> None:
    model = network(ADDED)
    assert_returns(model)
    with pytest.raises(ValueError, match=r"this network takes \(batch, 5, 6\), found \(3, 4, 6\)"):
        body(model, tokens(3, 4, 6))
    with pytest.raises(TypeError, match="this network: the side input `time` is unknown"):
        body(model, tokens(3, 5, 6), time=tokens(3))
    with pytest.raises(ValueError, match=r"reaches the head is \(batch, 5, 6\), found \(3, 5, 8\)"):
        invert_body(model, tokens(3, 5, 8))
    with pytest.raises(TypeError, match="this network: the side input `time` is unknown"):
        invert_body(model, tokens(3, 5, 6), time=tokens(3))


def test_side_inputs_are_those_of_the_forward_pass() -> None:
    stage = {**ADDED, "update": ["x += F(y) + shift", "y += G(x)"]}
    model = network(stage, side={"shift": {"tokens": [5, 3]}})
    assert_returns(model, shift=tokens(3, 5, 3))
    with pytest.raises(TypeError, match="the side input `shift` is missing"):
        invert_body(model, tokens(3, 5, 6))
    with pytest.raises(
        ValueError, match=r"the side input `shift` is \(3, 5, 3\), found \(2, 5, 3\)"
    ):
        invert_body(model, tokens(3, 5, 6), shift=tokens(2, 5, 3))


def test_there_is_an_inverse_from_a_progress_on() -> None:
    model = network(WARMING)
    assert body_obstacles(model.plan) == ()
    reason = "`trunk` has no inverse before training's progress is 0.25, and it is 0.1"
    model.set_progress(0.1)
    with pytest.raises(ValueError, match=reason):
        invert_body(model, tokens(3, 5, 6))
    model.set_progress(0.25)
    assert_returns(model)


def test_what_exact_updates_have_kept_is_not_in_features() -> None:
    model = network(EXACT, torch.float32)
    reason = (
        "stage `trunk`: its exact inverse reads what updates have kept, and features do not hold "
        "that"
    )
    assert body_obstacles(model.plan) == (reason,)
    with pytest.raises(ValueError, match="its exact inverse reads what updates have kept"):
        invert_body(model, tokens(3, 5, 6).float())


def test_drawn_coefficients_are_known_in_evaluation() -> None:
    model = network(DRAWN)
    with pytest.raises(ValueError, match="coefficients are drawn in training: call eval"):
        invert_body(model, tokens(3, 5, 6))
    assert_returns(model.eval())


def test_every_reason_is_given() -> None:
    model = network({**WARMING, "output": "x"})
    with pytest.raises(ValueError, match="y cannot be told from the output `x`") as raised:
        invert_body(model, tokens(3, 5, 3))
    assert "has no inverse before training's progress is 0.25" in str(raised.value)
