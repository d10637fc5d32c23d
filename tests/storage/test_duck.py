"""DuckDB is opened with its bounds, spills instead of failing, and keeps the order of rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from longloom.storage.duck import connect


def test_the_bounds_are_set(tmp_path: Path) -> None:
    with connect(memory_limit_gib=0.25, threads=2, temp_directory=tmp_path / "spill") as database:
        names = (
            "memory_limit",
            "threads",
            "temp_directory",
            "preserve_insertion_order",
            "autoinstall_known_extensions",
        )
        settings = [database.execute(f"SELECT current_setting('{name}')").fetchone() for name in names]
    assert settings == [("256.0 MiB",), (2,), (str(tmp_path / "spill"),), (True,), (False,)]


def test_a_sort_beyond_the_memory_spills(tmp_path: Path) -> None:
    with connect(memory_limit_gib=0.06, threads=1, temp_directory=tmp_path / "spill") as database:
        database.execute(
            """
            CREATE TABLE sorted AS
            SELECT (i * 7919) % 1000000 AS x, repeat(i::VARCHAR, 20) AS payload FROM range(1000000) t(i) ORDER BY x
            """
        )
        assert list((tmp_path / "spill").iterdir())
        assert database.execute("SELECT count(*), min(x), max(x) FROM sorted").fetchone() == (1000000, 0, 999999)
        assert database.execute("SELECT x FROM sorted LIMIT 3").fetchall() == [(0,), (1,), (2,)]


@pytest.mark.parametrize(("memory", "threads"), [(0, 1), (-1.0, 1), (1, 0)])
def test_no_memory_or_threads_is_refused(tmp_path: Path, memory: float, threads: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        connect(memory_limit_gib=memory, threads=threads, temp_directory=tmp_path)
