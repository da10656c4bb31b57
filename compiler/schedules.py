"""Checkpointing schedules: before which layers streams are kept, and how often layers are computed.

Griewank and Walther 2000, "Algorithm 799: revolve", have a chain of steps that is undone from its
end, with the state before at most `slots` steps kept at any time, that before the first of them
among these. Of l steps and s slots, with r the smallest number for which C(s + r, s) >= l, the
fewest steps to take are r*l - C(s + r, r - 1). Nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Checkpoints:
    """Where a checkpointed stage keeps its streams. Raises ValueError for settings that cannot be.

    By default, and with `every`, before every so many layers; with `slots`, before at most so many
    at any time, by the binomial schedule.
    """

    every: int | None = None
    slots: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("slots", self.slots)):
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"`{name}` is a whole number from 1 on, found {value!r}")
        if self.every is not None and self.slots is not None:
            raise ValueError("`every` and `slots` are two schedules, and a stage has one")

    def __str__(self) -> str:
        """As it is written in a spec; an empty text where nothing is."""
        settings = {"every": self.every, "slots": self.slots}
        return "".join(f"{name}: {n}" for name, n in settings.items() if n is not None)


EVERY_LAYER = Checkpoints()
"""Streams are kept before every layer."""


def blocks(depth: int, every: int) -> Iterator[slice]:
    """The layers of a stage, `every` so many together; the last are what is left."""
    for first in range(0, depth, every):
        yield slice(first, min(first + every, depth))


def advances(length: int, slots: int) -> int:
    """The fewest steps that are taken to undo a chain, where the step being undone is at hand as
    soon as the state before it is. Raises ValueError for a chain of none, or without a slot."""
    _, repeated = _repetitions(length, slots)
    before = comb(slots + repeated, repeated - 1) if repeated else 0
    return repeated * length - before


def evaluations(depth: int, slots: int) -> int:
    """How often layers are evaluated in a training step, forward, between checkpoints and in their
    replays, by the binomial schedule.

    What follows the stage is the last step of the chain, and undone first: the forward pass runs
    through all layers, and then each of them is replayed.
    """
    return advances(depth + 1, slots) + depth


def kept(length: int, slots: int) -> tuple[int, ...]:
    """The steps of a chain, counted from 0, before which states are kept on the way to its last
    one, beside the first: so that undoing them takes the fewest steps. The state before the last
    step is at hand where it is undone, and needs no slot."""
    found: list[int] = []
    start = 0
    while slots > 1 and length > 2:
        distance = _split(length, slots)
        if distance == length - 1:
            break
        start, length, slots = start + distance, length - distance, slots - 1
        found.append(start)
    return tuple(found)


def _split(length: int, slots: int) -> int:
    """How far from the first state of a chain the next one is best kept. With r the repetitions of
    the chain, the part before it needs r - 1 of them, and the part after it, with a slot less, r:
    this is the farthest for which that is so."""
    reach, repeated = _repetitions(length, slots)
    before = reach * repeated // (slots + repeated)  # C(slots + r - 1, slots)
    least_after = comb(slots + repeated - 2, slots - 1)
    return min(before, length - least_after)


def _repetitions(length: int, slots: int) -> tuple[int, int]:
    """C(slots + r, slots) and r, the smallest for which that is at least `length`: how often any
    step is taken, at most."""
    if length < 1 or slots < 1:
        raise ValueError(f"a chain has a step and a slot at least, found {length} and {slots}")
    reach, repeated = 1, 0
    while reach < length:
        repeated += 1
        reach = reach * (slots + repeated) // repeated
    return reach, repeated
