"""The names of a ResNet's weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_ENDS: Mapping[str, str] = {
    "conv1": "stem.conv",
    "bn1": "stem.batch_norm",
    "fc": "head.linear",
}
_PARTS: Mapping[str, str] = {
    "conv1": "conv",
    "conv2": "conv_2",
    "conv3": "conv_3",
    "bn1": "batch_norm",
    "bn2": "batch_norm_2",
    "bn3": "batch_norm_3",
}
"""What a unit's layers are called, in the order in which they are applied."""
_SHORTCUT: Mapping[str, str] = {"0": "conv", "1": "batch_norm"}
_IN_UNIT = re.compile(r"layer(?P<group>\d)\.(?P<unit>\d+)\.(?P<part>\w+)\.(?P<rest>.+)")


def resnet_names(keys: Collection[str]) -> dict[str, str]:
    """The keys of a torchvision ResNet's state dict → those of `resnet18` to `resnet152`.

    torchvision numbers groups from 1 and units within a group from 0; a spec's stages are `conv2`
    to `conv5`, as in He et al. 2016, table 1. A first unit that has a `downsample` is the stage's
    transition there, so that the units after it are counted from 0. All tensors, running statistics
    too, are the same as they stand. `keys` are those of a ResNet: others raise ValueError or
    KeyError.
    """
    return {key: _name(key, keys) for key in keys}


def _name(key: str, keys: Collection[str]) -> str:
    found = _IN_UNIT.fullmatch(key)
    if found is None:
        module, kind = key.split(".", 1)
        return f"{_ENDS[module]}.{kind}"
    group, unit = int(found["group"]), int(found["unit"])
    stage = f"stages.conv{group + 1}"
    first = int(f"layer{group}.0.downsample.0.weight" in keys)
    if found["part"] == "downsample":
        number, kind = found["rest"].split(".")
        return f"{stage}.transition.residual.shortcut.{_SHORTCUT[number]}.{kind}"
    within = f"{_PARTS[found['part']]}.{found['rest']}"
    if unit < first:
        return f"{stage}.transition.residual.body.{within}"
    return f"{stage}.layers.{unit - first}.F.{within}"
