"""Device and precision, by Lightning Fabric."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision

from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.training import Train


class Autocast(MixedPrecision):
    """Autocast that leaves a model's input alone: residual functions are cast, streams are not."""

    def convert_input(self, data: Any) -> Any:
        return data


def open_fabric(loaded: Loaded, recipe: Train, device: str) -> Fabric:
    """Fabric on one device, `auto` being a GPU where there is one. Raises `SpecError`."""
    chosen = _device(device)
    if recipe.precision == "fp16" and chosen.type == "mps":
        message = "training in fp16 is for the CPU and for CUDA devices"
        span = loaded.tree.where(("train", "precision"))
        raise SpecError([Diagnostic("E603", message, span, "write `precision: bf16` or fp32")])
    plugin: Precision | None = None
    if recipe.precision != "fp32":
        plugin = Autocast("16-mixed" if recipe.precision == "fp16" else "bf16-mixed", chosen.type)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    devices = [chosen.index or 0] if chosen.type == "cuda" else 1
    return Fabric(accelerator=chosen.type, devices=devices, plugins=plugin)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if device.type not in there:
        message = f"there is no kind of device `{name}`"
        raise SpecError([Diagnostic("E603", message, None, "write auto, cpu, cuda, cuda:1 or mps")])
    if not there[device.type]:
        raise SpecError([Diagnostic("E603", f"this machine has no device {name}")])
    return device
