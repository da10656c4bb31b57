"""A run: what stays the same throughout it, and how it is saved, stopped and gone on with."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from archspec.training import Train
from runners import checkpoint, sharded_checkpoint
from runners.data import Data, shuffled
from runners.errors import TrainingError, TrainingStopped
from runners.parts import Parts
from runners.processes import by_first, of_all
from runners.progress import MIB
from runners.run_folder import Identity, RunFolder, keep_metrics
from runners.signals import Asked
from runners.standing import Best, Standing
from runners.tasks import Task
from runners.unreadable import PassedOver
from runners.weights import epoch_of, keep_weights

LOG = logging.getLogger("archspec")


@dataclass(frozen=True)
class Run:
    """What stays the same from the first epoch to the last."""

    folder: RunFolder
    who: Identity
    recipe: Train
    task: Task
    data: Data
    parts: Parts
    unreadable: PassedOver
    asked: Asked

    @property
    def steps_per_epoch(self) -> int:
        return len(shuffled(self.data.training, self.recipe.batch, self.recipe.seed, 0))


class Checkpoints(Protocol):
    """How a run is kept on disk."""

    def save_checkpoint(
        self, folder: RunFolder, parts: Parts, standing: Standing, spec_hash: str
    ) -> None: ...

    def load_checkpoint(
        self, folder: RunFolder, parts: Parts, spec_hash: str
    ) -> Standing | None: ...


def checkpoints(parts: Parts) -> Checkpoints:
    """In one file, or in a folder where processes share the weights."""
    return checkpoint if parts.template is None else sharded_checkpoint


def go_on(run: Run) -> Standing:
    """The state of the last checkpoint, if there is one, with all files brought in line."""
    folder = run.folder
    found = checkpoints(run.parts).load_checkpoint(folder, run.parts, run.who.spec)
    standing, fabric = found or Standing(), run.parts.fabric
    if found is None and fabric.is_global_zero and folder.best.is_file():
        LOG.warning("%s has no checkpoint: the run begins anew", folder.path)
    if len(set(of_all(standing, fabric))) > 1:
        raise TrainingError(f"the processes do not see the same files in {folder.path}")
    by_first(lambda: keep_metrics(folder, standing.epochs), fabric)
    best, written = standing.best, by_first(lambda: epoch_of(folder.best), fabric)
    if best is None or written == best.epoch:
        return standing
    if best.epoch == standing.epochs and not standing.steps:
        # The process may have been killed between the checkpoint and the weights.
        keep_best(run, best)
        return standing
    # The checkpoint before a damaged one: its best weights have been written over by later ones.
    standing = replace(standing, best=None)
    if over(run.recipe, standing):
        what = f"{folder.best} does not hold the weights of epoch {best.epoch}"
        raise TrainingError(f"{what}, and nothing is left to train")
    return standing


def keep_best(run: Run, best: Best) -> None:
    """Write the weights as those of the best epoch."""
    keep_weights(run.folder.best, run.parts, best.epoch)


def over(recipe: Train, standing: Standing) -> bool:
    """Whether nothing is left to train."""
    best, epochs = standing.best, standing.epochs
    tired = recipe.patience and best is not None and epochs - best.epoch >= recipe.patience
    return epochs >= recipe.epochs or bool(tired) or out_of_time(recipe, standing.seconds)


def out_of_time(recipe: Train, seconds: float) -> bool:
    """Whether a run has had the time that its recipe gives it."""
    return recipe.max_minutes is not None and seconds >= 60 * recipe.max_minutes


LITTLE = 2**30
"""Bytes."""


def _space(folder: Path) -> str:
    """How little is left on a disk, if it is little: torch does not say that this is why."""
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < LITTLE:
            return f" ({free / MIB:,.0f} MiB are free)"
    return ""


def save(run: Run, standing: Standing) -> None:
    """Write a checkpoint. Raises `TrainingError` where that cannot be; the last one is then left as
    it was."""
    folder = run.folder
    try:
        checkpoints(run.parts).save_checkpoint(folder, run.parts, standing, run.who.spec)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        why = (str(error) or type(error).__name__).splitlines()[0] + _space(folder.path)
        message = f"cannot write {folder.checkpoint} after {standing.where}: {why}"
        raise TrainingError(f"{message}. The one before it is whole") from None
    # A process that ends makes `torchrun` end the others, which may still be writing.
    run.parts.fabric.barrier()


def stop_if_asked(run: Run, standing: Standing, signal: int) -> None:
    """End the run, with a checkpoint, where a signal asked for that."""
    if signal:
        save(run, standing)
        raise TrainingStopped(signal, standing.where)
