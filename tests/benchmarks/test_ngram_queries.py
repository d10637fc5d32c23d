"""The benchmark of queries asks what it says, of a corpus that is small enough to look through."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from ngram_queries import Sampler, growth, indexed, measured, up_to

WORDS = ("warp", "weft", "loom", "silk", "def", "return", "(x)", "\n    ")
TEXTS = [" ".join(np.random.default_rng(number).choice(WORDS, size=60 + 7 * number).tolist()) for number in range(30)]


@pytest.mark.parametrize("name", ["u8", "u16"])
def test_answers_are_compared_before_speeds_are_told(tmp_path: Path, name: str) -> None:
    index = indexed(TEXTS, tmp_path / name, name, 1)
    assert index.layout.token_dtype == name
    options = Namespace(queries=50, batch=200, pairs=100, cnf=10, repeats=1)
    figures = measured(index, options)
    assert (figures["counts"]["queries"], figures["counts"]["batch"]) == (50, 200)
    assert 100 < figures["counts"]["found in the batch"] < 200
    assert figures["infgrams"]["probabilities"] == 50
    assert 1 < figures["infgrams"]["mean tokens of the suffix"] <= 100
    assert ("pairs" in figures) == (name == "u16")
    if name == "u16":
        assert 50 <= figures["pairs"]["together in the batch"] <= 100


def test_what_is_drawn(tmp_path: Path) -> None:
    index = indexed(TEXTS, tmp_path / "index", "u8", 1)
    sampler = Sampler(index, 0)
    pairs = sampler.pairs(40)
    assert (index.cooccurrences(pairs)[::2] > 0).all()  # every other one is of one document
    contexts, tokens = sampler.contexts(20)
    assert len(contexts) == len(tokens) == 20
    assert all(index.count([*context, token]) for context, token in zip(contexts[1::2], tokens[1::2], strict=True))


def test_growth_asks_the_same_of_all_sizes() -> None:
    corpora = [("grown", TEXTS[:8]), ("grown", TEXTS), ("repeated", TEXTS * 2)]
    told = growth(corpora, "u16", jobs=1, count=20)
    assert [row["text_bytes"] for row in told["rows"]] == [sum(map(len, texts)) for _, texts in corpora]
    small, large, twice = (row["occurrences"] for row in told["rows"])
    assert small < large
    assert twice == 2 * large
    assert set(told["fits"]) == {"count", "counts", "postings", "table"}


def test_a_corpus_of_a_size_begins_the_larger_one() -> None:
    small, large = up_to(TEXTS, 0.003), up_to(TEXTS, 0.008)
    assert large[: len(small)] == small
    assert sum(map(len, small[:-1])) < 3000 <= sum(map(len, small))
    with pytest.raises(AssertionError, match="fewer than 1 MB"):
        up_to(TEXTS, 1)
