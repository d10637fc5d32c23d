"""Suffix arrays: NumPy's sort and infini-gram's builder against the definition, and against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longloom.tasks.ngrams import suffix_array as module
from longloom.tasks.ngrams.layout import OFFSETS, TABLE, TOKEN_TYPES, TOKENS, pointer_width
from longloom.tasks.ngrams.suffix_array import build_table, is_suffix_array, run_package, suffix_array, write_table

token_lists = st.integers(1, 300).flatmap(
    lambda top: st.lists(st.one_of(st.integers(0, 2), st.integers(0, top)), min_size=1, max_size=60)
)


def by_definition(tokens: np.ndarray) -> list[int]:
    content, width = tokens.tobytes(), tokens.itemsize
    return sorted(range(len(tokens)), key=lambda start: content[start * width :])


@settings(max_examples=150, deadline=None)
@given(values=token_lists, name=st.sampled_from(["u8", "u16", "u32"]))
def test_order_is_that_of_the_bytes(values: list[int], name: str) -> None:
    tokens = np.array([value % 256 if name == "u8" else value for value in values], dtype=TOKEN_TYPES[name])
    assert suffix_array(tokens).tolist() == by_definition(tokens)


@pytest.mark.parametrize("values", [[0], [5] * 64, [1, 256, 1, 256], [0, 1] * 30, list(range(255, -1, -1))])
def test_repetitive_and_ordered_tokens(values: list[int]) -> None:
    tokens = np.array(values, dtype="<u2")
    assert suffix_array(tokens).tolist() == by_definition(tokens)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=token_lists, seed=st.integers(0, 99))
def test_the_check_accepts_the_suffix_array_alone(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("check")
    tokens = np.array(values, dtype="<u2")
    order = suffix_array(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 7)  # so that neighbours lie in different chunks
        write_table(order, tokens, folder / TABLE)
        assert is_suffix_array(tokens, folder / TABLE, folder)
        shuffled = np.random.default_rng(seed).permutation(order)
        write_table(shuffled, tokens, folder / TABLE)
        assert is_suffix_array(tokens, folder / TABLE, folder) == (shuffled == order).all()
        write_table(np.full_like(order, order[0]), tokens, folder / TABLE)
        assert is_suffix_array(tokens, folder / TABLE, folder) == (len(order) == 1)
        (folder / TABLE).write_bytes((folder / TABLE).read_bytes()[:-1])
        assert not is_suffix_array(tokens, folder / TABLE, folder)


def test_pointers_into_a_wrong_place_are_found(tmp_path: Path) -> None:
    tokens = np.array([3, 1, 2], dtype="<u2")
    for pointers in (b"\x02\x04\x01", b"\x02\x04\x06", b"\x02\x04\xff"):
        (tmp_path / TABLE).write_bytes(pointers)
        assert not is_suffix_array(tokens, tmp_path / TABLE, tmp_path)
    (tmp_path / TABLE).write_bytes(b"\x02\x04\x00")
    assert is_suffix_array(tokens, tmp_path / TABLE, tmp_path)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 65536, 65537, 2**24, 2**24 + 1, 2**40, 2**40 + 1])
def test_pointer_width(size: int) -> None:
    width = pointer_width(size)
    assert 256**width >= size  # every position has a pointer
    assert width == 1 or 256 ** (width - 1) < size  # and no narrower one would do


def words(count: int, seed: int) -> np.ndarray:
    """Zipf-like tokens with a separator now and then."""
    values = np.minimum(np.random.default_rng(seed).zipf(1.3, size=count), 250)
    values[::5000] = 65535
    return values.astype("<u2")


@pytest.mark.parametrize("name", ["u8", "u16"])
def test_both_builders_write_the_same_bytes(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a table of [tokens]"  # the package's shell and engine must not see such a name
    (folder / module.SCRATCH).mkdir(parents=True)
    tokens = words(300_000, 0).astype(TOKEN_TYPES[name])
    tokens.tofile(folder / TOKENS)
    (folder / OFFSETS).write_bytes(bytes(8))
    run_package(folder, token_dtype=name, jobs=2, memory_gib=1)
    write_table(suffix_array(tokens), tokens, tmp_path / TABLE)
    assert (folder / TABLE).read_bytes() == (tmp_path / TABLE).read_bytes()


def test_passages_longer_than_the_overlap_of_parts_are_sorted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 102,000 bytes twice, the second time across the end of the first part and its overlap of 100,000 bytes. Cut off
    # there, it seems to be less than the first; what follows says that it is more.
    passage, rest = words(51_000, 1), words(450_000, 2)
    rest[0], rest[224_750] = 0, 250
    tokens = np.concatenate([passage, rest[:224_750], passage, rest[224_750:]])
    tokens.tofile(tmp_path / TOKENS)
    (tmp_path / OFFSETS).write_bytes(bytes(8))
    jobs: list[int] = []

    def record(folder: Path, **options: object) -> None:
        jobs.append(options["jobs"])
        run_package(folder, **options)

    monkeypatch.setattr(module, "run_package", record)
    monkeypatch.setattr(module, "SMALL", 500_000)
    build_table(tmp_path, token_dtype="u16", threads=2, memory_gib=1)
    assert jobs == [2, 1]  # two parts gave a wrong order
    assert not (tmp_path / module.SCRATCH).exists()
    write_table(suffix_array(tokens), tokens, tmp_path / "expected")
    assert (tmp_path / TABLE).read_bytes() == (tmp_path / "expected").read_bytes()


def test_who_builds_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def package(folder: Path, *, jobs: int, **_: object) -> None:
        calls.append(jobs)
        order = np.arange(len(tokens)) if wrong or (jobs > 1 and wrong_parts) else suffix_array(tokens)
        write_table(order, tokens, folder / TABLE)

    def build(memory_gib: float = 1, name: str = "u16", threads: int = 8) -> list[int]:
        calls.clear()
        build_table(tmp_path, token_dtype=name, threads=threads, memory_gib=memory_gib)
        assert is_suffix_array(tokens.view(TOKEN_TYPES[name]), tmp_path / TABLE, tmp_path)
        return list(calls)

    calls: list[int] = []
    wrong = wrong_parts = False
    monkeypatch.setattr(module, "run_package", package)
    monkeypatch.setattr(module, "SMALL", 2000)
    tokens = words(3000, 4)
    tokens.tofile(tmp_path / TOKENS)
    assert build() == [3]  # no part is smaller than SMALL
    assert build(threads=2) == [2]
    assert build(name="u32") == []
    wrong_parts = True
    assert build() == [3, 1]
    with pytest.raises(
        ValueError, match=r"memory_gib is 1e-06, expected at least 0\.00 to sort 3000 tokens in one part"
    ):
        build(memory_gib=1e-6)
    (tmp_path / module.SCRATCH / "ranks").unlink()
    (tmp_path / module.SCRATCH).rmdir()
    wrong = True
    with pytest.raises(RuntimeError, match="wrote a table for 3000 tokens that is not in order"):
        build()
    words(900, 5).tofile(tmp_path / TOKENS)
    with pytest.raises(ValueError, match=r"memory_gib is 1e-06, expected at least .* to sort 900 tokens"):
        build(memory_gib=1e-6)


def test_a_failed_builder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / module.SCRATCH).mkdir()
    words(10, 3).tofile(tmp_path / TOKENS)
    (tmp_path / OFFSETS).write_bytes(bytes(8))
    with pytest.raises(RuntimeError, match=r"^infini_gram\.indexing failed \(exit status 1\): .+$") as caught:
        run_package(tmp_path, token_dtype="u16", jobs=2, memory_gib=1)  # too small for two parts
    assert "\n" not in str(caught.value)
