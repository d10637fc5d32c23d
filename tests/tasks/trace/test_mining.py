"""N-grams and their pairs against plain definitions, and what words, spaces and overlaps do."""

from __future__ import annotations

import unicodedata
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longloom.tasks.trace.mining import Gram, mine, ngrams

from .conftest import letters

WORDS = st.lists(st.sampled_from(["ab", "cd", "e", "fg"]), max_size=9)


@given(words=WORDS, n=st.integers(1, 5), lose_last=st.booleans())
def test_ngrams_are_the_distinct_runs_of_n_words(words: list[str], n: int, lose_last: bool) -> None:
    runs = [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]
    if lose_last:
        runs = runs[:-1]
    found = ngrams(" ".join(words), n, lose_last=lose_last)
    assert [gram.text for gram in found] == list(dict.fromkeys(runs))
    assert [gram.word for gram in found] == [runs.index(gram.text) for gram in found]
    assert all(" ".join(words)[gram.begin : gram.end] == gram.text and gram.spaced for gram in found)


def test_ngrams_stand_as_the_text_has_them() -> None:
    assert [gram.surface for gram in ngrams("self.call(x, y)\n  done", 2)] == [
        *(" self.call", "call(x", "x, y", " y)\n  done"),
    ]
    assert [gram.surface for gram in ngrams("a\ta b a", 1)] == [" a", "a", " b"]  # with a space and without: two
    assert [gram.text for gram in ngrams("日本語 ok", 2)] == ["日本", "本語", "語 ok"]
    assert ngrams("one two", 3) == []
    assert ngrams(".,!", 1) == []


@pytest.mark.parametrize(
    "words",
    [
        ["हिन्दी", "में", "शब्द"],  # vowel signs, and a virama
        [unicodedata.normalize("NFD", word) for word in ("Köper", "naïve", "được")],
        ["می\u200cروم", "ക്\u200dഷ", "a\u200d\u0301b"],  # joiners
        ["மொழி", "ক্ষমা", "שָׁלוֹם", "ok"],
    ],
)
def test_marks_belong_to_the_words_that_they_stand_in(words: list[str]) -> None:
    assert [gram.text for gram in ngrams(" ".join(words), 1)] == words
    assert [gram.text for gram in ngrams(", ".join(words), 2)] == [", ".join(pair) for pair in pairwise(words)]
    assert [gram.text for gram in ngrams("\u0301 \u200d, か\u3099く", 1)] == ["か\u3099", "く"]  # none of its own


def test_every_mark_is_one_and_a_korean_word_is_a_run() -> None:
    marks = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code))[0] == "M"]
    assert len(marks) > 2000
    assert [gram.text for gram in ngrams(" ".join(f"a{mark}b" for mark in marks), 1)] == [f"a{mark}b" for mark in marks]
    assert [gram.text for gram in ngrams("한국어 단어", 1)] == ["한국어", "단어"]


@given(x=WORDS, y=WORDS, n=st.integers(1, 3), gamma=st.sampled_from([-1.0, 0.0, 0.3, 0.8]), all_of_them=st.booleans())
def test_pairs_are_those_of_the_definition(x: list[str], y: list[str], n: int, gamma: float, all_of_them: bool) -> None:
    xs, ys = ngrams(" ".join(x), n), ngrams(" ".join(y), n)
    vectors = {gram.text: letters([gram.text])[0] for gram in (*xs, *ys)}
    found = mine(xs, ys, vectors, n=n, gamma=gamma, floor=None if all_of_them else gamma)
    expected = {}
    for one, other in product(xs, ys):
        cosine = float(vectors[one.text] @ vectors[other.text])
        if one.text != other.text and (all_of_them or cosine > gamma):
            expected[one.text, other.text] = cosine
    assert {(pair.x.text, pair.y.text) for pair in found} == set(expected)
    for pair in found:
        assert pair.cosine == pytest.approx(expected[pair.x.text, pair.y.text], abs=1e-5)
    # Of pairs that share words at most one is disjoint; and no further one could be.
    kept = [pair for pair in found if pair.disjoint]

    def clash(a: Gram, b: Gram) -> bool:
        return abs(a.word - b.word) < n

    for place, pair in enumerate(kept):
        assert not any(clash(pair.x, other.x) or clash(pair.y, other.y) for other in kept[:place])
    for pair in found:
        assert pair.disjoint or any(clash(pair.x, other.x) or clash(pair.y, other.y) for other in kept)


def test_gamma_is_exclusive_and_the_best_pair_wins() -> None:
    grams = [Gram(text, True, 0, 1, word) for word, text in enumerate("abc")]
    vectors = {
        "a": np.array([1, 0], np.float32),
        "b": np.array([0.6, 0.8], np.float32),
        "c": np.array([0, 1], np.float32),
    }
    cosine = float(vectors["a"] @ vectors["b"])
    assert [(p.x.text, p.y.text) for p in mine(grams[:1], grams, vectors, n=1, gamma=cosine, floor=cosine)] == []
    found = mine(grams[:1], grams, vectors, n=1, gamma=0.5, floor=-1.0)
    assert [(pair.y.text, pair.disjoint) for pair in found] == [("b", True), ("c", False)]
