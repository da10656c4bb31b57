"""Device and precision, by Lightning Fabric."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy

from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.training import Train
from compiler.parallel import shard


class Autocast(MixedPrecision):
    """Autocast that leaves a model's input alone: residual functions are cast, streams are not."""

    def convert_input(self, data: Any) -> Any:
        return data


def open_fabric(loaded: Loaded, recipe: Train, device: str) -> Fabric:
    """Fabric on one device, `auto` being a GPU where there is one; within `torchrun`, on one for
    each of its processes, connected. Raises `SpecError`."""
    chosen = find_device(device)
    if recipe.precision == "fp16" and chosen.type == "mps":
        message = "training in fp16 is for the CPU and for CUDA devices"
        span = loaded.tree.where(("train", "precision"))
        raise SpecError([Diagnostic("E603", message, span, "write `precision: bf16` or fp32")])
    plugins: list[Any] = _autocast(recipe, chosen)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        devices = [chosen.index or 0] if chosen.type == "cuda" else 1
        fabric = Fabric(accelerator=chosen.type, devices=devices, plugins=plugins)
        fabric.launch()  # makes a GPU the current one
        return fabric
    count = int(os.environ["WORLD_SIZE"])
    check_processes(loaded, recipe, chosen, count)
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=chosen.type,
        devices=here,
        num_nodes=count // here,
        strategy=STRATEGIES[recipe.parallel](count),
        # Slurm's variables may be there too, and `torchrun` is what has started the processes.
        plugins=[*plugins, TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def _autocast(recipe: Train, device: torch.device) -> list[Any]:
    kinds = {"fp16": "16-mixed", "bf16": "bf16-mixed"}
    kind = kinds.get(recipe.precision)
    return [Autocast(kind, device.type)] if kind else []  # type: ignore[arg-type]


STRATEGIES: Mapping[str, Callable[[int], Strategy]] = {
    "ddp": lambda count: DDPStrategy(gradient_as_bucket_view=True),
    "fsdp2": lambda count: ModelParallelStrategy(
        # FSDP takes no other layout.
        lambda network, mesh: shard(
            network.to(memory_format=torch.contiguous_format), mesh["data_parallel"]
        ),
        data_parallel_size=count,
        tensor_parallel_size=1,
    ),
}
"""By the number of processes."""


def check_processes(loaded: Loaded, recipe: Train, device: torch.device, count: int) -> None:
    """Raises `SpecError` where so many processes cannot train by this recipe."""
    where = loaded.tree.where
    if recipe.batch % count:
        message = f"a batch of {recipe.batch} cannot be shared among {count} processes"
        help = f"write a multiple of {count}"
        raise SpecError([Diagnostic("E603", message, where(("train", "batch")), help)])
    if recipe.parallel == "fsdp2" and recipe.ema is not None:
        message = "`ema` needs all weights in each process, and `parallel: fsdp2` shares them"
        help = "leave one of them out"
        raise SpecError([Diagnostic("E603", message, where(("train", "ema")), help)])
    if device.type == "mps":
        message = "several processes train on the CPU or on CUDA devices"
        raise SpecError([Diagnostic("E603", message, None, "--device cpu")])


@contextmanager
def matrix_precision(recipe: Train) -> Iterator[None]:
    """Products of float32 matrices, and convolutions, in TF32 within the block where the recipe
    says so, and nowhere else: PyTorch's own default has it in convolutions."""
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    wanted = recipe.precision == "tf32"
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions


def device_name(device: torch.device) -> str:
    """As PyTorch writes it, and of a GPU which one it is."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def find_device(name: str) -> torch.device:
    """The device of a name, `auto` being a GPU where there is one. Raises `SpecError` where this
    machine has none such."""
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
        others = "write auto, which takes a GPU where there is one, or cpu"
        raise SpecError([Diagnostic("E603", f"this machine has no device {name}", None, others)])
    return device
