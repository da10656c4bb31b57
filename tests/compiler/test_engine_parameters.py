"""Other parameters than the modules' own, and other machinery around the engine."""

from __future__ import annotations

import pytest
import torch
from as_stored import assert_as_stored, every_case, gradients, images
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from compiler.network import Network


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
