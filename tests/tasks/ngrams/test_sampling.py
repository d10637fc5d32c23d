"""Estimates against all possible samples, their intervals against the tests that they invert."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longloom.tasks.ngrams.query import open_index
from longloom.tasks.ngrams.sampling import CONFIDENCE, draw, estimate

from .brute import Brute, write_shards

TAIL = (1 - CONFIDENCE) / 2


def chances(population: int, held: int, sample: int) -> list[float]:
    """The probability of each number of holding documents in a sample, by counting samples."""
    ways = comb(population, sample)
    return [comb(held, x) * comb(population - held, sample - x) / ways for x in range(sample + 1)]


@settings(max_examples=40, deadline=None)
@given(population=st.integers(1, 30), data=st.data())
def test_intervals_hold_all_counts_that_are_not_refused(population: int, data: st.DataObject) -> None:
    sample = data.draw(st.integers(1, population))
    found = estimate(np.arange(sample + 1), sample=sample, population=population)
    for x in range(sample + 1):
        kept = [
            held
            for held in range(x, population - (sample - x) + 1)
            if sum(chances(population, held, sample)[x:]) > TAIL
            and sum(chances(population, held, sample)[: x + 1]) > TAIL
        ]
        assert (found.low[x], found.high[x]) == (min(kept), max(kept)), x
        assert found.documents[x] == pytest.approx(x * population / sample)


@pytest.mark.parametrize(("population", "sample"), [(40, 7), (40, 40), (13, 1)])
def test_estimates_are_unbiased_and_intervals_cover(population: int, sample: int) -> None:
    found = estimate(np.arange(sample + 1), sample=sample, population=population)
    for held in range(population + 1):
        weights = np.array(chances(population, held, sample))
        assert weights @ found.documents == pytest.approx(held)
        assert weights @ ((found.low <= held) & (held <= found.high)) >= CONFIDENCE


def test_large_populations() -> None:
    found = estimate(np.array([0, 5, 1000]), sample=1000, population=10**8)
    assert found.documents.tolist() == [0, 500_000, 10**8]
    assert found.low[0] == 0
    assert 300_000 < found.high[0] < 400_000  # 1 - 0.025 ** (1 / 1000) of all
    assert found.low[1] < 500_000 < found.high[1]
    assert found.high[2] == 10**8


def test_a_sample_leaves_out_deleted_documents_and_draws_each_as_often(tmp_path: Path) -> None:
    documents = [[number] for number in range(12)]
    index = open_index(write_shards(tmp_path, documents, "u8", cuts=[5], deleted=[0, 3, 4, 11]))
    drawn = np.zeros(12)
    for seed in range(300):
        tokens = draw(index._shards, 3, seed).shards[0].tokens
        chosen = tokens[tokens != 255]
        assert len(chosen) == 3
        assert (np.diff(chosen.astype(int)) > 0).all()
        drawn[chosen] += 1
    assert drawn[[0, 3, 4, 11]].tolist() == [0, 0, 0, 0]
    left = drawn[[1, 2, 5, 6, 7, 8, 9, 10]]
    assert left.sum() == 900
    assert ((left - 112.5) ** 2 / 112.5).sum() < 24.3  # chi-squared, 7 degrees of freedom, 0.1%


def test_estimates_of_pairs(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(0, 6, size=size).tolist() for size in random.integers(0, 12, 80)]
    index = open_index(write_shards(tmp_path, documents, "u16", cuts=[30], deleted=[1, 2]))
    pairs = [([first], [second]) for first in range(6) for second in range(6)] + [([1], [99])]
    for within in (None, 0):
        right = [Brute(documents, frozenset({1, 2})).together(*pair, within) for pair in pairs]
        found = index.estimate_cooccurrences(pairs, sample=40, seed=1, within=within)
        assert (found.sample, found.population) == (40, 78)
        inside = (found.low <= right) & (right <= found.high)
        assert inside.mean() > 0.8
        assert found.documents[-1] == found.low[-1] == 0
        same = index.estimate_cooccurrences(pairs, sample=40, seed=1, within=within)
        assert found.documents.tolist() == same.documents.tolist()
        whole = index.estimate_cooccurrences(pairs, sample=1000, within=within)
        assert whole.documents.tolist() == whole.low.tolist() == whole.high.tolist() == right
    other = index.estimate_cooccurrences(pairs, sample=40, seed=2)
    assert other.documents.tolist() != index.estimate_cooccurrences(pairs, sample=40, seed=1).documents.tolist()


def test_bad_samples_are_refused(tmp_path: Path) -> None:
    index = open_index(write_shards(tmp_path / "a", [[1]], "u8"))
    with pytest.raises(ValueError, match="sample is 0, expected at least 1 document"):
        index.estimate_cooccurrences([([1], [1])], sample=0)
    index = open_index(write_shards(tmp_path / "b", [[1]], "u8", deleted=[0]))
    with pytest.raises(ValueError, match="all documents are deleted"):
        index.estimate_cooccurrences([([1], [1])], sample=1)
