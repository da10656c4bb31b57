"""Lists of layers as modules: their shapes as inferred, their parameters by formula."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from small_networks import additive, network, spec
from torch import nn

import archspec
from archspec import SpecError


def test_parameters_of_a_rev_vit() -> None:
    patch, width, side, depth, classes = 4, 12, 16, 3, 3
    count = (side // patch) ** 2
    stage = {
        "depth": depth,
        "coupling": "momentum_pair",
        "functions": {
            "F": ["layer_norm", {"attention": {"heads": 4}}],
            "G": ["layer_norm", {"mlp": 4}],
        },
    }
    stem = [{"patch_embed": {"patch": patch, "width": width}}, {"position": "learned"}]
    head = ["layer_norm", {"pool": "mean"}, {"linear": "classes"}]
    model = network(stage, input={"image": [3, side, side]}, stem=stem, head=head)
    wanted = (3 * patch**2 + 1) * width + count * width
    wanted += depth * (12 * width**2 + 13 * width)
    wanted += 4 * width + (2 * width + 1) * classes
    assert sum(p.numel() for p in model.parameters()) == wanted


ANY: list[Any] = [
    "relu",
    "gelu",
    "silu",
    "tanh",
    "softplus",
    {"dropout": 0.2},
    {"drop_path": 0.2},
    {"scale": 0.5},
]
CHANNELS_LAST: list[Any] = ["layer_norm", {"linear": "2*channels"}, {"linear": 4}, {"mlp": 2}]
TOKENS: list[Any] = [{"attention": {"heads": 2}}, "class_token", {"position": "learned"}]
PAIR: list[Any] = [{"transpose_pair": {}}, {"transpose_pair": {"hidden": 5}}]
LISTS: dict[str, list[Any]] = {
    "tokens": [*ANY, *CHANNELS_LAST, *TOKENS, *PAIR],
    "features": [*ANY, *CHANNELS_LAST, *PAIR, "batch_norm"],
    "image": [
        *ANY, *PAIR, "batch_norm", {"group_norm": 2}, {"conv": {}}, {"conv": {"stride": 2}},
        {"conv": {"out": 4, "kernel": 5}}, {"conv": {"kernel": 1, "bias": False}},
        {"conv": {"out": "2*channels", "groups": 2}}, {"conv": {"kernel": 4}},
        {"conv": {"kernel": 2, "padding": 0}},
        {"transpose_pair": {"kernel": 5, "hidden": "channels/2"}},
    ],
}  # fmt: skip
ENDS: dict[str, list[list[Any]]] = {
    "tokens": [[], [{"pool": "mean"}], [{"pool": "first"}], ["flatten"]],
    "features": [[], ["flatten"]],
    "image": [[], [{"pool": "max"}], ["flatten"], [{"patch_embed": {"patch": 1, "width": 3}}]],
}
SIZES = {"tokens": [[5, 4], [1, 2]], "features": [[4], [2]], "image": [[2, 6, 5], [4, 3, 3]]}


@st.composite
def layer_lists(draw: Any) -> tuple[dict[str, Any], list[Any]]:
    kind = draw(st.sampled_from(list(LISTS)))
    layers = draw(st.lists(st.sampled_from(LISTS[kind]), max_size=5))
    return {kind: draw(st.sampled_from(SIZES[kind]))}, [*layers, *draw(st.sampled_from(ENDS[kind]))]


@settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=150
)
@given(layer_lists(), st.integers(2, 3))
def test_shapes_are_as_inferred(lists: tuple[dict[str, Any], list[Any]], batch: int) -> None:
    size, layers = lists
    note(str(lists))
    stage = {
        "depth": 1,
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": ["tanh"]},
        "update": ["x += F(y)"],
        "output": "x + y",
    }
    head = ["flatten", {"linear": "classes"}]
    try:
        model = archspec.build(spec(stage, input=size, stem=layers, head=head))
    except SpecError:
        assume(False)
    value = torch.randn(batch, *model.plan.input.sizes)
    for module, plan in zip(model.stem, model.plan.stem, strict=True):
        assert value.shape == (batch, *plan.before[0].sizes)
        value = module(value)
        assert value.shape == (batch, *plan.after.sizes)
    assert value.isfinite().all()
    out = model(torch.randn(batch, *model.plan.input.sizes))
    assert out.shape == (batch, 3)
    out.sum().backward()


def test_initial_weights() -> None:
    stage = additive(G=["layer_norm", {"attention": {"heads": 1}}])
    model = archspec.build(spec(stage, input={"tokens": [2, 64]}))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert not module.bias.any(), name
            weight = module.weight.detach()
            assert float(weight.abs().max()) <= bound
            assert abs(float(weight.std()) / (bound / math.sqrt(3)) - 1) < 0.1
    torch.manual_seed(5)
    first = archspec.build(spec(stage)).state_dict()
    torch.manual_seed(5)
    again = archspec.build(spec(stage)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
