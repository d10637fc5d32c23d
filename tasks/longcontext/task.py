"""Prefect tasks of the evaluation stage: a model of ours under a KV policy, or a model behind an endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longloom.storage.fingerprint import fingerprint_folder
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.longcontext.asked import KnownPolicy, Policy
from longloom.tasks.longcontext.heads_task import profile_digest, profile_file
from longloom.tasks.stage import Work, stage
from longloom.tasks.suite_data import HARNESS, suite_data

#: Version of what evaluations of lm-eval's tasks hold beside those of our suites, whose keys it leaves alone.
_HARNESS_TABLES = "tables-2"
#: Version of how a reward model is asked that picks among several answers; of the keys of such evaluations alone.
_PICKING = "opened-1"


@dataclass(frozen=True)
class Passages:
    """What stands in for the contexts.

    Attributes:
        ref: from the retrieval stage.
        k, budget, order: how much of it and in which order, as `tasks.retrieval.select.select` takes them.
        label: names it in results and runs.
    """

    ref: ArtifactRef
    k: int | None
    budget: int | None
    order: str
    label: str


@dataclass(frozen=True)
class BestAnswers:
    """Several sampled answers a prompt, of which a reward model picks one.

    Attributes:
        reward: the reward model.
        samples, temperature, seed: of the sampling.
    """

    reward: ArtifactRef
    samples: int
    temperature: float
    seed: int


@stage("evaluation", version=8, runtime=("device", "together", "heads"), resumable=True, retries=True, gpu=True)
def _evaluate(
    work: Work,
    *,
    policy: str,
    policy_options: Mapping[str, Any],
    together: Sequence[Policy],
    heads: ArtifactRef | str | None,
    device: str | None,
    dtype: str | None,
    best_of: Mapping[str, Any] | None = None,
    **options: Any,
) -> Stats:
    from longloom.kernels.dispatch import record_choices
    from longloom.kernels.kvcache.base import SharedPrefillPolicy
    from longloom.kernels.kvcache.heads import HeadProfile
    from longloom.kernels.kvcache.registry import get_policy
    from longloom.tasks.longcontext.backends import BestOf, Companion, PolicyBackend

    profile = None if heads is None else HeadProfile.read(profile_file(work.store, heads))
    companions = []
    with ExitStack() as stack:
        if best_of is None and isinstance(get_policy(policy, **policy_options), SharedPrefillPolicy):
            for name, settings in together:
                other = get_policy(name, **settings)
                if isinstance(other, SharedPrefillPolicy):
                    digest = profile_digest(work.store, heads) if other.profiled else None
                    sibling = work.sibling({"heads": digest}, policy=name, policy_options=settings)
                    folder = stack.enter_context(sibling)
                    if folder is not None:
                        companions.append(Companion(name, settings, folder))
        best = None if best_of is None else BestOf(work.inputs["reward"], **best_of)
        backend = PolicyBackend(work.inputs["model"], policy, policy_options, device, dtype, companions, profile, best)
        with record_choices() as ran:
            stats = _build(work, backend, **options)
        return replace(stats, values=stats.values | {"kernels": sorted(ran)})


@stage(
    "endpoint-evaluation",
    version=2,
    kind="evaluation",
    runtime=("timeout", "retries", "at_once", "per_minute"),
    resumable=True,
    retries=True,
)
def _ask(
    work: Work,
    *,
    url: str,
    model: str,
    api: str,
    tokenizer: str | None,
    timeout: float,
    retries: int,
    at_once: int,
    per_minute: float | None,
    **options: Any,
) -> Stats:
    from longloom.tasks.longcontext.backends import EndpointBackend

    backend = EndpointBackend(url, model, api, tokenizer, timeout, retries, at_once, per_minute)
    return _build(work, backend, batch_size=at_once, **options)


def _build(
    work: Work,
    backend: Any,
    *,
    data: str | None,
    suite: str,
    suite_options: Mapping[str, Any],
    retrieval: dict[str, Any] | None,
    contamination: str | None = None,
    **options: Any,
) -> Stats:
    """What both have in common: the records' place, the harness's tasks or a suite of ours, the passages."""
    from longloom.tasks.longcontext.backends import LEDGER

    work.take_up(LEDGER)
    folder = work.inputs.get("data") or (Path(data) if data else None)
    if suite == HARNESS:
        from longloom.tasks.longcontext.harness import build as build_harness

        assert retrieval is None
        return build_harness(backend, folder, work.out, progress=work.progress, **options)
    from longloom.tasks.longcontext.evaluate import build
    from longloom.tasks.longcontext.retrieved import Retrieval

    return build(
        backend,
        folder,
        work.out,
        suite=suite,
        suite_options=suite_options,
        retrieval=None if retrieval is None else Retrieval(work.inputs["passages"], **retrieval),
        contamination=work.inputs.get("contamination") or (Path(contamination) if contamination else None),
        progress=work.progress,
        **options,
    )


def evaluate(
    store: Store,
    model: ArtifactRef,
    data: ArtifactRef | str | None,
    *,
    policy: KnownPolicy,
    together: Sequence[KnownPolicy],
    heads: ArtifactRef | str | None,
    suite: str,
    label: str,
    passages: Passages | None,
    contamination: ArtifactRef | str | None = None,
    best_of: BestAnswers | None = None,
    **options: Any,
) -> ArtifactRef:
    """Scores of a model on a suite under one KV policy.

    Args:
        store: where they go.
        model: to be evaluated.
        data: an artifact, a folder or file in the suite's format, or None for the hub's data set.
        policy: the KV policy.
        together: the other ones of the run, which may share the prefill.
        heads: the model's head profile, an artifact or a folder or file; needed if any of the policies is profiled, and
            a part of the key of those alone.
        suite: its name.
        label: for the run's name.
        passages: what stands in for the contexts (RAG); None: nothing does.
        contamination: an artifact or its folder, whose flagged records are left out; None: all are asked.
        best_of: how answers are sampled and picked; None: they are greedy.
        options: of the stage.
    """
    inputs = {"model": model}
    # A digest of its own in place of an input: the others of the run need the profile too, and not in their keys.
    identity = {"heads": profile_digest(store, heads)} if policy.profiled else {}
    if best_of is not None:  # else no part of the key
        inputs["reward"] = best_of.reward
        identity["picking"] = _PICKING
        options["best_of"] = {"samples": best_of.samples, "temperature": best_of.temperature, "seed": best_of.seed}
    options |= {
        "policy": policy.name,
        "policy_options": policy.options,
        "together": [(other.name, other.options) for other in together],
        "heads": heads,
    }
    return _with_data(_evaluate, store, inputs, data, suite, label, passages, contamination, options, identity)


def ask(
    store: Store,
    data: ArtifactRef | str | None,
    *,
    suite: str,
    label: str,
    passages: Passages | None,
    contamination: ArtifactRef | str | None = None,
    **options: Any,
) -> ArtifactRef:
    """Scores of a model behind an OpenAI-compatible endpoint; arguments as of `evaluate`, options of its stage."""
    identity = {}
    tokenizer = options["tokenizer"]
    if tokenizer is not None:
        from longloom.tasks.training.imported import revision

        place = Path(tokenizer)
        identity["tokenizer"] = fingerprint_folder(store, place) if place.exists() else revision(tokenizer)
    return _with_data(_ask, store, {}, data, suite, label, passages, contamination, options, identity)


def _with_data(
    stage: Any,
    store: Store,
    inputs: dict[str, ArtifactRef],
    data: ArtifactRef | str | None,
    suite: str,
    label: str,
    passages: Passages | None,
    contamination: ArtifactRef | str | None,
    options: Mapping[str, Any],
    identity: Mapping[str, str],
) -> ArtifactRef:
    source = suite_data(store, suite, data)
    inputs |= source.inputs
    if suite == HARNESS:
        from longloom.tasks.longcontext.harness_data import harness_identity

        folder = store.open(data) if isinstance(data, ArtifactRef) else Path(data) if data else None
        found = harness_identity(store, options["tasks"], folder)
        identity = {**identity, **found, "harness": f"{_HARNESS_TABLES} {found['harness']}"}
    # Given only where there is some, so that the keys of other evaluations stay what they were.
    if isinstance(contamination, ArtifactRef):
        inputs["contamination"] = contamination
    elif contamination is not None:
        identity = {**identity, "contamination": fingerprint_folder(store, Path(contamination))}
        options = {**options, "contamination": contamination}
    retrieval = None
    if passages is not None:
        inputs["passages"] = passages.ref
        retrieval = {name: getattr(passages, name) for name in ("k", "budget", "order", "label")}
    ref: ArtifactRef = stage(
        store,
        inputs,
        label=label,
        identity={**source.identity, **identity},
        data=source.place,
        suite=suite,
        retrieval=retrieval,
        **options,
    )
    return ref
