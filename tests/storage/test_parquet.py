"""Parquet writing: shards, determinism, bounded row groups, and what the readers refuse."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longloom.storage import parquet
from longloom.storage.parquet import FileWriter, ShardWriter, count_rows, iter_batches, read_table

SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())])


def rows(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"id": f"r{index}", "n": index} for index in range(start, start + count)]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(sizes=st.lists(st.integers(0, 25), max_size=5), per_shard=st.integers(1, 12))
def test_shards_hold_all_rows_in_order_however_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], per_shard: int
) -> None:
    folder, once = tmp_path_factory.mktemp("many"), tmp_path_factory.mktemp("once")
    total = sum(sizes)
    with ShardWriter(folder, "t", SCHEMA, rows_per_shard=per_shard) as writer:
        done = 0
        for size in sizes:
            writer.write(rows(size, done))
            done += size
    assert writer.rows == total == count_rows(folder, "t")
    with ShardWriter(once, "t", SCHEMA, rows_per_shard=per_shard) as writer:
        writer.write(rows(total))
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"t-{index:05d}.parquet" for index in range(max(1, -(-total // per_shard)))]
    assert [(folder / name).read_bytes() for name in names] == [(once / name).read_bytes() for name in names]
    assert read_table(folder, "t").to_pylist() == rows(total)
    batches = list(iter_batches(folder, "t", ["n"], 4))
    assert all(batch.num_rows <= 4 and batch.schema.names == ["n"] for batch in batches)
    assert [value for batch in batches for value in batch.column("n").to_pylist()] == list(range(total))


def test_row_groups_are_cut_by_rows_and_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 10)
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 1000)
    with FileWriter(tmp_path / "t.parquet", SCHEMA) as writer:
        writer.write(rows(25))
        writer.write([{"id": "x" * 2000, "n": 0}])
        writer.write(rows(3))
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [10, 10, 6, 3]
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert b"pandas" not in (tmp_path / "t.parquet").read_bytes()


def test_a_failed_write_leaves_no_unfinished_file(tmp_path: Path) -> None:
    def fail_on_the_way() -> None:
        with ShardWriter(tmp_path, "t", SCHEMA, rows_per_shard=2) as writer:
            writer.write(rows(3))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_on_the_way()
    assert [path.name for path in tmp_path.iterdir()] == ["t-00000.parquet"]  # the finished one
    assert pq.read_table(tmp_path / "t-00000.parquet").num_rows == 2


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither t\.parquet nor"):
        read_table(tmp_path, "t")
    with ShardWriter(tmp_path, "t", SCHEMA, rows_per_shard=1) as writer:
        writer.write(rows(3))
    with pytest.raises(ValueError, match="no column 'x', only id, n"):
        read_table(tmp_path, "t", ["x"])
    with pytest.raises(ValueError, match="found the columns id: string, expected id: string, n: int64"):
        FileWriter(tmp_path / "u.parquet", SCHEMA).write_table(pa.table({"id": ["a"]}))
    (tmp_path / "t-00001.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"t-00001\.parquet: cannot be read as Parquet"):
        read_table(tmp_path, "t")
    (tmp_path / "t-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="this shard is missing"):
        list(iter_batches(tmp_path, "t", ["id"], 8))
    with pytest.raises(ValueError, match="rows_per_shard is 0"):
        ShardWriter(tmp_path, "t", SCHEMA, rows_per_shard=0)


def test_a_single_file_is_read_by_its_name_alone(tmp_path: Path) -> None:
    with FileWriter(tmp_path / "t.parquet", SCHEMA) as writer:
        writer.write(rows(3))
    assert read_table(tmp_path, "t", ["n", "id"]).to_pylist() == [{"n": n, "id": f"r{n}"} for n in range(3)]
