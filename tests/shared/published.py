"""What publications say of the zoo's networks, or running their code did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Sizes of one network. `gmacs` count norms at 5 operations an element, as Rev-ViT's do."""

    parameters: int
    source: str
    gmacs: float | None = None
    derived: bool = False
    """The size of another network, which this one, nobody's publication, is to have too."""


_MANGALAM = "Mangalam et al. 2022, their code"
_GOMEZ = "Gomez et al. 2017; memcnn"
_TORCHVISION = "torchvision"

PUBLISHED: Mapping[str, Published] = {
    "resnet32_cifar10": Published(466_906, _GOMEZ),
    "resnet110_cifar10": Published(1_730_714, _GOMEZ),
    "resnet164_cifar10": Published(1_704_154, _GOMEZ),
    "resnet18": Published(11_689_512, _TORCHVISION),
    "resnet50": Published(25_557_032, _TORCHVISION),
    "resnet101": Published(44_549_160, _TORCHVISION),
    "resnet152": Published(60_192_808, _TORCHVISION),
    "momentum_resnet101": Published(44_549_160, "as ResNet-101: Sander et al. 2021", derived=True),
    "revnet38_cifar10": Published(573_994, _GOMEZ),
    "revnet110_cifar10": Published(1_854_890, _GOMEZ),
    "revnet164_cifar10": Published(1_983_786, _GOMEZ),
    "vit_s": Published(22_050_664, "timm"),
    "vit_b": Published(86_567_656, _TORCHVISION),
    "momentum_vit_b_finetune": Published(86_567_656, "as ViT-B: " + _TORCHVISION, derived=True),
    "bdia_vit_b_finetune": Published(86_567_656, "as ViT-B: " + _TORCHVISION, derived=True),
    "vit_l": Published(304_326_632, _TORCHVISION),
    "rev_vit_s": Published(22_434_664, _MANGALAM, 4.584),
    "rev_vit_b": Published(87_335_656, _MANGALAM, 17.492),
    "rev_vit_l": Published(305_350_632, _MANGALAM, 61.285),
    "rev_vit_cifar10": Published(1_207_178, "minREV"),
    "rev_mvit_b": Published(39_689_320, _MANGALAM, 8.674),
}
