"""Records of runs: which artifacts a flow run used and made. Small JSON files, so that no database must be running."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError

from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store

#: Length of the date and time in an id.
_SECOND = len("20260101-000000")
#: Kinds of artifacts that show others.
PAGES = ("report", "compare")


class Run(BaseModel):
    """One run of a flow."""

    id: str
    flow: str
    state: str = Field(description="running, completed, failed; interrupted: it was killed")
    started: str
    ended: str = ""
    parameters: dict[str, object]
    stages: dict[str, ArtifactRef] = Field(
        default_factory=dict, description="label -> artifact, in the order they came"
    )


class RunLog:
    """Keeps the record of a run up to date in `<store>/runs/<id>.json`.

    Used as a context manager: an exception marks the run failed and goes on. A lock tells that the run is alive; the
    system frees it when the process dies, whatever its record says. Other hosts, which share no locks, go by the age of
    the record (`Store.keeping`).
    """

    def __init__(self, store: Store, flow: str, parameters: Mapping[str, object]) -> None:
        now = _now(store)
        self.store = store
        self.run = Run(
            id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
            flow=flow,
            state="running",
            started=now.isoformat(timespec="milliseconds"),
            parameters=dict(parameters),
        )
        self._alive = store.file_lock(_lock_name(self.run.id))
        self._guard = threading.RLock()  # `keeping` writes from a thread of its own
        self._kept = contextlib.ExitStack()

    def __enter__(self) -> RunLog:
        self._alive.acquire()  # before the record is there for others to see
        try:
            with starting(self.store):
                self._write()
            self._kept.enter_context(self.store.keeping(self._write))
        except BaseException:
            self._free()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._kept.close()
        self.run.state = "completed" if kind is None else "failed"
        self.run.ended = max(self.run.started, datetime.now(UTC).isoformat(timespec="milliseconds"))
        try:
            # On a full disk the first error is the one to tell; the record, left as it was, will say `interrupted`.
            with contextlib.suppress(*(() if kind is None else (OSError,))):
                self._write()
        finally:
            self._free()

    def add(self, label: str, ref: ArtifactRef) -> ArtifactRef:
        """Notes an artifact under a label and hands it through."""
        with self._guard:
            self.run.stages[label] = ref
            self._write()
        return ref

    def _free(self) -> None:
        Path(self._alive.lock_file).unlink(missing_ok=True)  # the id is this run's own: nobody waits for it
        self._alive.release()

    def _write(self) -> None:
        with self._guard:
            self.store.write_record(_name(self.run.id), self.run.model_dump_json(indent=1) + "\n")


def starting(store: Store) -> FileLock:
    """Held while a run puts itself on record, and to the end by whoever deletes artifacts: no run starts meanwhile.

    It could find one unchanged that is deleted then. Where the store lies in object storage, other hosts do not wait.
    """
    return store.file_lock("gc")


def list_runs(store: Store, *, newest: int | None = None) -> list[Run]:
    """The runs that can be read, newest first; one whose process died is `interrupted`.

    Args:
        store: whose.
        newest: read no more records than these many need; None: all.
    """
    paths = sorted(store.records("runs").glob("*.json"), key=lambda path: path.name, reverse=True)
    found: list[Run] = []
    for path in paths:
        # An id begins with the second of its start; the record tells the order within a second.
        if newest is not None and len(found) >= max(1, newest) and path.name[:_SECOND] < found[-1].id[:_SECOND]:
            break
        if (run := _read(store, path)) is not None:
            found.append(run)
    return sorted(found, key=lambda run: (run.started, run.id), reverse=True)[:newest]


def unfinished_since(runs: Iterable[Run]) -> float | None:
    """When the oldest of the runs that failed or were interrupted started, in seconds since 1970; None: none did.

    Started again, each of them goes on with its half-done work, which `Store.gc` therefore keeps.
    """
    moments = []
    for run in runs:
        if run.state in ("failed", "interrupted"):
            try:
                moments.append(datetime.fromisoformat(run.started).timestamp())
            except (ValueError, OverflowError):  # of a record that is not ours
                moments.append(0.0)
    return min(moments, default=None)


def check_records(store: Store) -> None:
    """Raises a ValueError for a record that cannot be read: nobody knows which artifacts its run needs."""
    for path in sorted(store.records("runs").glob("*.json")):
        if not path.name.startswith(".") and _read(store, path) is None and path.exists():
            raise ValueError(
                f"{store.address}/runs/{path.name}: cannot be read, expected the record of a run; its artifacts are "
                "known from it alone, so mend it, or remove it to give them up"
            )


def _read(store: Store, path: Path) -> Run | None:
    """The run of a record; None: deleted meanwhile, or damaged."""
    try:
        run = Run.model_validate_json(path.read_bytes())
        if run.id == path.stem and run.state == "running" and not _is_alive(store, run.id):
            # It may have ended between the reading and the look at its lock.
            run = Run.model_validate_json(path.read_bytes())
            if run.state == "running":
                run.state = "interrupted"
    except (OSError, ValidationError):
        return None
    return run if run.id == path.stem else None  # an id is a part of paths, and a record of ours has its own


def _now(store: Store) -> datetime:
    """Now, but after the start of every run on record: where the clock was set back, the newest is still the latest."""
    now = datetime.now(UTC)
    for run in list_runs(store, newest=1):
        with contextlib.suppress(ValueError, TypeError, OverflowError):  # of a record that is not ours
            now = max(now, datetime.fromisoformat(run.started) + timedelta(milliseconds=1))
    return now


def _is_alive(store: Store, name: str) -> bool:
    lock = store.root / "locks" / f"{_lock_name(name)}.lock"
    if not lock.exists():
        return store.heard_of(_name(name))
    try:
        with store.file_lock(_lock_name(name)).acquire(blocking=False):
            return False
    except Timeout:
        return True


def _lock_name(name: str) -> str:
    return f"run-{name}"


def get_run(store: Store, name: str) -> Run:
    """The run with this id, a unique beginning of one, or `latest`.

    Raises:
        ValueError: none or several.
    """
    if name == "latest" and (runs := list_runs(store, newest=1)):
        return runs[0]
    named = [path for path in store.records("runs").glob("*.json") if name and path.name.startswith(name)]
    matching = [run for path in named if (run := _read(store, path)) is not None]
    if len(matching) != 1:
        known = ", ".join(run.id for run in list_runs(store, newest=5)) or "none yet"
        raise ValueError(
            f"run {name[:80]!r}: {len(matching)} match in the store {store.address}; the newest are: {known}"
        )
    return matching[0]


def delete_runs(store: Store, keep: int) -> list[str]:
    """Deletes the records of all but the newest `keep` runs; their artifacts then fall to `Store.gc`.

    Runs that are going on are never deleted.

    Raises:
        ValueError: `keep` is negative.
    """
    if keep < 0:
        raise ValueError(f"keep is {keep}, expected at least 0")
    gone = [run.id for run in list_runs(store)[keep:] if run.state != "running"]
    for name in gone:
        store.delete_record(_name(name))
        (store.root / "locks" / f"{_lock_name(name)}.lock").unlink(missing_ok=True)
    return gone


def _name(run: str) -> str:
    """Of a run's record in the store."""
    return f"runs/{run}.json"
