"""MemCNN's ResNets and RevNets, and what their weights are called in the zoo's."""

from __future__ import annotations

import re
import warnings

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses torch.cuda.amp
    from memcnn.models import resnet

KINDS: dict[str, tuple[type[nn.Module], list[int]]] = {
    "resnet32_cifar10": (resnet.BasicBlock, [16, 16, 32, 64]),
    "resnet110_cifar10": (resnet.BasicBlock, [16, 16, 32, 64]),
    "resnet164_cifar10": (resnet.Bottleneck, [16, 16, 32, 64]),
    "revnet38_cifar10": (resnet.RevBasicBlock, [32, 32, 64, 112]),
    "revnet110_cifar10": (resnet.RevBasicBlock, [32, 32, 64, 128]),
    "revnet164_cifar10": (resnet.RevBottleneck, [32, 32, 64, 128]),
}
"""Blocks and channels, from the configurations that come with it."""
ENDS = {"conv1": "stem.conv", "bn1": "stem.batch_norm", "bn_final": "head.batch_norm"}
ENDS["fc"] = "head.linear"
STAGES = {1: "fine", 2: "middle", 3: "coarse"}


class CopiedReLU(nn.ReLU):
    """A rectifier whose result is another tensor than the one its own backward pass reads: a block
    of MemCNN's frees its input, and fills it in again, which autograd takes for a change."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return super().forward(value).clone()


def memcnn_network(name: str, units: int) -> nn.Module:
    """The network of a spec, with so many units in each of its three groups."""
    block, channels = KINDS[name]
    network: nn.Module = resnet.ResNet(
        block,
        [units] * 3,
        num_classes=10,
        channels_per_layer=channels,
        strides=[1, 1, 2, 2],
        init_kernel_size=3,
        batch_norm_fix=False,
    )
    network.relu = CopiedReLU()
    return network


def memcnn_state(ours: nn.Module, theirs: nn.Module) -> dict[str, str]:
    """Give our network the weights of theirs, statistics drawn at random; our keys → theirs."""
    generator = torch.Generator().manual_seed(1)
    for key, value in theirs.state_dict().items():
        if key.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
            value.uniform_(0.5, 2, generator=generator)
        elif key.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1, generator=generator)
    state = theirs.state_dict()
    names = {our_name(key, state): key for key in state}
    ours.load_state_dict({our: state[key] for our, key in names.items()})
    return names


def our_name(key: str, state: dict[str, torch.Tensor]) -> str:
    """What a weight is called in the zoo's networks."""
    unit = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)\.(\w+)", key)
    if unit is None:
        module, kind = key.split(".")
        return f"{ENDS[module]}.{kind}"
    group, number, inside, kind = int(unit[1]), int(unit[2]), unit[3], unit[4]
    stage, block = f"stages.{STAGES[group]}", f"layer{group}.{number}"
    branch, _, layer = inside.rpartition(".")
    if branch == "downsample":
        return f"{stage}.transition.residual.shortcut.{['conv', 'batch_norm'][int(layer)]}.{kind}"
    count = int(layer[-1])
    if "bn" in layer and f"{block}.{branch}.bn1.weight" not in state:
        count -= 1  # a unit without the first norm
    name = "conv" if "conv" in layer else "batch_norm"
    within = f"{name}_{count}.{kind}" if count > 1 else f"{name}.{kind}"
    first_reverses = "layer1.0.revblock._fn.Fm.conv1.weight" in state
    if group == 1 and number == 0 and first_reverses:
        return f"stages.first.layers.0.{branch[-2]}.{within}"
    if number == 0:
        return f"{stage}.transition.residual.body.{within}"
    function = branch[-2] if branch.startswith("revblock") else "F"
    return f"{stage}.layers.{number - 1}.{function}.{within}"
