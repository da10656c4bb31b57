"""Each kind of layer: the shape that it gives, and what it refuses at its line."""

from __future__ import annotations

from typing import Any

import pytest
from one_stage import shown, spec

from archspec.diagnostics import SpecError
from archspec.layers import Conv, Mlp
from archspec.loading import load
from archspec.shapes import Features, Image, Shape, ShapeError, Sizes, Tokens, with_channels
from compiler.plan import NetworkPlan
from compiler.resolve import resolve


def whole(stem: list[Any], head: list[Any] | None = None, **stage: Any) -> NetworkPlan:
    """The plan of a network on images."""
    text = spec(stage.pop("update", "x += F(y)"), backward="store", **stage)
    text |= {"input": {"image": [3, 8, 8]}, "stem": stem}
    return resolve(load(text | ({"head": head} if head else {})))


TOKENS, IMAGE, FEATURES = Tokens(5, 8), Image(8, 6, 4), Features(8)


@pytest.mark.parametrize(
    ("layer", "before", "after"),
    [
        ({"linear": 3}, TOKENS, Tokens(5, 3)),
        ({"linear": "4*channels"}, FEATURES, Features(32)),
        ({"linear": "channels/2 + layer*0 + classes"}, TOKENS, Tokens(5, 7)),
        ({"mlp": 0.5}, TOKENS, TOKENS),
        ({"attention": 4}, TOKENS, TOKENS),
        ("conv", IMAGE, IMAGE),
        ({"conv": {"out": "2*channels", "stride": 2}}, IMAGE, Image(16, 3, 2)),
        ({"conv": {"kernel": 4, "padding": 0}}, IMAGE, Image(8, 3, 1)),
        ({"conv": {"groups": "channels"}}, IMAGE, IMAGE),
        ("transpose_pair", IMAGE, IMAGE),
        ({"transpose_pair": {"hidden": 3}}, TOKENS, TOKENS),
        ({"group_norm": 4}, IMAGE, IMAGE),
        ("batch_norm", IMAGE, IMAGE),
        ("layer_norm", FEATURES, FEATURES),
        ({"patch_embed": {"patch": 2, "width": 7}}, IMAGE, Tokens(6, 7)),
        ("class_token", TOKENS, Tokens(6, 8)),
        ("position", TOKENS, TOKENS),
        ({"pool": "mean"}, IMAGE, FEATURES),
        ({"pool": "first"}, TOKENS, FEATURES),
        ("flatten", IMAGE, Features(192)),
        ({"scale": 0.1}, IMAGE, IMAGE),
        ({"drop_path": "0.9*layer/depth"}, TOKENS, TOKENS),
    ],
)
def test_what_a_layer_gives(layer: Any, before: Shape, after: Shape) -> None:
    kind = {Tokens: "tokens", Image: "image", Features: "features"}[type(before)]
    text = spec("x = F(x)", streams="x", functions={"F": [layer]}, backward="store")
    text |= {"input": {kind: list(before.sizes)}, "head": ["flatten", {"linear": 3}]}
    if before == after:
        assert resolve(load(text)).stages[0].functions[0].result == after
    else:
        with pytest.raises(SpecError) as caught:
            resolve(load(text))
        assert shown(caught.value).startswith("- x = F(x) | E402 `x` is")
        assert f"it would become {after}" in shown(caught.value)


@pytest.mark.parametrize(
    ("layer", "before", "message"),
    [
        ({"attention": 3}, TOKENS, "3 heads do not divide 8 channels"),
        ({"attention": 2}, IMAGE, "expected tokens, found image 8×6×4"),
        ("conv", TOKENS, "expected image or video, found 5 tokens × 8"),
        ({"conv": {"kernel": 9, "padding": 0}}, IMAGE, "a kernel of 9 is larger than the padded"),
        ({"conv": {"groups": 3}}, IMAGE, "3 groups do not divide 8 → 8 channels"),
        ({"conv": {"out": 6, "groups": 4}}, IMAGE, "4 groups do not divide 8 → 6 channels"),
        ("layer_norm", IMAGE, "expected tokens or features, found image 8×6×4 | use group_norm"),
        ({"linear": 8}, IMAGE, "expected tokens or features, found image 8×6×4 | use conv"),
        ({"linear": "channels/3"}, TOKENS, "expected a whole number from 1 to 1048576, found chan"),
        ({"linear": 0}, TOKENS, "expected a whole number from 1 to 1048576, found 0"),
        ({"linear": "chanels"}, TOKENS, "`chanels` has no value here | names here: channels, clas"),
        ({"linear": "channels +"}, TOKENS, "`channels +`: not readable"),
        ({"linear": "1/0"}, TOKENS, "`1/0` divides by zero"),
        ({"linear": "10**16*10**16"}, TOKENS, "has a number too large or too small"),
        ({"linear": "exp(channels)"}, TOKENS, "`exp(channels)` is not a number"),
        ({"linear": 10**299}, TOKENS, "expected a whole number from 1 to 1048576"),
        ({"mlp": 0.3}, TOKENS, "0.3 times 8 channels is not a whole number"),
        ({"mlp": 1e9}, TOKENS, "expected a whole number from 1 to 1048576"),
        ({"mlp": {"dropout": 1}}, TOKENS, "expected a rate from 0 to below 1, found 1"),
        ({"dropout": -0.1}, TOKENS, "expected a rate from 0 to below 1, found -0.1"),
        ({"drop_path": "layer"}, TOKENS, "expected a rate from 0 to below 1, found layer"),
        ({"drop_path": "10**16*10**16"}, TOKENS, "has a number too large or too small"),
        ({"group_norm": 3}, IMAGE, "3 groups do not divide 8 channels"),
        ({"group_norm": 2}, TOKENS, "expected image or video, found 5 tokens × 8"),
        ("batch_norm", TOKENS, "expected image, video or features, found 5 tokens × 8"),
        ({"transpose_pair": {"kernel": 2}}, IMAGE, "a kernel of 2 changes the grid"),
        ({"transpose_pair": {"kernel": 3}}, TOKENS, "`kernel` is for images"),
        ({"patch_embed": {"patch": 4, "width": 8}}, IMAGE, "patches of 4 do not tile image 8×6×4"),
        ({"patch_embed": {"patch": 1, "width": 8}}, TOKENS, "expected image, found 5 tokens × 8"),
        ("class_token", FEATURES, "expected tokens, found 8 features"),
        ("position", IMAGE, "expected tokens, found image 8×6×4"),
        ({"pool": "mean"}, FEATURES, "expected image, video or tokens, found 8 features"),
        ({"pool": "first"}, IMAGE, "expected tokens, found image 8×6×4"),
        ("concat", TOKENS, "there is only one argument to join"),
        ("add", TOKENS, "there is only one argument to join"),
    ],
)
def test_a_layer_that_does_not_fit_names_its_line(layer: Any, before: Shape, message: str) -> None:
    kind = {Tokens: "tokens", Image: "image", Features: "features"}[type(before)]
    text = spec("x += F(y)", functions={"F": ["tanh", layer, "relu"]})
    with pytest.raises(SpecError) as caught:
        resolve(load({**text, "input": {kind: list(before.sizes)}, "head": ["flatten"]}))
    line, found = shown(caught.value).split(" | ", 1)
    name = layer if isinstance(layer, str) else next(iter(layer))
    assert line.startswith(f"- {name}")
    assert found.startswith(f"E401 `{name}` does not fit here: ")
    assert message in found


def test_every_list_of_layers_names_its_line() -> None:
    with pytest.raises(SpecError) as caught:
        whole(["relu", {"conv": {"groups": 5}}])
    assert shown(caught.value).startswith("- conv:")
    stem = [{"patch_embed": {"patch": 2, "width": 8}}]
    with pytest.raises(SpecError, match=r"E401.* `chan` has no value here"):
        whole(stem, transition=[{"linear": "chan"}])
    with pytest.raises(SpecError, match=r"E401.* `layer` has no value here"):
        whole(stem, transition=[{"drop_path": "layer/4"}])
    with pytest.raises(
        SpecError, match=r"E401.* `pool` does not fit here: expected image, video or tok"
    ):
        whole(stem, head=[{"pool": "mean"}, {"pool": "mean"}])


# Sizes -------------------------------------------------------------------------------------------


def test_sizes_are_exact() -> None:
    sizes = Sizes.of(channels=10, layer=1, depth=3)
    assert sizes.size("channels/3*3") == 10
    assert sizes.rate("0.1*layer/depth") == pytest.approx(1 / 30)
    assert Mlp(ratio=0.7).hidden(10) == 7
    with pytest.raises(ShapeError):
        sizes.size("channels/3")


def test_default_padding_keeps_the_grid() -> None:
    for kernel in (1, 3, 5, 7):
        assert Conv(kernel=kernel).infer(IMAGE, Sizes.of(channels=8)) == IMAGE
    assert with_channels(IMAGE, 3) == Image(3, 6, 4)


def test_layers_inside_residual_have_the_same_shapes_everywhere() -> None:
    """They would all be built with the sizes of the last."""
    layers = [{"residual": [{"linear": "4*(layer + 1)"}, {"linear": 8}]}]
    with pytest.raises(SpecError, match=r"`linear` does not fit here: 5 tokens × 4 at layer 0 and"):
        resolve(load(inside(layers, depth=3)))


@pytest.mark.parametrize("layer", ["modulate", "add", "concat"])
def test_layers_inside_residual_take_no_arguments(layer: str) -> None:
    spec = inside([{"residual": [{"linear": 8}, layer]}], update="x += F(y, y)")
    with pytest.raises(SpecError, match="layers inside `residual` see its input alone"):
        resolve(load(spec))


def test_tokens_on_two_grids_are_not_added() -> None:
    """They are as many, and lie in other places."""

    def pooled(stride: list[int]) -> list[object]:
        return [{"pooling_transition": {"heads": 2, "query_stride": stride}}]

    layer = {"residual": {"body": pooled([1, 2]), "shortcut": pooled([2, 1])}}
    spec = {**inside(["tanh"]), "input": {"image": [8, 4, 8]}, "stem": ["tokens", layer]}
    with pytest.raises(SpecError, match=r"16 tokens × 8 on 4×4, and the shortcut in .* on 2×8"):
        resolve(load(spec))
    assert Tokens(16, 8, (4, 4)) == Tokens(16, 8) == Tokens(16, 8, (2, 8))
    assert Tokens(16, 8, (4, 4)) != Tokens(16, 8, (2, 8))


def inside(layers: list[object], depth: int = 1, update: str = "x += F(y)") -> dict[str, object]:
    """A spec of 5 tokens × 8 whose function is a list of layers."""
    stage = {
        "depth": depth,
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": layers},
        "update": [update, "y += x"],
        "output": "x",
    }
    return {
        "archspec": 1,
        "name": "inside",
        "summary": "Layers inside others",
        "input": {"tokens": [5, 8]},
        "stages": {"trunk": stage},
        "head": [{"pool": "mean"}, {"linear": "classes"}],
        "task": {"classify": 3},
    }
