"""How a trained network fares on data."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from archspec.data import AnyData
from archspec.diagnostics import SpecError
from archspec.loading import Loaded
from archspec.training import Classify, Generative
from archspec.tree import Node
from compiler.network import Network
from runners.as_data import AsData, as_data, check_images
from runners.classification import Classified, classified
from runners.data import Data, Reading, Split, in_order, open_data, read
from runners.devices import matrix_precision, open_fabric
from runners.errors import TrainingError
from runners.folders import OpenFolders, open_held_out, open_splits, unlike
from runners.generation_evaluation import Compared, GenerationEvaluation, evaluate_generation
from runners.inversion import Inversion, Strip, Trips, invert_images, stage_of
from runners.other_data import TRAINED_ON, of_trained, with_data
from runners.run_folder import identity
from runners.standing import Score
from runners.tasks import Metric, Task, open_task
from runners.train import recipe_and_data
from runners.trained import Trained

Part = Literal["test", "validation"]
PARTS: tuple[Part, ...] = ("test", "validation")
OPEN: Mapping[Part, OpenFolders] = {"test": open_held_out, "validation": open_splits}
"""A test needs nothing to train on."""
LOG = logging.getLogger("archspec")
CUT_FROM = ("validation", "samples")
"""Keys of data that the test split does not depend on, beside `TRAINED_ON`."""


@dataclass(frozen=True)
class Measured:
    """Of one pass over a split."""

    score: Score
    """With the seconds of the pass, and those of them that were spent waiting for data."""
    outputs: Tensor
    """Of the network, (N, …), on the CPU."""
    targets: Tensor


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    name: str
    run: str
    """Its folder."""
    spec_hash: str
    """Of its spec, as run.json has it."""
    weights: str
    """The name of the file."""
    epoch: int | None
    """That the weights are of."""
    split: str
    data: object
    """As a spec writes it, without what applies in training alone."""

    def other(self, found: dict[str, object]) -> str:
        """In what an earlier object of evaluation.json is of something else, in words. The epoch
        may be another: a run that has gone on is the same run."""
        ours = asdict(self)
        said = [
            f"{key} is {found.get(key)} there, {ours[key]} here"
            for key in ("run", "weights", "split", "data", "spec_hash")
            if found.get(key) != ours[key]
        ]
        return said[0] if said else ""


@dataclass(frozen=True)
class Means:
    """How it is measured."""

    batch: int
    device: str
    precision: str


@dataclass(frozen=True)
class Evaluation:
    """How a network fares."""

    subject: Subject
    means: Means
    metric: Metric
    score: Score
    unreadable: int
    """Files that could not be decoded, and are not among the samples."""
    classes: Classified | None
    """Where the task is to classify."""
    class_names: tuple[str, ...]
    """Of a folder: those of its folders; else numbers."""
    generation: GenerationEvaluation | None = None
    """Where the task is to make images."""
    inversion: Inversion | None = None
    """Of its first images, if it was asked for."""
    strip: Strip | None = None

    @property
    def network_samples_per_second(self) -> float:
        """Without the time of reading and preparing data."""
        return self.score.samples / (self.score.seconds - self.score.waited)

    def as_json(self) -> dict[str, object]:
        """In plain maps, the metric by its name."""
        score = self.score
        found: dict[str, object] = {
            **asdict(self.subject),
            **asdict(self.means),
            "samples": score.samples,
            "unreadable_files": self.unreadable,
            self.metric.name: score.measured,
            "loss": score.loss,
            "seconds": score.seconds,
            "data_seconds": score.waited,
            "samples_per_second": score.samples_per_second,
            "network_samples_per_second": self.network_samples_per_second,
        }
        if self.classes is not None:
            found["classification"] = {"names": self.class_names, **asdict(self.classes)}
        if self.generation is not None:
            found["generation"] = asdict(self.generation)
        if self.inversion is not None:
            found["inversion"] = asdict(self.inversion)
        return found


def data_of(trained: Trained, data: str | None) -> Loaded:
    """The spec of a run, with others of its data as `with_data` reads them. Raises `SpecError`."""
    return trained.loaded if data is None else with_data(trained.loaded, data)


def subject_of(trained: Trained, loaded: Loaded, part: Part) -> Subject:
    """What of a run is measured, on which data."""
    return Subject(
        name=trained.name,
        run=str(trained.folder.path),
        spec_hash=identity(trained.loaded.spec).spec,
        weights=trained.weights.name,
        epoch=trained.epoch,
        split=part,
        data=_tested_on(loaded.tree.map["data"], part),
    )


def _tested_on(data: Node, part: Part) -> object:
    """What a split depends on of a data set, as a spec writes it."""
    if not data.map:  # its name alone
        return data.plain()
    ((kind, content),) = data.map.items()
    if not content.map:  # with its path
        return data.plain()
    left = content.without(*TRAINED_ON, *(CUT_FROM if part == "test" else ())).plain()
    return {kind: left} if left else kind


def evaluate_run(
    trained: Trained,
    *,
    part: Part = "test",
    data: str | None = None,
    batch: int | None = None,
    device: str = "auto",
    compared: Compared | None = None,
    trips: Trips | None = None,
) -> Evaluation:
    """Measure a trained network on a split of its data, or of others as `with_data` reads them, in
    the precision of its recipe.

    With the batch of the recipe, on the machine that trained it, accuracy has the bits of the run's
    result. Raises `SpecError` where data do not fit, `TrainingError` where files cannot be read or
    an output is not finite, and `RangeError`. Samples of a network that makes images are held
    against those of the split as `compared` says; images go there and back as `trips` says.
    """
    loaded = data_of(trained, data)
    if trips is not None:  # before the work of measuring
        assert isinstance(trained.model, Network)
        check_images(loaded)
        stage_of(trained.model, trips)
    recipe, entry = recipe_and_data(loaded)
    fabric, task = open_fabric(loaded, recipe, device), open_task(loaded)
    with of_trained(loaded):
        opened = _opened(loaded, entry, recipe.seed, part)
    check_classes(trained, opened)
    held = opened.test if part == "test" else opened.validation
    split = held.on(fabric.device)
    means = Means(batch or recipe.at_once, str(fabric.device), recipe.precision)
    generation = None
    with closing(opened), matrix_precision(recipe):
        found = measure(trained.model, task, split, means.batch, fabric)
        if isinstance(loaded.spec.task, Generative):
            generation = evaluate_generation(
                loaded, opened, held, means.batch, fabric.device, compared
            )
    names, classes = opened.classes, None
    if isinstance(loaded.spec.task, Classify):
        classes = classified(found.outputs, found.targets)
        names = names or tuple(map(str, range(loaded.spec.task.classes)))
    unreadable = len(split) - found.score.samples
    subject = subject_of(trained, loaded, part)
    evaluation = Evaluation(
        subject, means, task.metric, found.score, unreadable, classes, names, generation
    )
    if trips is None:
        return evaluation
    return _there_and_back(evaluation, trained, as_data(loaded, held, trips.images), trips)


def _there_and_back(
    evaluation: Evaluation, trained: Trained, data: AsData, trips: Trips
) -> Evaluation:
    """With what came back of images. Raises `SpecError`."""
    assert isinstance(trained.model, Network)
    inversion, strip = invert_images(trained.model, data, trips)
    return replace(evaluation, inversion=inversion, strip=strip)


def _opened(loaded: Loaded, entry: AnyData, seed: int, part: Part) -> Data:
    """The data of a spec; to networks that make images belongs what they were trained on, where it
    is there. Raises `SpecError`."""
    if part == "test" and isinstance(loaded.spec.task, Generative):
        try:
            return open_data(loaded, entry, seed, open_splits)
        except SpecError:  # a test folder alone
            return replace(open_data(loaded, entry, seed, open_held_out), plain=None)
    return open_data(loaded, entry, seed, OPEN[part])


@torch.no_grad()
def measure(model: nn.Module, task: Task, split: Split, batch: int, fabric: Fabric) -> Measured:
    """One pass over a split. Before it is timed, the network runs on the first batch once: the
    first call allocates, and chooses kernels."""
    network, outputs = fabric.setup_module(model), Heard()
    network.eval()

    def of_batch(inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        with fabric.autocast():
            outcome = task.in_evaluation(
                lambda x, **side: outputs.heard(network(x, **side)), (inputs, targets)
            )
        return float(outcome.loss), float(outcome.measured)

    batches = in_order(split, batch)
    of_batch(*next(iter(read(split, batches[:1], fabric.device))))
    score, waited, targets = Score(), 0.0, []
    outputs.all.clear()
    began = time.perf_counter()
    left = iter(read(split, batches, fabric.device, Reading(may_skip=True)))
    while True:
        asked = time.perf_counter()
        found = next(left, None)
        waited += time.perf_counter() - asked
        if found is None:
            break
        loss, measured = of_batch(*found)
        score = score.and_batch(loss, measured, len(found[0]))
        targets.append(found[1].cpu())
    score = replace(score, seconds=time.perf_counter() - began, waited=waited)
    everything = torch.cat(outputs.all)
    if not everything.isfinite().all():
        raise TrainingError("the network gives outputs that are not finite")
    return Measured(score, everything, torch.cat(targets))


class Heard:
    """A network's outputs, kept on the CPU as they pass."""

    def __init__(self) -> None:
        self.all: list[Tensor] = []

    def heard(self, output: Tensor) -> Tensor:
        self.all.append(output.cpu())
        return output


def check_classes(trained: Trained, data: Data) -> None:
    """Tell where data have other classes than those that a network was trained on: labels go by
    their order."""
    try:
        known = json.loads(trained.folder.classes.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # classes without names, or a run of an earlier version
        return
    if data.classes and list(data.classes) != known:
        LOG.warning(
            "warning: these data have other classes than those that the network was trained on: "
            "%s. The first are taken for the first, and so on",
            unlike(known, data.classes),
        )
