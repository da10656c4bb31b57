"""Modules as the Python text that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from textwrap import indent
from typing import Any

from torch import nn

from compiler import priors
from compiler.emission.numbers import marked
from compiler.emission.writing import literal
from compiler.functions import attention, convolution, maps, pointwise, pooled_attention, tokens
from compiler.functions.build import Function


class CannotEmitError(ValueError):
    """A network that has no file of its own; the message says why."""


def made(module: nn.Module) -> str:
    """The text that makes a module. Raises `CannotEmitError` for a module of the user's own."""
    if isinstance(module, (Function, nn.Sequential)):
        return _listed(module)
    if type(module) not in MAKERS:
        raise CannotEmitError(
            f"{type(module).__module__}.{type(module).__qualname__} is a module of your own, which "
            "a file that imports torch alone cannot hold"
        )
    return MAKERS[type(module)](module)


def _listed(module: nn.Sequential) -> str:
    kind = "Function" if isinstance(module, Function) else "nn.Sequential"
    if not len(module):
        return f"{kind}()"
    entries = "".join(f"{name}={made(layer)},\n" for name, layer in module.named_children())
    layers = f"OrderedDict(\n{indent(entries, '    ')})"
    takes = f", takes={module.takes!r}" if isinstance(module, Function) else ""
    return f"{kind}({layers}{takes})"


def _conv(m: Any) -> str:
    written = {
        "stride": (_axes(m.stride), 1),
        "padding": (_axes(m.padding), 0),
        "groups": (m.groups, 1),
    }
    text = "".join(f", {key}={now}" for key, (now, default) in written.items() if now != default)
    bias = "" if m.bias is not None else ", bias=False"
    kernel = _axes(m.kernel_size)
    return f"{type(m).__name__}({m.in_channels}, {m.out_channels}, {kernel}{text}{bias})"


def _axes(numbers: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number where all axes have the same."""
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _pooling(m: Any) -> str:
    sides = (_axes(m.kernel_size), _axes(m.stride), _axes(m.padding))
    return f"nn.{type(m).__name__}({', '.join(map(str, sides))})"


def _pooled_attention(m: pooled_attention.PooledAttention) -> str:
    key = m.pool_key
    query: Any = m.pool_query
    is_pooled = isinstance(query, pooled_attention.HeadPool)
    stride = query.conv.stride if is_pooled else (1,) * len(key.grid)
    return (
        f"PooledAttention(\n"
        f"    {m.project.in_features}, heads={m.heads}, grid={key.grid}, "
        f"kernel={key.conv.kernel_size},\n"
        f"    query_stride={stride}, key_stride={key.conv.stride},\n"
        ")"
    )


def _pooling_transition(m: pooled_attention.PoolingTransition) -> str:
    parts = f"{m.norm.normalized_shape[0]},\n{made(m.attention)},\n{made(m.drop_path)},\n"
    return f"PoolingTransition(\n{indent(parts, '    ')})"


def _plain(m: nn.Module) -> str:
    return f"nn.{type(m).__name__}()"


MAKERS: Mapping[type[nn.Module], Callable[[Any], str]] = {
    nn.LayerNorm: lambda m: f"nn.LayerNorm({m.normalized_shape[0]}, eps={m.eps})",
    nn.BatchNorm1d: lambda m: f"nn.BatchNorm1d({m.num_features}, {m.eps}, {m.momentum})",
    nn.BatchNorm2d: lambda m: f"nn.BatchNorm2d({m.num_features}, {m.eps}, {m.momentum})",
    nn.BatchNorm3d: lambda m: f"nn.BatchNorm3d({m.num_features}, {m.eps}, {m.momentum})",
    nn.MaxPool2d: _pooling,
    nn.MaxPool3d: _pooling,
    nn.AvgPool2d: _pooling,
    nn.AvgPool3d: _pooling,
    nn.GroupNorm: lambda m: f"nn.GroupNorm({m.num_groups}, {m.num_channels}, eps={m.eps})",
    nn.Linear: lambda m: (
        f"linear({m.in_features}, {m.out_features}{'' if m.bias is not None else ', bias=False'})"
    ),
    maps.Flatten: lambda m: f"Flatten({m.sizes})",
    nn.ReLU: _plain,
    nn.GELU: _plain,
    nn.SiLU: _plain,
    nn.Tanh: _plain,
    nn.Softplus: _plain,
    nn.Dropout: lambda m: f"nn.Dropout({marked(m.p)})",
    attention.Attention: lambda m: (
        f"Attention({m.project.in_features}, heads={m.heads}, dropout={marked(m.dropout)})"
    ),
    pooled_attention.PooledAttention: _pooled_attention,
    pooled_attention.PoolingTransition: _pooling_transition,
    convolution.Conv: _conv,
    convolution.VideoConv: _conv,
    convolution.PadChannels: lambda m: f"PadChannels({m.added}, {-1 - m.trailing})",
    convolution.AntisymmetricConv: lambda m: (
        f"AntisymmetricConv({m.kernel.shape[0]}, kernel={m.kernel.shape[2]}, "
        f"activation={made(m.activation)})"
    ),
    convolution.AntisymmetricLinear: lambda m: (
        f"AntisymmetricLinear({m.kernel.shape[0]}, activation={made(m.activation)})"
    ),
    convolution.TransposeConv: lambda m: (
        f"TransposeConv({m.kernel.shape[1]}, hidden={m.kernel.shape[0]}, "
        f"kernel={m.kernel.shape[2]}, activation={made(m.activation)})"
    ),
    convolution.TransposeLinear: lambda m: (
        f"TransposeLinear({m.kernel.shape[1]}, hidden={m.kernel.shape[0]}, "
        f"activation={made(m.activation)})"
    ),
    pointwise.DropPath: lambda m: f"DropPath({marked(m.rate)})",
    pointwise.Sinusoids: lambda m: f"Sinusoids({m.count})",
    pointwise.Scale: lambda m: f"Scale({len(m.factor)}, {m.init}, {-1 - m.trailing})",
    pointwise.SoftThreshold: lambda m: (
        f"SoftThreshold({len(m.threshold)}, {m.init}, {-1 - m.trailing})"
    ),
    pointwise.Residual: lambda m: f"Residual({made(m.body)}, {made(m.shortcut)})",
    pointwise.ConcatArguments: lambda m: f"ConcatArguments({m.channel_dimension})",
    pointwise.AddArguments: lambda m: "AddArguments()",
    pointwise.Modulate: lambda m: (
        f"Modulate({m.project.out_features // 2}, {m.project.in_features}, {-1 - m.trailing})"
    ),
    tokens.Mlp: lambda m: (
        f"Mlp({m.expand.in_features}, hidden={m.expand.out_features}, "
        f"activation={made(m.activation)}, dropout={marked(m.dropout.p)})"
    ),
    tokens.PatchEmbed: lambda m: (
        f"PatchEmbed({m.project.in_channels}, width={m.project.out_channels}, "
        f"patch={m.project.kernel_size[0]})"
    ),
    tokens.PatchUnembed: lambda m: (
        f"PatchUnembed({m.project.in_features}, channels={m.channels}, patch={m.patch}, "
        f"grid={m.grid})"
    ),
    tokens.ToTokens: lambda m: "ToTokens()",
    tokens.PatchMerge: lambda m: (
        f"PatchMerge({m.norm.normalized_shape[0] // 4}, out={m.project.out_features}, "
        f"grid={m.grid})"
    ),
    tokens.ClassToken: lambda m: f"ClassToken({m.token.shape[-1]})",
    tokens.Position: lambda m: f"Position({', '.join(map(str, m.embedding.shape[1:]))})",
    tokens.Pool: lambda m: f"Pool({literal(m.by)}, {-1 if m.over == (1,) else -1 - len(m.over)})",
    priors.Prior: lambda m: f"Prior({m.sizes})",
    priors.LearnedPrior: lambda m: f"LearnedPrior({m.sizes}, {-1 - m.trailing})",
    priors.ConditionalPrior: lambda m: (
        f"ConditionalPrior({m.sizes}, {m.dimension}, context={m.context})"
    ),
    maps.ActNorm: lambda m: f"ActNorm({m.shape[0]}, {-len(m.shape)})",
    maps.InvertibleLinear: lambda m: f"InvertibleLinear({len(m.sign)}, {m.dimension})",
    maps.Squeeze: lambda m: "Squeeze()",
    maps.Unsqueeze: lambda m: "Unsqueeze()",
}
