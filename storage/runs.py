"""Records of runs: which artifacts a flow run used and made. Small JSON files, so that no database must be running."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from filelock import Timeout
from pydantic import BaseModel, Field, ValidationError

from longloom.storage.atomic import write_atomic
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store


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
    system frees it when the process dies, whatever its record says.
    """

    def __init__(self, store: Store, flow: str, parameters: Mapping[str, object]) -> None:
        now = datetime.now(UTC)
        self.store = store
        self.run = Run(
            id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
            flow=flow,
            state="running",
            started=now.isoformat(timespec="milliseconds"),
            parameters=dict(parameters),
        )
        self._alive = store.file_lock(_lock_name(self.run.id))

    def __enter__(self) -> RunLog:
        self._alive.acquire()  # before the record is there for others to see
        try:
            self._write()
        except BaseException:
            self._free()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self.run.state = "completed" if kind is None else "failed"
        self.run.ended = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            # On a full disk the first error is the one to tell; the record, left as it was, will say `interrupted`.
            with contextlib.suppress(*(() if kind is None else (OSError,))):
                self._write()
        finally:
            self._free()

    def add(self, label: str, ref: ArtifactRef) -> ArtifactRef:
        """Notes an artifact under a label and hands it through."""
        self.run.stages[label] = ref
        self._write()
        return ref

    def _free(self) -> None:
        Path(self._alive.lock_file).unlink(missing_ok=True)  # the id is this run's own: nobody waits for it
        self._alive.release()

    def _write(self) -> None:
        write_atomic(_place(self.store, self.run.id), self.run.model_dump_json(indent=1) + "\n")


def list_runs(store: Store) -> list[Run]:
    """All runs that can be read, newest first; one whose process died is `interrupted`."""
    found = []
    for path in store.root.glob("runs/*.json"):
        try:
            run = Run.model_validate_json(path.read_bytes())
            if run.state == "running" and not _is_alive(store, run.id):
                # It may have ended between the reading and the look at its lock.
                run = Run.model_validate_json(path.read_bytes())
                if run.state == "running":
                    run.state = "interrupted"
        except (OSError, ValidationError):  # deleted meanwhile, or damaged
            continue
        found.append(run)
    return sorted(found, key=lambda run: (run.started, run.id), reverse=True)


def _is_alive(store: Store, name: str) -> bool:
    lock = store.root / "locks" / f"{_lock_name(name)}.lock"
    if not lock.exists():
        return False
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
    runs = list_runs(store)
    if name == "latest" and runs:
        return runs[0]
    matching = [run for run in runs if run.id.startswith(name)]
    if len(matching) != 1:
        known = ", ".join(run.id for run in runs[:5]) or "none yet"
        raise ValueError(f"run {name!r}: {len(matching)} match in the store {store.root}; the newest are: {known}")
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
        _place(store, name).unlink(missing_ok=True)
        (store.root / "locks" / f"{_lock_name(name)}.lock").unlink(missing_ok=True)
    return gone


def _place(store: Store, name: str) -> Path:
    return store.root / "runs" / f"{name}.json"
