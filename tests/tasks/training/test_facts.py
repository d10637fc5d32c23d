"""Facts told and asked for again, by brute force: every number asked for stands in the sequence, under its name."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from longloom.tasks.training.facts import FACTS as STREWN
from longloom.tasks.training.facts import GATHERED, LOCAL, SINK, SPAN, Facts
from longloom.tasks.training.mix import IGNORE, Turns, batch_of
from longloom.tasks.training.recipe import RECIPES

#: One id a character, so that ids read as text; corpora are of ids above them.
FACTS = Facts(
    lambda text: [ord(character) for character in text], [f"n{name}" for name in range(30)], "{name} has {key}."
)
TEXT = 1000


def written(ids: np.ndarray) -> str:
    return "".join(chr(token) if token < TEXT else "~" for token in ids)


def facts_and_questions(ids: np.ndarray, mask: np.ndarray) -> tuple[dict[str, str], list[str]]:
    """Facts by name, and the names asked for; what is asked is true, and its number alone is marked there."""
    text = written(ids)
    facts = dict(re.findall(r"\n# (n\d+) has (\d{5})\.\n", text))
    told = list(re.finditer(r"\n\n(n\d+) has (\d{5})\.", text))
    for again in told:
        assert facts[again[1]] == again[2]
        assert mask[again.start() : again.end()].tolist() == [False] * (again.start(2) - 1 - again.start()) + [True] * 7
    return facts, [again[1] for again in told]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(260, 600))
def test_facts_are_strewn_into_text_and_told_again(seed: int, length: int) -> None:
    text = np.arange(TEXT, TEXT + length)
    ids, mask = FACTS.strewn(np.random.default_rng(seed), text, length)
    assert len(ids) == len(mask) == length
    assert ids[ids >= TEXT].tolist() == text[: (ids >= TEXT).sum()].tolist()  # in order, nothing left out
    assert mask[ids >= TEXT].all()
    facts, asked = facts_and_questions(ids, mask)
    assert STREWN[0] <= len(facts) <= STREWN[1]
    assert asked


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(400, 700))
def test_a_gathered_sequence_is_a_scope(seed: int, length: int) -> None:
    corpus = np.arange(TEXT, TEXT + 5000)  # every token once: a piece has one place
    alike = [TEXT + 1000, TEXT + 2500, TEXT + 4000]
    corpus[np.array(alike) - TEXT] = ord("s")  # the questions' last token
    ids, mask = FACTS.gathered(np.random.default_rng(seed), corpus, length)
    assert len(ids) == len(mask) == length
    facts, asked = facts_and_questions(ids, mask)
    assert GATHERED[0] <= len(facts) <= GATHERED[1]
    assert sorted(asked) == sorted(facts)  # each once
    assert mask.sum() == 7 * len(asked)

    # Where each token stood in the corpus; the last token of the questions stood before its neighbour.
    places = np.where(ids >= TEXT, ids - TEXT, -1)
    for place in np.flatnonzero(ids == ord("s")):
        if ids[place - 1] + 1 in alike:
            places[place] = places[place - 1] + 1
    assert (np.diff(places[: SINK - 1]) == 1).all()
    end = written(ids).index("\n\n")
    local = places[end - LOCAL[0] : end]
    assert (np.diff(local) == 1).all() or length < SINK + LOCAL[0] + 4 * SPAN + 55
    spans = places[SINK : end - LOCAL[0]]
    assert set(spans[spans >= 0]) & {place - TEXT for place in alike} or length < 550


def test_a_short_sequence_still_ends_in_its_questions() -> None:
    corpus = np.arange(TEXT, TEXT + 500)
    for seed in range(50):
        ids, mask = FACTS.gathered(np.random.default_rng(seed), corpus, 60)
        assert len(ids) == len(mask) == 60
        assert mask[-7:].all()


def test_a_short_model_is_sharpened_on_scopes() -> None:
    """Through `batch_of`: most of a batch's rows carry a loss on a few numbers alone, text on a few of its tokens."""
    corpus = np.arange(TEXT, TEXT + 5000, dtype="<u4")
    (phase,) = RECIPES["continue"]["short"]
    ids, labels = batch_of(
        dataclasses.replace(phase, batch=200),
        0,
        seed=0,
        corpus=corpus,
        vocab=9000,
        first=4,
        turns=Turns(user=1, assistant=2, end=0),
        facts=FACTS,
    )
    assert ((labels == ids) | (labels == IGNORE)).all()
    marked = (labels != IGNORE).sum(axis=1)
    text = (ids >= TEXT).all(axis=1)
    assert 0.15 < text.mean() < 0.35
    assert set(marked[~text]) <= {7 * count for count in range(GATHERED[0], GATHERED[1] + 1)}
    assert 0.03 < marked[text].mean() / 512 < 0.07
