"""Files of weights: whole, whether or not processes share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from runners.files import replacing
from runners.parts import Parts
from runners.processes import by_first

EPOCH = "epoch"


def save_weights(path: Path, model: nn.Module, epoch: int) -> None:
    """Replace a file of weights in one step, with the epoch that they are of; weights that layers
    share are written once. Raises `OSError`."""
    with replacing(path) as partial:
        try:
            safetensors.torch.save_model(model, str(partial), metadata={EPOCH: str(epoch)})
        except SafetensorError as error:  # what it raises for a full disk
            raise OSError(str(error)) from None


def load_weights(path: Path, model: nn.Module) -> None:
    """Read a model's weights, whatever device it is on."""
    safetensors.torch.load_model(model, path)


def epoch_of(path: Path) -> int | None:
    """The epoch that a file of weights is of; None where there is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return int((file.metadata() or {})[EPOCH])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def keep_weights(path: Path, parts: Parts, epoch: int) -> None:
    """Write the network that is evaluated. Every process calls this, and the first one writes."""
    network = _whole(parts)
    by_first(lambda: save_weights(path, network, epoch), parts.fabric)


def take_weights(path: Path, parts: Parts) -> None:
    """Read the network that is evaluated, in every process."""
    if parts.template is None:
        load_weights(path, parts.evaluated)
        return
    load_weights(path, parts.template)
    own, found = parts.model.state_dict(), parts.template.state_dict()
    whole = {name: found[name].view(value.shape) for name, value in own.items()}
    set_model_state_dict(parts.model, whole, options=StateDictOptions(full_state_dict=True))


def _whole(parts: Parts) -> nn.Module:
    """The network, whole in the first process."""
    if parts.template is None:
        return parts.evaluated
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(parts.model, options=options)
    if parts.fabric.is_global_zero:
        for name, value in parts.template.state_dict().items():
            # FSDP shards no scalars: they have the shape (1).
            value.copy_(found[name].view(value.shape))
    return parts.template
