"""RevNets beside MemCNN's and RevTorch's, whose backward passes are reversible too."""

from __future__ import annotations

import pytest
import revtorch
import torch
from by_hand import Streams, Weights, assert_network, assert_stage, shaken
from conv_equations import batch_normed, classified, convolved, unit
from memcnn_names import memcnn_network, memcnn_state
from torch import Tensor, nn
from torch.nn import functional
from zoo_specs import full

import archspec
from compiler.counting import parameters
from compiler.network import Network
from compiler.verify import verify_stage

SMALL = ["input.image=[3, 64, 64]"]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def gradients(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and gradients of a loss for every parameter by name and for the images."""
    images = images.clone().requires_grad_()
    output = network(images)
    output.square().sum().backward()
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert len(found) == len(list(network.parameters()))
    assert images.grad is not None
    return output.detach(), {**found, "images": images.grad}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("name", "units"), [("revnet38_cifar10", 3), ("revnet110_cifar10", 4), ("revnet164_cifar10", 3)]
)
def test_it_computes_what_memcnn_does(name: str, units: int) -> None:
    """At a reduced depth, but for RevNet-38. Statistics are left out: MemCNN counts every batch
    twice."""
    torch.manual_seed(0)
    theirs = memcnn_network(name, units).double().train()
    depths = [f"stages.{stage}.depth={units - 1}" for stage in ("fine", "middle", "coarse")]
    stages = archspec.load(name).spec.stages
    settings = [*depths, *(f"stages.{stage}.arithmetic=float" for stage in stages)]
    ours = archspec.build(name, settings).double().train()
    assert {stage.backward for stage in ours.stages} == {"reversible"}
    names = memcnn_state(ours, theirs)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected, theirs_found = gradients(theirs, images)
    output, found = gradients(ours, images)
    torch.testing.assert_close(output, expected, **CLOSE)
    assert {names.get(key, key) for key in found} == set(theirs_found)
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, theirs_found[names.get(key, key)], **CLOSE, msg=key)


@pytest.mark.parametrize("name", ["revnet110_cifar10", "revnet164_cifar10"])
def test_deep_stages_have_the_gradients_of_stored_activations_bit_for_bit(name: str) -> None:
    """At full depth in float32, where rounding would flip rectifiers."""
    torch.manual_seed(0)
    deep = archspec.build(name).stages["middle"]
    assert verify_stage(deep).gradient_error == 0.0


def branch(channels: int, hidden: int, depth: int) -> nn.Sequential:
    """A branch of RevTorch's with the layers, and the names, of a spec's function."""
    layers: list[tuple[str, nn.Module]] = []
    for index in range(depth):
        number = f"_{index + 1}" if index else ""
        before = hidden if index else channels
        out = channels if index == depth - 1 else hidden
        layers += [
            (f"batch_norm{number}", nn.BatchNorm2d(before)),
            (f"relu{number}", nn.ReLU()),
            (f"conv{number}", nn.Conv2d(before, out, 3, padding=1, bias=False)),
        ]
    module = nn.Sequential()
    for name, layer in layers:
        module.add_module(name, layer)
    return module


def test_a_stage_of_unequal_branches_computes_what_revtorch_does() -> None:
    torch.manual_seed(0)
    norm_conv = ["batch_norm", "relu", {"conv": {"out": 6, "bias": False}}]
    last = ["batch_norm", "relu", {"conv": {"out": 4, "bias": False}}]
    functions = {"F": [*norm_conv, *last], "G": [*norm_conv, *norm_conv, *last]}
    ours = archspec.build(
        {
            "archspec": 1,
            "name": "one_stage",
            "summary": "RevTorch's stage",
            "input": {"image": [8, 6, 6]},
            "stages": {
                "trunk": {
                    "depth": 3,
                    "coupling": "additive",
                    "streams": {"x1": "chunk(input, 1, 2)", "x2": "chunk(input, 2, 2)"},
                    "functions": functions,
                }
            },
            "head": [{"pool": "mean"}],
            "task": {"classify": {"classes": 8}},
        }
    ).double()
    blocks = [revtorch.ReversibleBlock(branch(4, 6, 2), branch(4, 6, 3)) for _ in range(3)]
    theirs = revtorch.ReversibleSequence(nn.ModuleList(blocks)).double()
    pairs = [
        (getattr(layer, function), getattr(block, f"{function.lower()}_block"))
        for layer, block in zip(ours.stages["trunk"].layers, blocks, strict=True)
        for function in "FG"
    ]
    for own, other in pairs:
        own.load_state_dict(other.state_dict())
    images = torch.randn(3, 8, 6, 6, dtype=torch.float64)
    expected, theirs_found = gradients(nn.Sequential(theirs, ours.head), images)
    output, found = gradients(ours, images)
    torch.testing.assert_close(output, expected, **CLOSE)
    torch.testing.assert_close(found["images"], theirs_found["images"], **CLOSE)
    for own, other in pairs:
        for ours_one, theirs_one in zip(own.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours_one.grad, theirs_one.grad, **CLOSE)


def test_the_network_for_digits_is_the_equations() -> None:
    """x1 = x1 + F(x2), x2 = x2 + G(x1), on the two halves of the channels."""

    def layers(w: Weights, stage: str, streams: Streams) -> Streams:
        x1, x2 = streams
        for index in range(3):
            x1 = x1 + unit(w, f"stages.{stage}.layers.{index}.F", x2)
            x2 = x2 + unit(w, f"stages.{stage}.layers.{index}.G", x1)
        return x1, x2

    def forward(w: Weights, images: Tensor) -> Tensor:
        x = batch_normed(w, "stem.batch_norm", convolved(w, "stem.conv", images)).relu()
        x = torch.cat(layers(w, "fine", x.chunk(2, 1)), 1)
        x = convolved(w, "stages.coarse.transition.conv", x, stride=2)
        x = torch.cat(layers(w, "coarse", x.chunk(2, 1)), 1)
        return classified(w, batch_normed(w, "head.batch_norm", x).relu())

    torch.manual_seed(0)
    network = shaken(archspec.build("revnet_digits"))
    assert_network(network, torch.randn(3, 1, 8, 8, dtype=torch.float64), forward)
    for stage in ("fine", "coarse"):
        assert_stage(network, stage, lambda w, streams, stage=stage: layers(w, stage, streams))


def revnet104_size(units: tuple[int, ...], filters: tuple[int, ...], classes: int) -> int:
    """Parameters of Gomez et al.'s ImageNet networks, by hand: every unit has two bottlenecks on
    halves of the channels, and two projections where they become others."""

    def bottleneck(before: int, after: int, norm: bool) -> int:
        middle = after // 4
        convolutions = before * middle + 9 * middle**2 + middle * after
        return convolutions + 2 * 2 * middle + (2 * before if norm else 0)

    total = 3 * 7 * 7 * filters[0] + 2 * filters[0]
    entering = filters[0] // 2
    for group, (count, width) in enumerate(zip(units, filters[1:], strict=True)):
        half = 4 * width // 2
        total += bottleneck(entering, half, norm=group > 0) + 2 * entering * half
        total += (2 * count - 1) * bottleneck(half, half, norm=True)
        entering = half
    return total + 2 * 2 * entering + (2 * entering + 1) * classes


def test_revnet104_has_the_size_of_the_papers_network() -> None:
    with torch.device("meta"):
        found = parameters(Network(full("revnet104")))
    assert found == revnet104_size((2, 2, 11, 2), (128, 128, 256, 512, 832), 1000) == 45_428_072


def test_units_of_revnet104_that_change_the_grid_are_those_of_the_papers_code() -> None:
    """x1 = P(x1) + E(x2), then x2 = Q(x2) + G(x1), and units without a stride after it."""
    torch.manual_seed(0)
    network = archspec.build(
        "revnet104", [*SMALL, "stages.conv4.depth=1", "stages.conv4.arithmetic=float"]
    ).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    output, found = gradients(network, images)
    network.zero_grad()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, value: Tensor) -> Tensor:
            x1, x2 = network.stem(value).chunk(2, 1)
            for group in range(2, 6):
                enter, unit = network.stages[f"enter{group}"], network.stages[f"conv{group}"]
                start = enter.starts
                assert start["P"].conv.stride == ((1, 1) if group == 2 else (2, 2))
                x1 = start["P"](x1) + start["E"](x2)
                x2 = start["Q"](x2) + enter.layers[0].G(x1)
                x1 = x1 + unit.layers[0].F(x2)
                x2 = x2 + unit.layers[0].G(x1)
            value = functional.relu(network.head.batch_norm(torch.cat([x1, x2], 1)))
            logits: Tensor = network.head.linear(value.mean((2, 3)))
            return logits

    expected, plain = gradients(Plain(), images)
    torch.testing.assert_close(output, expected, **CLOSE)
    for key, gradient in found.items():
        same = plain[key if key == "images" else f"network.{key}"]
        torch.testing.assert_close(gradient, same, rtol=1e-6, atol=1e-9, msg=key)
