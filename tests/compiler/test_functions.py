"""What functions and coefficients are made of: each layer against its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_networks import error, network
from torch import Tensor, nn

from compiler.functions.attention import Attention
from compiler.functions.convolution import TransposeConv, TransposeLinear
from compiler.functions.pointwise import AddArguments, ConcatArguments, DropPath, Scale
from compiler.functions.tokens import ClassToken, Mlp, PatchEmbed, Pool, Position

DTYPE = torch.float64


def random(*sizes: int) -> Tensor:
    return torch.randn(*sizes, dtype=DTYPE)


# Attention and tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_attention(heads: int) -> None:
    torch.manual_seed(0)
    attention = Attention(6, heads, 0.0).double()
    tokens = random(2, 5, 6)
    joined = attention.query_key_value(tokens)
    query, key, value = joined.split(6, -1)
    width, mixed = 6 // heads, []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ key[..., part].mT / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed.append(weights @ value[..., part])
    wanted = attention.project(torch.cat(mixed, -1))
    assert error(attention(tokens), wanted) < 1e-13


def test_attention_drops_weights_in_training_alone() -> None:
    attention = Attention(6, 2, 0.5).double()
    tokens = random(2, 5, 6)
    assert not torch.equal(attention(tokens), attention(tokens))
    attention.eval()
    assert torch.equal(attention(tokens), attention(tokens))


def test_mlp() -> None:
    mlp = Mlp(6, 12, nn.GELU(), 0.0).double()
    tokens = random(2, 5, 6)
    hidden = tokens @ mlp.expand.weight.T + mlp.expand.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    assert error(mlp(tokens), hidden @ mlp.contract.weight.T + mlp.contract.bias) < 1e-13


def test_patches_go_row_by_row() -> None:
    embed = PatchEmbed(3, 8, 2).double()
    image = random(2, 3, 4, 6)
    tokens = embed(image)
    assert tokens.shape == (2, 6, 8)
    kernel, bias = embed.project.weight.flatten(1), embed.project.bias
    for row in range(2):
        for column in range(3):
            patch = image[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
            wanted = patch @ kernel.T + bias  # type: ignore[operator]
            assert error(tokens[:, 3 * row + column], wanted) < 1e-13


def test_class_token_and_position() -> None:
    tokens = random(2, 5, 6)
    token = ClassToken(6).double()
    nn.init.normal_(token.token)
    joined = token(tokens)
    assert torch.equal(joined[:, 1:], tokens)
    assert torch.equal(joined[:, 0], token.token[0].expand(2, -1))
    position = Position(5, 6).double()
    assert torch.equal(position(tokens), tokens + position.embedding)
    assert 0.01 < float(position.embedding.detach().std()) < 0.04


def test_pools() -> None:
    tokens, image = random(2, 5, 6), random(2, 3, 4, 4)
    assert error(Pool("mean", -1)(tokens), tokens.sum(1) / 5) < 1e-14
    assert error(Pool("mean", -3)(image), image.sum((2, 3)) / 16) < 1e-14
    assert torch.equal(Pool("max", -1)(tokens), tokens.max(1).values)
    assert torch.equal(Pool("max", -3)(image), image.flatten(2).max(2).values)
    assert torch.equal(Pool("first", -1)(tokens), tokens[:, 0])


# Tied pairs --------------------------------------------------------------------------------------


class Given(nn.Module):
    """Gives z, whatever it is asked."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def forward(self, _: Tensor) -> Tensor:
        return self.z


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_transpose_pair_on_images(kernel: int) -> None:
    pair = TransposeConv(3, 7, kernel, nn.Tanh()).double()
    nn.init.normal_(pair.bias)
    x, z = random(2, 3, 6, 5), random(2, 7, 6, 5)
    mapped = nn.functional.conv2d(x, pair.kernel, padding=kernel // 2)
    pair.activation = Given(z)
    adjoint = pair(x)  # K^T z
    assert error((mapped * z).sum(), (x * adjoint).sum()) < 1e-12
    pair.activation = Given(torch.tanh(mapped + pair.bias.view(-1, 1, 1)))
    wanted = pair(x)
    pair.activation = nn.Tanh()
    assert error(pair(x), wanted) < 1e-13


def test_transpose_pair_on_tokens() -> None:
    pair = TransposeLinear(6, 4, nn.Tanh()).double()
    nn.init.normal_(pair.bias)
    x = random(2, 5, 6)
    wanted = torch.tanh(x @ pair.kernel.T + pair.bias) @ pair.kernel
    assert error(pair(x), wanted) < 1e-13


@pytest.mark.parametrize("size", [{"image": [3, 5, 5]}, {"tokens": [4, 6]}, {"features": [6]}])
def test_transpose_pairs_without_bias_are_symmetric(size: dict[str, Any]) -> None:
    """K^T K, where the activation does nothing."""
    stage = {
        "depth": 1,
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": [{"transpose_pair": {"hidden": 8}}]},
        "update": ["x += F(y)"],
        "output": "x + y",
    }
    model = network(stage, input=size)
    function = model.stages[0].layers[0].F
    function.transpose_pair.activation = nn.Identity()  # type: ignore[union-attr]
    nn.init.zeros_(function.transpose_pair.bias)  # type: ignore[union-attr]
    x, y = random(2, *size[next(iter(size))]), random(2, *size[next(iter(size))])
    assert error((function(x) * y).sum(), (x * function(y)).sum()) < 1e-11  # type: ignore[operator]


# Pointwise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_drop_path_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    drop = DropPath(rate).double()
    kept = drop(torch.ones(20_000, 2, 3, dtype=DTYPE))
    assert abs(float(kept.mean()) - 1) < 6 * math.sqrt(rate / (1 - rate) / 20_000) + 1e-6
    assert {round(v, 6) for v in kept.unique().tolist()} <= {0.0, round(1 / (1 - rate), 6)}
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert torch.equal(drop.eval()(kept), kept)


def test_drop_path_is_the_same_in_half_precision() -> None:
    drop = DropPath(0.5)
    value = torch.ones(64, 3)
    torch.manual_seed(0)
    single = drop(value)
    torch.manual_seed(0)
    half = drop(value.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.float(), single)


def test_rates_may_grow_with_the_layer() -> None:
    branch = [
        "layer_norm",
        {"mlp": {"ratio": 1, "dropout": "layer/10"}},
        {"drop_path": "0.4*layer/(depth - 1)"},
    ]
    stage = {"depth": 3, "coupling": "additive", "functions": {"F": branch, "G": branch}}
    layers = network(stage).stages[0].layers
    assert [layer.F.drop_path.rate for layer in layers] == [0.0, 0.2, 0.4]  # type: ignore[union-attr]
    assert [layer.G.mlp.dropout.p for layer in layers] == [0.0, 0.1, 0.2]  # type: ignore[union-attr]


def test_scale() -> None:
    for channel, value in ((-1, random(2, 5, 6)), (-3, random(2, 6, 3, 3)), (-1, random(2, 6))):
        scale = Scale(6, 0.5, channel).double()
        assert torch.equal(scale(value), 0.5 * value)
        with torch.no_grad():
            scale.factor.copy_(torch.arange(6))
        assert not scale(value).select(channel, 0).any()
        assert torch.equal(scale(value).select(channel, 5), 5 * value.select(channel, 5))


def test_joins() -> None:
    a, b, c = random(2, 5, 3), random(2, 5, 3), random(2, 5, 1)
    assert torch.equal(ConcatArguments(-1)(a, b, c), torch.cat([a, b, c], 2))
    assert torch.equal(AddArguments()(a, b, a), a + b + a)
    image = random(2, 3, 4, 4)
    assert ConcatArguments(-3)(image, image[:, :1]).shape == (2, 4, 4, 4)


# Coefficients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("size", [{"image": [3, 5, 5]}, {"tokens": [4, 6]}, {"features": [6]}])
def test_learned_coefficients(size: dict[str, Any], per: str) -> None:
    stage = {
        "depth": 2,
        "coupling": "momentum",
        "functions": {"F": ["tanh"]},
        "constants": {"gamma": {"learn": 0.9, "within": [0.5, 0.99], "per": per}},
    }
    model = network(stage, input=size)
    stage_module = model.stages[0]
    x, v = (random(2, *size[next(iter(size))]) for _ in range(2))
    channel = -3 if "image" in size else -1
    for layer in stage_module.layers:
        coefficients = layer.coefficients
        (parameter,) = coefficients.parameters()  # type: ignore[union-attr]
        # Vectors at most: weight decay is for matrices.
        assert parameter.shape == (() if per == "layer" else (x.shape[channel],))
        evaluate = coefficients.evaluators()["gamma"]  # type: ignore[union-attr,operator]
        assert error(evaluate().flatten(), torch.full_like(parameter, 0.9).flatten()) < 1e-6
        for extreme, end in ((-1e4, 0.5), (1e4, 0.99)):
            with torch.no_grad():
                parameter.fill_(extreme)
            assert error(evaluate().flatten(), torch.full_like(parameter, end).flatten()) < 1e-14
    moved = stage_module(x, v)
    wanted = (x, v)
    for _ in range(2):
        velocity = 0.99 * wanted[1] + 0.01 * torch.tanh(wanted[0])
        wanted = (wanted[0] + velocity, velocity)
    assert max(error(m, w) for m, w in zip(moved, wanted, strict=True)) < 1e-12


def test_drawn_coefficients() -> None:
    torch.manual_seed(0)
    stage = network({"depth": 1, "coupling": "bdia", "functions": {"F": ["tanh"]}}).stages[0]
    for like in (random(4000, 3), random(4000, 2, 3), random(4000, 2, 3, 3).float()):
        values = stage.train().draw(like)[0]["gamma"]
        assert values.shape == (4000, *(1 for _ in like.shape[1:]))
        assert values.dtype == like.dtype
        assert set(values.unique().tolist()) == {-0.5, 0.5}
        assert abs(float(values.mean())) < 0.05
        still = stage.eval().draw(like)[0]["gamma"]
        assert still.shape == values.shape
        assert not still.any()
