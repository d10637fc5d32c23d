"""A run's record tells what it made and how it ended, also when it was killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog, check_records, delete_runs, get_run, list_runs, starting, unfinished_since
from longloom.storage.store import Store

REF = ArtifactRef(kind="corpus", uri="artifacts/corpus/k", digest="0" * 64, schema_version=1, counts={"documents": 2})


def test_a_run_notes_its_artifacts_as_they_come(store: Store) -> None:
    with RunLog(store, "index", {"corpus": {"sources": ["a"]}}) as log:
        assert log.add("corpus", REF) is REF
        log.add("index", REF)
        running = get_run(store, log.run.id)
        assert (running.state, running.ended) == ("running", "")
        assert list(running.stages) == ["corpus", "index"]
    ended = get_run(store, "latest")
    assert ended.state == "completed"
    assert ended.ended >= ended.started
    assert ended.stages == {"corpus": REF, "index": REF}
    assert ended.parameters == {"corpus": {"sources": ["a"]}}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_marks_the_run_failed_and_goes_on(store: Store, error: type[BaseException]) -> None:
    with pytest.raises(error), RunLog(store, "index", {}):
        raise error
    assert [run.state for run in list_runs(store)] == ["failed"]
    assert not list((store.root / "locks").glob("run-*"))


def test_a_full_disk_does_not_hide_the_first_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    log = RunLog(store, "index", {})
    log.__enter__()
    monkeypatch.setattr("longloom.storage.store.write_atomic", full)
    log.__exit__(ValueError, ValueError("the first"), None)  # does not raise: the first goes on
    assert [run.state for run in list_runs(store)] == ["interrupted"]
    with pytest.raises(OSError, match="No space"), RunLog(store, "index", {}):
        raise AssertionError("not reached")
    assert not list((store.root / "locks").glob("run-*"))


KILLED = """
import sys
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
with RunLog(Store(sys.argv[1]), "index", {}):
    print("started", flush=True)
    sys.stdin.read()
"""


def test_a_killed_run_is_interrupted(store: Store) -> None:
    command = [sys.executable, "-c", KILLED, str(store.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            assert [run.state for run in list_runs(store)] == ["running"]
            assert delete_runs(store, 0) == []  # it goes on: its artifacts must not fall to gc
        finally:
            os.kill(process.pid, signal.SIGKILL)
    found = list_runs(store)
    assert [run.state for run in found] == ["interrupted"]
    assert [run.state for run in list_runs(store)] == ["interrupted"]
    assert delete_runs(store, 0) == [found[0].id]
    assert list_runs(store) == []


def test_newest_first_also_within_a_second(store: Store) -> None:
    for number in range(20):
        with RunLog(store, f"flow{number}", {}) as log:
            log.run.started = f"2026-01-01T00:00:00.{number:03d}+00:00"
    assert [run.flow for run in list_runs(store)] == [f"flow{number}" for number in reversed(range(20))]
    assert get_run(store, "latest").flow == "flow19"


def test_damaged_records_are_passed_over(store: Store) -> None:
    with RunLog(store, "index", {}) as log:
        pass
    (store.root / "runs" / "20990101-000000-0000.json").write_text('{"id": 1')
    (store.root / "runs" / ".x.json.0123").write_text("half")
    assert [run.id for run in list_runs(store)] == [log.run.id]


def test_names_of_runs(store: Store) -> None:
    with pytest.raises(ValueError, match="none yet"):
        get_run(store, "latest")
    for _ in range(2):
        with RunLog(store, "index", {}) as log:
            pass
    assert get_run(store, log.run.id).id == log.run.id
    for name in ("", "2", "../../etc", "nothing"):
        with pytest.raises(ValueError, match=f"{log.run.id}"):
            get_run(store, name)


def test_the_newest_records_are_kept(store: Store) -> None:
    for _ in range(3):
        with RunLog(store, "index", {}):
            pass
    newest, *others = [run.id for run in list_runs(store)]
    with pytest.raises(ValueError, match="keep is -1"):
        delete_runs(store, -1)
    assert delete_runs(store, 1) == others
    assert [run.id for run in list_runs(store)] == [newest]


def test_so_many_runs_are_the_newest_of_all(store: Store) -> None:
    for second, millisecond in ((1, 5), (2, 7), (2, 9), (2, 8), (3, 1)):
        log = RunLog(store, "index", {})
        log.run.id = f"20260101-00000{second}-{millisecond:04d}"
        log.run.started = f"2026-01-01T00:00:0{second}.{millisecond:03d}+00:00"
        with log:
            pass
    runs = list_runs(store)
    assert [run.id[-6:] for run in runs] == ["3-0001", "2-0009", "2-0008", "2-0007", "1-0005"]
    for newest in range(6):
        assert list_runs(store, newest=newest) == runs[:newest]


class Clock(datetime):
    """One that somebody sets."""

    moment = datetime(2026, 6, 1, 12, tzinfo=UTC)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return cls.moment


def test_the_newest_run_is_the_latest_though_the_clock_is_set_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longloom.storage.runs.datetime", Clock)
    for number, change in enumerate((0.0, -3600.0, 0.0, 7200.0, -86400.0)):
        monkeypatch.setattr(Clock, "moment", Clock.moment + timedelta(seconds=change))
        with RunLog(store, f"flow{number}", {}) as log:
            monkeypatch.setattr(Clock, "moment", Clock.moment - timedelta(seconds=60))  # also while it runs
        assert log.run.ended >= log.run.started
        assert get_run(store, "latest").flow == f"flow{number}"
    assert [run.flow for run in list_runs(store)] == [f"flow{number}" for number in reversed(range(5))]
    assert len(delete_runs(store, 1)) == 4
    assert get_run(store, "latest").flow == "flow4"


def test_no_run_starts_while_artifacts_are_deleted(store: Store) -> None:
    log = RunLog(store, "index", {})
    with starting(store):
        starter = threading.Thread(target=log.__enter__)
        starter.start()
        starter.join(0.3)
        assert starter.is_alive()
        assert list_runs(store) == []
    starter.join(30)
    assert [run.state for run in list_runs(store)] == ["running"]
    log.__exit__(None, None, None)


@pytest.mark.parametrize("content", ['{"id": 1', "", "{}"])
def test_a_record_that_cannot_be_read_is_named(store: Store, content: str) -> None:
    with RunLog(store, "index", {}) as log:
        check_records(store)
    (store.root / "runs" / "._x.json").write_text("?")  # of another system, no record of ours
    check_records(store)
    record = store.root / "runs" / f"{log.run.id}.json"
    record.write_text(content)
    with pytest.raises(ValueError, match=f"^{record}: cannot be read, expected the record of a run") as caught:
        check_records(store)
    assert "\n" not in str(caught.value)


def test_the_oldest_run_that_did_not_complete(store: Store) -> None:
    assert unfinished_since(list_runs(store)) is None
    for second, state in enumerate(("completed", "interrupted", "failed", "completed")):
        with RunLog(store, "index", {}) as log:
            pass
        log.run.state, log.run.started = state, f"2026-01-01T00:00:0{second}.000+00:00"
        store.write_record(f"runs/{log.run.id}.json", log.run.model_dump_json())
    runs = list_runs(store)
    assert unfinished_since(runs) == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC).timestamp()
    assert unfinished_since([run for run in runs if run.state == "completed"]) is None
    runs[1].started = "at noon"
    assert unfinished_since(runs) == 0
