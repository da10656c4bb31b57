"""Side inputs: read by functions and updates, with gradients, whatever the strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_stage import shown
from one_stage import spec as one_spec
from small_networks import STRATEGIES, error
from torch import Tensor
from torch.nn import functional

import archspec
from archspec.diagnostics import SpecError
from compiler.network import Network
from compiler.summary import summarise
from compiler.verify import verify

FUNCTIONS: dict[str, Any] = {
    "F": ["layer_norm", {"attention": {"heads": 2, "masked": True}}],
    "G": ["layer_norm", "modulate", {"mlp": 2}],
}
SIDE: dict[str, Any] = {
    "mask": {"tokens": [5, 5]},
    "time": {"features": [3]},
    "pull": {"tokens": [5, 8]},
}
SIDE_OF_TWO = {name: SIDE[name] for name in ("mask", "pull")}
UPDATE = ["x += F(y, mask)", "k := pull*tanh(x)", "y = y*exp(tanh(pull)) + G(x, time) + k"]


def spec(update: Any = UPDATE, side: Any = SIDE, **stage: Any) -> dict[str, Any]:
    called = {name: f for name, f in FUNCTIONS.items() if f"{name}(" in str(update)}
    return one_spec(update, functions=called, depth=3, **stage) | {"side": side}


def network(strategy: str, **stage: Any) -> Network:
    torch.manual_seed(0)
    model = archspec.build(spec(**stage)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.set_backward(strategy)


def given(names: Any = SIDE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).requires_grad_()

    side = {"mask": random(4, 5, 5), "time": random(4, 3), "pull": random(4, 5, 8)}
    return {name: side[name] for name in names}


def reference(model: Network, x: Tensor, mask: Tensor, time: Tensor, pull: Tensor) -> Tensor:
    """The same equations in plain PyTorch."""

    def attend(F: Any, tokens: Tensor) -> Tensor:
        attention, count = F.attention, tokens.shape[1]
        joined = attention.query_key_value(F.layer_norm(tokens))
        q, k, v = (part.view(-1, count, 2, 4).transpose(1, 2) for part in joined.chunk(3, -1))
        scores = q @ k.mT / 2 + mask[:, None]
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(tokens.shape)
        result: Tensor = attention.project(mixed)
        return result

    def modulate(G: Any, tokens: Tensor) -> Tensor:
        scale, shift = G.modulate.project(time)[:, None].chunk(2, -1)
        result: Tensor = G.mlp(G.layer_norm(tokens) * (1 + scale) + shift)
        return result

    y = x
    for layer in model.stages[0].layers:
        x = x + attend(layer.F, y)
        k = pull * torch.tanh(x)
        y = y * torch.exp(torch.tanh(pull)) + modulate(layer.G, x) + k
    result: Tensor = model.head(torch.cat([x, y], -1))
    return result


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("needing", [("mask", "time", "pull"), ("time",), ()])
def test_gradients_flow_into_side_inputs(strategy: str, needing: tuple[str, ...]) -> None:
    model, side = network(strategy), given()
    for name, value in side.items():
        value.requires_grad_(name in needing)
    x = torch.randn(4, 5, 8, dtype=torch.float64, requires_grad=True)
    wanted = [x, *(side[name] for name in needing), *model.parameters()]
    found = torch.autograd.grad(model(x, **side).square().sum(), wanted)
    right = torch.autograd.grad(reference(model, x, **side).square().sum(), wanted)
    least = 1e-3 * max(float(g.abs().max()) for g in right)
    assert max(error(f, r, least) for f, r in zip(found, right, strict=True)) < 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_side_inputs_may_be_made_by_other_modules(strategy: str) -> None:
    """The graph before a side input is one, however often layers read it."""
    embed = torch.nn.Linear(2, 3).double()
    time = torch.randn(4, 2, dtype=torch.float64)
    side = given()

    def run(which: str) -> list[Tensor]:
        model = network(which)
        x = torch.linspace(-1, 1, 160, dtype=torch.float64).view(4, 5, 8).sin()
        loss = model(x, **{**side, "time": torch.tanh(embed(time))}).square().sum()
        return list(torch.autograd.grad(loss, [*embed.parameters(), *model.parameters()]))

    for found, wanted in zip(run(strategy), run("store"), strict=True):
        assert error(found, wanted, 1e-3) < 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_masks_hide_what_they_should(strategy: str) -> None:
    stage: dict[str, Any] = {"update": "x += F(y, mask); y += x"}
    for sizes, shape in (({"tokens": [5, 5]}, (4, 5, 5)), ({"features": [5]}, (4, 5))):
        model = archspec.build(spec(**stage, side={"mask": sizes})).double().set_backward(strategy)
        mask = torch.ones(shape, dtype=torch.bool)
        mask[..., 3] = False  # nobody looks at token 3
        x = torch.randn(4, 5, 8, dtype=torch.float64)
        streams = [s.requires_grad_() for s in (x.clone(), x.clone())]
        out = model.stages[0](*streams, mask=mask)
        (gradient,) = torch.autograd.grad(out[0][:, 0].sum(), streams[1], retain_graph=True)
        assert gradient[:, 4].any()
        assert not gradient[:, 3].any()
        with torch.no_grad():
            back = model.stages[0].inverse(*out, mask=mask)
        assert max(error(a, b) for a, b in zip(back, streams, strict=True)) < 1e-12


def test_causal_attention_is_that_of_torch() -> None:
    model = archspec.build(spec("x += F(y, mask)", {"mask": SIDE["mask"]})).double()
    attention = model.stages[0].layers[0].F.attention
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = (
        part.view(2, 5, 2, 4).transpose(1, 2) for part in attention.query_key_value(x).chunk(3, -1)
    )
    causal = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    wanted = attention.project(causal.transpose(1, 2).reshape(x.shape))
    mask = torch.ones(5, 5).tril().bool().expand(2, -1, -1)
    assert error(attention(x, mask), wanted) < 1e-12


@pytest.mark.parametrize("strategy", ["checkpoint", "reversible"])
def test_side_inputs_changed_before_backward(strategy: str) -> None:
    model, side = network(strategy), {n: s.detach() for n, s in given().items()}
    loss = model(torch.randn(4, 5, 8, dtype=torch.float64), **side).sum()
    side["time"].zero_()
    with pytest.raises(RuntimeError, match="changed in place between"):
        loss.backward()


def test_side_inputs_that_are_not_given() -> None:
    model, side = network("reversible"), given()
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"`mask` is missing; side inputs: mask, time, pull"):
        model(x)
    with pytest.raises(TypeError, match=r"this network: the side input `maks` is unknown"):
        model(x, **side, maks=side["mask"])
    with pytest.raises(ValueError, match=r"`time` is \(4, 3\), found \(4, 2\)"):
        model(x, **{**side, "time": side["time"][:, :2]})
    with pytest.raises(TypeError, match=r"stage `trunk`: the side input `mask` is missing"):
        model.stages[0].inverse(x, x)


@pytest.mark.parametrize(
    ("update", "side", "message"),
    [
        (UPDATE, SIDE | {"other": {"features": [1]}}, "E203 the side input `other` is not used"),
        (UPDATE, SIDE | {"x": {"features": [1]}}, "E204 `x` is already a side input"),
        ("x += F(y, mask)", {"mask": {"tokens": [5, 4]}}, "E401 `attention` does not fit here"),
        ("x += G(y, time)", {"time": {"tokens": [5, 4]}}, "expected features, found 5 tokens × 4"),
        ("x += G(y, pull)", {"depth": {"features": [4]}}, "E204 `depth` has a meaning of its own"),
        ("x += F(y)", SIDE, "E401 `attention` does not fit here: there is no further argument"),
        ("x += time*G(y, time)", {"time": {"features": [4]}}, "E402 `time` is 4 features"),
        ("x += G(y, time); time = x", {"time": {"features": [4]}}, "E205 `time` is a side input"),
        ("x = x*pull", {"pull": SIDE["pull"]}, "E303 the factor `pull` of `x` must stay away"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_side_inputs(update: Any, side: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        archspec.build(spec(update, side))
    assert message in shown(caught.value)


def test_a_network_with_side_inputs_is_summarised() -> None:
    """Growth leaves side inputs out, and so a scale that reads one has none."""
    plain = archspec.build(spec("x += pull*F(y, mask); y = 0.5*y + pull + x", side=SIDE_OF_TWO))
    (stage,) = summarise(plain, verify(plain)).stages
    assert stage.inverse_growth is not None
    scaled = archspec.build(spec())
    (stage,) = summarise(scaled, verify(scaled)).stages
    assert stage.inverse_growth is None
