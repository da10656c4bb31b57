"""What a stage has to know of its program, and the strategies that this allows.

This file imports the schedules alone: `archspec build --emit` writes it out beside the stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compiler.schedules import EVERY_LAYER, Checkpoints

STRATEGIES = ("reversible", "checkpoint", "store")


@dataclass(frozen=True)
class Parts:
    """How the streams of a stage are its input and its output, as far as they are."""

    streams: tuple[str, ...]
    """All, in the spec's order."""
    input: tuple[str, ...]
    """The streams that are the input before the first layer, one behind the other; none where
    parts of it are in no stream as they stand."""
    input_dimension: int
    """That of channels."""
    output: Mapping[str, int]
    """The streams that are the output, one behind the other, and their channels; none where it is
    an expression of another kind."""
    output_dimension: int
    log_determinant: str = ""
    """The stream that is it, in a density."""
    positions: Mapping[str, int] = field(default_factory=dict)
    """Of a density's maps with weights, how often each is there: once a token or pixel."""

    @property
    def left(self) -> tuple[str, ...]:
        """The streams that the output leaves out, the log-determinant aside."""
        kept = (*self.output, self.log_determinant)
        return tuple(name for name in self.streams if name not in kept)


NO_PARTS = Parts((), (), -1, {}, -1)


@dataclass(frozen=True)
class Facts:
    """What a stage has to know of its program. Sizes are those of one sample."""

    name: str
    streams: Mapping[str, tuple[int, ...]]
    """Before the first layer, in the spec's order."""
    final: Mapping[str, tuple[int, ...]]
    """After the last layer: another size where a layer squeezes."""
    depth: int
    side: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Side inputs that the program reads."""
    drawn: Mapping[str, tuple[tuple[float, ...], float]] = field(default_factory=dict)
    """Coefficients drawn per sample: the values in training, and the one in evaluation."""
    reads_progress: bool = False
    obstacles: str = ""
    """Why the program has no inverse in training; empty if it has one."""
    invertible_in_evaluation: bool = True
    invertible_from: float = 0.0
    """The progress of training from which on the program has its inverse; before, a reversible
    stage is checkpointed."""
    checkpoints: Checkpoints = EVERY_LAYER
    """Where streams are kept in a checkpointed stage, unless `set_backward` says otherwise."""
    stored: int = 0
    """How many of the last calls store their activations, unless `set_backward` says otherwise."""
    results: int = 0
    """How many of the last calls keep their results, unless `set_backward` says otherwise."""
    store_every: int | None = None
    """How many layers are reconstructed from streams that were kept; all of them if None."""
    fraction_bits: int | None = None
    """Of the grid that the streams lie on, where arithmetic is exact."""
    reads_information: bool = False
    """Whether later layers read what earlier ones have kept."""
    needs_information: bool = False
    """Whether an exact inverse reads what the forward pass has kept."""
    parts: Parts = NO_PARTS
    """Of a stage of a density."""


def check_strategy(backward: str, facts: Facts) -> str:
    """`backward` if a stage can do it. Raises ValueError."""
    if backward not in STRATEGIES:
        raise ValueError(f"backward is one of {', '.join(STRATEGIES)}, found {backward!r}")
    if backward == "reversible" and facts.obstacles:
        raise ValueError(f"stage `{facts.name}` cannot be reversed:\n{facts.obstacles}")
    return backward


def check_checkpoints(backward: str, every: int | None, slots: int | None) -> Checkpoints | None:
    """The schedule that is asked for, if one is. Raises ValueError for one that cannot be, and
    where the strategy has none."""
    checkpoints = Checkpoints(every, slots)
    if checkpoints == EVERY_LAYER:
        return None
    if backward != "checkpoint":
        raise ValueError(f"`every` and `slots` go with 'checkpoint', found {backward!r}")
    return checkpoints


def check_counts(backward: str, stored: int | None, results: int | None) -> None:
    """Raises ValueError for numbers of calls that a strategy cannot have."""
    for name, number in (("stored", stored), ("results", results)):
        if number is None:
            continue
        if type(number) is not int or number < 0:
            raise ValueError(f"`{name}` is a whole number from 0 on, found {number!r}")
        if backward == "store":
            raise ValueError(
                f"`{name}` goes with 'reversible' and 'checkpoint': 'store' stores all"
            )


def check_progress(progress: float) -> None:
    """Raises ValueError for what is no progress of training."""
    if not 0 <= progress <= 1:
        raise ValueError(f"progress runs from 0 to 1, found {progress}")
