"""Checkpoints: all that the next epoch depends on, so that a killed run goes on as if it had not.

The checkpoint is the truth about a run. The learning rate and the order of images follow from the
epoch; the other files of the run folder follow from the checkpoint where they fell behind.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer

from archspec.diagnostics import Diagnostic, SpecError
from runners.files import replacing
from runners.randomness import generator_states, restore_generators
from runners.tasks import Metric


@dataclass(frozen=True)
class Best:
    """The epoch that validation chose. The test set has no say in it."""

    epoch: int
    measured: float
    """By the task's metric."""
    loss: float

    def beaten_by(self, measured: float, loss: float, metric: Metric) -> bool:
        """By a better metric; small splits tie often, and then by a lower loss."""
        if measured == self.measured:
            return loss < self.loss
        return metric.better(measured, self.measured)


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    epochs: int = 0
    """Finished ones."""
    seconds: float = 0.0
    best: Best | None = None


@dataclass(frozen=True)
class Parts:
    """What training changes, and the device and precision that it runs in."""

    fabric: Fabric
    model: nn.Module
    """As built; its weights are those of `wrapped`."""
    wrapped: nn.Module
    """As Fabric calls it, under autocast."""
    optimizer: Optimizer


def save_checkpoint(path: Path, parts: Parts, standing: Standing, spec_hash: str) -> None:
    """Replace the checkpoint in one step."""
    content = {
        "spec_hash": spec_hash,
        "standing": asdict(standing),
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "precision": parts.fabric.strategy.precision.state_dict(),
        "generators": generator_states(parts.fabric.device),
    }
    with replacing(path) as partial:
        torch.save(content, partial)


def load_checkpoint(path: Path, parts: Parts, spec_hash: str) -> Standing:
    """Put everything back as the checkpoint has it. Raises `SpecError`."""
    content = _read(path)
    if content.get("spec_hash") != spec_hash:
        raise _refusal(f"{path} is of another spec than run.json beside it")
    parts.model.load_state_dict(content["model"])
    parts.optimizer.load_state_dict(content["optimizer"])
    parts.fabric.strategy.precision.load_state_dict(content["precision"])
    restore_generators(content["generators"], parts.fabric.device)
    best = content["standing"].pop("best")
    return Standing(**content["standing"], best=Best(**best) if best else None)


def save_weights(path: Path, model: nn.Module) -> None:
    """Replace a file of weights in one step; weights that layers share are written once."""
    with replacing(path) as partial:
        safetensors.torch.save_model(model, str(partial))


def load_weights(path: Path, model: nn.Module) -> None:
    """Read a model's weights, whatever device it is on."""
    safetensors.torch.load_model(model, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise _refusal(f"{path} cannot be read: {reason}") from None
    if not isinstance(content, dict):
        raise _refusal(f"{path} is no checkpoint")
    return content


def _refusal(message: str) -> SpecError:
    help = "remove the run's folder, or choose another with --output"
    return SpecError([Diagnostic("E604", message, None, help)])
