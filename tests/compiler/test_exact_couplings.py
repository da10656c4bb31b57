"""Every coupling in exact arithmetic: the streams before every layer, and every gradient, bit for
bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from coupling_equations import COUPLINGS, FUNCTIONS, NOT_INVERTIBLE
from exact_stages import (
    TINY,
    assert_exact,
    exact_stage,
    forms,
    grid_of,
    in_floats,
    one_pass,
    streams_on_grid,
)

from compiler.stage import Stage

INVERTIBLE = [c for c in COUPLINGS if c not in NOT_INVERTIBLE]
NORMED: list[Any] = ["layer_norm", {"linear": "channels"}, "tanh"]
LONG = {"reversible_heun": 0.05, "affine": 0.02, "asynchronous_leapfrog": 0.2}
"""What functions are multiplied by, so that streams stay in the range."""


def coupled(coupling: str, depth: int, constants: Any = None, **keys: Any) -> Stage:
    """A stage of a named coupling on unequal streams."""
    layers = keys.pop("layers", [*NORMED, {"scale": LONG.get(coupling, 1.0)}])
    settings = {name: keys.pop(name) for name in ("input", "dtype") if name in keys}
    return exact_stage(
        {
            "depth": depth,
            "coupling": coupling,
            "functions": dict.fromkeys(FUNCTIONS.get(coupling, "F"), layers),
            "constants": constants or {},
            **keys,
        },
        **settings,
    )


FORMS = {
    "affine": {"Monotone"},
    "bdia": {"Parity"},
    "bdia_transformer": {"Parity"},
    "momentum": {"Gauge", "Unit"},
    "momentum_one": {"Gauge", "Unit"},
    "momentum_shared": {"Gauge", "Unit"},
    "momentum_pair": {"Remainder", "Unit"},
    "momentum_nesterov": {"Remainder", "Unit"},
}


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 48])
@pytest.mark.parametrize("coupling", INVERTIBLE)
def test_couplings(coupling: str, depth: int) -> None:
    stage = coupled(coupling, depth)
    assert forms(stage) == FORMS.get(coupling, {"Unit"})
    assert_exact(stage)


GAMMAS: dict[str, Any] = {
    "1/2": 0.5,
    "9/10": 0.9,
    "19/20": 0.95,
    "99/100": 0.99,
    "-9/10": -0.9,
    "-1/2": -0.5,
    "-0.83": -0.83,
    "0.3": 0.3,
    "1/16": "1/16",
    "one": 1,
    "larger than one": 1.03,
    "learned": {"learn": 0.9, "within": [0.5, 0.99]},
    "learned, negative": {"learn": -0.8, "within": [-0.99, -0.6]},
    "learned by channel": {"learn": 0.85, "within": [0.5, 0.99], "per": "channel"},
    "drawn, two signs": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0.5},
    "drawn, several sizes": {"draw": [0.9, -0.4, 0.65, 1.0], "per": "sample", "evaluate": 0.8},
    "by layer": "0.9 - 0.4*layer/depth",
    "rationals by layer": "(layer + 1)/(layer + 2)",
    "rationals by layer, falling": "(depth - layer)/(depth - layer + 1)",
    "by progress": "0.6 + 0.35*progress",
}


@pytest.mark.parametrize("depth", [1, 7, 48])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("coupling", ["momentum", "momentum_pair"])
def test_gammas(coupling: str, gamma: str, depth: int) -> None:
    """With coefficients away from where they started."""
    stage = coupled(coupling, depth, {"gamma": GAMMAS[gamma]})
    if gamma == "by progress":
        stage.set_progress(0.37)
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            if "coefficients" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    assert_exact(stage, every_layer=gamma != "one")  # it takes F away, and nothing is replayed


@pytest.mark.parametrize(
    ("coupling", "gamma"),
    [
        ("momentum", 0.95),
        ("momentum_pair", 0.9),
        ("momentum_pair", {"learn": 0.9, "within": [0.5, 0.99], "per": "channel"}),
        ("momentum", {"draw": [0.5, -0.8], "per": "sample", "evaluate": 0.5}),
    ],
)
def test_two_hundred_layers(coupling: str, gamma: Any) -> None:
    assert_exact(coupled(coupling, 200, {"gamma": gamma}, **TINY))


DEEP: dict[str, tuple[Any, Any]] = {
    "momentum": ({"gamma": {"learn": 0.9, "within": [0.5, 0.99]}}, 12),
    "bdia": ({}, 9),
    "leapfrog": ({}, 8),
}


@pytest.mark.parametrize("coupling", DEEP)
def test_a_thousand_layers(coupling: str) -> None:
    constants, bits = DEEP[coupling]
    stage = coupled(coupling, 1000, constants, arithmetic={"exact": bits}, **TINY)
    assert_exact(stage, streams_on_grid(stage, 2), strategies=(), inverse=False)


@pytest.mark.parametrize("depth", [30, 48, 200])
def test_failure_02_momentum_a_half_at_any_depth(depth: int) -> None:
    """A published exact implementation is 42% wrong at 30 layers, and overflows at 48."""
    branch: list[Any] = [{"linear": "channels"}, "tanh", {"scale": 3 / depth}]
    stage = coupled("momentum", depth, {"gamma": 0.5}, layers=branch)
    assert forms(stage) == {"Parity", "Unit"}
    exact = assert_exact(stage)
    # They are the gradients of ordinary arithmetic, up to the rounding of the streams.
    streams = [stream.double() for stream in streams_on_grid(stage)]
    wanted = one_pass(in_floats(stage), streams, strategy="store")
    for name, gradient in wanted.gradients.items():
        assert gradient is not None
        found = exact.gradients[name]
        assert found is not None
        assert (found - gradient).norm() < 6 * depth * grid_of(stage).unit * gradient.norm()


@pytest.mark.parametrize("gamma", [0.9, 0.5, {"learn": 0.9, "within": [0.5, 0.99]}])
@pytest.mark.parametrize("coupling", ["momentum", "momentum_pair", "additive", "bdia"])
def test_in_double_precision(coupling: str, gamma: Any) -> None:
    constants = {"gamma": gamma} if "momentum" in coupling else {}
    assert_exact(coupled(coupling, 7, constants, dtype=torch.float64))


@pytest.mark.parametrize("bits", [0, 5, 12, 18])
@pytest.mark.parametrize("coupling", INVERTIBLE)
def test_any_grid(coupling: str, bits: int) -> None:
    """However coarse."""
    assert_exact(coupled(coupling, 5, arithmetic={"exact": bits}))


@pytest.mark.parametrize("coupling", INVERTIBLE)
def test_a_batch_of_one(coupling: str) -> None:
    stage = coupled(coupling, 4)
    assert_exact(stage, streams_on_grid(stage, 1))


@pytest.mark.parametrize("coupling", INVERTIBLE)
def test_a_round_trip_from_off_the_grid(coupling: str) -> None:
    """Streams are rounded as they enter, with the gradient of the identity."""
    stage = coupled(coupling, 3)
    streams = [stream + 0.3 * 2.0**-14 for stream in streams_on_grid(stage)]
    found = one_pass(stage, streams, {"draws": stage.draw(streams[0])}, "store")
    assert all(g is not None and g.any() for n, g in found.gradients.items() if "stream" in n)
    on_grid = streams_on_grid(stage)
    given = {"draws": stage.draw(on_grid[0])}
    wanted = one_pass(stage, on_grid, given, "reversible")
    rounded = one_pass(stage, streams, given, "reversible")
    for a, b in zip(rounded.outputs, wanted.outputs, strict=True):
        assert torch.equal(a, b)
    for name, gradient in wanted.gradients.items():
        assert gradient is not None
        assert torch.equal(gradient, rounded.gradients[name])  # type: ignore[arg-type]
