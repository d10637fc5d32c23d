"""Prefect tasks of the coreset: gradient features, then one selection a method."""

from __future__ import annotations

from typing import Any

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage


@stage("features", version=1, resumable=True)
def _features(work: Work, *, dimension: int, seed: int, max_length: int) -> Stats:
    from longloom.tasks.coreset.features import build

    return build(
        work.inputs["model"],
        work.inputs["instructions"],
        work.inputs["warmup"],
        work.out,
        dimension=dimension,
        seed=seed,
        max_length=max_length,
        progress=work.progress,
    )


@stage("coreset", version=1)
def _select(work: Work, **options: Any) -> Stats:
    from longloom.tasks.coreset.select import build

    return build(work.inputs["instructions"], work.inputs.get("features"), work.out, progress=work.progress, **options)


def gradient_features(
    store: Store, model: ArtifactRef, instructions: ArtifactRef, warmup: ArtifactRef, **options: Any
) -> ArtifactRef:
    """Adam-adjusted, projected, normalised gradients of every example, summed over the warm-up's checkpoints."""
    inputs = {"model": model, "instructions": instructions, "warmup": warmup}
    return _features(store, inputs, **options)


def check_methods(methods: list[str]) -> None:
    """To be called before any work is done.

    Raises:
        ValueError: an unknown method.
    """
    from longloom.tasks.coreset.registry import check_name

    for method in methods:
        check_name(method)


def needs_features(method: str) -> bool:
    """Whether a selection method looks at gradients.

    Raises:
        ValueError: an unknown method.
    """
    from longloom.tasks.coreset.registry import get_method

    return bool(get_method(method).needs_features)


def select(
    store: Store, instructions: ArtifactRef, features: ArtifactRef | None, *, method: str, **options: Any
) -> ArtifactRef:
    """The chosen examples, with weights and clusters."""
    inputs = {"instructions": instructions} | ({"features": features} if features else {})
    return _select(store, inputs, label=method, method=method, **options)
