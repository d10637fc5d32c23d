"""Prefect task of the evaluation stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage


@stage("evaluation", version=1, runtime=("device",), resumable=True)
def _evaluate(work: Work, *, data: str | None, **options: Any) -> Stats:
    from longloom.tasks.longcontext.evaluate import build

    folder = work.inputs.get("data") or (Path(data) if data else None)
    return build(work.inputs["model"], folder, work.out, progress=work.progress, **options)


def check_names(suite: str, policies: list[str]) -> None:
    """To be called before any work is done.

    Raises:
        ValueError: an unknown suite or KV policy.
    """
    from longloom.evals.registry import check_name as check_suite
    from longloom.kernels.kvcache.registry import check_name as check_policy

    check_suite(suite)
    for policy in policies:
        check_policy(policy)


def evaluate(
    store: Store, model: ArtifactRef, data: ArtifactRef | str | None, *, label: str, **options: Any
) -> ArtifactRef:
    """Scores of a model on a suite under one KV policy.

    Args:
        store: where they go.
        model: to be evaluated.
        data: an artifact, a folder or file in the suite's format, or None for the hub's data set.
        label: for the run's name.
        options: of tasks/longcontext/evaluate.py's `build`.
    """
    inputs = {"model": model}
    identity = {}
    place = None
    if isinstance(data, ArtifactRef):
        inputs["data"] = data
    elif data is not None:
        from longloom.storage.fingerprint import fingerprint_folder

        identity["data"], place = fingerprint_folder(store, Path(data)), data
    return _evaluate(store, inputs, label=label, identity=identity, data=place, **options)
