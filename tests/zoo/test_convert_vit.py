"""Weights of torchvision's and timm's ViT in ours: the same logits and gradients, and momentum and
BDIA variants that start as the same function."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, vit_b_16

import archspec
from compiler.conversion.convert import ConversionError, convert, resized, weights_of
from compiler.conversion.namings import NAMINGS, POSITIONS, naming_of
from compiler.conversion.patterns import placed
from compiler.conversion.vit import TIMM, TORCHVISION, TORCHVISION_FILES
from compiler.functions.pointwise import DropPath
from compiler.network import Network

DEPTH, WIDTH, HEADS, PATCH, SIDE, CLASSES = 3, 24, 12, 16, 64, 5
"""Heads and patches are those of ViT-B/16."""


def ours(name: str, *more: str, depth: int = DEPTH) -> Network:
    """A spec of the zoo, its layers as shipped but for their width."""
    settings = [
        f"input.image=[3, {SIDE}, {SIDE}]",
        f"stem.0.patch_embed.width={WIDTH}",
        f"stages.trunk.depth={depth}",
        f"task.classify.classes={CLASSES}",
    ]
    return archspec.build(name, [*settings, *more])


def randomised(model: nn.Module) -> nn.Module:
    """No zeros and ones, which hide what is not loaded."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.double()


def torchvision_vit(
    side: int = SIDE, classes: int = CLASSES, depth: int = DEPTH, heads: int = HEADS
) -> nn.Module:
    """Two numbers a head wide."""
    norm = partial(nn.LayerNorm, eps=1e-6)
    sizes = (side, PATCH, depth, heads, 2 * heads, 8 * heads)
    return randomised(VisionTransformer(*sizes, num_classes=classes, norm_layer=norm))


def timm_vit() -> nn.Module:
    vit = timm.models.VisionTransformer(
        img_size=SIDE,
        patch_size=PATCH,
        num_classes=CLASSES,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
    )
    return randomised(vit)


def load(network: Network, source: nn.Module, **options: bool) -> Network:
    """`network` with the weights of `source`."""
    weights = convert(source.state_dict(), weights_of(network), **options)
    network.load_state_dict(weights, strict=False)
    return network


@pytest.mark.parametrize("make", [torchvision_vit, timm_vit])
def test_logits_and_gradients_are_the_same(make) -> None:
    torch.manual_seed(0)
    theirs = make()
    network = load(ours("vit_b").double(), theirs)
    images = torch.randn(4, 3, SIDE, SIDE, dtype=torch.float64)
    torch.testing.assert_close(network(images), theirs(images), rtol=0, atol=1e-12)
    named = dict(theirs.named_parameters())
    for model in (network, theirs):
        model(images).square().sum().backward()
    expected = naming_of(named).ours(named)
    found = dict(network.named_parameters())
    for name, parameter in named.items():
        wanted = parameter.grad
        torch.testing.assert_close(found[expected[name]].grad, wanted, rtol=1e-9, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "depth", "heads"), [("vit_s", 12, 6), ("vit_b", 12, 12), ("vit_l", 24, 16)]
)
def test_logits_are_the_same_at_the_published_depth(name: str, depth: int, heads: int) -> None:
    """And with as many heads."""
    torch.manual_seed(0)
    theirs = torchvision_vit(depth=depth, heads=heads)
    settings = [f"input.image=[3, {SIDE}, {SIDE}]", f"task.classify.classes={CLASSES}"]
    network = archspec.build(name, [*settings, f"stem.0.patch_embed.width={2 * heads}"]).double()
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    found = load(network, theirs)(images)
    torch.testing.assert_close(found, theirs(images), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("make", [torchvision_vit, timm_vit])
def test_logits_in_single_precision(make) -> None:
    torch.manual_seed(0)
    theirs = make().float()
    images = torch.randn(4, 3, SIDE, SIDE)
    largest = theirs(images).abs().max().item()
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5 * max(1, largest))
    close(load(ours("vit_b"), theirs)(images), theirs(images))


@torch.no_grad()
def test_vit_b_16_itself() -> None:
    torch.manual_seed(0)
    theirs = vit_b_16(weights=None).eval()
    nn.init.normal_(theirs.heads.head.weight, std=0.02)
    images = torch.randn(1, 3, 224, 224)
    network = load(archspec.build("vit_b"), theirs).eval()
    torch.testing.assert_close(network(images), theirs(images), rtol=0, atol=1e-5)


# Variants -----------------------------------------------------------------------------------------


def pair(name: str, depth: int) -> tuple[Network, Network]:
    """ViT-B at its full depth, its weights all random, and a variant with `depth` layers that has
    the same weights."""
    torch.manual_seed(0)
    plain, variant = ours("vit_b", depth=12), ours(name, depth=depth)
    randomised(plain)
    weights = weights_of(variant)
    state = {placed(key, weights): value for key, value in plain.state_dict().items()}
    variant.double().load_state_dict(state, strict=False)
    return plain, variant


def gradients(network: Network, images: Tensor, output: Tensor) -> dict[str, Tensor]:
    """Of a loss, by name, and for the images."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(output.square().sum(), [images, *parameters])
    return dict(zip(("images", *names), found, strict=True))


def some_images() -> Tensor:
    return torch.randn(4, 3, SIDE, SIDE, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("training", [True, False])
def test_at_gamma_0_the_momentum_vit_is_the_vit_bit_for_bit(training: bool) -> None:
    """Its gradients too."""
    plain, variant = pair("momentum_vit_b_finetune", 12)
    images, found = some_images(), []
    for network in (plain, variant):
        output = network.train(training)(images)
        found.append({"output": output, **gradients(network, images, output)})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def on_papers_grid(value: Tensor) -> Tensor:
    """Rounded to 2^-9, which gradients do not see."""
    return value + ((value * 2**9).round() / 2**9 - value).detach()


@pytest.mark.parametrize("training", [True, False])
def test_at_gamma_0_the_bdia_vit_is_the_vit_whose_stream_is_rounded(training: bool) -> None:
    """After each block, and nowhere else: so many blocks, bit for bit."""
    plain, variant = pair("bdia_vit_b_finetune", 11)
    images = some_images()
    x = plain.stem(images)
    for layer in plain.stages["trunk"].layers:
        between = x + layer.F(x)
        x = on_papers_grid(between + layer.G(between))
    wanted = gradients(plain, images, plain.head(x))
    output = variant.train(training)(images)
    assert torch.equal(output, plain.head(x))
    found, weights = gradients(variant, images, output), weights_of(variant)
    for name, gradient in wanted.items():
        theirs = found[name if name == "images" else placed(name, weights)]
        torch.testing.assert_close(theirs, gradient, rtol=1e-9, atol=1e-9 * largest(gradient))


def largest(value: Tensor) -> float:
    return float(value.abs().max())


@pytest.mark.parametrize(
    "name", ["vit_s", "vit_b", "vit_l", "momentum_vit_b_finetune", "bdia_vit_b_finetune"]
)
def test_nothing_is_dropped(name: str) -> None:
    """As in torchvision's network: training starts from the function that it was."""
    with torch.device("meta"):
        modules = list(archspec.build(name).modules())
    assert not any(isinstance(module, DropPath) for module in modules)
    assert {module.p for module in modules if isinstance(module, nn.Dropout)} == {0.0}


@torch.no_grad()
def test_the_momentum_vit_starts_as_the_same_function_bit_for_bit() -> None:
    torch.manual_seed(0)
    theirs = torchvision_vit().float()
    images = torch.randn(4, 3, SIDE, SIDE)
    plain = load(ours("vit_b"), theirs)
    variant = load(ours("momentum_vit_b_finetune"), theirs)
    assert torch.equal(plain(images), variant(images))
    variant.set_progress(0.5)
    assert not torch.equal(plain(images), variant(images))


def bdia(*more: str) -> Network:
    """Its first block is where x starts."""
    return ours("bdia_vit_b_finetune", *more, depth=DEPTH - 1)


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_the_bdia_vit_starts_as_the_same_function(training: bool) -> None:
    torch.manual_seed(0)
    theirs = torchvision_vit()
    images = torch.randn(4, 3, SIDE, SIDE, dtype=torch.float64)
    variant = load(bdia("stages.trunk.arithmetic=float").double(), theirs).train(training)
    torch.testing.assert_close(variant(images), theirs(images), rtol=0, atol=1e-12)
    variant.set_progress(1.0)
    far = (variant(images) - theirs(images)).abs().max()
    assert (far > 0.1) == training  # gamma is 0 in evaluation


@torch.no_grad()
def test_on_its_grid_the_bdia_vit_is_the_same_but_for_rounding() -> None:
    torch.manual_seed(0)
    theirs = torchvision_vit().float()
    images = torch.randn(4, 3, SIDE, SIDE)
    apart = (load(bdia(), theirs)(images) - theirs(images)).abs().max()
    assert 0 < apart < 0.02 * theirs(images).abs().max()


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [TORCHVISION, TORCHVISION_FILES, TIMM])
def test_a_table_reads_both_ways(table) -> None:
    assert len(set(table.values())) == len(table)
    assert set(table.values()) == set(TORCHVISION.values())


@pytest.mark.parametrize("make", [torchvision_vit, timm_vit])
def test_every_tensor_has_one_name_of_ours(make) -> None:
    theirs, network = make(), ours("vit_b")
    names = naming_of(theirs.state_dict()).ours(theirs.state_dict())
    assert sorted(names.values()) == sorted(weights_of(network))
    for variant in (bdia(), ours("momentum_vit_b_finetune")):
        found = [placed(name, weights_of(variant)) for name in names.values()]
        assert sorted(found) == sorted(weights_of(variant))


def test_files_of_torchvision_have_older_names() -> None:
    theirs = torchvision_vit()
    older = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for name, value in theirs.state_dict().items()
    }
    weights = weights_of(ours("vit_b"))
    found, expected = convert(older, weights), convert(theirs.state_dict(), weights)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_titles_of_namings_are_told_where_none_fits() -> None:
    with pytest.raises(ConversionError, match="none of timm's ViT, torchvision's ResNet"):
        convert({"strange": torch.zeros(1)}, weights_of(ours("vit_b")))
    assert len({naming.classifier for naming in NAMINGS}) == 3


# What does not fit --------------------------------------------------------------------------------


def refusal(source: dict[str, Tensor], network: Network, **options: bool) -> str:
    with pytest.raises(ConversionError) as caught:
        convert(source, weights_of(network), **options)
    return str(caught.value)


def test_what_is_missing_and_what_is_left_over_is_listed() -> None:
    state = dict(torchvision_vit().state_dict())
    deeper = refusal(state, ours("vit_b", depth=DEPTH + 1))
    assert "missing from the source: stages.trunk.layers.3.F.layer_norm.weight, " in deeper
    assert " and 7 more" in deeper
    shallower = refusal(state, ours("vit_b", depth=DEPTH - 1))
    assert "not in the spec: encoder.layers.encoder_layer_2.ln_1.weight, " in shallower
    state["aux.weight"] = state.pop("encoder.ln.bias")
    both = refusal(state, ours("vit_b"))
    assert "not in the spec: aux.weight\n" in both
    assert "missing from the source: head.layer_norm.bias" in both
    wider = ours("vit_b", "stages.trunk.output=concat(x, x)")
    wide = refusal(dict(torchvision_vit().state_dict()), wider)
    assert f"head.layer_norm.weight is {WIDTH} there and {2 * WIDTH} in the spec" in wide


def test_nothing_is_filled_twice() -> None:
    state = dict(torchvision_vit().state_dict())
    name = "encoder.layers.encoder_layer_0.ln_1.weight"
    state[name.replace("_0.", "_00.")] = state[name]
    assert "not in the spec: encoder.layers.encoder_layer_00" in refusal(state, ours("vit_b"))


def test_a_new_head_is_left_as_it_is() -> None:
    state = dict(torchvision_vit(classes=7).state_dict())
    network = ours("vit_b")
    assert "--new-head starts the classifier afresh" in refusal(state, network)
    weights = convert(state, weights_of(network), new_head=True)
    assert set(weights_of(network)) - set(weights) == {"head.linear.weight", "head.linear.bias"}


def test_positions_are_resized_only_if_asked() -> None:
    theirs, network = torchvision_vit(side=2 * SIDE), ours("vit_b")
    assert "--resize-positions" in refusal(dict(theirs.state_dict()), network)
    load(network, theirs, resize_positions=True)
    found = network.state_dict()[POSITIONS]
    assert torch.equal(found[:, 0], theirs.encoder.pos_embedding[:, 0].float())


def test_resized_positions_keep_what_varies_slowly() -> None:
    """Of a ramp over the grid the corners stay where they are, and the middle between them."""
    ramp = torch.linspace(-1, 1, 7, dtype=torch.float64).repeat(7, 1).reshape(1, 49, 1)
    found = resized(torch.cat([torch.full((1, 1, 1), 5.0), ramp], dim=1).double(), 26)
    assert found[0, 0, 0] == 5
    rows = found[0, 1:, 0].reshape(5, 5)
    torch.testing.assert_close(rows, rows[:1].expand(5, 5))
    torch.testing.assert_close(rows[0, [0, 2, 4]], torch.tensor([-1.0, 0, 1]).double())
    with pytest.raises(ConversionError, match="50 positions cannot become 27"):
        resized(torch.zeros(1, 50, 1), 27)
