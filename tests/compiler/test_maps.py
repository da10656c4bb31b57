"""Invertible maps of one stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_stage import shown
from one_stage import spec as one_spec
from small_networks import STRATEGIES, assert_same_outputs, error, gradient_error, outcome
from small_networks import spec as small_spec
from torch import Tensor

import archspec
from archspec.diagnostics import SpecError
from compiler.functions import maps
from compiler.network import Network

CHANNELS = {"tokens": -1, "features": -1, "image": -3}
INPUTS: dict[str, Any] = {"tokens": [5, 6], "features": [6], "image": [6, 4, 8]}
FUNCTIONS: dict[str, Any] = {
    "tokens": {"F": ["layer_norm", {"mlp": 2}], "G": [{"linear": "channels"}, "tanh"]},
    "features": {"F": ["layer_norm", {"mlp": 2}], "G": [{"linear": "channels"}, "tanh"]},
    "image": {"F": [{"conv": {}}, "tanh"], "G": [{"conv": {}}, {"group_norm": 2}]},
}
UPDATE = ["x = A(x)", "x += F(y)", "y = W(y)", "y = 0.9*y + G(x)", "x, y = y, x", "x = W(x)"]


def network(kind: str, strategy: str, **stage: Any) -> Network:
    torch.manual_seed(0)
    whole: dict[str, Any] = {
        "depth": 3,
        "streams": {"x": "input", "y": "input"},
        "functions": FUNCTIONS[kind],
        "maps": {"A": "actnorm", "W": "invertible_linear"},
        "update": UPDATE,
        "output": "x + y",
        **stage,
    }
    model = archspec.build(small_spec(whole, {kind: INPUTS[kind]})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.set_backward(strategy)


def streams(kind: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = (3, *INPUTS[kind])
    return [torch.randn(sizes, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("share", [False, True])
def test_gradients(kind: str, strategy: str, share: bool) -> None:
    stage = network(kind, strategy, share=share).stages[0]

    def by_hand(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for layer in stage.layers:
            own = stage.shared if share else layer
            x = matrix_actnorm(own.A, x)
            x = x + own.F(y)
            y = matrix(own.W, y)
            y = 0.9 * y + own.G(x)
            x, y = y, x
            x = matrix(own.W, x)
        return x, y

    def matrix(W: Any, value: Tensor) -> Tensor:
        lower, upper = W.factors()
        weight = W.permutation @ lower @ upper
        return torch.einsum("ij,bj...->bi...", weight, value.movedim(CHANNELS[kind], 1)).movedim(
            1, CHANNELS[kind]
        )

    def matrix_actnorm(A: Any, value: Tensor) -> Tensor:
        scale = torch.exp(3 * torch.tanh(A.logarithm / 3))
        moved = value.movedim(CHANNELS[kind], -1) * scale + A.shift
        return moved.movedim(-1, CHANNELS[kind])

    found = outcome(stage, streams(kind))
    wanted = outcome(by_hand, streams(kind), stage)
    assert gradient_error(found, wanted) < 1e-12
    assert_same_outputs(
        found, outcome(network(kind, "store", share=share).stages[0], streams(kind))
    )


@pytest.mark.parametrize("kind", INPUTS)
def test_inverse(kind: str) -> None:
    stage, start = network(kind, "reversible").stages[0], streams(kind)
    with torch.no_grad():
        back = stage.inverse(*stage(*start))
    assert max(error(a, b) for a, b in zip(back, start, strict=True)) < 1e-12


def test_each_map_undoes_itself() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    for map in (
        maps.ActNorm(8, -3),
        maps.InvertibleLinear(8, -3),
        maps.Squeeze(),
        maps.Unsqueeze(),
    ):
        map.double()
        assert error(map.inverse(map(image)), image) < 1e-13
        assert error(map(map.inverse(image)), image) < 1e-13


def test_a_new_linear_map_is_nearly_a_rotation() -> None:
    torch.manual_seed(0)
    W = maps.InvertibleLinear(24, -1)
    lower, upper = W.factors()
    weight = W.permutation @ lower @ upper
    assert error(weight.mT @ weight, torch.eye(24)) < 0.3


def test_autocast_leaves_maps_alone() -> None:
    """Streams keep single precision, and what maps do to them is undone to single precision."""
    model = network("tokens", "reversible").float()
    start = [s.float() for s in streams("tokens")]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for W in (model.stages[0].layers[0].W, model.stages[0].layers[0].A):
            mapped = W(start[0])
            assert mapped.dtype == torch.float32
            assert error(W.inverse(mapped), start[0]) < 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_squeezes(strategy: str) -> None:
    """A stage of one layer may change a stream's shape; a longer one changes it back."""
    for stage in (
        {"depth": 1, "update": ["x = S(x)", "y = S(y)", "x += F(y)"]},
        {"depth": 2, "update": ["x = S(x)", "y = S(y)", "x += F(y)", "x = U(x)", "y = U(y)"]},
    ):
        names = {"S": "squeeze", "U": "unsqueeze"}
        used = {n: kind for n, kind in names.items() if any(n in line for line in stage["update"])}  # type: ignore[union-attr]
        functions = {"F": [{"conv": {}}, "tanh"]}
        model = network("image", strategy, **stage, maps=used, functions=functions)
        one, start = model.stages[0], streams("image")
        assert gradient_error(
            outcome(one, start), outcome(network("image", "store", **stage, maps=used,
                                                 functions=functions).stages[0], start)
        ) < 1e-12  # fmt: skip
        with torch.no_grad():
            out = one(*start)
            back = one.inverse(*out)
        assert all(o.shape[1:] == size for o, size in zip(out, one.facts.final.values()))  # noqa: B905
        assert max(error(a, b) for a, b in zip(back, start, strict=True)) < 1e-13
        assert model(torch.randn(2, 6, 4, 8, dtype=torch.float64)).shape == (2, 3)


@pytest.mark.parametrize("strategy", ["checkpoint", "reversible"])
def test_a_map_changed_before_backward(strategy: str) -> None:
    model = network("tokens", strategy)
    loss = model(torch.randn(2, 5, 6, dtype=torch.float64)).sum()
    with torch.no_grad():
        model.stages[0].layers[1].W.lower.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place between"):
        loss.backward()


def test_functional_call_reaches_the_inverse_of_maps() -> None:
    model, x = network("tokens", "reversible"), torch.randn(2, 5, 6, dtype=torch.float64)
    other = {n: (p + 0.1).requires_grad_() for n, p in model.named_parameters()}
    found, wanted = (
        torch.autograd.grad(
            torch.func.functional_call(model.set_backward(how), other, (x,)).square().sum(),
            list(other.values()),
        )
        for how in ("reversible", "store")
    )
    assert max(error(f, w, 1e-3) for f, w in zip(found, wanted, strict=True)) < 1e-12


@pytest.mark.parametrize(
    ("update", "maps", "message"),
    [
        ("x += W(y)", {"W": "invertible_linear"}, "E205 `W` is an invertible map, which rewrites"),
        ("x = W(y); y += x", {"W": "invertible_linear"}, "an update of its own: `x = W(x)`"),
        ("x += F(y)", {"W": "actnorm"}, "E203 the map `W` is never called"),
        ("x = Q(x)", {"Q": "squeeze"}, "E401 `squeeze` does not fit here: expected an image of"),
        ("x = F(x); x += y", {"F": "actnorm"}, "E204 `F` is already a function"),
        ("z = W(z)", {"W": "actnorm"}, "E205 there is no stream `z`"),
        ("k := F(x); x = W(x); y += k", {"W": "actnorm"}, "E304 `k` was computed from `x`"),
        ("x = W(x)", {"W": "actnrom"}, "E106 there is no invertible map `actnrom`"),
    ],
)
def test_what_is_wrong_with_maps(update: str, maps: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        archspec.build(one_spec(update, maps=maps))
    assert message in shown(caught.value)


def test_a_layer_keeps_shapes() -> None:
    stage = {
        "depth": 2,
        "streams": {"x": "input"},
        "functions": {},
        "maps": {"S": "squeeze"},
        "update": ["x = S(x)"],
        "output": "x",
    }
    with pytest.raises(SpecError, match=r"image 4×8×8 before a layer and image 16×4×4\n?.*after"):
        archspec.build(small_spec(stage, {"image": [4, 8, 8]}))
