"""Prefect tasks of the coreset: gradient features, then one selection a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage


@stage("features", version=5, runtime=("threads", "workers"), resumable=True, gpu=True)
def _features(work: Work, **options: Any) -> Stats:
    from longloom.tasks.coreset.features import build

    return build(
        work.inputs["model"],
        work.inputs["instructions"],
        work.inputs["warmup"],
        work.out,
        device=None,
        progress=work.progress,
        **options,
    )


@stage("import-warmup", kind="warmup", version=2)
def _import_warmup(work: Work, *, warmup: str) -> Stats:
    from longloom.tasks.coreset.foreign import build

    return build(work.inputs["model"], Path(warmup), work.out)


@stage("coreset", version=3, runtime=("threads", "workers"))
def _select(work: Work, **options: Any) -> Stats:
    from longloom.tasks.coreset.select import build

    return build(
        work.inputs["instructions"],
        work.inputs.get("features"),
        work.out,
        targets=work.inputs.get("targets"),
        target_features=work.inputs.get("target_features"),
        progress=work.progress,
        **options,
    )


def gradient_features(
    store: Store,
    model: ArtifactRef,
    instructions: ArtifactRef,
    warmup: ArtifactRef,
    *,
    adam: bool = True,
    bias_correction: bool = False,
    threads: int = 2,
    workers: str = "threads",
    **options: Any,
) -> ArtifactRef:
    """Adam-adjusted, projected, normalised gradients of every example at each of the warm-up's checkpoints."""
    inputs = {"model": model, "instructions": instructions, "warmup": warmup}
    return _features(
        store, inputs, adam=adam, bias_correction=bias_correction and adam, threads=threads, workers=workers, **options
    )


def import_warmup(store: Store, model: ArtifactRef, folder: str) -> ArtifactRef:
    """A warm-up made elsewhere: a folder of checkpoints of LESS or of a Hugging Face Trainer.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    from longloom.storage.fingerprint import fingerprint_folder

    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"coreset.warmup: found no folder {folder}, expected one of checkpoint-* folders")
    identity = {"warmup": fingerprint_folder(store, place)}
    return _import_warmup(store, {"model": model}, label=place.name, identity=identity, warmup=folder)


def check_methods(methods: Sequence[str], targets: Sequence[str] = ()) -> None:
    """To be called before any work is done.

    Args:
        methods: names of selection methods.
        targets: the files of validation examples.

    Raises:
        ValueError: an unknown method, a method that needs targets without any, or targets without such a method.
    """
    from longloom.tasks.coreset.registry import check_name

    for method in methods:
        check_name(method)
    targeted = [method for method in methods if needs(method, "targets")]
    if targeted and not targets:
        raise ValueError(f"selection method {targeted[0]!r} needs validation examples (targets), found none")
    if targets and not targeted:
        raise ValueError(
            f"targets: found {', '.join(targets)}, expected none for {', '.join(methods)}, which do not look at them"
        )


def check_budget(share: float | None, count: int | None, instructions: ArtifactRef) -> None:
    """To be called as soon as the pool is there.

    Raises:
        ValueError: more examples asked for than the pool has.
    """
    from longloom.tasks.coreset.budgets import resolve

    resolve(share, count, pool_size(instructions))


def pool_size(pool: ArtifactRef) -> int:
    """The examples of instructions, or the pairs of comparisons."""
    return pool.counts["comparisons" if pool.kind == "comparisons" else "examples"]


def needs(method: str, *what: str) -> bool:
    """Whether a selection method looks at any of some things (`registry.NEEDS`).

    Raises:
        ValueError: an unknown method.
    """
    from longloom.tasks.coreset.registry import get_method

    return bool(get_method(method).needs & set(what))


def needs_features(method: str) -> bool:
    """Whether a selection method looks at what the features stage makes: gradients or losses.

    Raises:
        ValueError: an unknown method.
    """
    return needs(method, "features", "losses")


def select(
    store: Store,
    instructions: ArtifactRef,
    features: ArtifactRef | None,
    *,
    method: str,
    targets: tuple[ArtifactRef, ArtifactRef] | None = None,
    **options: Any,
) -> ArtifactRef:
    """The chosen examples, with weights and clusters; `targets`: validation examples and their features."""
    inputs = {"instructions": instructions} | ({"features": features} if features else {})
    if targets is not None:
        inputs |= dict(zip(("targets", "target_features"), targets, strict=True))
    return _select(store, inputs, label=method, method=method, **options)
