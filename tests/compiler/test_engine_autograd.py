"""The graph is autograd's own: whatever works with stored activations works here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import (
    BRANCH,
    STRATEGIES,
    additive,
    error,
    gradient_error,
    network,
    outcome,
    streams_for,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from compiler.network import Network

REPLAYED = ("checkpoint", "reversible")
GAMMA = {"learn": 0.9, "within": [0.5, 0.99]}
STAGES: dict[str, dict[str, Any]] = {
    "additive": additive(),
    "momentum": {
        "depth": 3,
        "coupling": "momentum_pair",
        "functions": {"F": BRANCH, "G": BRANCH},
        "constants": {"gamma": {**GAMMA, "per": "channel"}},
    },
    "mixed": {
        "depth": 3,
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": BRANCH, "G": [{"linear": "channels"}, "tanh"]},
        "constants": {"g": GAMMA, "w": {"learn": 0.3}},
        "update": ["k := F(G(y))", "x = x*exp(tanh(G(y))) + w*k", "y += g*F(x + w*x)"],
        "output": "x + y",
    },
}
CASES = [(name, strategy) for name in STAGES for strategy in REPLAYED]
every_case = pytest.mark.parametrize(("name", "strategy"), CASES)


def images(scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return scale * torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)


def assert_as_stored(
    name: str, strategy: str, run: Callable[[Network], list[Tensor | None]]
) -> None:
    """`run` gives the same with a strategy as with stored activations."""
    wanted = run(network(STAGES[name]).set_backward("store"))
    found = run(network(STAGES[name]).set_backward(strategy))
    assert len(found) == len(wanted) > 0
    least = 1e-3 * max(float(g.abs().max()) for g in wanted if g is not None)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        assert error(a, b, least) < 1e-12


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


# Which gradients are wanted ----------------------------------------------------------------------


@every_case
def test_an_input_without_gradient(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        model(images()).square().sum().backward()
        assert all(p.grad is not None for p in model.stages.parameters())
        return gradients(model)

    assert_as_stored(name, strategy, run)


@every_case
@pytest.mark.parametrize("frozen", ["layers.0", "layers.1", "layers.2", ".F", ".G", "layers"])
def test_frozen_functions(name: str, strategy: str, frozen: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        for key, parameter in model.stages.named_parameters():
            parameter.requires_grad_(frozen not in key)
        value = images().requires_grad_()
        model(value).square().sum().backward()
        model(images()).square().sum().backward()
        return [*gradients(model), value.grad]

    assert_as_stored(name, strategy, run)


@every_case
def test_some_streams_without_gradient(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        stage = model.stages[0]
        streams = streams_for(stage)
        streams[0].requires_grad_()
        model.requires_grad_(False)
        sum(out.square().sum() for out in stage(*streams)).backward()
        return [streams[0].grad]

    assert_as_stored(name, strategy, run)


@every_case
@pytest.mark.parametrize("index", [0, 1, -1])
def test_a_loss_on_one_stream_alone(name: str, strategy: str, index: int) -> None:
    def run(model: Network) -> list[Tensor | None]:
        stage = model.stages[0]
        streams = [s.requires_grad_() for s in streams_for(stage)]
        stage(*streams)[index].square().sum().backward()
        return [*gradients(stage), *(s.grad for s in streams)]

    assert_as_stored(name, strategy, run)


@every_case
def test_gradients_of_single_tensors(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        value = images().requires_grad_()
        wanted = [value, *model.parameters()]
        found = [torch.autograd.grad(model(value).square().sum(), t)[0] for t in wanted]
        assert all(t.grad is None for t in wanted)
        return list(found)

    assert_as_stored(name, strategy, run)


@every_case
def test_gradients_asked_for_one_by_one_of_one_graph(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        value = images().requires_grad_()
        loss = model(value).square().sum()
        wanted = [value, *reversed(list(model.parameters())), value]
        return [torch.autograd.grad(loss, t, retain_graph=True)[0] for t in wanted]

    assert_as_stored(name, strategy, run)


@every_case
def test_parameters_frozen_or_thawed_before_backward(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        # As when a discriminator is frozen while the loss of a generator is computed.
        model.stages.requires_grad_(False)
        value = images().requires_grad_()
        first = model(value).square().sum()
        model.stages.requires_grad_(True)
        first.backward()
        second = model(value).square().sum()
        model.stages[0].layers[1].requires_grad_(False)
        second.backward()
        assert not any(p.requires_grad for p in model.stages[0].layers[1].parameters())
        return [*gradients(model), value.grad]

    assert_as_stored(name, strategy, run)


# Several passes ----------------------------------------------------------------------------------


@every_case
def test_two_forwards_before_one_backward(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        (model(images()).square().sum() + model(images(2.0)).sin().sum()).backward()
        return gradients(model)

    assert_as_stored(name, strategy, run)


@every_case
def test_backward_in_the_other_order(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        first, second = model(images()).square().sum(), model(images(2.0)).square().sum()
        first.backward()
        second.backward()
        return gradients(model)

    assert_as_stored(name, strategy, run)


@every_case
def test_a_stage_inside_itself(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        stage = model.stages[0]
        sum(out.square().sum() for out in stage(*stage(*streams_for(stage)))).backward()
        return gradients(stage)

    assert_as_stored(name, strategy, run)


@every_case
def test_retained_graphs(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        value = images().requires_grad_()
        out = model(value)
        out.square().sum().backward(retain_graph=True)
        out.sin().sum().backward(retain_graph=True)
        out.sum().backward()
        return [*gradients(model), value.grad]

    assert_as_stored(name, strategy, run)


@pytest.mark.parametrize("strategy", REPLAYED)
def test_a_second_backward_wants_a_retained_graph(strategy: str) -> None:
    model = network(additive(backward=strategy))
    loss = model(images()).square().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@every_case
def test_second_derivatives(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        value = images().requires_grad_()
        out = model(value).square().sum()
        (slope,) = torch.autograd.grad(out, value, create_graph=True)
        (slope.square().sum() + out).backward()
        return [*gradients(model), value.grad]

    assert_as_stored(name, strategy, run)


@every_case
def test_second_derivatives_by_parameters(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        parameters = list(model.parameters())
        out = model(images()).square().sum()
        slopes = torch.autograd.grad(out, parameters, create_graph=True)
        norm = sum(slope.square().sum() for slope in slopes)
        return list(torch.autograd.grad(norm, parameters, allow_unused=True))

    assert_as_stored(name, strategy, run)


@every_case
def test_gradcheck(name: str, strategy: str) -> None:
    stage = network({**STAGES[name], "depth": 2}, input={"tokens": [2, 2]}).stages[0]
    stage.backward = strategy  # type: ignore[assignment]
    streams = [s.requires_grad_() for s in streams_for(stage, batch=1)]
    assert torch.autograd.gradcheck(stage, streams)
    names = [n for n, p in stage.named_parameters() if "coefficients" in n or "bias" in n]
    given = dict(stage.named_parameters())

    def by_parameters(*tensors: Tensor) -> Any:
        plain = [s.detach() for s in streams]
        return functional_call(stage, dict(zip(names, tensors, strict=True)), tuple(plain))

    assert torch.autograd.gradcheck(by_parameters, [given[n] for n in names])


@pytest.mark.parametrize("name", STAGES)
def test_gradgradcheck(name: str) -> None:
    stage = network({**STAGES[name], "depth": 1}, input={"tokens": [1, 2]}).stages[0]
    streams = [s.requires_grad_() for s in streams_for(stage, batch=1)]
    assert torch.autograd.gradgradcheck(stage, streams)


# Other parameters --------------------------------------------------------------------------------


@every_case
def test_functional_call(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        factor = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
        leaves = {n: (0.9 * p).detach().requires_grad_() for n, p in model.named_parameters()}
        for given in (leaves, {n: factor * p for n, p in leaves.items()}):
            out = functional_call(model, given, (images(),))
            out.square().sum().backward()
        assert all(grad is None for grad in gradients(model))
        return [factor.grad, *(leaf.grad for leaf in leaves.values())]

    assert_as_stored(name, strategy, run)


@every_case
def test_modules_replaced_before_backward(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        loss = model(images()).square().sum()
        old = list(model.parameters())
        for layer in model.stages[0].layers:
            layer.F = nn.Identity()
            for parameter in layer.G.parameters():  # type: ignore[union-attr]
                parameter.data = parameter.data  # no change, and no new version
        loss.backward()
        return [parameter.grad for parameter in old]

    assert_as_stored(name, strategy, run)


@every_case
def test_weights_computed_from_others(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        for module in list(model.modules()):
            if isinstance(module, nn.Linear):
                nn.utils.parametrizations.weight_norm(module)
        model(images()).square().sum().backward()
        return gradients(model)

    assert_as_stored(name, strategy, run)


@every_case
def test_parameters_shared_between_functions(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        first = model.stages[0].layers[0]
        for layer in model.stages[0].layers:
            layer.F = first.F
            layer.G = first.F
        model(images()).square().sum().backward()
        return gradients(model)

    assert_as_stored(name, strategy, run)


# Under other machinery ---------------------------------------------------------------------------


@every_case
def test_inside_an_outer_checkpoint(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        value = images().requires_grad_()
        checkpoint(model, value, use_reentrant=False).square().sum().backward()
        return [*gradients(model), value.grad]

    assert_as_stored(name, strategy, run)


@every_case
def test_under_hooks_set_outside(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            loss = model(images()).square().sum()
        loss.backward()
        return gradients(model)

    assert_as_stored(name, strategy, run)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@every_case
def test_under_anomaly_detection(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        with torch.autograd.set_detect_anomaly(True):
            model(images()).square().sum().backward()
        return gradients(model)

    assert_as_stored(name, strategy, run)


@every_case
def test_hooks_on_gradients(name: str, strategy: str) -> None:
    def run(model: Network) -> list[Tensor | None]:
        seen: list[Tensor | None] = []
        for parameter in model.parameters():
            parameter.register_hook(lambda grad: seen.append(grad.clone()))
            parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
        model(images()).square().sum().backward()
        return seen

    assert_as_stored(name, strategy, run)


def test_strategies_agree_on_all_this() -> None:
    assert set(REPLAYED) == set(STRATEGIES) - {"store"}
    found = {}
    for strategy in STRATEGIES:
        stage = network(additive(backward=strategy)).stages[0]
        found[strategy] = outcome(stage, streams_for(stage))
    for strategy in REPLAYED:
        assert gradient_error(found[strategy], found["store"]) < 1e-13
