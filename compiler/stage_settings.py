"""What a stage says of its backward pass and its arithmetic, as plain values."""

from __future__ import annotations

from typing import Literal

from archspec.memory_size import bytes_of
from archspec.spec import (
    BudgetBackward,
    CheckpointBackward,
    ExactArithmetic,
    ReversibleBackward,
    Stage,
)
from compiler.schedules import Checkpoints


def reversed_from(stage: Stage) -> float:
    """The progress of training from which on a stage is reversed; 0 for one that never is."""
    backward = stage.backward
    return backward.since if isinstance(backward, ReversibleBackward) else 0.0


def checkpoints(stage: Stage) -> Checkpoints:
    """Where a checkpointed stage keeps its streams."""
    backward = stage.backward
    if isinstance(backward, CheckpointBackward):
        return Checkpoints(backward.every, backward.slots)
    return Checkpoints()


def fraction_bits(stage: Stage) -> int | None:
    """Of the grid of a stage's streams; None where its arithmetic is that of floats."""
    arithmetic = stage.arithmetic
    return arithmetic.fraction_bits if isinstance(arithmetic, ExactArithmetic) else None


def stored(stage: Stage) -> int:
    """How many of a stage's last calls store their activations, where not all of them do."""
    backward = stage.backward
    if isinstance(backward, (ReversibleBackward, CheckpointBackward)):
        return backward.stored
    return 0


def results(stage: Stage) -> int:
    """How many of a stage's last calls keep their results."""
    backward = stage.backward
    if isinstance(backward, (ReversibleBackward, CheckpointBackward)):
        return backward.results
    return 0


def budget(stage: Stage) -> int | None:
    """The bytes that a training step may take, where the stage's strategy is planned by them."""
    backward = stage.backward
    return bytes_of(backward.memory) if isinstance(backward, BudgetBackward) else None


def strategy(stage: Stage, has_inverse: bool) -> Literal["reversible", "checkpoint", "store"]:
    """How a stage comes by the activations that are not stored by a plan."""
    if isinstance(stage.backward, BudgetBackward):
        return "reversible" if has_inverse else "checkpoint"
    return stage.backward.kind
