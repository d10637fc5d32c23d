"""Maximal spans against every span there is: of tokens, of whole words, under deletions and an unknown token."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longloom.tasks.ngrams.encode import ByteEncoder
from longloom.tasks.sources.located import Located, locate
from longloom.tasks.sources.spans import Unigrams, maximal_spans, whole_words

from .brute import BruteIndex

Range = tuple[int, int]


def outermost(spans: set[Range]) -> list[Range]:
    """Those that lie within no other."""
    return sorted(span for span in spans if not any(o != span and o[0] <= span[0] and span[1] <= o[1] for o in spans))


def standing(index: BruteIndex, tokens: list[int]) -> set[Range]:
    """Every span of tokens that stands in the corpus."""
    pairs = ((a, b) for a in range(len(tokens)) for b in range(a + 1, len(tokens) + 1))
    return {(a, b) for a, b in pairs if index.count(tokens[a:b])}


few = st.integers(0, 2)


@settings(deadline=None, max_examples=150)
@given(
    documents=st.lists(st.lists(few, max_size=8), min_size=1, max_size=4),
    tokens=st.lists(st.integers(0, 3), max_size=12),
    gone=st.booleans(),
)
def test_maximal_spans_are_those_that_no_other_contains(
    documents: list[list[int]], tokens: list[int], gone: bool
) -> None:
    index: Any = BruteIndex(documents, deleted=[0] if gone else [])
    assert maximal_spans(index, tokens, None) == outermost(standing(index, tokens))


@settings(deadline=None, max_examples=80)
@given(documents=st.lists(st.lists(few, max_size=8), min_size=1, max_size=3), tokens=st.lists(few, max_size=12))
def test_an_unknown_token_matches_nothing(documents: list[list[int]], tokens: list[int]) -> None:
    index: Any = BruteIndex(documents)
    spans = {(a, b) for a, b in standing(index, tokens) if 1 not in tokens[a:b]}
    assert maximal_spans(index, tokens, 1) == outermost(spans)


def test_a_span_longer_than_the_window_is_found_whole() -> None:
    document = [number * 7 % 251 for number in range(500)]
    index: Any = BruteIndex([document])
    assert (1, 501) in maximal_spans(index, [9, *document, 9, 9], None)


def words_standing(text: str, documents: list[str]) -> list[Range]:
    """The maximal spans of whole words, by every pair of characters."""
    inner = [place for place in range(1, len(text)) if not re.match("[aé]{2}", text[place - 1 : place + 1])]
    edges = [0, *inner, len(text)]
    found = {
        (a, b)
        for a in edges
        for b in edges
        if a < b
        and re.search(r"\w", text[a:b])
        and text[a:b] == text[a:b].strip()
        and any(text[a:b] in document for document in documents)
    }
    return outermost(found)


letters = st.text(alphabet="aé .中の", max_size=9)


@settings(deadline=None, max_examples=150)
@given(documents=st.lists(letters, min_size=1, max_size=3), text=letters)
def test_whole_words_of_bytes_are_the_maximal_ones(documents: list[str], text: str) -> None:
    encoder = ByteEncoder()
    index: Any = BruteIndex([list(document.encode()) for document in documents])
    located = locate(encoder, text)
    spans = whole_words(located, maximal_spans(index, located.tokens, None))
    assert spans == words_standing(text, documents)


def test_tokens_over_a_range_are_those_of_which_a_part_lies_in_it() -> None:
    located = Located("ab  cdef", [0, 1, 2, 3], [(0, 2), (2, 3), (3, 6), (6, 8)])  # ab, blank, " cd", ef
    assert located.tokens_over(4, 6) == located.tokens_within(4, 6) == (2, 3)
    assert located.tokens_over(1, 5) == (0, 3)
    assert located.tokens_over(7, 8) == (3, 4)
    assert located.tokens_over(3, 4) == (2, 2)  # the space of " cd"


def test_tokens_within_forgets_the_space_before_a_word() -> None:
    located = Located("a  foo bar", [0, 1, 2, 3], [(0, 1), (1, 2), (2, 6), (6, 10)])  # a, blank, " foo", " bar"
    assert located.tokens_within(3, 10) == (2, 4)
    assert located.tokens_within(3, 6) == (2, 3)
    assert located.tokens_within(0, 1) == (0, 1)


def test_bytes_of_a_character_share_its_place() -> None:
    located = locate(ByteEncoder(), "aéb")
    assert located.tokens == [97, 195, 169, 98]
    assert located.places == [(0, 1), (1, 2), (1, 2), (2, 3)]
    assert located.tokens_within(1, 2) == (1, 3)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        locate(ByteEncoder(), "a\ud800")


def test_the_probability_of_tokens_is_their_share_of_what_is_left() -> None:
    index: Any = BruteIndex([[1, 1, 2], [3, 3, 3, 3]])
    assert Unigrams(index).log_probability([1, 2, 1]) == pytest.approx(math.log(2 / 7 * 1 / 7 * 2 / 7))
    left: Any = BruteIndex([[1, 1, 2], [3, 3, 3, 3]], deleted=[1])
    assert Unigrams(left).log_probability([1, 2]) == pytest.approx(math.log(2 / 3 * 1 / 3))
