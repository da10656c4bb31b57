"""The reversible architectures of Chang et al. 2018: equations, smoothness, and any depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from by_hand import Streams, Weights, assert_network, assert_stage, shaken
from conv_equations import batch_normed, classified, convolved
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

import archspec
from archspec.diagnostics import SpecError
from archspec.loading import load
from archspec.training import Train
from compiler.memory import StepMemory, step_memory
from compiler.network import Network
from compiler.resolve import resolve
from runners.loop import take_step
from runners.parts import Parts
from runners.tasks import ACCURACY, Batch, Outcome, Seen

WIDTHS = {"fine": 8, "middle": 16, "coarse": 24}
"""Channels of each stage, where a network is made small."""
STAGES = tuple(WIDTHS)
H = 0.1
UNITS = {
    "hamiltonian74_cifar10": 6,
    "hamiltonian218_cifar10": 18,
    "midpoint26_cifar10": 4,
    "midpoint62_cifar10": 10,
    "leapfrog26_cifar10": 4,
    "leapfrog62_cifar10": 10,
}
KERNELS = {"hamiltonian": 4, "midpoint": 2, "leapfrog": 2}
"""How many convolutions one unit counts, a kernel and its transpose each."""


@pytest.mark.parametrize("name", UNITS)
def test_depths_are_those_in_the_names(name: str) -> None:
    kind = next(kind for kind in KERNELS if name.startswith(kind))
    depths = [stage.depth for stage in resolve(load(name)).stages]
    assert depths == [UNITS[name]] * 3
    counted = name.removeprefix(kind).removesuffix("_cifar10")
    assert int(counted) == KERNELS[kind] * sum(depths) + 2


# The equations ------------------------------------------------------------------------------------


def pair(w: Weights, name: str, image: Tensor) -> Tensor:
    """K^T s(K x + b), the transpose as the gradient of K's convolution."""
    kernel, bias = (w[f"{name}.transpose_pair.{part}"] for part in ("kernel", "bias"))
    inner = functional.conv2d(image, kernel, bias, padding=1).relu()
    return torch.nn.grad.conv2d_input(list(image.shape), kernel, inner, padding=1)


def antisymmetric(w: Weights, name: str, image: Tensor) -> Tensor:
    """s((K - K^T) x + b), the transpose as the gradient of K's convolution."""
    kernel, bias = (w[f"{name}.antisymmetric.{part}"] for part in ("kernel", "bias"))
    forth = functional.conv2d(image, kernel, bias, padding=1)
    back = torch.nn.grad.conv2d_input(list(image.shape), kernel, image, padding=1)
    return (forth - back).relu()


def hamiltonian_layer(w: Weights, layer: str, y: Tensor, z: Tensor) -> Streams:
    y = y + H * pair(w, f"{layer}.F", z)
    return y, z - H * pair(w, f"{layer}.G", y)


def midpoint_layer(w: Weights, layer: str, before: Tensor, now: Tensor) -> Streams:
    return now, before + 2 * H * antisymmetric(w, f"{layer}.F", now)


def leapfrog_layer(w: Weights, layer: str, before: Tensor, now: Tensor) -> Streams:
    return now, 2 * now - before - H**2 * pair(w, f"{layer}.F", now)


def padded(x: Tensor, channels: int) -> Tensor:
    """With channels of zeros behind its own."""
    return functional.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


def halves(x: Tensor, channels: int) -> Streams:
    """Each with zeros of its own."""
    y, z = (padded(half, channels // 2) for half in x.chunk(2, 1))
    return y, z


def at_rest(x: Tensor, channels: int) -> Streams:
    """Two states that are the same."""
    return padded(x, channels), padded(x, channels)


@dataclass(frozen=True)
class Reference:
    """A kind of network: its layers, and how a stage's two streams start and end."""

    layer: Callable[[Weights, str, Tensor, Tensor], Streams]
    start: Callable[[Tensor, int], Streams]
    output: Callable[[Streams], Tensor]

    def stage(self, w: Weights, stage: str, units: int, streams: Streams) -> Streams:
        """All layers."""
        for index in range(units):
            streams = self.layer(w, f"stages.{stage}.layers.{index}", *streams)
        return streams

    def forward(self, w: Weights, images: Tensor, units: int) -> Tensor:
        """(B, 3, H, W) → (B, 10)."""
        x = batch_normed(w, "stem.batch_norm", convolved(w, "stem.conv", images)).relu()
        for stage, channels in WIDTHS.items():
            if stage != "fine":
                x = functional.avg_pool2d(x, 2)
            x = self.output(self.stage(w, stage, units, self.start(x, channels)))
        return classified(w, batch_normed(w, "head.batch_norm", x).relu())


REFERENCES = {
    "hamiltonian": Reference(hamiltonian_layer, halves, lambda streams: torch.cat(streams, 1)),
    "midpoint": Reference(midpoint_layer, at_rest, lambda streams: streams[1]),
    "leapfrog": Reference(leapfrog_layer, at_rest, lambda streams: streams[1]),
}


def reference(name: str) -> Reference:
    """Of the kind that a spec's name begins with."""
    return next(found for kind, found in REFERENCES.items() if name.startswith(kind))


@pytest.mark.parametrize("stage_name", STAGES)
@pytest.mark.parametrize("name", UNITS)
def test_stages_are_the_equations_of_the_paper(name: str, stage_name: str) -> None:
    """From streams that differ: outputs, and gradients of reconstructed activations."""
    torch.manual_seed(0)
    units = UNITS[name]
    network = shaken(small(name, units))
    assert network.stages[stage_name].backward == "reversible"
    by_hand = reference(name).stage
    assert_stage(network, stage_name, lambda w, streams: by_hand(w, stage_name, units, streams))


@pytest.mark.parametrize("name", UNITS)
def test_outputs_and_gradients_are_those_of_the_equations(name: str) -> None:
    """Stem, what lies between the stages, and head are as in the specs."""
    torch.manual_seed(0)
    network = shaken(small(name, UNITS[name]))
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    by_hand = reference(name).forward
    assert_network(network, images, lambda w, value: by_hand(w, value, UNITS[name]))


def test_streams_keep_their_channels_from_stage_to_stage() -> None:
    stage = archspec.build("hamiltonian74_cifar10").stages["coarse"]
    entry = torch.randn(2, 64, 16, 16)
    y, z = stage.split(entry)
    pooled = functional.avg_pool2d(entry, 2)
    zeros = torch.zeros(2, 24, 8, 8)
    assert torch.equal(y, torch.cat([pooled[:, :32], zeros], 1))
    assert torch.equal(z, torch.cat([pooled[:, 32:], zeros], 1))


# Smoothness ---------------------------------------------------------------------------------------


def small(name: str = "hamiltonian74_cifar10", units: int = 3, *more: str) -> Network:
    """A network of the zoo with few channels and small images."""
    settings = ["input.image=[3, 8, 8]", f"stem.0.conv.out={WIDTHS['fine']}"]
    settings += [f"stages.{stage}.depth={units}" for stage in STAGES]
    for stage, width in WIDTHS.items():
        if stage == "fine":
            continue
        where, size = ("functions.P.0", width // 2)
        if not name.startswith("hamiltonian"):
            where, size = "transition.1", width
        settings.append(f"stages.{stage}.{where}.pad_channels={size}")
    return archspec.build(name, [*settings, *more])


def test_the_penalty_is_the_formula() -> None:
    torch.manual_seed(0)
    network = small().double()
    expected = torch.zeros((), dtype=torch.float64)
    for stage in network.stages:
        for before, after in zip(stage.layers, stage.layers[1:], strict=False):
            for name in ("F", "G"):
                kernels = [layer.get_submodule(name).transpose_pair.kernel for layer in
                           (before, after)]  # fmt: skip
                expected += 2e-4 * H / 2 * (kernels[1] - kernels[0]).square().sum()
    penalty = network.penalty()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-12)
    penalty.backward()
    first, middle, last = (layer.F.transpose_pair for layer in network.stages["fine"].layers)
    assert first.bias.grad is None
    wanted = 2e-4 * H * (2 * middle.kernel - first.kernel - last.kernel)
    torch.testing.assert_close(middle.kernel.grad, wanted.detach(), rtol=1e-9, atol=0)


def test_equal_layers_and_single_ones_have_no_penalty() -> None:
    network = small()
    for stage in network.stages:
        for layer in stage.layers[1:]:
            layer.load_state_dict(stage.layers[0].state_dict())
    assert network.penalty().item() == 0
    assert small("midpoint26_cifar10", 1).penalty().item() == 0


def test_networks_without_smoothness_have_no_penalty() -> None:
    penalty = archspec.build("rev_vit_digits").penalty()
    assert penalty.item() == 0
    assert not penalty.requires_grad


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["share=true"], "E205"),
        (["smoothness=0.1*g"], "unknown name `g`"),
        (["smoothness=h - 1"], "expected a number from 0 on, found -0.9"),
        (["smoothness=-1"], "greater than or equal to 0"),
        (["smoothness=1/(h - h)"], "divides by zero"),
        (["smoothness=exp(h)"], "arithmetic on numbers alone"),
        (["constants.h={learn: 0.1}"], "`h` has a value of its own in every layer"),
    ],
)
def test_a_smoothness_that_means_nothing_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        resolve(load("midpoint26_cifar10", [f"stages.fine.{setting}" for setting in settings]))
    assert said in str(refused.value)


class NoTask:
    """A task without a loss, so that a step follows the penalty alone."""

    metric = ACCURACY

    def start(self, model: nn.Module) -> None: ...

    def in_training(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Outcome:
        return Outcome(0 * model(batch[0]).sum(), torch.zeros(()))

    in_evaluation = in_training

    def seen(self, batch: Batch) -> Seen:
        return batch[0], {}


def test_training_makes_the_penalty_smaller() -> None:
    """A step of gradient descent at rate 1, and no weight decay."""
    network = small("hamiltonian74_cifar10", 2)
    weights = [layer.F.transpose_pair.kernel for layer in network.stages["fine"].layers]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    fabric = Fabric(accelerator="cpu", devices=1)
    parts = Parts(fabric, network, fabric.setup_module(network), optimizer)
    recipe = Train(epochs=1, batch=2, learning_rate=1.0)
    take_step(parts, NoTask(), recipe, (torch.randn(2, 3, 8, 8), torch.zeros(2)))
    change = 2e-4 * H * (before[1] - before[0])
    torch.testing.assert_close(weights[0].detach(), before[0] + change)
    torch.testing.assert_close(weights[1].detach(), before[1] - change)


# Any depth ----------------------------------------------------------------------------------------


def memory(name: str, units: int) -> StepMemory:
    """Of one training step at reduced width."""
    torch.manual_seed(0)
    network = small(name, units).train()
    images = torch.randn(4, 3, 8, 8)
    return step_memory(network, lambda logits: logits.square().mean(), images)


@pytest.mark.parametrize(
    "name", ["hamiltonian74_cifar10", "midpoint26_cifar10", "leapfrog26_cifar10"]
)
def test_memory_does_not_grow_with_depth(name: str) -> None:
    """Depths 26, 74, 218 and 1202 of the Hamiltonian network."""
    depths = (2, 6, 18, 100) if name.startswith("hamiltonian") else (2, 18)
    found = [memory(name, units) for units in depths]
    for deeper in found[1:]:
        assert deeper.kept == found[0].kept
        assert deeper.peak <= 1.05 * found[0].peak


def test_hamiltonian_1202_has_all_its_layers() -> None:
    settings = [f"stages.{stage}.depth=100" for stage in STAGES]
    with torch.device("meta"):
        network = archspec.build("hamiltonian218_cifar10", settings)
    kernels = [name for name, _ in network.named_parameters() if name.endswith("kernel")]
    assert 2 * len(kernels) + 2 == 1202
