"""Attention pooled over a grid: against loops over the formula, on grids of every kind."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
import torch
from emitted_file import as_module, computed, disturb, emitted_text, inputs, network_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import error, spec
from torch import Tensor, nn

import archspec
from compiler.functions.pointwise import DropPath
from compiler.functions.pooled_attention import HeadPool, PooledAttention, PoolingTransition

Explain = Callable[..., str]


class Problem(TypedDict):
    """Arguments of `PooledAttention`."""

    channels: int
    heads: int
    grid: tuple[int, ...]
    kernel: tuple[int, ...]
    query_stride: tuple[int, ...]
    key_stride: tuple[int, ...]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Attention on a grid of two axes or three, odd sides and sides of 1 among them."""
    axes = draw(st.sampled_from((2, 3)))
    heads, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))

    def each(numbers: st.SearchStrategy[int]) -> tuple[int, ...]:
        return draw(st.tuples(*[numbers] * axes))

    return {
        "channels": heads * width,
        "heads": heads,
        "grid": each(st.integers(1, 5 if axes == 2 else 3)),
        "kernel": each(st.sampled_from((1, 3, 5))),
        "query_stride": each(st.integers(1, 3)),
        "key_stride": each(st.integers(1, 3)),
    }


def made(problem: Problem) -> tuple[PooledAttention, Tensor]:
    """The module, all its parameters random, and tokens for it."""
    torch.manual_seed(0)
    module = PooledAttention(**problem).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    count = math.prod(problem["grid"])
    return module, torch.randn(2, count, problem["channels"], dtype=torch.float64)


def places(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, grid)))


def after(grid: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """The pooled grid: every so many places, from the first."""
    return tuple(math.ceil(side / step) for side, step in zip(grid, stride, strict=True))


def looped_pool(pool: HeadPool, tokens: Tensor, stride: tuple[int, ...]) -> Tensor:
    """(B, N, d) of one head → (B, N', d): sums over the kernel around each kept place, then the
    norm."""
    kernel, where = pool.conv.weight, {place: i for i, place in enumerate(places(pool.grid))}
    sides = kernel.shape[2:]
    rows = []
    for place in places(after(pool.grid, stride)):
        total = torch.zeros_like(tokens[:, 0])
        for offset in places(tuple(sides)):
            near = tuple(
                p * s + o - side // 2
                for p, s, o, side in zip(place, stride, offset, sides, strict=True)
            )
            if near in where:
                total += tokens[:, where[near]] * kernel[(slice(None), 0, *offset)]
        rows.append(total)
    pooled = torch.stack(rows, 1)
    centred = pooled - pooled.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * pool.norm.weight + pool.norm.bias


def looped(module: PooledAttention, problem: Problem, tokens: Tensor) -> Tensor:
    """The attention of each head apart."""
    query, key, value = module.query_key_value(tokens).split(problem["channels"], -1)
    width, mixed = problem["channels"] // problem["heads"], []
    for head in range(problem["heads"]):
        part = slice(head * width, (head + 1) * width)
        q, k, v = query[..., part], key[..., part], value[..., part]
        if isinstance(module.pool_query, HeadPool):
            q = looped_pool(module.pool_query, q, problem["query_stride"])
        k = looped_pool(module.pool_key, k, problem["key_stride"])
        v = looped_pool(module.pool_value, v, problem["key_stride"])
        mixed.append((q @ k.mT / math.sqrt(width)).softmax(-1) @ v)
    result: Tensor = module.project(torch.cat(mixed, -1))
    return result


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_pooled_attention_is_its_formula(problem: Problem) -> None:
    module, tokens = made(problem)
    assert isinstance(module.pool_query, HeadPool) == (math.prod(problem["query_stride"]) > 1)
    assert error(module(tokens), looped(module, problem, tokens)) < 1e-12


@settings(max_examples=30, deadline=None, derandomize=True)
@given(problems())
def test_a_transition_pools_its_input_as_its_queries(problem: Problem) -> None:
    problem["query_stride"] = (2,) * len(problem["grid"])
    attention, tokens = made(problem)
    module = PoolingTransition(problem["channels"], attention, DropPath(0.0)).double()
    width = problem["channels"] // problem["heads"]
    assert isinstance(attention.pool_query, HeadPool)
    kept = [
        looped_pool(attention.pool_query, head, problem["query_stride"])
        for head in tokens.split(width, -1)
    ]
    wanted = torch.cat(kept, -1) + looped(attention, problem, module.norm(tokens))
    assert error(module(tokens), wanted) < 1e-12


def test_a_transition_drops_its_attention_and_keeps_its_shortcut() -> None:
    problem: Problem = {
        "channels": 8,
        "heads": 2,
        "grid": (4, 4),
        "kernel": (3, 3),
        "query_stride": (2, 2),
        "key_stride": (1, 1),
    }
    attention, tokens = made(problem)
    tokens = tokens.repeat(16, 1, 1)
    module = PoolingTransition(8, attention, DropPath(0.5)).double()
    kept = module.eval()(tokens) - attention(module.norm(tokens))
    dropped = (module.train()(tokens) - kept).abs().amax((1, 2)) < 1e-12
    assert 0 < int(dropped.sum()) < len(tokens)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_the_shape_inferred_is_the_shape_computed(problem: Problem) -> None:
    """In a spec, kernels and strides as one number where all axes have the same."""

    def written(numbers: tuple[int, ...]) -> Any:
        return numbers[0] if len(set(numbers)) == 1 else list(numbers)

    keys = ("kernel", "query_stride", "key_stride")
    layer = {"heads": problem["heads"], **{key: written(problem[key]) for key in keys}}
    axes = len(problem["grid"])
    kind = "image" if axes == 2 else "video"
    described = spec(
        {"depth": 1, "coupling": "additive", "functions": {"F": ["gelu"], "G": ["gelu"]}},
        {kind: [problem["channels"], *problem["grid"]]},
        stem=["tokens", {"pooled_attention": layer}, {"pooled_attention": layer}],
    )
    network = archspec.build(described)
    for plan in network.plan.stem[1:]:
        assert plan.after.grid == after(plan.before[0].grid, problem["query_stride"])  # type: ignore[union-attr]
    images = torch.randn(2, *network.plan.input.sizes)
    assert network.stem(images).shape == (2, *network.plan.stem[-1].after.sizes)


REDUCED = ("stem.0.conv.out=8", "stages.scale4.depth=2", "task.classify.classes=3")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("rev_mvit_b", "input.image=[3, 40, 48]"),
        ("momrev_mvit_b", "input.image=[3, 36, 36]"),
        ("mvit_b", "input.image=[3, 40, 36]"),
        ("rev_mvit_b_video", "input.video=[3, 5, 36, 40]"),
    ],
)
def test_emitted_transformers_have_the_same_bits(name: str, size: str) -> None:
    settings = (*REDUCED, size)
    module = as_module(emitted_text(name, settings))
    torch.manual_seed(0)
    network = archspec.build(name, settings).double()
    disturb(network)
    other = network_of(module).double()
    other.load_state_dict(network.state_dict())
    value = inputs(network, network.plan.input.sizes)
    found, wanted = computed(other, value, {}), computed(network, value, {})
    assert found.keys() == wanted.keys()
    assert [key for key in found if not torch.equal(found[key], wanted[key])] == []
    for stage in other.stages:
        assert module.plain_error(stage, 2) == 0


# Mistakes ----------------------------------------------------------------------------------------

SMALL = """\
archspec: 1
name: small
summary: A small network
input: {image: [1, 8, 8]}
stem:
  - patch_embed: {patch: 2, width: 16}
stages:
  trunk:
    transition:
      - pooling_transition: {heads: 2}
    depth: 2
    coupling: additive
    functions:
      F: [layer_norm, pooled_attention: {heads: 2, key_stride: 2}]
      G: [layer_norm, mlp: 2]
head: [pool: mean, linear: classes]
task: {classify: 10}
"""
F_AT = "spec.yaml:14:"
TRANSITION_AT = "spec.yaml:10:"


def test_the_small_spec_is_right(explain: Explain) -> None:
    assert explain(SMALL) == ""


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        (
            "{heads: 2, key",
            "{heads: 3, key",
            F_AT,
            "`pooled_attention` does not fit here: 3 heads do not divide 16 channels",
        ),
        (
            "key_stride: 2",
            "kernel: 4",
            F_AT,
            "`pooled_attention` does not fit here: the kernel of a pool has odd sides, found 4",
        ),
        (
            "key_stride: 2",
            "kernel: [3, 2]",
            F_AT,
            "`pooled_attention` does not fit here: the kernel of a pool has odd sides, found 2",
        ),
        (
            "key_stride: 2",
            "key_stride: [1, 2, 2]",
            F_AT,
            "`pooled_attention` does not fit here: [1, 2, 2] has 3 numbers, and the grid 2 axes",
        ),
        (
            "width: 16}\n",
            "width: 16}\n  - class_token\n",
            "spec.yaml:11:",
            "`pooling_transition` does not fit here: expected tokens on a grid, found a sequence "
            "of 17 tokens × 16",
        ),
        (
            "  - patch_embed: {patch: 2, width: 16}",
            "  - conv: 16",
            TRANSITION_AT,
            "`pooling_transition` does not fit here: expected tokens, found image 16×8×8",
        ),
        (
            "transition: {heads: 2}",
            "transition: {heads: 2, query_stride: 1}",
            TRANSITION_AT,
            "`pooling_transition` does not fit here: the queries have no stride",
        ),
        (
            "transition: {heads: 2}",
            "transition: {heads: 2, drop_path: 1.5}",
            TRANSITION_AT,
            "`pooling_transition` does not fit here: expected a rate from 0 to below 1, found 1.5",
        ),
    ],
)
def test_settings_that_do_not_fit(
    old: str, new: str, place: str, message: str, explain: Explain
) -> None:
    assert SMALL.count(old) == 1
    said = explain(SMALL.replace(old, new))
    assert said.startswith(place), said
    assert said.count("error[") == 1
    assert f"error[E401] {message}\n" in said


def test_a_function_that_pools_its_queries_does_not_fit_its_stream(explain: Explain) -> None:
    said = explain(SMALL.replace("key_stride: 2", "query_stride: 2"), "stages.trunk.transition=[]")
    assert "error[E402] `x1` is 16 tokens × 16, `F(x2)` is 4 tokens × 16\n" in said


def test_a_grid_of_one_token_is_pooled_to_itself(explain: Explain) -> None:
    """A stride that has nothing left to skip is no mistake: small inputs come to it."""
    assert explain(SMALL, "input.image=[1, 2, 2]") == ""
