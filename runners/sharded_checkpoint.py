"""Checkpoints of networks whose weights processes share: a folder, to which each writes its part.

Written by torch.distributed.checkpoint, so that another number of processes can go on. Otherwise as
`runners.checkpoint` has them.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from archspec.diagnostics import Diagnostic, SpecError
from runners.checkpoint import DamagedError, first_whole, read_checkpoint, restore, standing_of
from runners.files import sync
from runners.parts import Parts
from runners.processes import as_in_first, of_all
from runners.randomness import generator_states
from runners.run_folder import RunFolder
from runners.standing import Standing

ABOUT = "about.pt"
"""What is not shared: where the run stands."""


def save_checkpoint(folder: RunFolder, parts: Parts, standing: Standing, spec_hash: str) -> None:
    """Replace the checkpoint in one step, after which the old one is the previous one."""
    path, previous = folder.shared_checkpoint, folder.shared_previous
    partial = path.with_name(f".{path.name}.partial")
    if parts.fabric.is_global_zero:
        shutil.rmtree(partial, ignore_errors=True)
    parts.fabric.barrier()
    as_in_first(parts.model, parts.fabric)  # PyTorch keeps those of any one process
    try:
        save(_state(parts), storage_writer=FileSystemWriter(partial, overwrite=True))
    except CheckpointException as error:  # which is no Exception
        if parts.fabric.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        reasons = [str(why) for why, _ in error.failures.values()] or [str(error)]
        raise OSError(reasons[0]) from None
    about = {
        "spec_hash": spec_hash,
        "standing": asdict(standing),
        "precision": parts.fabric.strategy.precision.state_dict(),
        "generators": of_all(generator_states(parts.fabric.device), parts.fabric),
    }
    if parts.fabric.is_global_zero:
        torch.save(about, partial / ABOUT)
        sync(partial / ABOUT)
        shutil.rmtree(previous, ignore_errors=True)
        if path.is_dir():
            os.replace(path, previous)
        os.replace(partial, path)
    parts.fabric.barrier()


def load_checkpoint(folder: RunFolder, parts: Parts, spec_hash: str) -> Standing | None:
    """As `runners.checkpoint.load_checkpoint`."""

    def take(path: Path) -> Standing:
        about, state = read_checkpoint(path / ABOUT, spec_hash), _state(parts)
        try:
            load(state, storage_reader=PlainReader(path), planner=PlainPlanner())
        # What it raises for a damaged file is gathered from all processes.
        except (CheckpointException, OSError, RuntimeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DamagedError(f"{path} cannot be read: {reason}") from None
        set_state_dict(
            parts.model,
            parts.bare_optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        parts.fabric.strategy.precision.load_state_dict(about["precision"])
        restore(about["generators"], parts)
        return standing_of(about["standing"])

    there = [p for p in (folder.shared_checkpoint, folder.shared_previous) if p.is_dir()]
    if folder.begun and not there:
        message = f"{folder.path} holds a run of a process that has all weights"
        raise SpecError([Diagnostic("E604", message, None, "go on without torchrun, as it began")])
    return first_whole(there, take, parts.fabric)


def _state(parts: Parts) -> dict[str, Any]:
    model, optimizer = get_state_dict(parts.model, parts.bare_optimizer)
    return {"model": model, "optimizer": optimizer}


DESCRIPTIONS = "torch.distributed.checkpoint.metadata"
PLAIN = frozenset(
    {
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib", "WindowsPath"),
        ("torch", "Size"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        *(
            (DESCRIPTIONS, name)
            for name in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
    }
)
"""What the index of a checkpoint is made of, beside dtypes."""


class _PlainUnpickler(pickle.Unpickler):
    """Of descriptions of tensors, and of nothing that runs."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint")


class PlainPlanner(DefaultLoadPlanner):
    """Reads values that are not tensors with `weights_only=True`, which PyTorch's own does not."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # refuses what would run
        value.seek(0)
        super().load_bytes(read_item, value)


class PlainReader(FileSystemReader):
    """Reads the index of a checkpoint without running what else a pickle may hold."""

    def read_metadata(self, *arguments: Any, **keys: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            found = _PlainUnpickler(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("the index of the checkpoint is none")
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found
