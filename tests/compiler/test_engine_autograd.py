"""The graph is autograd's own: whatever works with stored activations works here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from as_stored import REPLAYED, STAGES, assert_as_stored, every_case, gradients, images
from small_networks import additive, network, streams_for
from torch import Tensor
from torch.func import functional_call

from compiler.network import Network

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
        del out  # and with it the node that keeps the final streams
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
