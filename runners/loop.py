"""One epoch of training, and one pass of evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from archspec.training import Train
from compiler.base_network import set_progress
from compiler.exact import RangeError
from compiler.stage import penalty
from runners.data import Reading, Split, in_order, read, shuffled
from runners.diagnosis import diagnosis
from runners.errors import TrainingError
from runners.optim import learning_rate, set_learning_rate
from runners.parts import Parts
from runners.processes import as_in_first, gathered, parts_of, shares, weight
from runners.samples import Unreadable
from runners.signals import Asked
from runners.standing import Score, Standing
from runners.tasks import Batch, Model, Task

CURE = "a lower train.learning_rate, a longer train.warmup or train.clip may help"


class NotFiniteError(Exception):
    """A step that would spoil the weights: it has not been taken."""


class Timed:
    """Batches, and the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterable[Batch], waited: float = 0.0) -> None:
        self._batches = iter(batches)
        self.waited = waited

    def __iter__(self) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(self._batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch


@dataclass(frozen=True)
class Step:
    """A step that has been taken."""

    number: int
    """In the epoch, from 1."""
    score: Score
    """Of the epoch so far."""
    loss: float
    asked: int
    """The signal that has asked one of the processes to end, or 0."""


def train_epoch(
    parts: Parts,
    task: Task,
    split: Split,
    recipe: Train,
    standing: Standing,
    asked: Asked,
    after: Callable[[Step], bool],
    on_unreadable: Callable[[Unreadable], None],
) -> Score:
    """Train on every batch that is left of an epoch once, as long as `after` returns True. Raises
    `TrainingError` where the loss is not finite."""
    parts.wrapped.train()
    fabric, epoch, score = parts.fabric, standing.epochs, standing.score
    batches = shares(shuffled(split, recipe.batch, recipe.seed, epoch), fabric)
    reading = Reading(recipe.seed, epoch, fabric.global_rank, standing.steps)
    left = read(split, batches[standing.steps :], fabric.device, reading, on_unreadable)
    began, timed = time.perf_counter() - score.seconds, Timed(left, score.waited)
    for number, batch in enumerate(timed, standing.steps):
        step = epoch * len(batches) + number
        set_progress(parts.model, step / max(1, recipe.epochs * len(batches) - 1))
        set_learning_rate(parts.optimizer, learning_rate(recipe, step, len(batches)))
        try:
            loss, measured, samples = take_step(parts, task, recipe, batch)
        except NotFiniteError as error:
            where = f"{error} in epoch {epoch + 1}, step {number + 1} of {len(batches)}"
            raise TrainingError(f"{where}; {diagnosis(parts, *task.seen(batch))}; {CURE}") from None
        seconds, by = _together(time.perf_counter() - began, asked.by, parts)
        score = score.and_batch(loss, measured, samples)
        score = replace(score, seconds=seconds, waited=timed.waited)
        if not after(Step(number + 1, score, loss, by)):
            break
    return score


def _together(seconds: float, asked: int, parts: Parts) -> tuple[float, int]:
    """The first process's clock, and a signal of any: all processes decide by the same."""
    if parts.fabric.world_size == 1:
        return seconds, asked
    here = torch.tensor([seconds, asked], dtype=torch.float32, device=parts.fabric.device)
    rows = gathered(here, parts.fabric)
    return rows[0][0], int(max(row[1] for row in rows))


def take_step(parts: Parts, task: Task, recipe: Train, batch: Batch) -> tuple[float, float, int]:
    """One step. Gives the mean loss of the batch before it, the sum of its metric, and its samples,
    of all processes. Raises `NotFiniteError`."""
    seen = differentiate(parts, task, recipe, batch)
    norm = clip(parts, recipe)
    rows = gathered(torch.cat([seen, norm.to(seen).reshape(1)]), parts.fabric)  # waits for the step
    samples = int(sum(row[2] for row in rows))
    loss = sum(row[0] * row[2] for row in rows) / samples
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss is {loss}")
    finite = all(math.isfinite(row[3]) for row in rows)
    if not finite and not still_scaling(parts):
        raise NotFiniteError(f"the loss is {loss:.4g} and the norm of its gradient {rows[0][3]}")
    parts.optimizer.step()
    if parts.average is not None and finite:  # else the scaler has passed over the step
        parts.average.update_parameters(parts.model)
    return loss, sum(row[1] for row in rows), samples


def clip(parts: Parts, recipe: Train) -> Tensor:
    """Clip the gradient, if the recipe says so. Gives its norm before that, ()."""
    if recipe.clip is not None:
        norm = parts.fabric.clip_gradients(
            parts.wrapped, parts.optimizer, max_norm=recipe.clip, error_if_nonfinite=False
        )
    else:
        norm = get_total_norm([p.grad for p in parts.model.parameters() if p.grad is not None])
    assert norm is not None
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def still_scaling(parts: Parts) -> bool:
    """Whether an infinite gradient is of too large a scale, as fp16 has them: the scaler passes
    over such steps, and makes it smaller. Below 1 that is no longer the reason."""
    scaler = getattr(parts.fabric.strategy.precision, "scaler", None)
    return scaler is not None and scaler.get_scale() >= 1


def differentiate(parts: Parts, task: Task, recipe: Train, batch: Batch) -> Tensor:
    """The gradient of a batch, its parts one after another; and its mean loss, the sum of its
    metric and its samples, (3). The penalties of stages are in the gradient, and not in the loss
    that is told."""
    parts.optimizer.zero_grad()
    count = min(recipe.accumulate, len(batch[0]))
    pieces = list(zip(*(part.tensor_split(count) for part in batch), strict=True))
    if parts.fabric.world_size > 1:  # all run the network as often, be it for nothing
        pieces += pieces[:1] * (recipe.accumulate - count)
    whole, seen = len(batch[0]), torch.zeros(2, device=parts.fabric.device)
    counts = weight(whole, parts.fabric)
    for number, (inputs, targets) in enumerate(pieces):
        counted = number < count
        share = len(inputs) / whole if counted else 0.0
        last = number == len(pieces) - 1
        with parts.fabric.no_backward_sync(parts.wrapped, enabled=not last):
            outcome = task.in_training(_model(parts), (inputs, targets))
            parts.fabric.backward(counts * share * (outcome.loss + penalty(parts.model)))
        seen += torch.stack([share * outcome.loss.detach(), counted * outcome.measured.to(seen)])
    return torch.cat([seen, seen.new_tensor([whole])])


def _model(parts: Parts) -> Model:
    return _guarded(parts.wrapped)


def _guarded(network: nn.Module) -> Model:
    """The network, which raises `TrainingError` where exact arithmetic has run out of its range."""

    def outputs(inputs: Tensor, **side: Tensor) -> Tensor:
        try:
            found: Tensor = network(inputs, **side)
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
    on_batch: Callable[[], None] = lambda: None,
) -> Score:
    """Mean loss and metric over a split. Leaves the global generators alone."""
    network = parts.wrapped if parts.average is None else parts.average.module
    network.eval()
    as_in_first(network, parts.fabric)
    began, fabric = time.perf_counter(), parts.fabric
    shares = parts_of(in_order(split, batch), fabric)
    batches = [indices for indices, _ in shares]
    unread: Unreadable = {}

    def note(files: Unreadable) -> None:
        unread.update(files)
        on_unreadable(files)

    reading = Reading(may_skip=fabric.world_size == 1)  # several run the network as often
    timed, seen = Timed(read(split, batches, fabric.device, reading, note)), []
    for found, (indices, counts) in zip(timed, shares, strict=False):
        with fabric.autocast():
            outcome = task.in_evaluation(_guarded(network), found)
        # Where none of its files can be read, another stands in for a share, and does not count.
        stands_in = not reading.may_skip and len(unread) == len(indices)
        samples = len(found[0]) if counts and not stands_in else 0
        unread.clear()
        row = torch.stack([outcome.loss, outcome.measured.to(outcome.loss)])
        seen.append(torch.cat([row, row.new_tensor([samples])]))
        on_batch()
    if not seen:
        raise TrainingError("none of the files to evaluate on can be read")
    score, rows = Score(), gathered(torch.stack(seen), fabric)
    for of_batch in zip(*rows, strict=True):
        for loss, measured, counted in of_batch:
            score = score.and_batch(loss, counted and measured, int(counted))
    return replace(score, seconds=time.perf_counter() - began, waited=timed.waited)
