"""Training: from a loaded spec to a folder with the best weights and how they fare in the test."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from archspec.data import AnyData
from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.training import Train
from compiler.network import Network
from runners.data import Data, Split, in_order, open_data, read
from runners.devices import device_name, matrix_precision, open_fabric
from runners.drift_log import drift_scalars
from runners.errors import TrainingError, TrainingStopped
from runners.files import write_json
from runners.folders import unlike
from runners.layout import channels_last_where_it_pays
from runners.loop import Step, evaluate, train_epoch
from runners.parts import set_up
from runners.processes import by_first, first_before_others, of_all
from runners.profile.planning import plan_within_budget
from runners.profile.schedules import planned_stages
from runners.progress import Glance, Silent, Watcher, forget_peak, memory, say, watching
from runners.randomness import derived_seed
from runners.records import NoRecords, Records, recording
from runners.run import Run, go_on, keep_best, out_of_time, over, save, stop_if_asked
from runners.run_folder import (
    Identity,
    RunFolder,
    TrainResult,
    finished,
    identity,
    opened,
    write_result,
)
from runners.signals import asked_to_end
from runners.standing import Best, Score, Standing
from runners.start import start_from
from runners.tasks import Batch, Task, open_task
from runners.unreadable import passed_over
from runners.watch import DriftWatch
from runners.weights import keep_weights, take_weights

LOOK = 256
"""Samples that weights may start by."""
SAVE_SECONDS = 15 * 60.0
"""Of training, after which an epoch that takes longer is saved on the way."""
RECIPE = "train: {epochs: 60, batch: 64, learning_rate: 2e-3}"
"""What a user without one is shown."""


def train(
    loaded: Loaded, output: Path, *, device: str = "auto", quiet: bool = False
) -> TrainResult:
    """Train a spec, or go on where a run stopped; a finished one only reports its result. Within
    `torchrun` each of its processes calls this, and the first one writes.

    Raises `SpecError` before anything is written, `TrainingError` where the loss diverges or a disk
    is full, and `TrainingStopped` where a signal has ended the run.
    """
    recipe, entry = recipe_and_data(loaded)
    folder, who = RunFolder(output), identity(loaded.spec)
    fabric = open_fabric(loaded, recipe, device)
    if (result := by_first(lambda: finished(folder, who), fabric)) is not None:
        return result
    forget_peak(fabric.device)
    task = open_task(loaded)
    data = first_before_others(lambda: open_data(loaded, entry, recipe.seed), fabric)
    model = start(loaded, recipe, task, data, folder, fabric)
    plan(loaded, model, recipe, fabric, quiet)
    with (
        closing(data),
        _folder(folder, loaded, who, fabric),
        matrix_precision(recipe),
        asked_to_end() as asked,
    ):
        by_first(lambda: keep_classes(folder, data.classes), fabric)
        parts = set_up(fabric, model, recipe)
        unreadable = passed_over(folder.unreadable, fabric.is_global_zero)
        run = Run(folder, who, recipe, task, data.on(fabric.device), parts, unreadable, asked)
        try:
            standing = train_on(run, go_on(run), quiet)
            result = conclude(run, standing)
            by_first(lambda: _done(folder, result), fabric)
        except torch.OutOfMemoryError as error:
            why = str(error).splitlines()[0]
            cure = "a smaller train.batch, or a larger train.accumulate, needs less"
            raise TrainingError(f"the device is out of memory: {why}; {cure}") from None
        except OSError as error:
            where = error.filename or folder.path
            why = error.strerror or str(error) or type(error).__name__
            raise TrainingError(f"the run has ended at {where}: {why}") from None
    return result


def keep_classes(folder: RunFolder, classes: Sequence[str]) -> None:
    """Write the names of the classes. Raises `SpecError` where they are not those that the run was
    begun with: labels go by their order."""
    if not classes:
        return
    if not folder.classes.is_file():
        write_json(folder.classes, list(classes))
        return
    try:
        known = json.loads(folder.classes.read_text(encoding="utf-8"))
    except ValueError:
        message = f"{folder.classes} holds no names of classes: it is damaged"
        help = "remove it, if these are the data that the run was begun with"
        raise SpecError([Diagnostic("E604", message, None, help)]) from None
    if known != list(classes):
        message = f"the run in {folder.path} was begun with other classes: {unlike(known, classes)}"
        help = "a run continues only with the data that began it; choose another with --output"
        raise SpecError([Diagnostic("E604", message, None, help)])


def _done(folder: RunFolder, result: TrainResult) -> None:
    write_result(folder, result)
    folder.previous.unlink(missing_ok=True)
    shutil.rmtree(folder.shared_previous, ignore_errors=True)


def start(
    loaded: Loaded, recipe: Train, task: Task, data: Data, folder: RunFolder, fabric: Fabric
) -> nn.Module:
    """The network with the weights that training begins with, the same in every process, and after
    that generators of each process's own."""
    torch.manual_seed(recipe.seed)
    model = build_model(loaded)
    task.start(model, lambda: a_look(data.training))
    if recipe.start_from is not None and not folder.begun:
        start_from(Path(recipe.start_from), model, loaded)
    if fabric.global_rank:
        torch.manual_seed(derived_seed(recipe.seed, "process", fabric.global_rank))
    return model


def a_look(split: Split) -> Batch:
    """The first samples of a split, on the CPU."""
    return next(read(split, in_order(split, LOOK)[:1], torch.device("cpu")))


def plan(loaded: Loaded, model: nn.Module, recipe: Train, fabric: Fabric, quiet: bool) -> None:
    """Store what a budget of memory allows, where the spec has one, and say so."""
    if not isinstance(model, Network) or not planned_stages(model):
        return
    if recipe.parallel == "fsdp2" and fabric.world_size > 1:
        message = "a budget is planned for weights held whole, and `parallel: fsdp2` shares them"
        span = loaded.tree.where(("train", "parallel"))
        raise SpecError([Diagnostic("E603", message, span, "write the strategy of each stage")])
    found = plan_within_budget(loaded, model, recipe, fabric.device.type, fabric.world_size)
    if fabric.is_global_zero and not quiet:
        say(str(found))


@contextmanager
def _folder(folder: RunFolder, loaded: Loaded, who: Identity, fabric: Fabric) -> Iterator[None]:
    if not fabric.is_global_zero:
        fabric.barrier()
        yield
        return
    with opened(folder, loaded, who):
        fabric.barrier()
        yield


def recipe_and_data(loaded: Loaded) -> tuple[Train, AnyData]:
    """The two sections that training needs. Raises `SpecError`."""
    recipe, entry = loaded.spec.train, loaded.spec.data
    for name in [each for each in loaded.spec.side if each not in loaded.spec.task.side]:
        message = f"neither the data sets here nor the task {loaded.spec.task.kind} give `{name}`"
        help = f"train such a network in Python: model(images, {name}=tensor)"
        raise SpecError([Diagnostic("E605", message, loaded.tree.where(("side", name)), help)])
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


def build_model(loaded: Loaded) -> Network:
    """The network of a spec, laid out as it is fastest."""
    from compiler.network import build
    from compiler.resolve import resolve

    return channels_last_where_it_pays(build(resolve(loaded)))


def train_on(run: Run, standing: Standing, quiet: bool) -> Standing:
    """Train the epochs that are left, with a checkpoint after each."""
    if over(run.recipe, standing):
        return standing
    with telling(run, standing, quiet) as (watcher, records):
        drifts = drift_watch(run, records)
        while not over(run.recipe, standing):
            standing = one_epoch(run, standing, watcher, records, drifts)
    return standing


@contextmanager
def telling(run: Run, standing: Standing, quiet: bool) -> Iterator[tuple[Watcher, Records]]:
    """Whom the run tells how it fares: a person and files, in the first process."""
    if not run.parts.fabric.is_global_zero:
        yield Silent(), NoRecords()
        return
    steps = run.steps_per_epoch
    done = standing.epochs * steps + standing.steps
    with (
        watching(quiet, run.recipe.epochs, steps, done, run.task.metric) as watcher,
        recording(run.folder, standing.epochs, done) as records,
    ):
        if done:
            watcher.going_on(standing.where)
        yield watcher, records


def one_epoch(
    run: Run, standing: Standing, watcher: Watcher, records: Records, drifts: DriftWatch | None
) -> Standing:
    """Train what is left of an epoch, validate, and write down where the run stands."""
    parts, recipe, task, epoch = run.parts, run.recipe, run.task, standing.epochs + 1
    alone = parts.fabric.world_size == 1
    trained = train_epoch(
        parts,
        task,
        run.data.training,
        recipe,
        standing,
        run.asked,
        each_step(run, standing, watcher, drifts),
        run.unreadable.note,
    )
    began = time.perf_counter()
    standing = replace(standing, steps=run.steps_per_epoch, score=trained)
    stop_if_asked(run, standing, max(of_all(run.asked.by, parts.fabric)))
    validated = evaluate(
        parts,
        task,
        run.data.validation,
        evaluated_at_once(run),
        run.unreadable.note,
        # Several processes validate to the end: they must agree before they stop.
        lambda: stop_if_asked(run, standing, run.asked.by if alone else 0),
    )
    if not math.isfinite(validated.loss):
        raise TrainingError(f"the validation loss is {validated.loss} after epoch {epoch}")
    # The first one's clock: all processes must come to the same end.
    seconds = trained.seconds + of_all(time.perf_counter() - began, parts.fabric)[0]

    best = standing.best
    if best is None or best.beaten_by(validated.measured, validated.loss, task.metric):
        best = Best(epoch, validated.measured, validated.loss)
    standing = Standing(epoch, standing.seconds + seconds, best)
    report(run, records, epoch, seconds, trained, validated)
    save(run, standing)
    if best.epoch == epoch:
        keep_best(run, best)
    watcher.epoch(glance(run, epoch, trained), validated.measured, best.measured)
    stop_if_asked(run, standing, max(of_all(run.asked.by, parts.fabric)))
    return standing


def drift_watch(run: Run, records: Records) -> DriftWatch | None:
    """Looks at inverses on validation samples: in the first process, which has all weights or else
    cannot look."""
    if run.parts.template is not None or not run.parts.fabric.is_global_zero:
        return None
    return DriftWatch(run.recipe.watch, run.parts, run.task, run.data.validation, records)


def each_step(
    run: Run, standing: Standing, watcher: Watcher, drifts: DriftWatch | None
) -> Callable[[Step], bool]:
    """What is done after each step of an epoch, which ends where it gives False."""
    saved, before = standing.score.seconds, standing.epochs * run.steps_per_epoch

    def after(step: Step) -> bool:
        nonlocal saved
        watcher.step(glance(run, standing.epochs + 1, step.score))
        if drifts is not None:
            drifts.after(before + step.number)
        here = replace(standing, steps=step.number, score=step.score)
        stop_if_asked(run, here, step.asked)
        if step.score.seconds - saved >= SAVE_SECONDS:
            saved = step.score.seconds
            save(run, here)
        return not out_of_time(run.recipe, standing.seconds + step.score.seconds)

    return after


def glance(run: Run, epoch: int, score: Score) -> Glance:
    used = memory(run.parts.fabric.device)
    return Glance(epoch, score.loss, score.measured, score.samples_per_second, used)


def all_unreadable(run: Run) -> None:
    """Let all processes know, and the first one write, which files any could not read."""
    run.unreadable.with_those_of(of_all(run.unreadable.known, run.parts.fabric))


def report(
    run: Run, records: Records, epoch: int, seconds: float, trained: Score, validated: Score
) -> None:
    """Write an epoch down."""
    all_unreadable(run)
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
    drifts = drift_scalars(run.parts, run.task, run.data.validation)
    records.epoch(epoch, scalars | drifts, used.kind)


def evaluated_at_once(run: Run) -> int:
    """Samples, of all processes together: each has one at least."""
    return max(run.recipe.at_once, run.parts.fabric.world_size)


def conclude(run: Run, standing: Standing) -> TrainResult:
    """Read the test set, once, with the weights that validation chose. A signal ends that, alone,
    and nothing has to be saved: the next sitting begins here."""
    assert standing.best is not None
    parts, folder, alone = run.parts, run.folder, run.parts.fabric.world_size == 1
    keep_weights(folder.last, parts, standing.epochs)
    take_weights(folder.best, parts)

    def stop() -> None:
        if alone and run.asked.by:
            raise TrainingStopped(run.asked.by, standing.where)

    batch = evaluated_at_once(run)
    tested = evaluate(parts, run.task, run.data.test, batch, run.unreadable.note, stop)
    all_unreadable(run)
    return TrainResult(
        metric=run.task.metric.name,
        test_metric=tested.measured,
        test_loss=tested.loss,
        validation_metric=standing.best.measured,
        best_epoch=standing.best.epoch,
        epochs=standing.epochs,
        seconds=standing.seconds,
        parameters=sum(p.numel() for p in parts.model.parameters()),
        device=device_name(parts.fabric.device),
        output=str(folder.path),
    )


__all__ = ["TrainResult", "TrainingError", "TrainingStopped", "train"]
