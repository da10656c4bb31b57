"""Layer plans into modules. One small builder a kind of layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from archspec import layers as spec
from archspec.maps import ActNorm, InvertibleLinear, Squeeze
from archspec.shapes import Image, Sizes, channel_dimension
from compiler.functions import maps
from compiler.functions.attention import Attention
from compiler.functions.convolution import Conv, TransposeConv, TransposeLinear
from compiler.functions.pointwise import (
    ACTIVATIONS,
    AddArguments,
    ConcatArguments,
    DropPath,
    Modulate,
    Scale,
)
from compiler.functions.tokens import ClassToken, Mlp, PatchEmbed, Pool, Position, linear
from compiler.plan import FunctionPlan, LayerPlan, MapPlan
from compiler.user_modules import make


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
    kind = nn.BatchNorm2d if isinstance(plan.before[0], Image) else nn.BatchNorm1d
    return kind(plan.before[0].channels, layer.eps, layer.momentum)


def _mlp(layer: spec.Mlp, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    channels = plan.before[0].channels
    activation = ACTIVATIONS[layer.activation]()
    return Mlp(channels, layer.hidden(channels), activation, sizes.rate(layer.dropout))


def _conv(layer: spec.Conv, plan: LayerPlan, sizes: Sizes) -> nn.Module:
    return Conv(
        plan.before[0].channels,
        plan.after.channels,
        layer.kernel,
        stride=layer.stride,
        padding=layer.pad,
        groups=sizes.size(layer.groups),
        bias=layer.bias,
    )


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


Builder = Callable[[Any, LayerPlan, Sizes], nn.Module]

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
    spec.Conv: _conv,
    spec.TransposePair: _transpose_pair,
    spec.Pointwise: lambda layer, plan, _: ACTIVATIONS[layer.kind](),
    spec.Dropout: lambda layer, plan, sizes: nn.Dropout(sizes.rate(layer.rate)),
    spec.DropPath: lambda layer, plan, sizes: DropPath(sizes.rate(layer.rate)),
    spec.Scale: lambda layer, plan, _: Scale(
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
    spec.ClassToken: lambda layer, plan, _: ClassToken(plan.before[0].channels),
    spec.Position: _position,
    spec.Pool: _pool,
    spec.Flatten: lambda layer, plan, _: nn.Flatten(),
}
