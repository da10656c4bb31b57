"""The multiscale vision transformers: block by block against the published table, and numbers
against networks written out in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from by_hand import Streams, Weights, assert_network, assert_stage, shaken
from mvit_equations import REFERENCES, Reference, Scale
from torch import nn

import archspec
from archspec.layers.attention import Pooled, PoolingTransition
from archspec.loading import load
from archspec.shapes import Tokens
from compiler.counting import costs, parameters
from compiler.functions.pointwise import DropPath
from compiler.network import Network
from compiler.plan import LayerPlan
from compiler.resolve import resolve

NAMES = ("rev_mvit_b", "mvit_b", "momrev_mvit_b", "rev_mvit_b_video")

# Sizes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A row of the published table. Sides of the grid before and after; strides of the queries
    (None: not pooled) and of keys and values."""

    channels: int
    heads: int
    grid: tuple[int, int]
    query_stride: int | None
    key_stride: int
    parameters: int


IMAGE_BLOCKS = (
    Block(96, 1, (56, 56), None, 4, 113_952),
    Block(192, 2, (56, 28), 2, 2, 596_064),
    Block(192, 2, (28, 28), None, 2, 446_976),
    Block(384, 4, (28, 14), 2, 1, 2_368_608),
    *(Block(384, 4, (14, 14), None, 1, 1_776_576),) * 10,
    Block(768, 8, (14, 7), 2, 1, 9_452_640),
    Block(768, 8, (7, 7), None, 1, 7_089_984),
)
"""Rev-MViT-B (Mangalam et al. 2022), as running its code gives it."""


def network(name: str) -> Network:
    """At full size, with nothing in it."""
    with torch.device("meta"):
        return Network(resolve(load(name)))


def in_space(stride: int | tuple[int, ...]) -> int:
    """Along rows and columns. No stride skips frames."""
    if isinstance(stride, int):
        return stride
    assert stride == (1, stride[-1], stride[-1])
    return stride[-1]


def block(layers: tuple[LayerPlan, ...], module: nn.Module) -> Block:
    """What a spec's block is, of the layers of which one is a pooled attention."""
    (attention,) = (layer for layer in layers if isinstance(layer.layer, Pooled))
    settings, before, after = attention.layer, attention.before[0], attention.after
    assert isinstance(settings, Pooled)
    assert isinstance(before, Tokens)
    assert isinstance(after, Tokens)
    return Block(
        before.channels,
        settings.heads,
        (before.grid[-1], after.grid[-1]),
        in_space(settings.query_stride) if isinstance(settings, PoolingTransition) else None,
        in_space(settings.key_stride),
        parameters(module),
    )


def blocks(whole: Network) -> list[Block]:
    """All blocks of a network in turn: transitions, and layers of stages."""
    found = []
    for stage in whole.stages:
        if stage.plan.transition:
            found.append(block(stage.plan.transition, stage.transition))
        layers = tuple(layer for function in stage.plan.functions for layer in function.layers)
        found += [block(layers, layer) for layer in stage.layers]
    return found


@pytest.mark.parametrize("name", ["rev_mvit_b", "momrev_mvit_b"])
def test_every_block_is_the_published_one(name: str) -> None:
    whole = network(name)
    assert tuple(blocks(whole)) == IMAGE_BLOCKS
    assert parameters(whole.stem.conv) == 14_208  # type: ignore[arg-type]
    assert parameters(whole.stem.position) == 3136 * 96  # type: ignore[arg-type]
    assert parameters(whole.head) == 2 * 1536 + 1536 * 1000 + 1000
    assert parameters(whole) == 39_689_320


@pytest.mark.parametrize("row", sorted(set(IMAGE_BLOCKS), key=lambda row: row.parameters))
def test_the_published_table_is_its_own_formula(row: Block) -> None:
    """12C² + 13C, two pools or three of 1,056, and the fuse of a transition."""
    wide, pool = 12 * row.channels**2 + 13 * row.channels, 9 * 96 + 2 * 96
    fuse = 4 * row.channels**2 + 3 * row.channels
    assert row.parameters == wide + (3 * pool + fuse if row.query_stride else 2 * pool)


@pytest.mark.parametrize("name", ["rev_mvit_b", "momrev_mvit_b"])
def test_the_published_operations_count_norms(name: str) -> None:
    """8.674 G are multiply-accumulates, and 5 for each element of a norm; without them 8.638 G."""
    counted = costs(resolve(load(name))).values()
    macs, norms = (sum(getattr(c, key) for c in counted) for key in ("macs", "norms"))
    assert f"{macs / 1e9:.3f}" == "8.638"
    assert f"{(macs + norms) / 1e9:.3f}" == "8.674"


def test_the_twin_has_the_blocks_and_widths_in_one_stream() -> None:
    """A linear map doubles the channels (C²/2 + C) in place of the fuse, and the head is half as
    wide: 36,207,592."""
    twin, ours = network("mvit_b"), network("rev_mvit_b")
    for found, row in zip(blocks(twin), IMAGE_BLOCKS, strict=True):
        fuse = 4 * row.channels**2 + 3 * row.channels
        doubling = row.channels**2 // 2 + row.channels
        less = fuse - doubling if row.query_stride else 0
        assert found == replace(row, parameters=row.parameters - less)
    assert parameters(ours.head) - parameters(twin.head) == 768 * 1000 + 2 * 768
    assert parameters(twin) == 36_207_592


def test_the_video_network_has_the_pools_of_mvit_16x4() -> None:
    """Kernels of 27 where images have 9, over 8 frames at a time, and keys twice as far apart
    where an image's are not at their closest. 25,088 positions: 40,963,216."""
    whole = network("rev_mvit_b_video")
    grids = [stage.plan.input.grid for stage in whole.stages]  # type: ignore[union-attr]
    assert grids == [(8, 56, 56), (8, 28, 28), (8, 14, 14), (8, 7, 7)]
    strides = (8, 4, 4, 2, *[2] * 10, 1, 1)
    for found, row, stride in zip(blocks(whole), IMAGE_BLOCKS, strides, strict=True):
        more = (3 if row.query_stride else 2) * (27 - 9) * 96
        assert found == replace(row, key_stride=stride, parameters=row.parameters + more)
    assert parameters(whole.stem.position) == 8 * 3136 * 96  # type: ignore[arg-type]
    assert parameters(whole) == 40_963_216


@pytest.mark.parametrize("name", NAMES)
def test_drop_path_rises_from_block_to_block(name: str) -> None:
    parts = [part for s in network(name).stages for part in (s.transition, *s.layers)]
    blocks = [part for part in parts if parameters(part)]
    rates = [[m.rate for m in b.modules() if isinstance(m, DropPath)] for b in blocks]
    most = 0.05 if name == "rev_mvit_b_video" else 0.1
    assert rates[0] == []
    assert len(rates) == 16
    for index, drops in enumerate(rates[1:], 1):
        assert drops == [pytest.approx(most * index / 15)] * 2


# Numbers -----------------------------------------------------------------------------------------

REDUCED = ("stem.0.conv.out=8", "stages.scale4.depth=3", "task.classify.classes=5")
"""With grids of odd sides."""
SIZES = {"image": "input.image=[3, 36, 44]", "video": "input.video=[3, 5, 36, 28]"}
each = pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name)


def built(name: str) -> Network:
    """A network, reduced but for that of digits."""
    size = SIZES[load(name).spec.input.kind]
    torch.manual_seed(0)
    return shaken(archspec.build(name, () if name.endswith("_digits") else (*REDUCED, size)))


@each
def test_outputs_and_gradients_are_those_of_the_equations(reference: Reference) -> None:
    model = built(reference.name)
    value = torch.randn(2, *model.plan.input.sizes, dtype=torch.float64)
    assert_network(model, value, reference.forward)


@pytest.mark.parametrize(
    ("reference", "scale"),
    [
        pytest.param(reference, scale, id=f"{reference.name}-{scale.name}")
        for reference in REFERENCES
        for scale in reference.scales
    ],
)
def test_a_stage_alone_on_streams_that_differ(reference: Reference, scale: Scale) -> None:
    model = built(reference.name)
    stage = model.stages[scale.name]
    assert stage.backward == ("store" if reference.name == "mvit_b" else "reversible")

    def layers(w: Weights, streams: Streams) -> Streams:
        grid = stage.plan.input.grid
        return reference.run(reference.layers(w, scale, grid), streams)

    assert_stage(model, scale.name, layers)
