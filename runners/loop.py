"""One epoch of training, and one pass of evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from archspec.training import Train
from compiler.base_network import set_progress
from compiler.exact import RangeError
from compiler.stage import penalty
from runners.checkpoint import Parts
from runners.data import Split, in_order, read, shuffled
from runners.errors import TrainingError
from runners.optim import learning_rate, set_learning_rate
from runners.samples import Unreadable
from runners.tasks import Batch, Outcome, Task


@dataclass(frozen=True)
class Score:
    """Means over samples seen."""

    loss: float = 0.0
    measured: float = 0.0
    """By the task's metric."""
    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Of these, for data."""

    def and_batch(
        self, loss: float, measured: float, samples: int, seconds: float, waited: float
    ) -> Score:
        """With a batch of `samples` more, over which the metric sums to `measured`, after `seconds`
        in all."""
        total = self.samples + samples
        return Score(
            (self.loss * self.samples + loss * samples) / total,
            (self.measured * self.samples + measured) / total,
            total,
            seconds,
            waited,
        )

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0


class Timed:
    """Batches, and the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(self._batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch


def train_epoch(
    parts: Parts,
    task: Task,
    split: Split,
    recipe: Train,
    epoch: int,
    on_step: Callable[[Score], None],
    on_unreadable: Callable[[Unreadable], None],
) -> Score:
    """Train on every batch once. Raises `TrainingError` where the loss is not finite."""
    parts.wrapped.train()
    batches = shuffled(split, recipe.batch, recipe.seed, epoch)
    score, began = Score(), time.perf_counter()
    device = parts.fabric.device
    timed = Timed(read(split, batches, device, recipe.seed, epoch, on_unreadable))
    for number, batch in enumerate(timed):
        step = epoch * len(batches) + number
        set_progress(parts.model, step / max(1, recipe.epochs * len(batches) - 1))
        set_learning_rate(parts.optimizer, learning_rate(recipe, step, len(batches)))
        outcome = take_step(parts, task, recipe, batch)
        loss = outcome.loss.item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {epoch + 1}, step {number + 1} of {len(batches)}; "
                f"a lower train.learning_rate, a longer train.warmup or train.clip may help"
            )
        seconds = time.perf_counter() - began
        score = score.and_batch(loss, outcome.measured, len(batch[0]), seconds, timed.waited)
        on_step(score)
    return score


def take_step(parts: Parts, task: Task, recipe: Train, batch: Batch) -> Outcome:
    """One step, and how the batch fared before it. The penalties of stages are in its gradient, and
    not in the loss that is told."""
    outcome = task.in_training(_model(parts), batch)
    parts.optimizer.zero_grad()
    parts.fabric.backward(outcome.loss + penalty(parts.model))
    if recipe.clip is not None:
        # In fp16 infinite gradients are the scaler's business: it passes over such steps.
        parts.fabric.clip_gradients(
            parts.wrapped, parts.optimizer, max_norm=recipe.clip, error_if_nonfinite=False
        )
    parts.optimizer.step()
    return outcome


def _model(parts: Parts) -> Callable[[Tensor], Tensor]:
    """The network, which raises `TrainingError` where exact arithmetic has run out of its range."""

    def outputs(inputs: Tensor) -> Tensor:
        try:
            found: Tensor = parts.wrapped(inputs)
        except RangeError as error:
            raise TrainingError(str(error)) from None
        return found

    return outputs


@torch.no_grad()
def evaluate(
    parts: Parts,
    task: Task,
    split: Split,
    batch: int,
    on_unreadable: Callable[[Unreadable], None] = lambda files: None,
) -> Score:
    """Mean loss and metric over a split. Leaves the global generators alone."""
    parts.wrapped.eval()
    score, began = Score(), time.perf_counter()
    batches, device = in_order(split, batch), parts.fabric.device
    timed = Timed(read(split, batches, device, passed_over=on_unreadable))
    for found in timed:
        outcome = task.in_evaluation(_model(parts), found)
        loss, seconds = outcome.loss.item(), time.perf_counter() - began
        score = score.and_batch(loss, outcome.measured, len(found[0]), seconds, timed.waited)
    return score
