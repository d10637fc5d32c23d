"""Suffix arrays against the definition: of bytes, of tokens in small pieces, of texts that repeat themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longloom.tasks.ngrams import token_sort
from longloom.tasks.ngrams.layout import TOKEN_TYPES, pointer_width
from longloom.tasks.ngrams.suffix_array import suffix_array, write_table
from longloom.tasks.ngrams.token_sort import sort_tokens

token_lists = st.integers(1, 300).flatmap(
    lambda top: st.lists(st.one_of(st.integers(0, 2), st.integers(0, top)), min_size=1, max_size=60)
)


def by_definition(tokens: np.ndarray) -> list[int]:
    content, width = tokens.tobytes(), tokens.itemsize
    return sorted(range(len(tokens)), key=lambda start: content[start * width :])


@settings(max_examples=100, deadline=None)
@given(values=token_lists, name=st.sampled_from(["u8", "u16", "u32"]))
def test_order_is_that_of_the_bytes(values: list[int], name: str) -> None:
    tokens = np.array([value % 256 if name == "u8" else value for value in values], dtype=TOKEN_TYPES[name])
    assert suffix_array(tokens).tolist() == by_definition(tokens)


@settings(max_examples=100, deadline=None)
@given(
    part=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    times=st.integers(1, 4),
    rest=token_lists,
    piece=st.integers(2, 9),
    threads=st.integers(1, 2),
    wide=st.booleans(),
)
def test_tokens_in_pieces_on_threads(
    part: list[int], times: int, rest: list[int], piece: int, threads: int, wide: bool
) -> None:
    values = part * times + rest + part  # groups that are larger than a piece, and such as end the text
    scale = 70_001 if wide else 1  # distinct values of the higher bytes alone, too
    tokens = np.array([value * scale for value in values], dtype=TOKEN_TYPES["u32" if wide else "u16"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_sort, "PIECE", piece)
        patch.setattr(token_sort, "SHARE", 1.0)  # never given up
        order = sort_tokens(tokens, threads=threads)
    assert order is not None
    assert order.tolist() == by_definition(tokens)


@pytest.mark.parametrize("name", ["u8", "u16", "u32"])
@pytest.mark.parametrize("values", [[0], [5] * 64, [1, 256, 1, 256], [0, 1] * 30, list(range(255, -1, -1))])
def test_repetitive_and_ordered_tokens(values: list[int], name: str) -> None:
    tokens = np.array([value % 256 if name == "u8" else value for value in values], dtype=TOKEN_TYPES[name])
    assert suffix_array(tokens).tolist() == by_definition(tokens)


def test_separators_and_the_largest_tokens() -> None:
    for name in ("u16", "u32"):
        largest = np.iinfo(TOKEN_TYPES[name]).max
        tokens = np.array([largest, largest, largest - 1, 0, largest, 0], dtype=TOKEN_TYPES[name])
        assert suffix_array(tokens).tolist() == by_definition(tokens)
    every = np.random.default_rng(0).permutation(2**16).astype("<u2")  # one more than 16 bits can number from one on
    assert suffix_array(every).tolist() == np.argsort(every.byteswap()).tolist()


def test_no_tokens() -> None:
    assert len(suffix_array(np.zeros(0, dtype="<u2"))) == 0


@pytest.mark.parametrize("name", ["u16", "u32"])
def test_a_text_that_repeats_itself_goes_to_the_other_sort_and_comes_out_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passage = np.random.default_rng(1).integers(0, 1000, size=3000).astype(TOKEN_TYPES[name])
    tokens = np.concatenate([passage, passage, passage[:1000]])
    assert sort_tokens(tokens, threads=1) is None
    order = suffix_array(tokens)
    monkeypatch.setattr(token_sort, "SHARE", 1.0)
    assert order.tolist() == suffix_array(tokens).tolist()
    assert order.tolist() == by_definition(tokens)


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
