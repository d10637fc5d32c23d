"""Prefect tasks of head profiles: which KV heads of a model look things up, by a probe or from published scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from longloom.storage.fingerprint import fingerprint, fingerprint_folder
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage


@stage("heads", version=2, runtime=("device",), gpu=True)
def _heads(
    work: Work,
    *,
    probe: Mapping[str, Any] | None,
    scores: str | None,
    layout: str | None,
    device: str | None,
    dtype: str | None,
) -> Stats:
    from longloom.kernels.dispatch import record_choices
    from longloom.tasks.longcontext.heads import build

    with record_choices() as ran:
        stats = build(
            work.inputs["model"],
            work.out,
            probe=probe,
            scores=Path(scores) if scores else None,
            layout=layout,
            device=device,
            dtype=dtype,
            progress=work.progress,
        )
    return replace(stats, values=stats.values | {"kernels": sorted(ran)})


def heads(
    store: Store,
    model: ArtifactRef,
    *,
    label: str,
    length: int | None,
    repeats: int,
    seed: int,
    scores: str | None,
    layout: str | None,
) -> ArtifactRef:
    """The head profile of a model, by a probe or from published scores.

    Args:
        store: where it goes.
        model: to be profiled.
        label: for the run's name.
        length, repeats, seed: of the probe, as `tasks.longcontext.heads.probed` takes them.
        scores, layout: a file and its layout, in place of the probe; None: there is none.
    """
    imported = scores is not None
    return _heads(
        store,
        {"model": model},
        label=label,
        identity={"scores": fingerprint_folder(store, Path(scores))} if scores is not None else {},
        probe=None if imported else {"length": length, "repeats": repeats, "seed": seed},
        scores=scores,
        layout=layout,
        device=None,
        dtype=None,
    )


def profile_file(store: Store, heads: ArtifactRef | str) -> Path:
    """The file of a head profile."""
    place = store.open(heads) if isinstance(heads, ArtifactRef) else Path(heads)
    if not place.is_dir():
        return place
    from longloom.tasks.longcontext.heads import PROFILE

    return place / PROFILE


def profile_digest(store: Store, heads: ArtifactRef | str | None) -> str:
    """What stands for a head profile in a key."""
    assert heads is not None, "a policy that needs a head profile runs along, and no profile was handed over"
    return heads.digest if isinstance(heads, ArtifactRef) else fingerprint(store, [profile_file(store, heads)])
