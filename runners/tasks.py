"""What a network is trained for: its loss, what it is measured by, and where its weights start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.training import Classify, Density, FlowMatching, SparseCode
from compiler.flow import Flow
from runners.density import Levels, bits_per_dimension, levels_of
from runners.flow_matching import OnTheWay, on_the_way, shown
from runners.labels import NO_LABEL, label_of
from runners.lasso import Lasso, start_at_ista
from runners.sparse_codes import open_lasso
from runners.steady_noise import steady

Batch = tuple[Tensor, Tensor]
"""Inputs (B, …), and what the task needs to know of each sample, (B, …)."""
Model = Callable[..., Tensor]
"""Of an input and, by name, side inputs."""
Seen = tuple[Tensor, Mapping[str, Tensor]]
"""A network's input (B, …), and its side inputs by name."""
Look = Callable[[], Batch]


@dataclass(frozen=True)
class Metric:
    """What the best epoch is chosen by."""

    name: str
    short: str
    """For a bar in 80 columns."""
    higher_is_better: bool
    form: str
    """The format of its values."""

    def text(self, value: float) -> str:
        return format(value, self.form)

    def difference_text(self, value: float) -> str:
        """Of a difference of two values, in `unit`s."""
        return f"{100 * value:+.2f}" if self.is_share else format(value, f"+{self.form}")

    @property
    def unit(self) -> str:
        """Of a difference: of shares, points of a hundred."""
        return " points" if self.is_share else ""

    @property
    def is_share(self) -> bool:
        """Whether values are from 0 to 1, and told by the hundred."""
        return self.form.endswith("%")

    def better(self, value: float, than: float) -> bool:
        return value > than if self.higher_is_better else value < than


ACCURACY = Metric("accuracy", "acc", higher_is_better=True, form=".2%")
SUBOPTIMALITY = Metric("suboptimality", "above", higher_is_better=False, form=".2e")
"""The objective of a Lasso above its least value, and 0 where rounding takes it below."""
BITS = Metric("bits_per_dimension", "bits", higher_is_better=False, form=".4f")
"""Of the lower bound of the log-probability that dequantisation gives."""
VELOCITY_ERROR = Metric("velocity_error", "error", higher_is_better=False, form=".4f")
"""The mean squared error of a number of the velocity."""
METRICS = {metric.name: metric for metric in (ACCURACY, SUBOPTIMALITY, BITS, VELOCITY_ERROR)}


@dataclass(frozen=True)
class Outcome:
    """Of one batch."""

    loss: Tensor
    """The mean over its samples, (), which gradients are taken of."""
    measured: Tensor
    """The sum of the metric over its samples, (): left where it is, since to read it is to wait."""


class Task(Protocol):
    """One kind of task, with its settings."""

    @property
    def metric(self) -> Metric: ...

    def start(self, model: nn.Module, look: Look) -> None:
        """Set weights where training for this task starts from others than random ones. `look`
        gives a batch of training samples, on the CPU."""

    def in_training(self, model: Model, batch: Batch) -> Outcome:
        """The loss that is minimised, and the metric."""

    def in_evaluation(self, model: Model, batch: Batch) -> Outcome:
        """The loss that is reported, and the metric."""

    def seen(self, batch: Batch) -> Seen:
        """What the network is given of a batch in evaluation."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy; targets are labels (B), or of mixed images the share of each class (B, K)."""

    label_smoothing: float = 0.0
    metric: Metric = ACCURACY

    def start(self, model: nn.Module, look: Look) -> None: ...

    def in_training(self, model: Model, batch: Batch) -> Outcome:
        return _classified(model, batch, self.label_smoothing)

    def in_evaluation(self, model: Model, batch: Batch) -> Outcome:
        return _classified(model, batch, 0.0)

    def seen(self, batch: Batch) -> Seen:
        return batch[0], {}


def _classified(model: Model, batch: Batch, label_smoothing: float) -> Outcome:
    inputs, labels = batch
    logits = model(inputs)
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    largest = labels if labels.ndim == 1 else labels.argmax(1)
    return Outcome(loss, (logits.argmax(1) == largest).sum())


@dataclass(frozen=True)
class SparseCoding:
    """The objective of the Lasso at the code that the network gives, without labels: targets (B)
    are the least values of the objective, for the metric alone."""

    lasso: Lasso
    metric: Metric = SUBOPTIMALITY

    def start(self, model: nn.Module, look: Look) -> None:
        """Gregor and LeCun's form starts as ISTA."""
        start_at_ista(model, self.lasso)

    def in_training(self, model: Model, batch: Batch) -> Outcome:
        measurements, least = batch
        objective = self.lasso.objective(measurements, model(measurements))
        above = (objective.detach() - least).clamp(min=0)
        return Outcome(objective.mean(), above.sum())

    in_evaluation = in_training

    def seen(self, batch: Batch) -> Seen:
        return batch[0], {}


@dataclass(frozen=True)
class DensityEstimation:
    """Bits per dimension of images, given their classes where there are any. The noise of
    dequantisation is new in every step of training; an image's own is the same in every
    evaluation."""

    levels: Levels
    classes: int | None = None
    metric: Metric = BITS

    def start(self, model: nn.Module, look: Look) -> None:
        """Actnorm starts by the data."""
        images, labels = look()
        values, _ = self.levels.values(images, torch.rand_like(images))
        assert isinstance(model, Flow)
        model.initialise(values, **label_of(labels, self.classes))

    def in_training(self, model: Model, batch: Batch) -> Outcome:
        images, labels = batch
        given = self.levels.values(images, torch.rand_like(images))
        return self._told(model, given, label_of(labels, self.classes))

    def in_evaluation(self, model: Model, batch: Batch) -> Outcome:
        return self._told(model, self._values(batch), label_of(batch[1], self.classes))

    def seen(self, batch: Batch) -> Seen:
        return self._values(batch)[0], label_of(batch[1], self.classes)

    def _values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, _ = batch
        (noise,) = steady(images, lambda source: torch.rand(images.shape[1:], generator=source))
        return self.levels.values(images, noise)

    def _told(
        self, model: Model, given: tuple[Tensor, Tensor], label: Mapping[str, Tensor]
    ) -> Outcome:
        values, change = given
        bits = bits_per_dimension(model(values, **label) + change, values[0].numel())
        return Outcome(bits.mean(), bits.detach().sum())


@dataclass(frozen=True)
class VelocityMatching:
    """The squared error of the velocity from noise to images, at one time of each image. Noise and
    times are new in every step of training. Those of an image are the same in every evaluation,
    where all classes are told and times are uniform."""

    settings: FlowMatching
    metric: Metric = VELOCITY_ERROR

    def start(self, model: nn.Module, look: Look) -> None: ...

    def in_training(self, model: Model, batch: Batch) -> Outcome:
        images, labels = batch
        drawn = torch.rand if self.settings.times == "uniform" else _logit_normal
        times = drawn((len(images), 1), device=images.device)
        hidden = torch.rand(len(images), device=images.device) < self.settings.unlabelled
        way = on_the_way(shown(images), torch.randn_like(images), times)
        return self._told(model, way, labels.masked_fill(hidden, NO_LABEL))

    def in_evaluation(self, model: Model, batch: Batch) -> Outcome:
        return self._told(model, self._way(batch), batch[1])

    def seen(self, batch: Batch) -> Seen:
        way = self._way(batch)
        return way.values, self._side(way, batch[1])

    def _way(self, batch: Batch) -> OnTheWay:
        images, _ = batch
        noise, times = steady(
            images,
            lambda source: torch.randn(images.shape[1:], generator=source),
            lambda source: torch.rand(1, generator=source),
        )
        return on_the_way(shown(images), noise, times)

    def _side(self, way: OnTheWay, labels: Tensor) -> dict[str, Tensor]:
        return {"time": way.time, **label_of(labels, self.settings.classes)}

    def _told(self, model: Model, way: OnTheWay, labels: Tensor) -> Outcome:
        found = model(way.values, **self._side(way, labels))
        errors = (found.float() - way.velocity).square().flatten(1).mean(1)
        return Outcome(errors.mean(), errors.detach().sum())


def _logit_normal(size: tuple[int, int], device: torch.device) -> Tensor:
    """Numbers whose logits are standard normal."""
    return torch.randn(size, device=device).sigmoid()


def open_task(loaded: Loaded) -> Task:
    """The task of a spec that is trained. Raises `SpecError`."""
    recipe = loaded.spec.train
    smoothing = recipe.label_smoothing if recipe else 0.0
    if isinstance(loaded.spec.task, Classify):
        return Classification(smoothing)
    lasso = open_lasso(loaded) if isinstance(loaded.spec.task, SparseCode) else None
    if smoothing:
        message = f"there are no labels to smooth: the task is {loaded.spec.task.kind}"
        span = loaded.tree.where(("train", "label_smoothing"))
        raise SpecError([Diagnostic("E602", message, span, "leave out `label_smoothing`")])
    if lasso is not None:
        return SparseCoding(replace(lasso, dictionary=lasso.dictionary.float()))
    levels = levels_of(loaded)
    if isinstance(loaded.spec.task, FlowMatching):
        return VelocityMatching(loaded.spec.task)
    assert isinstance(loaded.spec.task, Density)
    return DensityEstimation(levels, loaded.spec.task.classes)
