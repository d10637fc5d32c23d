"""Prefect tasks of the replication: what no other stage measures, and the table of claims."""

from __future__ import annotations

import hashlib
from typing import Any

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage


@stage("shuffled-heads", kind="heads", version=1)
def _shuffled(work: Work, *, seed: int) -> Stats:
    from longloom.tasks.replicate.shuffled import build

    return build(work.inputs["heads"], work.out, seed=seed)


@stage("minisequence-memory", version=1, gpu=True)
def _memory(work: Work, *, seeds: int) -> Stats:
    from longloom.tasks.replicate.memory import build

    return build(work.inputs["model"], work.out, seeds=seeds, progress=work.progress)


@stage("replicate", version=3)
def _replicate(work: Work, *, papers: list[str], claims: str) -> Stats:
    from longloom.tasks.replicate.build import build

    places = {name: ref.uri for name, ref in work.refs.items()}
    return build(work.inputs, places, work.out, papers=papers)


def shuffle_heads(store: Store, heads: ArtifactRef, *, label: str, seed: int) -> ArtifactRef:
    """A head profile that protects as many heads, drawn at random."""
    return _shuffled(store, {"heads": heads}, label=label, seed=seed)


def minisequence_memory(store: Store, model: ArtifactRef, *, seeds: int) -> ArtifactRef:
    """The longest sequence of a training step by how it is computed, and whether its gradients are the same."""
    return _memory(store, {"model": model}, seeds=seeds)


def replicate(store: Store, evidence: dict[str, ArtifactRef], *, papers: list[str]) -> ArtifactRef:
    """The table of claims.

    Args:
        store: where it goes.
        evidence: role and seed of each measured artifact -> the artifact, as `tasks.replicate.measures` names them, and
            `report`, the page that shows them.
        papers: whose claims to list, by their short names.
    """
    from longloom.tasks.replicate.claims import CLAIMS

    # The claims and their rules are data: with other ones it is another table.
    digest = hashlib.sha256(repr(CLAIMS).encode()).hexdigest()[:16]
    options: dict[str, Any] = {"papers": papers, "claims": digest}
    return _replicate(store, evidence, **options)
