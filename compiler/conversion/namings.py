"""The published networks whose weights we can name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from compiler.conversion import vit
from compiler.conversion.patterns import renamed
from compiler.conversion.resnet import resnet_names


@dataclass(frozen=True)
class Naming:
    """How one library calls the weights of one kind of network."""

    title: str
    classifier: str
    """Its last layer, whose size is that of the classes; ours is `HEAD`."""
    ours: Callable[[Collection[str]], dict[str, str]]
    """Its names → ours, in the plain network; those that it does not know are left out."""


HEAD = "head.linear"
POSITIONS = "stem.position.embedding"

_RESNET = re.compile(r"(conv1|bn1|fc|layer\d\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.\w+")


def _resnet(names: Collection[str]) -> dict[str, str]:
    return resnet_names([name for name in names if _RESNET.fullmatch(name)])


NAMINGS = (
    Naming("torchvision's ViT", "heads.head", partial(renamed, table=vit.TORCHVISION)),
    Naming("torchvision's ViT", "heads.head", partial(renamed, table=vit.TORCHVISION_FILES)),
    Naming("timm's ViT", "head", partial(renamed, table=vit.TIMM)),
    Naming("torchvision's ResNet", "fc", _resnet),
)


def naming_of(names: Collection[str]) -> Naming | None:
    """The naming that knows most of these names, if there is one that knows any."""
    best = max(NAMINGS, key=lambda naming: len(naming.ours(names)))
    return best if best.ours(names) else None
