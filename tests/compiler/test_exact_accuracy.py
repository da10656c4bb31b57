"""What exact arithmetic computes is near what ordinary arithmetic does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_programs import LEARNED, grads
from exact_stages import Pass, exact_stage, grid_of, in_floats, one_pass, streams_on_grid
from small_networks import STRATEGIES

from compiler.information import Information

BRANCH: list[Any] = [{"linear": "channels"}, "tanh", {"scale": 0.5}]
COUPLED = {
    "additive": "FG",
    "momentum": "F",
    "momentum_pair": "FG",
    "bdia": "F",
    "affine": "STUV",
    "leapfrog": "F",
    "midpoint": "F",
    "verlet": "FG",
    "reversible_heun": "F",
    "asynchronous_leapfrog": "F",
}


def relative(found: Pass, wanted: Pass) -> float:
    """The largest error of an output or a gradient, relative to its norm."""
    pairs = list(zip(found.outputs, wanted.outputs, strict=True))
    for name, gradient in wanted.gradients.items():
        other = found.gradients[name]
        assert (other is None) == (gradient is None)
        if other is not None and gradient is not None:
            pairs.append((other, gradient))
    return max(float((a - b).norm() / b.norm().clamp(min=1e-3)) for a, b in pairs)


@pytest.mark.parametrize("bits", [10, 14, 18])
@pytest.mark.parametrize("coupling", COUPLED)
def test_near_ordinary_arithmetic(coupling: str, bits: int) -> None:
    """As near as the grid allows: 16 times nearer on one 16 times finer."""
    functions = dict.fromkeys(COUPLED[coupling], BRANCH)
    written = {"depth": 4, "coupling": coupling, "functions": functions}
    stage = exact_stage({**written, "arithmetic": {"exact": bits}})
    streams = streams_on_grid(stage)
    given = {"draws": stage.draw(streams[0])}
    doubles = [{n: v.double() for n, v in drawn.items()} for drawn in given["draws"]]
    other = one_pass(
        in_floats(stage), [s.double() for s in streams], {"draws": doubles}, strategy="store"
    )
    assert relative(one_pass(stage, streams, given), other) < 60 * grid_of(stage).unit


@pytest.mark.parametrize("learned", [LEARNED, {"learn": -0.8, "within": [-0.99, -0.6]}])
@pytest.mark.parametrize("coupling", ["momentum", "momentum_pair"])
def test_gradients_of_learned_coefficients(coupling: str, learned: dict[str, Any]) -> None:
    functions = dict.fromkeys(COUPLED[coupling], BRANCH)
    written = {"depth": 6, "coupling": coupling, "functions": functions}
    stage = exact_stage({**written, "constants": {"gamma": learned}})
    streams = streams_on_grid(stage)
    found = one_pass(stage, streams).gradients
    wanted = one_pass(in_floats(stage), [s.double() for s in streams], strategy="store").gradients
    coefficients = [name for name in wanted if "coefficients" in name]
    assert len(coefficients) == 6
    for name in coefficients:
        a, b = found[name], wanted[name]
        assert a is not None
        assert b is not None
        assert b.any()
        assert (a - b).norm() < 0.005 * b.norm()


def test_evaluation_of_bdia_is_the_ordinary_network_on_the_grid() -> None:
    functions = {"F": ["layer_norm", {"mlp": 2}]}
    bdia = exact_stage({"depth": 5, "coupling": "bdia", "functions": functions}).eval()
    plain = exact_stage(
        {
            "depth": 5,
            "streams": {"x": "input"},
            "functions": functions,
            "update": ["x = x + F(x)"],
            "output": "x",
            "backward": "store",
        }
    ).eval()
    plain.load_state_dict(bdia.state_dict())
    _, x = streams_on_grid(bdia)
    with torch.no_grad():
        for given in (None, Information()):
            before, after = bdia(x, x, information=given)
            assert torch.equal(after, *plain(x))
    assert not torch.equal(before, after)
    with pytest.raises(RuntimeError, match="no inverse in evaluation"):
        bdia.inverse(before, after, information=Information())
    plain(x)[0].square().sum().backward()
    wanted = grads(plain)
    for strategy in STRATEGIES:
        bdia.backward = strategy
        bdia(x, x)[1].square().sum().backward()
        for a, b in zip(grads(bdia), wanted, strict=True):
            assert b.any()
            assert torch.equal(a, b)
