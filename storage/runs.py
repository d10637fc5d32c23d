"""Records of runs: which artifacts a flow run used and made. Small JSON files, so that no database must be running."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store, write_atomic


class Run(BaseModel):
    """One run of a flow."""

    id: str
    flow: str
    state: str = Field(description="running, completed, failed; a killed run stays running")
    started: str
    ended: str = ""
    parameters: dict[str, object]
    stages: dict[str, ArtifactRef] = Field(
        default_factory=dict, description="label -> artifact, in the order they came"
    )


class RunLog:
    """Keeps the record of a run up to date in `<store>/runs/<id>.json`.

    Used as a context manager: an exception marks the run failed and goes on.
    """

    def __init__(self, store: Store, flow: str, parameters: Mapping[str, object]) -> None:
        now = datetime.now(UTC)
        self.store = store
        self.run = Run(
            id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
            flow=flow,
            state="running",
            started=now.isoformat(timespec="seconds"),
            parameters=dict(parameters),
        )

    def __enter__(self) -> RunLog:
        self._write()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self.run.state = "completed" if kind is None else "failed"
        self.run.ended = datetime.now(UTC).isoformat(timespec="seconds")
        self._write()

    def add(self, label: str, ref: ArtifactRef) -> ArtifactRef:
        """Notes an artifact under a label and hands it through."""
        self.run.stages[label] = ref
        self._write()
        return ref

    def _write(self) -> None:
        write_atomic(_place(self.store, self.run.id), self.run.model_dump_json(indent=1) + "\n")


def list_runs(store: Store) -> list[Run]:
    """All runs that can be read, newest first."""
    found = []
    for path in sorted(store.root.glob("runs/*.json"), reverse=True):
        try:
            found.append(Run.model_validate_json(path.read_bytes()))
        except ValidationError:
            continue
    return found


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
    """Deletes the records of all but the newest `keep` runs; their artifacts then fall to `Store.gc`."""
    gone = [run.id for run in list_runs(store)[keep:]]
    for name in gone:
        _place(store, name).unlink(missing_ok=True)
    return gone


def _place(store: Store, name: str) -> Path:
    return store.root / "runs" / f"{name}.json"
