"""Checkpoints: all that the next step depends on, so that a killed run goes on as if it had not.

The checkpoint is the truth about a run. The learning rate and the order of images follow from the
step; the other files of the run folder follow from the checkpoint where they fell behind. The one
before it is kept, for when it is damaged.
"""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from archspec.diagnostics import Diagnostic, SpecError
from runners.files import replacing, sync
from runners.parts import Parts
from runners.processes import of_all
from runners.randomness import generator_states, restore_generators
from runners.run_folder import RunFolder
from runners.standing import Best, Score, Standing

LOG = logging.getLogger("archspec")


class DamagedError(Exception):
    """A file that is no checkpoint of this run; in words."""


def save_checkpoint(folder: RunFolder, parts: Parts, standing: Standing, spec_hash: str) -> None:
    """Replace the checkpoint in one step, after which the old one is the previous one. Every
    process calls this, and the first one writes."""
    content = {
        "spec_hash": spec_hash,
        "standing": asdict(standing),
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "precision": parts.fabric.strategy.precision.state_dict(),
        "average": None if parts.average is None else parts.average.state_dict(),
        "generators": of_all(generator_states(parts.fabric.device), parts.fabric),
    }
    if not parts.fabric.is_global_zero:
        return
    with replacing(folder.checkpoint) as partial:
        torch.save(content, partial)
        sync(partial)
        if folder.checkpoint.is_file():
            # A process killed after this finds the previous one alone, and goes on from there.
            os.replace(folder.checkpoint, folder.previous)


def load_checkpoint(folder: RunFolder, parts: Parts, spec_hash: str) -> Standing | None:
    """Put everything back as the checkpoint has it, or the one before where it is damaged; None
    where there is neither. Raises `SpecError` where what is there is no checkpoint of this run."""
    there = [file for file in (folder.checkpoint, folder.previous) if file.is_file()]
    if folder.begun and not there:
        message = f"{folder.path} holds a run of processes that share the weights"
        raise SpecError([Diagnostic("E604", message, None, "go on with torchrun, as it began")])

    def take(path: Path) -> Standing:
        return _take(read_checkpoint(path, spec_hash), parts)

    return first_whole(there, take, parts.fabric)


def first_whole(
    paths: Sequence[Path], take: Callable[[Path], Standing], fabric: Fabric
) -> Standing | None:
    """What `take` gives for the first of these that is not damaged; None where there is none at
    all. Raises `SpecError` where all are damaged."""
    problems: list[str] = []
    for path in paths:
        try:
            standing = take(path)
        except DamagedError as error:
            problems.append(str(error))
            continue
        if problems:
            _forget(paths[0], fabric)
            if fabric.is_global_zero:
                LOG.warning(
                    "%s; going on from %s, after %s", problems[0], path.name, standing.where
                )
        return standing
    if problems:
        help = "remove the run's folder, or choose another with --output"
        raise SpecError([Diagnostic("E604", "; ".join(problems), None, help)])
    return None


def _forget(damaged: Path, fabric: Fabric) -> None:
    """Remove a checkpoint, which else would become the previous one and take a whole one's
    place."""
    fabric.barrier()
    if not fabric.is_global_zero:
        return
    if damaged.is_dir():
        shutil.rmtree(damaged, ignore_errors=True)
    else:
        damaged.unlink(missing_ok=True)


def _take(content: dict[str, Any], parts: Parts) -> Standing:
    """Its keys and shapes are right: the hash is that of the spec which both are made from."""
    parts.model.load_state_dict(content["model"])
    parts.optimizer.load_state_dict(content["optimizer"])
    parts.fabric.strategy.precision.load_state_dict(content["precision"])
    if parts.average is not None:
        parts.average.load_state_dict(content["average"])
    restore(content["generators"], parts)
    return standing_of(content["standing"])


def restore(generators: list[dict[str, Tensor]], parts: Parts) -> None:
    """Set generators back. A process that the run did not have before keeps those that it began
    with."""
    if parts.fabric.global_rank < len(generators):
        restore_generators(generators[parts.fabric.global_rank], parts.fabric.device)


def standing_of(found: dict[str, Any]) -> Standing:
    """What `asdict` made of a standing."""
    best = Best(**found["best"]) if found["best"] else None
    return Standing(**{**found, "best": best, "score": Score(**found["score"])})


def read_checkpoint(path: Path, spec_hash: str) -> dict[str, Any]:
    """The content of a checkpoint's file. Raises `DamagedError`."""
    try:
        with zipfile.ZipFile(path) as parts:  # torch looks at no checksum
            if (part := parts.testzip()) is not None:
                raise DamagedError(f"{path} is damaged, in {part}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except zipfile.BadZipFile:  # which has its list of parts at the end
        raise DamagedError(f"{path} is truncated, or no checkpoint") from None
    except Exception as error:  # of bytes that are no checkpoint, the unpickler raises anything
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DamagedError(f"{path} cannot be read: {reason}") from None
    if not isinstance(content, dict) or "spec_hash" not in content:
        raise DamagedError(f"{path} is no checkpoint")
    if content["spec_hash"] != spec_hash:
        raise DamagedError(f"{path} is of another spec than run.json beside it")
    return content
