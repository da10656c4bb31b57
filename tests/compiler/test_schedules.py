"""The binomial schedule against every schedule that there is."""

from __future__ import annotations

from functools import cache
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.schedules import Checkpoints, advances, evaluations, kept

LENGTHS, SLOTS = range(1, 41), range(1, 9)


@cache
def fewest(length: int, slots: int) -> int:
    """Of all places for the next checkpoint, the best: no formula."""
    if length == 1:
        return 0
    if slots == 1:
        return length - 1 + fewest(length - 1, 1)
    return min(
        distance + fewest(length - distance, slots - 1) + fewest(distance, slots)
        for distance in range(1, length)
    )


def walked(depth: int, slots: int) -> tuple[int, int]:
    """Run the schedule as the engine does: the evaluations, and the most streams kept at once."""
    held = {0, *kept(depth + 1, slots)}
    count, most = depth, len(held)
    for layer in reversed(range(depth)):
        held = {place for place in held if place <= layer}
        start = max(held)
        held |= {start + n for n in kept(layer + 1 - start, slots - len(held) + 1)}
        assert max(held) <= layer
        most = max(most, len(held))
        count += layer - start + 1
    return count, most


@pytest.mark.parametrize("slots", SLOTS)
def test_the_formula_is_the_optimum(slots: int) -> None:
    assert [advances(n, slots) for n in LENGTHS] == [fewest(n, slots) for n in LENGTHS]


@pytest.mark.parametrize("slots", SLOTS)
def test_the_schedule_takes_no_more_than_the_optimum(slots: int) -> None:
    for depth in LENGTHS:
        count, most = walked(depth, slots)
        assert count == evaluations(depth, slots) == fewest(depth + 1, slots) + depth
        assert most <= slots


@given(st.integers(1, 400), st.integers(1, 30))
def test_deep_chains(depth: int, slots: int) -> None:
    count, most = walked(depth, slots)
    assert count == evaluations(depth, slots)
    assert most <= min(slots, depth)


def test_known_numbers() -> None:
    """By hand: C(5, 3) = 10 steps, of which none is taken more than twice."""
    assert advances(10, 3) == 15
    assert [advances(n, 1) for n in range(1, 6)] == [0, 1, 3, 6, 10]
    assert evaluations(12, 12) == evaluations(12, 400) == 24  # as with every layer's streams kept
    assert advances(10_000, 20) == 37_976 == 4 * 10_000 - comb(24, 3)


def test_the_first_state_alone() -> None:
    assert kept(9, 1) == kept(2, 3) == kept(1, 3) == ()
    assert kept(10_000, 1) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, r"`every` is a whole number from 1 on, found 0"),
        ({"slots": 2.0}, r"`slots` is a whole number from 1 on, found 2\.0"),
        ({"slots": True}, r"found True"),
        ({"every": 2, "slots": 2}, "two schedules"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Checkpoints(**settings)


@pytest.mark.parametrize(("length", "slots"), [(0, 1), (1, 0)])
def test_chains_that_cannot_be(length: int, slots: int) -> None:
    with pytest.raises(ValueError, match="a chain has a step and a slot at least"):
        advances(length, slots)
