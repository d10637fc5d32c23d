"""`run:ID:LABEL`: an artifact of this label that an earlier run used or made."""

from __future__ import annotations

from pathlib import Path

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import get_run, list_runs
from longloom.storage.store import Store
from longloom.tasks.console import console

RUN_PREFIX = "run:"
#: Labels that an error lists: a sweep has dozens.
_LISTED = 12


def of_run(store: Store, source: str, kind: str) -> ArtifactRef:
    """The artifact `run:ID:LABEL`; with the ID `latest`, of the newest run that has it.

    Args:
        store: with the runs.
        source: `run:ID:LABEL`.
        kind: of the artifact.

    Raises:
        ValueError: no such run, or no artifact of this kind has that label in it.
    """
    name, _, label = source.removeprefix(RUN_PREFIX).partition(":")
    runs = list_runs(store) if name == "latest" else [get_run(store, name)]
    known: dict[str, None] = {}
    for run in runs:
        found = {key: ref for key, ref in run.stages.items() if ref.kind == kind and key != "tokenizer"}
        if label in found:
            return found[label]
        known |= dict.fromkeys(found)
    labels = ", ".join(list(known)[:_LISTED]) or "none"
    if len(known) > _LISTED:
        labels += f" and {len(known) - _LISTED} more"
    raise ValueError(
        f"{kind} {source!r}: no such {kind}, expected {RUN_PREFIX}{name}:LABEL; the labels there: {labels}"
    )


def index_of(store: Store, given: str | None) -> ArtifactRef | str:
    """The n-gram index that is asked for: `run:ID:LABEL`, a folder, or None for that of the newest run that has one.

    Where the store has several and none is named, a line on the error stream tells which it is.

    Returns:
        The artifact; a folder that is none of this store's as it was given.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is none.
    """
    if given is not None and given.startswith(RUN_PREFIX):
        return of_run(store, given, "index")
    found = [manifest.ref() for manifest in store.manifests() if manifest.kind == "index"]
    if given is None:
        if not found:
            raise ValueError(f"store {store.address}: holds no index; build one with `longloom index SOURCE`")
        return _newest(store, found)
    place = Path(given).resolve()
    if not place.is_dir():
        raise FileNotFoundError(f"{given}: no such folder, expected one of an index")
    return next((ref for ref in found if (store.root / ref.uri).resolve() == place), given)


def _newest(store: Store, indexes: list[ArtifactRef]) -> ArtifactRef:
    """Of the newest run that has one: a run that found it unchanged asked for it last, however long ago it was built.

    Args:
        store: of the runs.
        indexes: all that are there, oldest first; the last one is taken where no run on record has any.
    """
    there = {ref.uri: ref for ref in indexes}
    used = (
        (there[ref.uri], f"{RUN_PREFIX}{run.id}:{label}")
        for run in list_runs(store)
        for label, ref in reversed(run.stages.items())  # a deletion comes after the index that it is made of
        if ref.uri in there
    )
    ref, name = next(used, (indexes[-1], indexes[-1].uri))
    if len(indexes) > 1:
        console().print(f"asks {name}, of {len(indexes)} indexes in the store", style="dim", markup=False)
    return ref
