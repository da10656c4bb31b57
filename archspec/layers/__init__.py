"""The layers that stems, transitions, heads and residual functions are lists of.

Each model holds a layer's settings and the rule that gives its output shape. What a layer
computes is built in `compiler.functions`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import TypeAliasType

from archspec.layers.attention import Attention
from archspec.layers.base import Joining, Layer
from archspec.layers.convolution import Conv, TransposePair
from archspec.layers.joining import Add, Concat, Modulate, concatenated
from archspec.layers.norms import BatchNorm, GroupNorm, LayerNorm
from archspec.layers.pointwise import Dropout, DropPath, Linear, Mlp, Pointwise, Scale
from archspec.layers.tokens import ClassToken, Flatten, PatchEmbed, Pool, Position
from archspec.layers.user_module import MODULE_NAME, UserModule
from archspec.maps import AS_MAP
from archspec.onekey import OneKey

AnyLayer = (
    LayerNorm
    | BatchNorm
    | GroupNorm
    | Attention
    | Mlp
    | Linear
    | Conv
    | TransposePair
    | Pointwise
    | Dropout
    | DropPath
    | Scale
    | Concat
    | Add
    | Modulate
    | UserModule
    | PatchEmbed
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

__all__ = [
    "MODULE_NAME",
    "Add",
    "AnyLayer",
    "Attention",
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
    "Mlp",
    "Modulate",
    "PatchEmbed",
    "Pointwise",
    "Pool",
    "Position",
    "Scale",
    "TransposePair",
    "UserModule",
    "concatenated",
]
