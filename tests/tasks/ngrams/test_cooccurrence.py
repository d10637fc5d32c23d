"""Co-occurrence against looking everywhere, in NumPy and through DuckDB, anywhere in a document and near each other."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longloom.tasks.ngrams import cooccurrence, joined, postings
from longloom.tasks.ngrams.query import open_index

from .brute import Brute, Gram, corpora, grams, write_shards

real, connect = joined.joined, joined.connect
CHECKS = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@CHECKS
@given(
    documents=corpora(),
    name=st.sampled_from(["u8", "u16", "u32"]),
    cuts=st.lists(st.integers(1, 5), max_size=3),
    deleted=st.sets(st.integers(0, 5), max_size=2),
    within=st.sampled_from([None, 0, 1, 3, 10**30]),
)
def test_pairs_of_all_n_grams(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[Gram],
    name: str,
    cuts: list[int],
    deleted: set[int],
    within: int | None,
) -> None:
    gone = {ordinal for ordinal in deleted if ordinal < len(documents)}
    brute = Brute(documents, frozenset(gone))
    inside = [cut for cut in cuts if cut < len(documents)]
    index = open_index(
        write_shards(tmp_path_factory.mktemp("index"), documents, name, cuts=inside, deleted=sorted(gone))
    )
    pool = grams(documents, longest=3)[::3]
    pairs = list(itertools.product(pool, pool))
    expected = [brute.together(first, second, within) for first, second in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "SLICE", 5)
        patch.setattr(postings, "SLICE", 5)
        assert index.cooccurrences(pairs, within=within).tolist() == expected


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(documents=corpora(), cuts=st.lists(st.integers(1, 5), max_size=2), within=st.sampled_from([None, 0, 2]))
def test_duckdb_agrees(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Gram], cuts: list[int], within: int | None
) -> None:
    inside = [cut for cut in cuts if cut < len(documents)]
    index = open_index(write_shards(tmp_path_factory.mktemp("index"), documents, "u16", cuts=inside, deleted=[0]))
    pool = grams(documents, longest=3)[::2]
    pairs = list(itertools.product(pool, pool))
    expected = [Brute(documents, frozenset({0})).together(*pair, within) for pair in pairs]
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "BYTES", 2**60)  # nothing fits
        patch.setattr(postings, "SLICE", 5)
        patch.setattr(joined, "joined", lambda *args, **options: calls.append(1) or real(*args, **options))
        assert index.cooccurrences(pairs, within=within).tolist() == expected
    assert bool(calls) == any(Brute(documents).count(gram) for gram in pool)


@pytest.mark.parametrize("within", [None, 0, 4, 50])
def test_many_pairs_by_both_ways_under_a_small_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: int | None
) -> None:
    random = np.random.default_rng(0)
    documents = [np.minimum(random.zipf(1.3, size=size), 200).tolist() for size in random.integers(0, 60, 150)]
    index = open_index(write_shards(tmp_path, documents, "u16", cuts=[40, 90], deleted=[3, 77]))
    places = [(row, random.integers(0, len(row), 2)) for row in documents if len(row) > 2]
    pairs = [(row[a : a + 2], row[b : b + 1 + b % 3]) for row, (a, b) in places]
    pairs += [(first, [201]) for first, _ in pairs[:20]]
    counts = index.cooccurrences(pairs, within=within)
    brute = Brute(documents, frozenset({3, 77}))
    assert counts[::3].tolist() == [brute.together(*pair, within) for pair in pairs[::3]]
    assert counts[-20:].tolist() == [0] * 20
    points: list[int] = []
    monkeypatch.setattr(cooccurrence, "BYTES", 2**40)
    monkeypatch.setattr(
        joined, "connect", lambda **options: points.append(1) or connect(**options | {"memory_limit_gib": 0.05})
    )
    assert index.cooccurrences(pairs, within=within).tolist() == counts.tolist()
    assert points


def test_order_and_repetition_of_pairs_do_not_matter(tmp_path: Path) -> None:
    index = open_index(write_shards(tmp_path, [[1, 2, 3], [1], [1, 3], [3, 1, 1]], "u8"))
    pairs = [([1], [3]), ([3], [1]), ([1], [1]), ([1], [3]), ([2], [9])]
    assert index.cooccurrences(pairs).tolist() == [3, 3, 4, 3, 0]
    assert index.cooccurrences(pairs, within=0).tolist() == [2, 2, 4, 2, 0]
    assert index.cooccurrences(pairs, within=1).tolist() == [3, 3, 4, 3, 0]


def test_bad_bounds_are_refused(tmp_path: Path) -> None:
    index = open_index(write_shards(tmp_path, [[1]], "u8"))
    with pytest.raises(ValueError, match="within is -1, expected at least 0 tokens"):
        index.cooccurrences([([1], [1])], within=-1)
    with pytest.raises(ValueError, match="memory_gib is 0, expected more than 0"):
        index.cooccurrences([([1], [1])], memory_gib=0)
    with pytest.raises(ValueError, match="query 1 holds no tokens"):
        index.cooccurrences([([1], [])])
