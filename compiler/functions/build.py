"""Layer plans into modules. One small builder a kind of layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from archspec import layers as spec
from archspec.layers.base import on_axes, padded
from archspec.layers.convolution import Pooling
from archspec.layers.tokens import need_grid
from archspec.maps import ActNorm, InvertibleLinear, Squeeze
from archspec.shapes import Image, Sizes, Video, channel_dimension
from compiler.functions import maps
from compiler.functions.attention import Attention
from compiler.functions.convolution import (
    AntisymmetricConv,
    AntisymmetricLinear,
    Conv,
    PadChannels,
    TransposeConv,
    TransposeLinear,
    VideoConv,
)
from compiler.functions.pointwise import (
    ACTIVATIONS,
    AddArguments,
    ConcatArguments,
    DropPath,
    Modulate,
    Residual,
    Scale,
    Sinusoids,
    SoftThreshold,
)
from compiler.functions.pooled_attention import PooledAttention, PoolingTransition
from compiler.functions.tokens import (
    ClassToken,
    Mlp,
    PatchEmbed,
    PatchMerge,
    PatchUnembed,
    Pool,
    Position,
    ToTokens,
    linear,
)
from compiler.plan import FunctionPlan, LayerPlan, MapPlan
from compiler.user_modules import make

Builder = Callable[[Any, LayerPlan, Sizes], nn.Module]


class Function(nn.Sequential):
    """A residual function: its layers in turn, each under the name of its kind. `takes` says how
    many of the arguments behind the first each layer takes."""

    def __init__(self, layers: OrderedDict[str, nn.Module], takes: Sequence[int]) -> None:
        super().__init__(layers)
        self.takes = tuple(takes)

    def forward(self, value: Any, *waiting: Any) -> Any:
        """Any number of (B, …) tensors to one."""
        for layer, count in zip(self, self.takes, strict=True):
            value, waiting = layer(value, *waiting[:count]), waiting[count:]
        return value


def build_function(plan: FunctionPlan, sizes: Sizes) -> Function:
    """The module of a residual function. `sizes` gives rates their `layer` and `depth`."""
    takes = [len(layer.before) - 1 for layer in plan.layers]
    return Function(_named(plan.layers, sizes), takes)


def build_map(plan: MapPlan) -> nn.Module:
    """The module of an invertible map."""
    if isinstance(plan.map, ActNorm):
        return maps.ActNorm(plan.before.channels, channel_dimension(plan.before))
    if isinstance(plan.map, InvertibleLinear):
        return maps.InvertibleLinear(plan.before.channels, channel_dimension(plan.before))
    return maps.Squeeze() if isinstance(plan.map, Squeeze) else maps.Unsqueeze()


def build_layers(plans: Sequence[LayerPlan]) -> nn.Sequential:
    """The layers of a stem, a transition or a head."""
    return nn.Sequential(_named(plans, Sizes(())))


def _named(plans: Sequence[LayerPlan], extra: Sizes) -> OrderedDict[str, nn.Module]:
    """Modules by the names of their kinds; a second `conv` is `conv_2`."""
    modules: dict[str, nn.Module] = {}
    counts: dict[str, int] = {}
    for plan in plans:
        kind = getattr(plan.layer, "kind")  # noqa: B009  (declared by each kind)
        counts[kind] = counts.get(kind, 0) + 1
        name = kind if counts[kind] == 1 else f"{kind}_{counts[kind]}"
        sizes = Sizes((*plan.sizes.values, *extra.values))
        modules[name] = BUILDERS[type(plan.layer)](plan.layer, plan, sizes)
    return OrderedDict(modules)


def _batch_norm(layer: spec.BatchNorm, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    kinds = {Image: nn.BatchNorm2d, Video: nn.BatchNorm3d}
    kind = kinds.get(type(plan.before[0]), nn.BatchNorm1d)
    return kind(plan.before[0].channels, layer.eps, layer.momentum)


def _mlp(layer: spec.Mlp, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    channels = plan.before[0].channels
    activation = ACTIVATIONS[layer.activation]()
    return Mlp(channels, layer.hidden(channels), activation, sizes.rate(layer.dropout))


def _conv(layer: spec.Conv, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    axes = len(plan.before[0].sizes) - 1
    kernel = on_axes(layer.kernel, axes)
    convolution: Callable[..., nn.Module] = Conv if axes == 2 else VideoConv
    return convolution(
        plan.before[0].channels,
        plan.after.channels,
        kernel,
        stride=on_axes(layer.stride, axes),
        padding=padded(layer.padding, kernel),
        groups=sizes.size(layer.groups),
        bias=layer.bias,
    )


def _pooling(kinds: tuple[Callable[..., nn.Module], Callable[..., nn.Module]]) -> Builder:
    """The builder of a pooling layer, on images or on videos."""

    def build(layer: Pooling, plan: LayerPlan, sizes: Sizes) -> nn.Module:
        axes = len(plan.before[0].sizes) - 1
        kernel = on_axes(layer.kernel, axes)
        stride = on_axes(layer.stride or layer.kernel, axes)
        return kinds[axes - 2](kernel, stride, padded(layer.padding, kernel))

    return build


def _pad_channels(layer: spec.PadChannels, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    before = plan.before[0]
    return PadChannels(plan.after.channels - before.channels, channel_dimension(before))


def _pooled_attention(layer: spec.Pooled, plan: LayerPlan, sizes: Sizes) -> PooledAttention:
    grid = need_grid(plan.before[0])
    strides = (on_axes(layer.query_stride, len(grid)), on_axes(layer.key_stride, len(grid)))
    kernel = on_axes(layer.kernel, len(grid))
    return PooledAttention(plan.before[0].channels, layer.heads, grid, kernel, *strides)


def _pooling_transition(layer: spec.PoolingTransition, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    attention = _pooled_attention(layer, plan, sizes)
    drop_path = DropPath(sizes.rate(layer.drop_path))
    return PoolingTransition(plan.before[0].channels, attention, drop_path)


def _residual(layer: spec.Residual, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    body, shortcut = (nn.Sequential(_named(branch, sizes)) for branch in plan.branches)
    return Residual(body, shortcut)


def _antisymmetric(layer: spec.Antisymmetric, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    channels, activation = plan.before[0].channels, ACTIVATIONS[layer.activation]()
    if isinstance(plan.before[0], Image):
        return AntisymmetricConv(channels, layer.width, activation)
    return AntisymmetricLinear(channels, activation)


def _transpose_pair(layer: spec.TransposePair, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    channels, hidden = plan.before[0].channels, sizes.size(layer.hidden)
    activation = ACTIVATIONS[layer.activation]()
    if isinstance(plan.before[0], Image):
        return TransposeConv(channels, hidden, layer.width, activation)
    return TransposeLinear(channels, hidden, activation)


def _pool(layer: spec.Pool, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    return Pool(layer.by, channel_dimension(plan.before[0]))


def _position(layer: spec.Position, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    return Position(*plan.before[0].sizes)


BUILDERS: Mapping[type[spec.Layer], Builder] = {
    spec.LayerNorm: lambda layer, plan, _: nn.LayerNorm(plan.before[0].channels, layer.eps),
    spec.BatchNorm: _batch_norm,
    spec.GroupNorm: lambda layer, plan, _: nn.GroupNorm(
        layer.groups, plan.before[0].channels, layer.eps
    ),
    spec.Attention: lambda layer, plan, sizes: Attention(
        plan.before[0].channels, layer.heads, sizes.rate(layer.dropout)
    ),
    spec.Mlp: _mlp,
    spec.Linear: lambda layer, plan, _: linear(
        plan.before[0].channels, plan.after.channels, layer.bias
    ),
    spec.Sinusoids: lambda layer, plan, _: Sinusoids(layer.count),
    spec.Conv: _conv,
    spec.MaxPool: _pooling((nn.MaxPool2d, nn.MaxPool3d)),
    spec.AveragePool: _pooling((nn.AvgPool2d, nn.AvgPool3d)),
    spec.PadChannels: _pad_channels,
    spec.TransposePair: _transpose_pair,
    spec.Antisymmetric: _antisymmetric,
    spec.SqueezeLayer: lambda layer, plan, _: maps.Squeeze(),
    spec.UnsqueezeLayer: lambda layer, plan, _: maps.Unsqueeze(),
    spec.Residual: _residual,
    spec.PooledAttention: _pooled_attention,
    spec.PoolingTransition: _pooling_transition,
    spec.ToTokens: lambda layer, plan, _: ToTokens(),
    spec.PatchMerge: lambda layer, plan, _: PatchMerge(
        plan.before[0].channels, plan.after.channels, need_grid(plan.before[0])
    ),
    spec.Pointwise: lambda layer, plan, _: ACTIVATIONS[layer.kind](),
    spec.Dropout: lambda layer, plan, sizes: nn.Dropout(sizes.rate(layer.rate)),
    spec.DropPath: lambda layer, plan, sizes: DropPath(sizes.rate(layer.rate)),
    spec.Scale: lambda layer, plan, _: Scale(
        plan.before[0].channels, layer.init, channel_dimension(plan.before[0])
    ),
    spec.SoftThreshold: lambda layer, plan, _: SoftThreshold(
        plan.before[0].channels, layer.init, channel_dimension(plan.before[0])
    ),
    spec.Concat: lambda layer, plan, _: ConcatArguments(channel_dimension(plan.before[0])),
    spec.Add: lambda layer, plan, _: AddArguments(),
    spec.UserModule: lambda layer, plan, _: make(layer, plan.packages),
    spec.Modulate: lambda layer, plan, _: Modulate(
        plan.before[0].channels, plan.before[1].channels, channel_dimension(plan.before[0])
    ),
    spec.PatchEmbed: lambda layer, plan, _: PatchEmbed(
        plan.before[0].channels, layer.width, layer.patch
    ),
    spec.PatchUnembed: lambda layer, plan, _: PatchUnembed(
        plan.before[0].channels, layer.channels, layer.patch, need_grid(plan.before[0])
    ),
    spec.ClassToken: lambda layer, plan, _: ClassToken(plan.before[0].channels),
    spec.Position: _position,
    spec.Pool: _pool,
    spec.Flatten: lambda layer, plan, _: maps.Flatten(plan.before[0].sizes),
}
