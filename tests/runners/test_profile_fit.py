"""The largest batch and schedule within a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runners.profile.fit import _near, largest


@given(st.integers(0, 3000), st.integers(-50, 4000), st.integers(1, 3000))
def test_the_largest_is_found(limit: int, guess: int, most: int) -> None:
    wanted = min(limit, most)
    assert largest(lambda n: n <= limit, guess, most) == wanted
    assert _near(lambda n: n <= limit, guess, most) == wanted


@given(st.integers(1, 2**20), st.integers(-3, 3))
def test_a_good_guess_takes_few_looks(limit: int, off: int) -> None:
    looks = []

    def fits(number: int) -> bool:
        looks.append(number)
        return number <= limit

    assert _near(fits, limit + off, 2**20) == min(limit, 2**20)
    assert len(looks) <= 9
