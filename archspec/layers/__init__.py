"""The layers that stems, transitions, heads and residual functions are lists of.

Each model holds a layer's settings and the rule that gives its output shape. What a layer
computes is built in `compiler.functions`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import TypeAliasType

from archspec.layers.attention import Attention, Pooled, PooledAttention, PoolingTransition
from archspec.layers.base import Joining, Layer
from archspec.layers.convolution import (
    Antisymmetric,
    AveragePool,
    Conv,
    MaxPool,
    PadChannels,
    SqueezeLayer,
    TransposePair,
    UnsqueezeLayer,
)
from archspec.layers.joining import Add, Concat, Modulate, concatenated
from archspec.layers.norms import BatchNorm, GroupNorm, LayerNorm
from archspec.layers.pointwise import (
    Dropout,
    DropPath,
    Linear,
    Mlp,
    Pointwise,
    Scale,
    Sinusoids,
    SoftThreshold,
)
from archspec.layers.residual import Residual
from archspec.layers.tokens import (
    ClassToken,
    Flatten,
    PatchEmbed,
    PatchMerge,
    PatchUnembed,
    Pool,
    Position,
    ToTokens,
)
from archspec.layers.user_module import MODULE_NAME, UserModule
from archspec.maps import AS_MAP
from archspec.onekey import OneKey

AnyLayer = (
    LayerNorm
    | BatchNorm
    | GroupNorm
    | Attention
    | PooledAttention
    | PoolingTransition
    | Mlp
    | Linear
    | Sinusoids
    | Conv
    | MaxPool
    | AveragePool
    | PadChannels
    | TransposePair
    | Antisymmetric
    | SqueezeLayer
    | UnsqueezeLayer
    | Pointwise
    | SoftThreshold
    | Dropout
    | DropPath
    | Scale
    | Concat
    | Add
    | Modulate
    | UserModule
    | Residual
    | PatchEmbed
    | PatchUnembed
    | ToTokens
    | PatchMerge
    | ClassToken
    | Position
    | Pool
    | Flatten
)
LayerEntry = TypeAliasType(  # a name of its own, so that the JSON schema describes it once
    "LayerEntry",
    Annotated[
        Annotated[AnyLayer, Field(discriminator="kind")],
        OneKey("layer", *AnyLayer.__args__, elsewhere=AS_MAP),
    ],
)

Residual.model_rebuild(_types_namespace={"LayerEntry": LayerEntry})

__all__ = [
    "MODULE_NAME",
    "Add",
    "Antisymmetric",
    "AnyLayer",
    "Attention",
    "AveragePool",
    "BatchNorm",
    "ClassToken",
    "Concat",
    "Conv",
    "DropPath",
    "Dropout",
    "Flatten",
    "GroupNorm",
    "Joining",
    "Layer",
    "LayerEntry",
    "LayerNorm",
    "Linear",
    "MaxPool",
    "Mlp",
    "Modulate",
    "PadChannels",
    "PatchEmbed",
    "PatchMerge",
    "PatchUnembed",
    "Pointwise",
    "Pool",
    "Pooled",
    "PooledAttention",
    "PoolingTransition",
    "Position",
    "Residual",
    "Scale",
    "Sinusoids",
    "SoftThreshold",
    "SqueezeLayer",
    "ToTokens",
    "TransposePair",
    "UnsqueezeLayer",
    "UserModule",
    "concatenated",
]
