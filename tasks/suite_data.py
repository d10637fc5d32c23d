"""Where a suite's records come from, as a stage needs to know it: an input, or a place and its digest."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from longloom.storage.fingerprint import fingerprint, fingerprint_folder
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store

#: The suite that stands for any task of lm-eval, whose tasks know their data themselves.
HARNESS = "lm-eval"


class SuiteData(NamedTuple):
    """Attributes: inputs, identity: for the stage's key. place: what its parameter `data` gets."""

    inputs: dict[str, ArtifactRef]
    identity: dict[str, str]
    place: str | None


def suite_data(store: Store, suite: str, data: ArtifactRef | str | None) -> SuiteData:
    """Identifies records by their bytes (and of one file also by what its suite reads beside it), the hub's by commit.

    Of lm-eval's tasks `longcontext.harness_data` tells the rest.

    Args:
        store: remembers fingerprints.
        suite: its name.
        data: an artifact, a folder or file, or None for the hub's data set.

    Raises:
        ValueError: an unknown suite, no such place, a data set that neither the hub nor its local cache has.
    """
    if isinstance(data, ArtifactRef):
        return SuiteData({"data": data}, {}, None)
    from longloom.evals.registry import suite_class

    if data is not None:
        place = Path(data)
        beside = suite_class(suite).files_beside(place) if suite != HARNESS and place.is_file() else []
        if beside:
            return SuiteData({}, {"data": fingerprint(store, [place, *beside], base=place.parent)}, data)
        return SuiteData({}, {"data": fingerprint_folder(store, place)}, data)
    repository = None if suite == HARNESS else suite_class(suite).hub
    if repository is None:  # it makes its records itself, or says that it needs data
        return SuiteData({}, {}, None)
    from longloom.evals.hub import revision

    return SuiteData({}, {"data": f"hub:{repository}@{revision(repository)}"}, None)
