"""Budgets: exact sums, bounds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longloom.tasks.coreset.budgets import floors, largest_remainder, resolve


@given(sizes=st.lists(st.integers(0, 500), min_size=1, max_size=40), data=st.data())
def test_largest_remainder_sums_exactly_and_stays_near_the_quota(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    budget = data.draw(st.integers(0, total))
    found = largest_remainder(np.array(sizes), budget)
    assert found.sum() == budget
    assert all(0 <= given <= size for given, size in zip(found.tolist(), sizes, strict=True))
    assert all(
        abs(given * total - size * budget) < max(total, 1) for given, size in zip(found.tolist(), sizes, strict=True)
    )


def test_largest_remainder_breaks_ties_by_size_then_number() -> None:
    # Quotas 1.5, 1.5, 2.5, .5: all remainders equal.
    assert largest_remainder(np.array([3, 3, 5, 1]), 6).tolist() == [2, 1, 3, 0]


def test_floors_are_the_released_ones() -> None:
    sizes = np.array([19, 20, 39, 100])
    assert floors(sizes, 9, 178, 0.05).tolist() == [0, 1, 1, 5]
    # int(.29 * 100) is 28 in floating point, and so it is in the released code.
    assert floors(np.array([100]), 29, 100, 0.29).tolist() == [28]
    assert floors(np.array([100]), 29, 100, None).tolist() == [29]


@pytest.mark.parametrize(("share", "budget"), [(0.05, 5), (0.045, 5), (0.044, 4), (1.0, 100), (0.5, 50)])
def test_a_share_is_rounded(share: float, budget: int) -> None:
    assert resolve(share, None, 100) == (budget, [])


def test_a_share_that_rounds_to_nothing_is_one_and_says_so() -> None:
    budget, notes = resolve(0.001, None, 100)
    assert budget == 1
    assert "0.001" in notes[0]


@pytest.mark.parametrize("count", [0, -1, 101])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"count: found {count}, expected 1 to 100"):
        resolve(None, count, 100)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share: found"):
        resolve(share, None, 100)


@pytest.mark.parametrize(("share", "count"), [(None, None), (0.5, 5)])
def test_one_of_both_is_needed(share: float | None, count: int | None) -> None:
    with pytest.raises(ValueError, match="expected one of them"):
        resolve(share, count, 100)
