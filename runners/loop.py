"""One epoch of training, and one pass of evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from archspec.training import Train
from compiler.base_stage import set_progress
from compiler.exact import RangeError
from runners.checkpoint import Parts
from runners.data import Split, in_order, read, shuffled
from runners.errors import TrainingError
from runners.optim import learning_rate, set_learning_rate


@dataclass(frozen=True)
class Score:
    """Means over images seen."""

    loss: float = 0.0
    accuracy: float = 0.0
    images: int = 0
    seconds: float = 0.0

    def and_batch(self, loss: float, correct: int, images: int, seconds: float) -> Score:
        """With a batch of `images` more."""
        total = self.images + images
        return Score(
            (self.loss * self.images + loss * images) / total,
            (self.accuracy * self.images + correct) / total,
            total,
            seconds,
        )

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


def train_epoch(
    parts: Parts, split: Split, recipe: Train, epoch: int, on_step: Callable[[Score], None]
) -> Score:
    """Train on every batch once. Raises `TrainingError` where the loss is not finite."""
    parts.wrapped.train()
    batches = shuffled(split, recipe.batch, recipe.seed, epoch)
    score, began = Score(), time.perf_counter()
    device = parts.fabric.device
    for number, (images, labels) in enumerate(read(split, batches, device, recipe.seed, epoch)):
        step = epoch * len(batches) + number
        set_progress(parts.model, step / max(1, recipe.epochs * len(batches) - 1))
        set_learning_rate(parts.optimizer, learning_rate(recipe, step, len(batches)))
        loss, correct = _step(parts, recipe, images, labels)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {epoch + 1}, step {number + 1} of {len(batches)}; "
                f"a lower train.learning_rate, a longer train.warmup or train.clip may help"
            )
        score = score.and_batch(loss, correct, len(labels), time.perf_counter() - began)
        on_step(score)
    return score


def _step(parts: Parts, recipe: Train, images: Tensor, labels: Tensor) -> tuple[float, int]:
    """One step; its loss and how many images were right."""
    logits = _outputs(parts, images)
    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    parts.optimizer.zero_grad()
    parts.fabric.backward(loss)
    if recipe.clip is not None:
        # In fp16 infinite gradients are the scaler's business: it passes over such steps.
        parts.fabric.clip_gradients(
            parts.wrapped, parts.optimizer, max_norm=recipe.clip, error_if_nonfinite=False
        )
    parts.optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


def _outputs(parts: Parts, images: Tensor) -> Tensor:
    """The network's. Raises `TrainingError` where exact arithmetic has run out of its range."""
    try:
        outputs: Tensor = parts.wrapped(images)
    except RangeError as error:
        raise TrainingError(str(error)) from None
    return outputs


@torch.no_grad()
def evaluate(parts: Parts, split: Split, batch: int) -> Score:
    """Mean cross-entropy and accuracy over a split. Leaves the global generators alone."""
    parts.wrapped.eval()
    score, began = Score(), time.perf_counter()
    for images, labels in read(split, in_order(split, batch), parts.fabric.device):
        logits = _outputs(parts, images)
        loss = F.cross_entropy(logits, labels).item()
        correct = int((logits.argmax(1) == labels).sum())
        score = score.and_batch(loss, correct, len(labels), time.perf_counter() - began)
    return score
