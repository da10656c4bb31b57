"""i-RevNets: beside the authors' equations, and images back from features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import Weights, assert_network, shaken
from conv_equations import batch_normed, classified, convolved
from torch import Tensor, nn
from torch.nn import functional

import archspec
from compiler.body import body, body_obstacles, invert_body
from compiler.network import Network
from compiler.verify import verify

STAGES = ("enter1", "fine", "enter2", "middle", "enter3", "coarse")
UNITS = 3
"""After the strided one of a stage, where the network is made shallow."""
EXACT = [f"stages.{stage}.arithmetic=exact" for stage in STAGES]


def trained_like(network: Network) -> Network:
    """Norms with scales drawn at random, and the statistics of what reaches them; in evaluation."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean of all batches
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
    with torch.no_grad():
        for _ in range(2):
            network.train()(torch.randn(16, *network.input))
    return network.eval()


@torch.no_grad()
def test_images_come_back_from_features() -> None:
    """At full size, to rounding."""
    torch.manual_seed(0)
    network = trained_like(archspec.build("irevnet_cifar10"))
    images = torch.randn(2, 3, 32, 32)
    features = body(network, images)
    assert features.shape == (2, 768, 2, 2)
    assert torch.equal(network.head(features), network(images))
    torch.testing.assert_close(invert_body(network, features), images, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_with_exact_arithmetic_every_bit_comes_back(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = trained_like(archspec.build("irevnet_cifar10", EXACT))
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=layout)
    on_grid = (images * 2**14).round() / 2**14
    found = invert_body(network, body(network, images))
    assert torch.equal(found, on_grid)
    assert not torch.equal(found, images)


# The authors' network, their iRevNet(nBlocks=[18, 18, 18], nStrides=[2, 2, 2], init_ds=2,
# nChannels=[24, 96, 384], in_shape=[3, 32, 32], dropout_rate=0.1, mult=4) ------------------------

Structure = list[tuple[Any, ...]]
"""Of a network's units in turn: each a tuple of layers."""


def theirs_units() -> Structure:
    """The first unit has no norm of its own; all have a quarter of the channels within."""
    units, entering = [], 6
    for channels in (24, 96, 384):
        for index in range(18):
            within = channels // 4
            units.append(
                (
                    *([("norm", entering), "relu"] if units else []),
                    ("conv", entering, within, 1 if index else 2),
                    *[("norm", within), "relu", ("conv", within, within, 1), ("dropout", 0.1)],
                    *[("norm", within), "relu", ("conv", within, channels, 1)],
                )
            )
            entering = channels
    return units


def described(layer: nn.Module) -> Any:
    match layer:
        case nn.BatchNorm2d():
            return ("norm", layer.num_features)
        case nn.Conv2d():
            assert (layer.kernel_size, layer.padding, layer.bias) == ((3, 3), (1, 1), None)
            return ("conv", layer.in_channels, layer.out_channels, *set(layer.stride))
        case nn.Dropout():
            return ("dropout", layer.p)
    assert isinstance(layer, nn.ReLU)
    return "relu"


def test_it_has_the_units_of_the_authors() -> None:
    with torch.device("meta"):
        network = archspec.build("irevnet_cifar10")
    assert tuple(stage.facts.name for stage in network.stages) == STAGES
    layers = [layer for stage in network.stages for layer in stage.layers]
    assert [tuple(map(described, layer.F.children())) for layer in layers] == theirs_units()


def test_streams_are_squeezed_where_the_authors_have_a_stride() -> None:
    """And images before the first unit: channels and side of each stream."""
    with torch.device("meta"):
        network = archspec.build("irevnet_cifar10")
    sides, channels = (16, 8, 4, 2), (6, 24, 96, 384)
    for index, stage in enumerate(network.stages):
        before, after = (index + 1) // 2, index // 2 + 1
        for streams, place in ((stage.facts.streams, before), (stage.facts.final, after)):
            assert set(streams.values()) == {(channels[place], sides[place], sides[place])}


# The authors' equations ---------------------------------------------------------------------------


def squeezed(value: Tensor) -> Tensor:
    """Space to depth as the authors have it: a pixel's place in its square comes before its
    channel, the other way about than in `pixel_unshuffle`."""
    batch, channels, height, width = value.shape
    squares = value.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // 2, width // 2)


def theirs_function(w: Weights, name: str, x: Tensor, stride: int) -> Tensor:
    """Three convolutions, a norm and a rectifier before each, the very first excepted."""
    names = [f"{name}.{norm}" for norm in ("batch_norm", "batch_norm_2", "batch_norm_3")]
    norms = [norm for norm in names if f"{norm}.weight" in w]
    if len(norms) == 3:
        x = batch_normed(w, norms[0], x).relu()
    x = convolved(w, f"{name}.conv", x, stride)
    for norm, conv in zip(norms[-2:], ("conv_2", "conv_3"), strict=True):
        x = convolved(w, f"{name}.{conv}", batch_normed(w, norm, x).relu())
    return x


def theirs(w: Weights, images: Tensor) -> Tensor:
    """Jacobsen et al. 2018, equation 1, with channels in their order: x2, x1 + F(x2); where F has a
    stride, both are squeezed. Channels are in our order where weights meet them. Our first squeeze
    puts other channels into the halves than theirs: it is ours here."""
    x1, x2 = functional.pixel_unshuffle(images, 2).chunk(2, 1)
    ours = torch.arange(x1.shape[1])  # where each of their channels is in our streams
    for stage in STAGES:
        strided = stage.startswith("enter")
        after = squeezed_order(ours) if strided else ours
        for index in range(1 if strided else UNITS):
            name = f"stages.{stage}.layers.{index}.F"
            change = theirs_function(w, name, x2[:, ours.argsort()], 1 + strided)[:, after]
            if strided:
                x1, x2 = squeezed(x1), squeezed(x2)
            x1, x2 = x2, x1 + change
        ours = after
    both = torch.cat([x1, x2], 1)[:, torch.cat([ours.argsort(), len(ours) + ours.argsort()])]
    return classified(w, batch_normed(w, "head.batch_norm", both).relu())


def squeezed_order(ours: Tensor) -> Tensor:
    """The order of the channels of squares, from that of the channels of pixels."""
    places = torch.arange(4)[:, None]
    return (4 * ours[None, :] + places).flatten()


def test_it_computes_the_authors_equations() -> None:
    """Outputs and gradients, in training, dropout aside, of some units of each stage."""
    torch.manual_seed(0)
    settings = [f"stages.{stage}.depth={UNITS}" for stage in ("fine", "middle", "coarse")]
    network = shaken(archspec.build("irevnet_cifar10", settings))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert_network(network, torch.randn(3, 3, 32, 32, dtype=torch.float64), theirs)


# Squeezes between the stages of any network -------------------------------------------------------

BRANCH = ["batch_norm", "relu", {"conv": {"bias": False}}]


def squeezing(**keys: Any) -> dict[str, Any]:
    """A RevNet whose stages are squeezed into one another."""
    halves = {"x1": "chunk(input, 1, 2)", "x2": "chunk(input, 2, 2)"}
    stage = {"depth": 2, "coupling": "additive", "streams": halves}
    stage["functions"] = {"F": BRANCH, "G": BRANCH}
    spec: dict[str, Any] = {
        "archspec": 1,
        "name": "squeezing_revnet",
        "summary": "Nothing is stored between its stages",
        "input": {"image": [3, 8, 8]},
        "stem": ["squeeze"],
        "stages": {
            "fine": stage,
            "coarse": {"transition": ["squeeze"], **stage},
            "fine_again": {"transition": ["unsqueeze"], **stage},
        },
        "head": [{"pool": "mean"}, {"linear": "classes"}],
        "task": {"classify": {"classes": 4}},
    }
    return {**spec, **keys}


def test_transitions_by_squeezes_are_there_for_every_spec() -> None:
    torch.manual_seed(0)
    network = archspec.build(squeezing())
    assert all(stage.passed for stage in verify(network))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        features = body(network.eval(), images)
        assert features.shape == (2, 12, 4, 4)
        torch.testing.assert_close(invert_body(network, features), images, rtol=0, atol=1e-5)


def stage_of(streams: dict[str, str], update: list[str], output: str, **keys: Any) -> Any:
    stage = {"depth": 2, "streams": streams, "update": update, "output": output}
    layers: list[Any] = [{"linear": "channels"}]
    return {"trunk": {**stage, "functions": {"F": layers}, **keys}}


def on_vectors(stages: Any) -> Network:
    head = [{"linear": "classes"}]
    return archspec.build(squeezing(input={"features": [6]}, stem=[], stages=stages, head=head))


@torch.no_grad()
@pytest.mark.parametrize(
    ("streams", "update", "output"),
    [
        ({"x": "input", "y": "input"}, "x += F(y)", "concat(x, y)"),
        ({"x": "input", "y": "zeros"}, "x += F(y)", "concat(y, x)"),
        (
            {"x": "chunk(input, 3, 3)", "y": "chunk(input, 1, 3)", "z": "chunk(input, 2, 3)"},
            "x += F(y)",
            "concat(x, z, y)",
        ),
        (
            {"x": "zeros(2)", "y": "chunk(input, 2, 2)", "z": "chunk(input, 1, 2)"},
            "z += F(y)",
            "concat(x, z, y)",
        ),
    ],
)
def test_bodies_whose_streams_hold_the_input_invert(
    streams: dict[str, str], update: str, output: str
) -> None:
    torch.manual_seed(0)
    network = on_vectors(stage_of(streams, [update], output)).double()
    values = torch.randn(3, 6, dtype=torch.float64)
    found = invert_body(network, body(network, values))
    torch.testing.assert_close(found, values, rtol=0, atol=1e-12)


PAIR = {"x": "chunk(input, 1, 2)", "y": "chunk(input, 2, 2)"}
GOOD = ["x += F(y)"]


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        (stage_of(PAIR, GOOD, "x"), "stage `trunk`: y cannot be told from the output `x`"),
        (
            stage_of(PAIR, GOOD, "(x + y)/2"),
            "stage `trunk`: x, y cannot be told from the output `(x + y)/2`",
        ),
        (
            stage_of({"x": "2*input", "y": "chunk(input, 1, 1)*3"}, GOOD, "concat(x, y)"),
            "stage `trunk`: no stream starts as `input`, nor do all of its chunks; "
            "found x: 2*input, y: chunk(input, 1, 1)*3",
        ),
        (
            stage_of(PAIR, GOOD, "concat(x, y)", transition=[{"linear": 6}]),
            "stage `trunk`: transition: `linear` has no inverse; `squeeze`, `unsqueeze` and "
            "`flatten` have",
        ),
        (
            stage_of({"x": "input"}, ["x += F(x)"], "x", backward="store"),
            "stage `trunk`: its update has no inverse: F reads x, the stream that this update "
            "rewrites, so x cannot be recovered",
        ),
        (
            stage_of(
                {"x": "input", "y": "input"},
                ["x = g*x + F(y)"],
                "concat(x, y)",
                constants={"g": {"draw": [0.5, -0.5], "evaluate": 0}},
            ),
            "stage `trunk`: its update has no inverse in evaluation",
        ),
    ],
)
def test_bodies_that_do_not_invert_say_why(stages: Any, reason: str) -> None:
    network = on_vectors(stages)
    assert body_obstacles(network.plan) == (reason,)
    with pytest.raises(ValueError, match="the body of squeezing_revnet has no inverse:") as raised:
        invert_body(network, torch.zeros(1, 6))
    assert reason in str(raised.value)


def test_every_reason_is_given() -> None:
    network = archspec.build("revnet38_cifar10")
    reasons = body_obstacles(network.plan)
    assert reasons[0] == "stem: `conv` has no inverse; `squeeze`, `unsqueeze` and `flatten` have"
    assert "stage `middle`: transition: `residual` has no inverse; `squeeze`," in str(reasons)
