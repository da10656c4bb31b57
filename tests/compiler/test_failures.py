"""The twelve ways in which published code for reversible networks goes wrong, each by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from coupling_equations import EQUATIONS
from plain_networks import (
    LEARNED,
    Case,
    Wanted,
    assert_alike,
    assert_as_plain,
    backward,
    gradients,
    loss_of,
    pair,
    streams_of,
    trunk,
    value,
)
from small_networks import error, gradient_error, outcome
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import archspec

REPLAYED = ("checkpoint", "reversible")
replayed = pytest.mark.parametrize("strategy", REPLAYED)


def in_stage(model: Any) -> Wanted:
    streams = [stream.requires_grad_() for stream in streams_of(model)]
    leaving = trunk(model)(*streams)
    backward(leaving)
    found = [stream.grad for stream in streams]
    return [*gradients(trunk(model)), *found, *(out.detach() for out in leaving)]


@replayed
@pytest.mark.parametrize("coupling", ["momentum", "momentum_pair", "affine", "leapfrog", "bdia"])
def test_failure_01_non_additive_coupling(coupling: str, strategy: str) -> None:
    """A backward written for x + F gives other gradients to every other coupling."""
    assert_as_plain(Case(coupling, strategy), in_stage, LEARNED, depth=3)


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_failure_02_exact_arithmetic_that_overflows_in_silence(gamma: float) -> None:
    """At 30 layers the inverse of momentum 0.5 has lost 30 bits of float32, and after 48 would
    overflow integers; here the loss is plain rounding, and checked where the program is built."""
    case, constants = Case("momentum", "reversible"), {"gamma": gamma}
    model = pair(case, depth=30, constants=constants)[1]
    stage, streams = trunk(model), streams_of(model)

    def by_hand(*streams: Tensor) -> Any:
        for layer in stage.layers:
            streams = EQUATIONS["momentum"](layer, *streams, gamma=gamma)
        return streams

    wanted = outcome(by_hand, streams, module=stage)
    grown = gamma**-30 * 2**-52
    assert gradient_error(outcome(stage, streams), wanted) < 100 * grown
    stage = trunk(pair(case, depth=48, constants=constants)[1])
    back = stage.inverse(*stage(*streams))
    grown = gamma**-48 * 2**-52
    assert max(error(b, s) for b, s in zip(back, streams, strict=True)) < 100 * grown


@replayed
@pytest.mark.parametrize("coupling", ["additive", "momentum_pair", "affine", "reversible_heun"])
def test_failure_03_functions_evaluated_on_the_wrong_stream(coupling: str, strategy: str) -> None:
    """Equal streams hide it: these are all different."""
    streams = streams_of(pair(Case(coupling, strategy))[1])
    assert all(error(streams[0], s) > 0.1 for s in streams[1:])
    assert_as_plain(Case(coupling, strategy), in_stage)


@replayed
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("coupling", ["additive", "midpoint", "leapfrog", "bdia"])
def test_failure_04_odd_depth_and_depth_one(coupling: str, depth: int, strategy: str) -> None:
    """Streams that change places come out in the other order after an odd number of layers."""
    assert_as_plain(Case(coupling, strategy), in_stage, depth=depth)


DROPOUT = ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.5}}, {"drop_path": 0.5}]


@replayed
def test_failure_05_dropout_and_drop_path(strategy: str) -> None:
    """Masks are drawn again for the gradient, anew for the next step, apart for F and G; nothing
    is dropped in evaluation; the global generator is where plain autograd leaves it."""
    case, functions = Case("additive", strategy), {"F": DROPOUT, "G": DROPOUT}

    def two_steps(model: Any) -> Wanted:
        first, second = model(value()), model(value())
        assert error(first, second) > 1e-3
        backward([first, second])
        evaluated = [model.eval()(value()) for _ in range(2)]
        assert torch.equal(*evaluated)
        return [*gradients(model), evaluated[0].detach(), torch.rand(2, dtype=torch.float64)]

    assert_as_plain(case, two_steps, functions=functions)
    only_dropout = {"F": [{"dropout": 0.5}], "G": [{"dropout": 0.5}]}
    stage = trunk(pair(case, functions=only_dropout, stem=(), input={"features": [512]})[1])
    masks: list[Tensor] = []
    for layer in stage.layers:
        for function in (layer.F, layer.G):
            function.register_forward_hook(lambda m, given, out: masks.append(out == 0))
    ones = torch.ones(2, 512, dtype=torch.float64)
    stage(ones, ones)
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


@replayed
def test_failure_06_two_forwards_before_one_backward(strategy: str) -> None:
    """Nothing about a pass is kept on the module."""

    def run(model: Any) -> Wanted:
        losses = [loss_of(model(value(scale))) for scale in (1.0, 2.0, 3.0)]
        (losses[0] + losses[2]).backward()
        losses[1].backward()
        return gradients(model)

    assert_as_plain(Case("momentum_pair", strategy), run)


@replayed
def test_failure_07_autocast(strategy: str) -> None:
    """The replay computes in the precision of the forward pass, outside its context too."""
    seen: dict[bool, set[torch.dtype]] = {False: set(), True: set()}

    def run(model: Any) -> Wanted:
        for layer in trunk(model).layers:
            layer.F.register_forward_hook(
                lambda m, given, out: seen[archspec.is_replaying()].add(out.dtype)
            )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(value(dtype=torch.float32)).float().square().sum()
        loss.backward()
        return gradients(model)

    assert_as_plain(Case("momentum_pair", strategy), run, dtype=torch.float32, bound=4e-2)
    assert seen == {False: {torch.bfloat16}, True: {torch.bfloat16}}


@replayed
def test_failure_08_a_frozen_stem(strategy: str) -> None:
    """The stage trains although its input needs no gradient."""

    def run(model: Any) -> Wanted:
        model.stem.requires_grad_(False)
        backward(model(value()))
        assert all(p.grad is not None and p.grad.any() for p in trunk(model).parameters())
        return gradients(model)

    assert_as_plain(Case("momentum_pair", strategy), run)


@replayed
def test_failure_09_autograd_grad_double_backward_and_tied_layers(strategy: str) -> None:
    """The graph is autograd's own. (For DistributedDataParallel and FSDP see their tests.)"""

    def tie(model: Any) -> None:
        trunk(model).layers[1].F = trunk(model).layers[0].F
        trunk(model).layers[1].G = trunk(model).layers[0].F

    def run(model: Any) -> Wanted:
        weight = next(trunk(model).layers[1].F.parameters())
        inputs = value().requires_grad_()
        (first,) = torch.autograd.grad(loss_of(model(inputs)), weight, create_graph=True)
        assert weight.grad is None
        second = torch.autograd.grad(
            first.square().sum(), [inputs, *model.parameters()], allow_unused=True
        )
        return [first.detach(), *second]

    assert_as_plain(Case("momentum_pair", strategy), run, change=tie)


@replayed
def test_failure_10_batch_statistics_counted_twice(strategy: str) -> None:
    """Nor in the inverse."""
    layers = [{"linear": "channels"}, "batch_norm", "tanh"]
    keys: dict[str, Any] = {
        "functions": {"F": layers, "G": layers},
        "input": {"features": [6]},
        "stem": [{"linear": 6}],
    }
    inputs = torch.randn(8, 6, dtype=torch.float64)

    def run(model: Any) -> Wanted:
        backward(model(inputs))
        found = [*gradients(model), *(buffer.double() for buffer in model.buffers())]
        if hasattr(trunk(model), "inverse"):
            before = [buffer.clone() for buffer in model.buffers()]
            trunk(model).inverse(inputs, inputs)
            assert all(torch.equal(*both) for both in zip(before, model.buffers(), strict=True))
        return found

    assert_as_plain(Case("additive", strategy), run, **keys, bound=1e-11)


@replayed
def test_failure_11_what_is_dropped_in_silence(strategy: str) -> None:
    """Unknown arguments are errors, hooks of modules fire, and the caller's input stays."""
    plain, model = pair(Case("additive", strategy))
    with pytest.raises(TypeError, match="mask"):
        model(value(), mask=torch.ones(2, 3))
    with pytest.raises(TypeError, match="mask"):
        trunk(model)(*streams_of(model), mask=torch.ones(2, 3))
    fired: list[str] = []
    for name, module in trunk(model).named_modules():
        if not list(module.children()) and not isinstance(module, nn.Identity):
            module.register_forward_hook(lambda *_, name=name: fired.append(name))
    results = []
    for built in (plain, model):
        inputs = value().requires_grad_()
        hidden = 2 * inputs
        out = built(hidden)
        backward(out + hidden.square().sum())  # a skip connection around the whole network
        results.append([*gradients(built), inputs.grad, hidden.detach()])
    assert_alike(results[1], results[0])
    used = {n for n, m in trunk(model).layers.named_modules() if not list(m.children())}
    used = {f"layers.{n}" for n in used if "coefficients" not in n}
    assert {name for name in fired if name.startswith("layers.")} == used


def kept_bytes(strategy: str, depth: int) -> dict[str, int]:
    """What the graph of a forward pass keeps of the results of all modules inside functions,
    and of the streams between layers."""
    _, model = pair(Case("additive", strategy), depth=depth, dtype=torch.float32)
    made: dict[str, list[tuple[StorageWeakRef, int]]] = {"inside": [], "streams": []}

    def note(what: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            tensor = out if what == "inside" else given[0]
            storage = tensor.untyped_storage()
            made[what].append((StorageWeakRef(storage), storage.nbytes()))

        return hook

    for layer in trunk(model).layers:
        for function in (layer.F, layer.G):
            function.register_forward_hook(note("streams"))
            for module in function.modules():
                if not list(module.children()):
                    module.register_forward_hook(note("inside"))
    loss = loss_of(model(value(dtype=torch.float32)))
    found = {
        what: sum({ref.cdata: size for ref, size in refs if not ref.expired()}.values())
        for what, refs in made.items()
    }
    loss.backward()
    return found


def test_failure_12_reversible_that_uses_more_memory() -> None:
    """Measured: what lives between forward and backward, of activations inside functions and of
    streams, with 2 layers and with 8."""
    kept = {(s, d): kept_bytes(s, d) for s in ("store", *REPLAYED) for d in (2, 8)}
    assert kept["reversible", 8] == kept["reversible", 2]
    assert kept["reversible", 8]["inside"] == kept["checkpoint", 8]["inside"] == 0
    assert kept["checkpoint", 8]["streams"] > 3 * kept["checkpoint", 2]["streams"] > 0
    for what in ("inside", "streams"):
        assert kept["store", 8][what] > 3 * kept["store", 2][what] > 0
        assert kept["store", 8][what] > 4 * kept["reversible", 8][what]
