"""infini-gram's builder and ours write the same files; where repeats are too long for it, ours is in order."""

from __future__ import annotations

from pathlib import Path

import ngram_package
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ngram_package import is_suffix_array, run_package, write_tokens

from longloom.tasks.ngrams.layout import OFFSETS, TABLE, TOKEN_TYPES, TOKENS, shard_file
from longloom.tasks.ngrams.sorters import sort_shard
from longloom.tasks.ngrams.suffix_array import suffix_array, write_table


def words(count: int, seed: int) -> np.ndarray:
    """Zipf-like tokens."""
    values = np.minimum(np.random.default_rng(seed).zipf(1.3, size=count), 250)
    return values.astype("<u2")


def both(folder: Path, documents: list[np.ndarray], name: str, jobs: int) -> tuple[np.ndarray, bytes, bytes]:
    """The tokens, our table and the package's."""
    folder.mkdir(parents=True)
    tokens = write_tokens(documents, folder, name)
    table = shard_file(folder, TABLE, 0)
    sort_shard(shard_file(folder, TOKENS, 0), table, name, 2)
    ours = table.read_bytes()
    table.unlink()
    run_package(folder, token_dtype=name, jobs=jobs, memory_gib=1)
    return tokens, ours, table.read_bytes()


@pytest.mark.parametrize("name", ["u8", "u16"])
def test_both_builders_write_the_same_bytes(tmp_path: Path, name: str) -> None:
    documents = [words(length, seed) for seed, length in enumerate([700_000, 0, 1, 300_000, 5, 100_000])]
    documents.append(documents[3][:20_000])
    folder = tmp_path / "a table of [tokens]"  # the package's shell and engine must not see such a name
    _, ours, theirs = both(folder, documents, name, 1)
    assert ours == theirs
    assert sorted(path.name for path in folder.iterdir()) == [f"{part}.0" for part in (OFFSETS, TABLE, TOKENS)]


def test_passages_longer_than_what_the_package_compares(tmp_path: Path) -> None:
    # 102,000 bytes twice, the second time across the end of the first of two parts and its overlap of 100,000 bytes.
    # Cut off there, it seems to be less than the first; what follows says that it is more.
    passage, rest = words(51_000, 1), words(1_050_000, 2)
    rest[0], rest[524_750] = 0, 250
    tokens, ours, theirs = both(
        tmp_path / "index", [np.concatenate([passage, rest[:524_750], passage, rest[524_750:]])], "u16", 2
    )
    table = tmp_path / "table"
    table.write_bytes(theirs)
    assert ours == theirs or not is_suffix_array(tokens, table)
    table.write_bytes(ours)
    assert is_suffix_array(tokens, table)
    assert ours != theirs  # what this test is about


def test_too_small_for_the_package(tmp_path: Path) -> None:
    write_tokens([words(1000, 3)], tmp_path, "u16")
    with pytest.raises(ValueError, match="2002 bytes of tokens are too few for 1 jobs"):
        run_package(tmp_path, token_dtype="u16", jobs=1, memory_gib=1)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=40), seed=st.integers(0, 99), chunk=st.integers(1, 50))
def test_the_check_accepts_the_suffix_array_alone(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], seed: int, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_package, "CHUNK", chunk)
        check(tmp_path_factory.mktemp("check") / "table.0", values, seed)


def check(table: Path, values: list[int], seed: int) -> None:
    tokens = np.array(values, dtype=TOKEN_TYPES["u16"])
    order = suffix_array(tokens)
    write_table(order, tokens, table)
    assert is_suffix_array(tokens, table)
    shuffled = np.random.default_rng(seed).permutation(order)
    write_table(shuffled, tokens, table)
    assert is_suffix_array(tokens, table) == (shuffled == order).all()
    write_table(np.full_like(order, order[0]), tokens, table)
    assert is_suffix_array(tokens, table) == (len(order) == 1)
    table.write_bytes(table.read_bytes()[:-1])
    assert not is_suffix_array(tokens, table)


def test_pointers_into_a_wrong_place_are_found(tmp_path: Path) -> None:
    tokens = np.array([3, 1, 2], dtype="<u2")
    for pointers in (b"\x02\x04\x01", b"\x02\x04\x06", b"\x02\x04\xff"):
        (tmp_path / "table").write_bytes(pointers)
        assert not is_suffix_array(tokens, tmp_path / "table")
    (tmp_path / "table").write_bytes(b"\x02\x04\x00")
    assert is_suffix_array(tokens, tmp_path / "table")
