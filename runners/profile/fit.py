"""The largest batch, and the most that is kept, within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable

from archspec.training import Train

MOST = 2**20
"""Samples, of a batch."""


def largest(fits: Callable[[int], bool], first: int, most: int) -> int:
    """The largest number from 1 to `most` that fits, where those above one that does not do not
    either; 0 if none does. `first` is a guess."""
    low, high = 0, most + 1  # low fits, high does not
    probe = max(1, min(first, most))
    while high - low > 1:
        if fits(probe):
            low = probe
            probe = min(2 * probe, high - 1) if high == most + 1 else (low + high) // 2
        else:
            high = probe
            probe = (low + high) // 2
    return low


def largest_batch(peak: Callable[[Train], int], recipe: Train, budget: int) -> int:
    """The largest batch whose step stays within a budget of bytes; 0 if that of one sample does
    not. `peak` gives the peak of a step."""

    def at(batch: int) -> int:
        return peak(recipe.model_copy(update={"batch": batch, "accumulate": 1}))

    few, more = at(8), at(16)
    slope = max(1.0, (more - few) / 8)
    guess = round(8 + (budget - few) / slope)
    return _near(lambda batch: at(batch) <= budget, guess, MOST)


def most_within(peak: Callable[[int], int], most: int, budget: int) -> int | None:
    """The largest number, from 0 to `most`, whose peak is within a budget of bytes; None if it is
    not for any. Peaks grow with the number."""
    none, all = peak(0), peak(most)
    if all <= budget:
        return most
    if none > budget:
        return None
    guess = round(most * (budget - none) / max(1, all - none))
    return _near(lambda number: peak(number) <= budget, guess, most - 1)


def _near(fits: Callable[[int], bool], guess: int, most: int) -> int:
    """As `largest`, where the guess is hardly off."""
    guess, width = max(1, min(guess, most)), 1
    if fits(guess):
        while guess < most and fits(min(guess + width, most)):
            guess, width = min(guess + width, most), 2 * width
        return guess + largest(lambda n: fits(guess + n), width // 2, min(width, most - guess))
    while guess > width and not fits(guess - width):
        guess, width = guess - width, 2 * width
    start = max(0, guess - width)
    return start + largest(lambda n: fits(start + n), width // 2, guess - start - 1)
