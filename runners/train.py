"""Training: from a loaded spec to a folder with the best weights and how they fare in the test."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from archspec.data import AnyData
from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.training import Train
from runners.checkpoint import (
    Best,
    Parts,
    Standing,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from runners.data import Data, open_data, shuffled
from runners.devices import open_fabric
from runners.drift_log import drift_scalars
from runners.errors import TrainingError
from runners.loop import Score, evaluate, train_epoch
from runners.optim import build_optimizer
from runners.progress import Glance, Watcher, forget_peak, memory, watching
from runners.run_folder import (
    Identity,
    RunFolder,
    TrainResult,
    append_metrics,
    finished,
    identity,
    keep_metrics,
    opened,
    write_result,
)
from runners.start import start_from
from runners.tasks import Task, open_task
from runners.unreadable import PassedOver, passed_over

RECIPE = "train: {epochs: 60, batch: 64, learning_rate: 2e-3}"
"""What a user without one is shown."""


def train(
    loaded: Loaded, output: Path, *, device: str = "auto", quiet: bool = False
) -> TrainResult:
    """Train a spec, or go on where a killed run stopped; a finished one only reports its result.

    Raises `SpecError` before anything is written, and `TrainingError` where the loss diverges.
    """
    recipe, entry = recipe_and_data(loaded)
    folder, who = RunFolder(output), identity(loaded.spec)
    if (result := finished(folder, who)) is not None:
        return result
    fabric = open_fabric(loaded, recipe, device)
    forget_peak(fabric.device)
    task = open_task(loaded)
    data = open_data(loaded, entry, recipe.seed)
    torch.manual_seed(recipe.seed)
    model = build_model(loaded)
    task.start(model)
    if recipe.start_from is not None and not folder.checkpoint.is_file():
        start_from(Path(recipe.start_from), model, loaded)
    with opened(folder, loaded, who):
        parts, unreadable = set_up(fabric, model, recipe), passed_over(folder.unreadable)
        run = Run(folder, who, recipe, task, data.on(fabric.device), parts, unreadable)
        standing = go_on(run)
        standing = train_on(run, standing, quiet)
        result = conclude(run, standing)
        write_result(folder, result)
    return result


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


def recipe_and_data(loaded: Loaded) -> tuple[Train, AnyData]:
    """The two sections that training needs. Raises `SpecError`."""
    recipe, entry = loaded.spec.train, loaded.spec.data
    if loaded.spec.side:
        message = "the data sets here give images and labels, and no side inputs"
        help = "train such a network in Python: model(images, name=tensor)"
        raise SpecError([Diagnostic("E605", message, loaded.tree.where(("side",)), help)])
    if recipe is None or entry is None:
        raise SpecError([_says_nothing(loaded)])
    return recipe, entry


def _says_nothing(loaded: Loaded) -> Diagnostic:
    spec = loaded.spec
    missing = {
        "`data`, what to train on": None if spec.data else "`data: digits`",
        "`train`, how to train": None if spec.train else f"`{RECIPE}`",
    }
    lacking = " and no ".join(what for what, example in missing.items() if example)
    examples = " and ".join(example for example in missing.values() if example)
    help = f"add {examples}, or `extends` a shipped spec that has what you need"
    message = f"{spec.name} cannot be trained: it has no {lacking}"
    return Diagnostic("E605", message, loaded.tree.where(("name",)), help)


def build_model(loaded: Loaded) -> nn.Module:
    """The network of a spec."""
    from compiler.network import build
    from compiler.resolve import resolve

    return build(resolve(loaded))


def set_up(fabric: Fabric, model: nn.Module, recipe: Train) -> Parts:
    """Model and optimizer on their device."""
    wrapped, optimizer = fabric.setup(model, build_optimizer(model, recipe))
    return Parts(fabric, model, wrapped, optimizer)


def go_on(run: Run) -> Standing:
    """The state of the last finished epoch, if there is one, with all files brought in line."""
    folder, standing = run.folder, Standing()
    if folder.checkpoint.is_file():
        standing = load_checkpoint(folder.checkpoint, run.parts, run.who.spec)
    keep_metrics(folder, standing.epochs)
    if standing.best is not None and standing.best.epoch == standing.epochs:
        # The process may have been killed between the checkpoint and the weights.
        save_weights(folder.best, run.parts.model)
    return standing


def train_on(run: Run, standing: Standing, quiet: bool) -> Standing:
    """Train the epochs that are left, with a checkpoint after each."""
    recipe, done = run.recipe, standing.epochs
    steps = len(shuffled(run.data.training, recipe.batch, recipe.seed, 0))
    with (
        watching(quiet, recipe.epochs, steps, done, run.task.metric) as watcher,
        SummaryWriter(str(run.folder.tensorboard), purge_step=done + 1) as board,
    ):
        while standing.epochs < recipe.epochs:
            standing = one_epoch(run, standing, watcher, board)
    return standing


def one_epoch(run: Run, standing: Standing, watcher: Watcher, board: SummaryWriter) -> Standing:
    """Train and validate once more, and write down where the run stands."""
    began, parts, recipe, task = time.perf_counter(), run.parts, run.recipe, run.task
    epoch = standing.epochs + 1

    def glance(score: Score) -> Glance:
        used = memory(parts.fabric.device)
        return Glance(epoch, score.loss, score.measured, score.samples_per_second, used)

    trained = train_epoch(
        parts,
        task,
        run.data.training,
        recipe,
        standing.epochs,
        lambda score: watcher.step(glance(score)),
        run.unreadable.note,
    )
    validated = evaluate(parts, task, run.data.validation, recipe.batch, run.unreadable.note)
    if not math.isfinite(validated.loss):
        raise TrainingError(f"the validation loss is {validated.loss} after epoch {epoch}")
    seconds = time.perf_counter() - began

    best = standing.best
    if best is None or best.beaten_by(validated.measured, validated.loss, task.metric):
        best = Best(epoch, validated.measured, validated.loss)
    standing = Standing(epoch, standing.seconds + seconds, best)
    report(run, board, epoch, seconds, trained, validated)
    save_checkpoint(run.folder.checkpoint, parts, standing, run.who.spec)
    if best.epoch == epoch:
        save_weights(run.folder.best, parts.model)
    watcher.epoch(glance(trained), validated.measured, best.measured)
    return standing


def report(
    run: Run, board: SummaryWriter, epoch: int, seconds: float, trained: Score, validated: Score
) -> None:
    """Add an epoch to metrics.jsonl and to TensorBoard."""
    used, metric = memory(run.parts.fabric.device), run.task.metric.name
    scalars = {
        "train_loss": trained.loss,
        f"train_{metric}": trained.measured,
        "validation_loss": validated.loss,
        f"validation_{metric}": validated.measured,
        "learning_rate": run.parts.optimizer.param_groups[0]["lr"],
        "seconds": seconds,
        "data_seconds": trained.waited,
        "samples_per_second": trained.samples_per_second,
        "unreadable_files": len(run.unreadable.known),
        "memory_bytes": used.bytes,
    }
    drifts = drift_scalars(run.parts, run.data.validation)
    finite = {name: value for name, value in drifts.items() if math.isfinite(value)}
    record = {"epoch": epoch, **scalars, "memory_kind": used.kind}
    append_metrics(run.folder, record | dict.fromkeys(drifts) | finite)
    for name, value in (scalars | finite).items():
        board.add_scalar(re.sub(r"^(train|validation)_", r"\1/", name), value, epoch)
    board.flush()


def conclude(run: Run, standing: Standing) -> TrainResult:
    """Read the test set, once, with the weights that validation chose."""
    assert standing.best is not None
    parts, folder = run.parts, run.folder
    save_weights(folder.last, parts.model)
    load_weights(folder.best, parts.model)
    tested = evaluate(parts, run.task, run.data.test, run.recipe.batch, run.unreadable.note)
    return TrainResult(
        metric=run.task.metric.name,
        test_metric=tested.measured,
        test_loss=tested.loss,
        validation_metric=standing.best.measured,
        best_epoch=standing.best.epoch,
        epochs=standing.epochs,
        seconds=standing.seconds,
        parameters=sum(p.numel() for p in parts.model.parameters()),
        device=str(parts.fabric.device),
        output=str(folder.path),
    )


__all__ = ["TrainResult", "TrainingError", "train"]
