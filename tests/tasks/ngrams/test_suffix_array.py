"""Suffix arrays against the definition: bytes, tokens, texts that repeat themselves, and the wide index type."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydivsufsort import divsufsort
from threadpoolctl import threadpool_info

from longloom.tasks.ngrams import suffix_array as module
from longloom.tasks.ngrams import token_code
from longloom.tasks.ngrams.layout import TOKEN_TYPES, pointer_width
from longloom.tasks.ngrams.suffix_array import suffix_array, write_table

TYPES = ("u8", "u16", "u32")


def by_definition(tokens: np.ndarray) -> list[int]:
    content, width = tokens.tobytes(), tokens.itemsize
    return sorted(range(len(tokens)), key=lambda start: content[start * width :])


@st.composite
def sequences(draw: st.DrawFn) -> np.ndarray:
    """Tokens of any type from an alphabet of odd values, with a passage that comes again."""
    dtype = TOKEN_TYPES[draw(st.sampled_from(TYPES))]
    largest = int(np.iinfo(dtype).max)
    value = st.one_of(st.integers(0, min(3, largest)), st.integers(0, largest), st.just(largest))
    alphabet = draw(st.lists(value, min_size=1, max_size=20))
    token = st.sampled_from(alphabet)
    passage = draw(st.lists(token, min_size=1, max_size=30))
    before, after = draw(st.lists(token, max_size=40)), draw(st.lists(token, max_size=40))
    return np.array(before + passage * draw(st.integers(1, 5)) + after + passage, dtype=dtype)


@settings(max_examples=200, deadline=None)
@given(tokens=sequences(), threads=st.integers(1, 2), wide=st.booleans())
def test_order_is_that_of_the_bytes(tokens: np.ndarray, threads: int, wide: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_code, "PIECE", 16)
        patch.setattr(module, "divsufsort", partial(divsufsort, force64=wide))  # as above 2 GiB
        order = suffix_array(tokens, threads=threads)
    assert order.dtype == (np.int64 if wide else np.int32)
    assert order.tolist() == by_definition(tokens)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    distinct=st.sampled_from([255, 256, 257, 600, 3000]),
    skew=st.sampled_from([0.0, 1.0, 3.0]),
    name=st.sampled_from(["u16", "u32"]),
    threads=st.integers(1, 2),
)
def test_alphabets_of_more_than_a_byte(seed: int, distinct: int, skew: float, name: str, threads: int) -> None:
    rng, dtype = np.random.default_rng(seed), TOKEN_TYPES[name]
    alphabet = rng.choice(2**16 if name == "u16" else 2**32 - 1, size=distinct, replace=False)
    weights = 1 / np.arange(1, distinct + 1) ** skew
    tokens = rng.choice(alphabet, size=2000, p=weights / weights.sum()).astype(dtype)
    tokens = np.concatenate([tokens, alphabet.astype(dtype), tokens[:300]])
    assert suffix_array(tokens, threads=threads).tolist() == by_definition(tokens)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("values", [[0], [5] * 64, [1, 256, 1, 256], [0, 1] * 30, list(range(255, -1, -1))])
def test_repetitive_and_ordered_tokens(values: list[int], name: str) -> None:
    tokens = np.array([value % 256 if name == "u8" else value for value in values], dtype=TOKEN_TYPES[name])
    assert suffix_array(tokens).tolist() == by_definition(tokens)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_long_repeats(name: str, threads: int) -> None:
    passage = np.random.default_rng(1).integers(0, 250, size=3000).astype(TOKEN_TYPES[name])
    tokens = np.concatenate([passage, passage, np.full(2000, 7, TOKEN_TYPES[name]), passage[:1000]])
    assert suffix_array(tokens, threads=threads).tolist() == by_definition(tokens)


def test_separators_and_the_largest_tokens() -> None:
    for name in ("u16", "u32"):
        largest = np.iinfo(TOKEN_TYPES[name]).max
        tokens = np.array([largest, largest, largest - 1, 0, largest, 0], dtype=TOKEN_TYPES[name])
        assert suffix_array(tokens).tolist() == by_definition(tokens)
    every = np.random.default_rng(0).permutation(2**16).astype("<u2")  # one more than 16 bits can number from one on
    assert suffix_array(every).tolist() == np.argsort(every.byteswap()).tolist()


@pytest.mark.parametrize("name", TYPES)
def test_no_tokens(name: str) -> None:
    assert suffix_array(np.zeros(0, dtype=TOKEN_TYPES[name])).tolist() == []


@pytest.mark.parametrize("name", TYPES)
def test_tokens_that_are_not_contiguous(name: str) -> None:
    tokens = np.random.default_rng(3).integers(0, 200, size=300).astype(TOKEN_TYPES[name])[::3]
    assert suffix_array(tokens).tolist() == by_definition(tokens)


def test_the_library_gets_as_many_threads_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "openmp"]

    def spy(content: np.ndarray) -> np.ndarray:
        seen.append(threads())
        return divsufsort(content)

    seen: list[list[int]] = []
    before = threads()
    monkeypatch.setattr(module, "divsufsort", spy)
    for count in (1, 3):
        suffix_array(np.arange(9, dtype="<u2"), threads=count)
    assert [set(found) for found in seen] == [{1}, {3}]
    assert threads() == before


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 65536, 65537, 2**24, 2**24 + 1, 2**40, 2**40 + 1])
def test_pointer_width(size: int) -> None:
    width = pointer_width(size)
    assert 256**width >= size  # every position has a pointer
    assert width == 1 or 256 ** (width - 1) < size  # and no narrower one would do


@pytest.mark.parametrize(("name", "length"), [("u8", 300), ("u16", 100), ("u16", 200), ("u32", 16400)])
def test_a_table_holds_byte_offsets(tmp_path: Path, name: str, length: int) -> None:
    tokens = np.random.default_rng(2).integers(0, 200, size=length).astype(TOKEN_TYPES[name])
    order = suffix_array(tokens)
    write_table(order, tokens, tmp_path / "table.0")
    content, width = (tmp_path / "table.0").read_bytes(), pointer_width(tokens.nbytes)
    found = [int.from_bytes(content[start : start + width], "little") for start in range(0, len(content), width)]
    assert found == [place * tokens.itemsize for place in order.tolist()]


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    tokens = np.array([1, 2, 3], dtype="<u2")
    with pytest.raises(OSError, match="No space left"):
        write_table(suffix_array(tokens), tokens, tmp_path / "table.0")
    assert list(tmp_path.iterdir()) == []
