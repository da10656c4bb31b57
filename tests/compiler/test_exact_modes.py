"""Exact arithmetic beside the rest of PyTorch: maps, transforms, compilation, CUDA, counting."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from small_networks import STRATEGIES, network
from torch import Tensor, nn

import archspec
from compiler.counting import kept_bytes_per_input
from compiler.network import Network

MOMENTUM: dict[str, Any] = {
    "depth": 3,
    "streams": {"x": "input", "v": "zeros"},
    "functions": {"F": ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.2}}]},
    "constants": {"gamma": {"learn": 0.8, "within": [0.5, 0.95], "per": "channel"}},
    "update": ["v = gamma*v + (1 - gamma)*F(x)", "x = x*exp(tanh(v)) + 0.5*v"],
    "output": "x",
    "arithmetic": "exact",
}
MAPPED: dict[str, Any] = {
    "depth": 3,
    "streams": {"x": "input", "y": "input"},
    "functions": {"F": ["layer_norm", {"mlp": 2}]},
    "maps": {"N": "actnorm", "W": "invertible_linear"},
    "update": ["x = N(x)", "y += F(x)", "x = W(x)", "x -= 0.5*y"],
    "output": "x",
    "arithmetic": "exact",
}
IMAGES: dict[str, Any] = {
    **MAPPED,
    "depth": 1,
    "functions": {"F": [{"conv": {}}, "tanh"]},
    "maps": {"N": "actnorm", "W": "invertible_linear", "Q": "squeeze", "P": "squeeze"},
    "update": ["x = N(x)", "x = Q(x)", "y = P(y)", "y += F(x)", "x = W(x)", "x -= 0.5*y"],
}
STAGES = {"momentum": MOMENTUM, "maps": MAPPED, "images": IMAGES}
SIZES = {"images": {"image": [2, 4, 6]}}


def model_of(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Network:
    torch.manual_seed(0)
    found: Network = network({**STAGES[name], **changes}, dtype, input=SIZES.get(name))
    for parameter in found.parameters():  # what starts as zero, or one, shall matter too
        parameter.data += 0.1 * torch.randn_like(parameter)
    return found


def inputs_of(model: Network, batch: int = 4) -> Tensor:
    torch.manual_seed(1)
    dtype = next(model.parameters()).dtype
    return torch.randn(batch, *model.input, dtype=dtype)


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    """Output and all gradients of one step."""
    torch.manual_seed(2)
    value = value.clone().requires_grad_()
    out = model(value)
    return [out, *torch.autograd.grad(out.square().sum(), [value, *model.parameters()])]


def assert_equal(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STAGES)
def test_gradients_of_every_strategy(name: str, dtype: torch.dtype) -> None:
    model = model_of(name, dtype)
    found = [gradients(model.set_backward(s), inputs_of(model)) for s in STRATEGIES]
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


@pytest.mark.parametrize("name", STAGES)
def test_round_trips(name: str) -> None:
    model = model_of(name).eval()
    stage, information = model.stages[0], archspec.Information()
    streams = [(s * 2**14).round() / 2**14 for s in stage.split(inputs_of(model))]
    with torch.no_grad():
        final = stage(*streams, information=information)
        for _ in range(2):  # the information is read, and not used up
            assert_equal(stage.inverse(*final, information=information), streams)


def test_an_inverse_needs_its_information() -> None:
    stage = model_of("momentum").eval().stages[0]
    final = stage(*stage.split(torch.randn(2, 5, 6)))
    with pytest.raises(RuntimeError, match=r"lose bits of the streams.*archspec.Information\(\)"):
        stage.inverse(*final)


@pytest.mark.parametrize("name", STAGES)
def test_close_to_floats(name: str) -> None:
    exact = model_of(name, torch.float64)
    plain = model_of(name, torch.float64, arithmetic="float").set_backward("store")
    plain.load_state_dict(exact.state_dict())
    value = inputs_of(exact)
    for found, wanted in zip(gradients(exact, value), gradients(plain, value), strict=True):
        assert (found - wanted).norm() <= 2e-3 * max(1.0, float(wanted.detach().norm()))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", STAGES)
def test_functional_call(name: str, strategy: str) -> None:
    """A replay computes with the parameters of the forward pass, those of exact maps too."""
    model = model_of(name)
    other = {n: (p + 0.1).detach().requires_grad_() for n, p in model.named_parameters()}
    value, found = inputs_of(model), []
    for how in (strategy, "store"):
        torch.manual_seed(2)
        out = torch.func.functional_call(model.set_backward(how), other, (value,))
        found.append(torch.autograd.grad(out.square().sum(), list(other.values())))
    assert_equal(*found)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
@pytest.mark.parametrize("name", STAGES)
def test_transforms(name: str) -> None:
    """vmap, reverse and forward mode, as autograd does it."""
    model = model_of(name).eval()
    value = inputs_of(model)
    out = model(value)
    mapped = torch.func.vmap(lambda one: model(one[None])[0])(value)
    torch.testing.assert_close(mapped, out)
    vector = torch.randn_like(out)
    wanted = torch.autograd.grad(model.set_backward("store")(value.requires_grad_()), value, vector)
    found = torch.func.vjp(model, value.detach())[1](vector)
    torch.testing.assert_close(found, wanted)
    direction = torch.randn_like(value)
    _, tangent = torch.func.jvp(model, (value.detach(),), (direction,))
    along = (wanted[0] * direction).sum()
    torch.testing.assert_close((tangent * vector).sum(), along, rtol=1e-3, atol=1e-4)


def test_a_range_is_watched_under_vmap() -> None:
    model = model_of("momentum").eval()
    value = inputs_of(model)
    value[2] *= 1e4
    with pytest.raises(archspec.RangeError, match="before the first layer: stream `x` reached"):
        torch.func.vmap(lambda one: model(one[None])[0])(value)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled(strategy: str) -> None:
    torch._dynamo.reset()
    model = model_of("momentum").eval().set_backward(strategy)
    wanted = gradients(model, inputs_of(model))
    found = gradients(torch.compile(model, backend="aot_eager"), inputs_of(model))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


def test_half_precision_does_not_hold_a_grid() -> None:
    model = model_of("momentum").bfloat16()
    with pytest.raises(RuntimeError, match="half precision, which does not hold the grid"):
        model(inputs_of(model))


def test_information_is_freed_with_the_graph() -> None:
    """Counted on fake tensors: streams and one word an element, however deep."""
    few, many = (
        kept_bytes_per_input(archspec.build(_deep(depth)).plan, "reversible") for depth in (8, 16)
    )
    assert few == many
    plain = kept_bytes_per_input(archspec.build(_deep(8, arithmetic="float")).plan, "reversible")
    assert few is not None
    assert plain is not None
    assert few - plain == 8 * 64 * 16  # a word an element, shared by both streams


def _deep(depth: int, **changes: Any) -> dict[str, Any]:
    from small_networks import spec

    stage = {**MOMENTUM, "functions": {"F": ["layer_norm", {"linear": "channels"}]}, "depth": depth}
    stage |= {"constants": {"gamma": 0.95}, "update": ["v = gamma*v + F(x)", "x = 0.95*x + v"]}
    return spec({**stage, **changes}, {"tokens": [64, 16]})


# What must not go unnoticed -----------------------------------------------------------------------


def _information_of(stage: Any, streams: Sequence[Tensor], seed: int = 0) -> tuple[Any, Any]:
    information = archspec.Information()
    with torch.no_grad():
        return stage(*streams, information=information), information


def test_information_of_another_pass_is_refused() -> None:
    stage = model_of("momentum").eval().stages[0]
    one, other = (stage.split(torch.randn(3, 5, 6)) for _ in range(2))
    final, information = _information_of(stage, one)
    _, wrong = _information_of(stage, other)
    with pytest.raises(RuntimeError, match="does not belong to these streams"):
        stage.inverse(*final, information=wrong)
    with pytest.raises(RuntimeError, match="lose bits of the streams"):
        stage.inverse(*final, information=archspec.Information())
    for used in (information, archspec.Information(keeps=False)):
        with pytest.raises(ValueError, match="of another pass, or keeps nothing"):
            stage(*(s.detach().requires_grad_() for s in one), information=used)


def test_a_gauge_of_another_pass_is_refused() -> None:
    stage = network(
        {
            "depth": 4,
            "coupling": "momentum",
            "functions": {"F": [{"linear": "channels"}]},
            "arithmetic": "exact",
        },
        torch.float32,
    ).stages[0]
    one, other = (stage.split(torch.randn(3, 5, 6)) for _ in range(2))
    final, _ = _information_of(stage, one)
    _, wrong = _information_of(stage, other)
    assert wrong.gauged
    with pytest.raises(RuntimeError, match="does not belong to these streams"):
        stage.inverse(*final, information=wrong)


def test_draws_that_are_none_are_refused() -> None:
    stage = network(
        {
            "depth": 2,
            "streams": {"x": "input", "y": "input"},
            "functions": {"F": [{"linear": "channels"}]},
            "constants": {"gamma": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0}},
            "update": ["x = gamma*x + F(y)", "x, y = y, x"],
            "output": "x",
            "arithmetic": "exact",
        },
        torch.float32,
    ).stages[0]
    streams = torch.randn(2, 3, 5, 6).unbind()
    stage(*streams, draws=stage.draw(streams[0]))
    wrong = [{"gamma": torch.full((3, 1, 1), 0.25)} for _ in range(2)]
    with pytest.raises(
        ValueError, match=r"`gamma` is drawn from \(0.5, -0.5\), or 0 in evaluation"
    ):
        stage(*streams, draws=wrong)


def test_scales_past_all_preimages_keep_what_was_kept() -> None:
    """Of 0 alone: all else would leave the range."""
    stage = {
        **MOMENTUM,
        "depth": 2,
        "streams": {"x": "input", "y": "input", "v": "zeros"},
        "functions": {"F": ["layer_norm", {"linear": "channels"}]},
        "update": ["x = gamma*x + F(y)", "v = (1 + exp(20*tanh(9*y)))*v", "y = gamma*y + F(x)"],
        "output": "x + y + v",
    }
    torch.manual_seed(0)
    model = network(stage, torch.float32)
    found = [gradients(model.set_backward(s), inputs_of(model)) for s in STRATEGIES]
    assert all(bool(g.isfinite().all()) for g in found[0])
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


@pytest.mark.parametrize("gamma", [0.9, 1 / 3, 0.33, {"learn": 0.9, "within": [0.5, 0.99]}])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_named_however_deep(gamma: Any, wrong: float) -> None:
    stage = {
        **MOMENTUM,
        "depth": 60,
        "functions": {"F": [{"linear": "channels"}]},
        "constants": {"gamma": gamma},
        "update": ["v = gamma*v + F(x)", "x = gamma*x + v"],
    }
    model = network(stage, torch.float32)
    with torch.no_grad():
        next(iter(model.stages[0].layers[3].parameters())).fill_(wrong)
    with pytest.raises(archspec.RangeError, match=r"at layer 3: stream `v` reached (nan|inf)"):
        model(inputs_of(model))


def test_side_information_is_freed_on_the_way_back() -> None:
    stage = {**MOMENTUM, "depth": 32, "constants": {"gamma": 0.5}}
    stage |= {"update": ["v = gamma*v + F(x)", "x += v"]}
    model = network(stage, torch.float32)
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    for layer in model.stages[0].layers:
        layer.F.register_full_backward_hook(
            lambda *_: alive.append(sum(reference() is not None for reference in kept))
        )
    information = archspec.Information()
    streams = [s.detach().requires_grad_() for s in model.stages[0].split(inputs_of(model))]
    final = model.stages[0](*streams, information=information)
    kept += [weakref.ref(byte) for bits in information.packed.values() for byte, _ in bits.full]
    assert len(kept) == 3
    del information
    torch.stack(final).sum().backward()
    assert alive[0] == 3
    assert alive[-1] == 0


def test_the_default_dtype_is_not_that_of_streams() -> None:
    stage = {**MOMENTUM, "constants": {"gamma": 0.5}, "update": ["v = gamma*v + F(x)", "x += v"]}
    model = network(stage, torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        found = [gradients(model.set_backward(s), inputs_of(model)) for s in STRATEGIES]
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(found[2], found[0])


@pytest.mark.parametrize("gamma", [0.99, 0.9, 0.6])
def test_the_stated_memory_is_what_is_kept(gamma: float) -> None:
    from small_networks import spec

    stage = {
        "depth": 150,
        "streams": {"x": "input", "v": "zeros"},
        "functions": {"F": ["layer_norm", {"linear": "channels"}]},
        "constants": {"gamma": gamma},
        "update": ["v = gamma*v + 0.01*F(x)", "x = gamma*x + v"],
        "output": "x",
    }
    exact, plain = (
        spec({**stage, "arithmetic": a}, {"tokens": [8, 64]}) for a in ("exact", "float")
    )
    model = archspec.build(exact)
    stated, without = (kept_bytes_per_input(archspec.build(s).plan) for s in (exact, plain))
    assert stated is not None
    assert without is not None
    _, information = _information_of(model.stages[0], model.stages[0].split(torch.randn(16, 8, 64)))
    half_a_word = 4 * 8 * 64
    assert abs(stated - without - information.nbytes / 16) <= half_a_word
