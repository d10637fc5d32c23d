"""The decorator within a Prefect flow: one task run a stage, its name, its progress artifact, no second cache."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import ArtifactSort
from prefect.runtime import task_run

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage

pytestmark = pytest.mark.usefixtures("harness")

RUNS: list[str] = []
#: Of their task runs. A server takes these in from a stream of events, on which no test should wait.
NAMES: list[str] = []


@stage("numbers", version=2, runtime=("threads",))
def numbers(work: Work, *, count: int, threads: int) -> Stats:
    """Writes numbers."""
    RUNS.append("numbers")
    NAMES.append(task_run.name)
    for number in range(count):
        work.progress(number + 1, count)
    (work.out / "numbers.txt").write_text("\n".join(map(str, range(count))))
    return Stats(counts={"numbers": count})


@stage("total", kind="sum", version=1)
def total(work: Work) -> Stats:
    RUNS.append("total")
    NAMES.append(task_run.name)
    found = (work.inputs["numbers"] / "numbers.txt").read_text().split()
    if not found:
        raise ValueError("numbers.txt: empty, expected at least one number")
    (work.out / "sum.txt").write_text(str(sum(map(int, found))))
    return Stats(counts={"sum": sum(map(int, found))})


@flow
def both(root: str, count: int, threads: int = 1) -> ArtifactRef:
    store = Store(root)
    ref = numbers(store, label="some", count=count, threads=threads)
    return total(store, {"numbers": ref})


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    RUNS.clear()
    NAMES.clear()
    monkeypatch.setenv("LONGLOOM_QUIET", "1")


def test_a_flow_builds_once_and_then_finds(tmp_path: Path) -> None:
    first = both(str(tmp_path / "store"), 5)
    assert (first.kind, first.counts, first.schema_version) == ("sum", {"sum": 10}, 1)
    assert both(str(tmp_path / "store"), 5, threads=4) == first
    assert RUNS == ["numbers", "total"]
    assert both(str(tmp_path / "other"), 5).digest == first.digest
    assert RUNS == ["numbers", "total"] * 2  # another store: Prefect's own cache keeps out of it
    assert NAMES == ["numbers-some", "total"] * 2


def test_a_failed_stage_fails_the_flow_and_the_next_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"numbers.txt: empty"):
        both(str(tmp_path / "store"), 0)
    with pytest.raises(ValueError, match=r"numbers.txt: empty"):
        both(str(tmp_path / "store"), 0)
    assert RUNS == ["numbers", "total", "total"]  # the first stage is kept, nothing is tried twice


async def _progress(label: str) -> list[Any]:
    async with get_client() as client:
        found = await client.read_artifacts(sort=ArtifactSort.CREATED_DESC)
    return [artifact.data for artifact in found if (artifact.description or "").startswith(label)]


def test_long_work_shows_its_progress(tmp_path: Path) -> None:
    both(str(tmp_path / "store"), 7)
    found = asyncio.run(_progress("numbers-some: 7 in all"))
    assert found == [100.0]


def test_a_lost_progress_artifact_does_not_end_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_: object) -> None:
        raise RuntimeError("the server is away")

    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", away)
    assert both(str(tmp_path / "store"), 3).counts == {"sum": 3}
