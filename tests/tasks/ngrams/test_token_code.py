"""The code of tokens: it keeps the order, none begins another, frequent tokens are short, and it finds its way back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longloom.tasks.ngrams import token_code
from longloom.tasks.ngrams.layout import TOKEN_TYPES
from longloom.tasks.ngrams.token_code import Coded, code, in_order


def codes_of(counts: np.ndarray) -> list[bytes]:
    words, lengths = code(counts)
    return [int(word).to_bytes(8, "little")[:length] for word, length in zip(words, lengths, strict=True)]


def check_code(counts: np.ndarray) -> list[bytes]:
    codes = codes_of(counts)
    assert len(codes) == len(counts)
    for first, second in pairwise(codes):
        assert first < second
        assert not second.startswith(first)  # in order, a code stands next to one that it begins
    return codes


@settings(max_examples=60, deadline=None)
@given(
    size=st.one_of(st.integers(1, 600), st.sampled_from([256, 257, 511, 512, 513, 65_536, 65_537, 100_000])),
    largest=st.sampled_from([1, 5, 1000, 10**9]),
    power=st.sampled_from([1, 20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_counts(size: int, largest: int, power: int, seed: int) -> None:
    counts = 1 + (np.random.default_rng(seed).random(size) ** power * largest).astype(np.int64)
    codes = check_code(counts)
    width = max(1, -(-(size - 1).bit_length() // 8))
    assert sum(len(code) * count for code, count in zip(codes, counts.tolist(), strict=True)) <= width * counts.sum()


def test_up_to_256_tokens_have_one_byte() -> None:
    assert codes_of(np.arange(1, 257)) == [bytes([number]) for number in range(256)]


@pytest.mark.parametrize("size", [1000, 10_000, 60_000])
def test_what_is_frequent_is_short(size: int) -> None:
    ranks = np.random.default_rng(0).permutation(size) + 1
    counts = 10**9 // ranks  # Zipf's law
    lengths = np.array([len(code) for code in check_code(counts)])
    assert lengths[ranks <= 127].tolist() == [1] * 127
    assert lengths @ counts < 1.7 * counts.sum()


def test_all_tokens_of_two_bytes_equally_often_stay_two_bytes() -> None:
    assert {len(code) for code in codes_of(np.ones(2**16, dtype=np.int64))} == {2}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(["u16", "u32"]),
    distinct=st.integers(1, 700),
    length=st.integers(1, 900),
    threads=st.integers(1, 2),
    raw=st.booleans(),
)
def test_every_place_leads_back_to_its_token(
    seed: int, name: str, distinct: int, length: int, threads: int, raw: bool
) -> None:
    rng = np.random.default_rng(seed)
    alphabet = rng.integers(0, np.iinfo(TOKEN_TYPES[name]).max, size=distinct, endpoint=True)
    tokens = rng.choice(alphabet, size=length).astype(TOKEN_TYPES[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_code, "PIECE", 64)
        patch.setattr(token_code, "DISTINCT", 0 if raw else 2**16)  # 0: too many once an eighth of the text differs
        coded = Coded.of(tokens, threads=threads)
    assert len(coded.content) <= tokens.nbytes
    places = np.arange(len(coded.content), dtype=np.int32)
    assert coded.tokens_at(places).tolist() == list(range(length))
    assert coded.tokens_at(places[::-1].astype(np.int64)).tolist() == list(range(length))[::-1]
    begins = [place for place in places if len(coded.tokens_at(places[place : place + 1]))]
    ends = [*begins[1:], len(coded.content)]
    codes = [coded.content[begin:end].tobytes() for begin, end in zip(begins, ends, strict=True)]
    bytes_of = [tokens[place : place + 1].tobytes() for place in range(length)]
    by_code = sorted(range(length), key=lambda place: codes[place])
    assert [bytes_of[place] for place in by_code] == sorted(bytes_of)
    assert len(set(codes)) == len(set(bytes_of))


def test_too_many_distinct_tokens_stay_as_they_are() -> None:
    tokens = np.arange(2**17, dtype="<u4")[::-1] * 3
    coded = Coded.of(np.ascontiguousarray(tokens), threads=2)
    assert coded.content.tobytes() == tokens.tobytes()
    assert coded.tokens_at(np.array([0, 1, 4, 2**19 - 4, 2**19 - 1])).tolist() == [0, 1, 2**17 - 1]


def test_pieces_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_code, "PIECE", 3)
    assert list(in_order(lambda piece: list(range(100))[piece], 0, 2)) == []
    found = list(in_order(lambda piece: list(range(100))[piece], 100, 2))
    assert [len(part) for part in found] == [3] * 33 + [1]
    assert [number for part in found for number in part] == list(range(100))


def test_a_piece_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_code, "PIECE", 1)
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda piece: 1 // (piece.start - 5), 50, 2))
