"""How images lie in memory."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from compiler.functions.maps import Squeeze
from compiler.network import Network

Module = TypeVar("Module", bound=nn.Module)


def channels_last_where_it_pays(model: Module) -> Module:
    """A network whose stages convolve images, with its kernels channels last, which its streams
    then are too: faster on CPUs. Others stay as they are, and
    so do those that squeeze their streams, which moves all of a stream in either layout
    (`benchmarks/memory_layout.py`)."""
    if isinstance(model, Network) and convolves(model.stages) and not squeezes(model.stages):
        model.to(memory_format=torch.channels_last)
    return model


def convolves(stages: nn.Module) -> bool:
    """Whether there are kernels of images that see more than one channel."""
    return any(p.dim() == 4 and p.shape[1] > 1 for p in stages.parameters())


def squeezes(stages: nn.Module) -> bool:
    """Whether streams go from space to depth."""
    return any(isinstance(module, Squeeze) for module in stages.modules())
