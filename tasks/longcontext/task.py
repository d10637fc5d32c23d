"""Prefect tasks of the evaluation stage: a model of ours under a KV policy, or a model behind an endpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longloom.storage.fingerprint import fingerprint, fingerprint_folder
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage
from longloom.tasks.suite_data import HARNESS, suite_data

#: Version of what evaluations of lm-eval's tasks hold beside those of our suites, whose keys it leaves alone.
_HARNESS_TABLES = "tables-2"

#: A KV policy's name and its options.
Policy = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class KnownPolicy:
    """A KV policy that there is.

    Attributes:
        name: its name.
        options: those that differ from their defaults, so that equal settings are equal.
        text: both, as results have it.
        profiled: whether it needs the model's head profile.
    """

    name: str
    options: Mapping[str, Any]
    text: str
    profiled: bool


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


@stage("evaluation", version=5, runtime=("device", "together", "heads"), resumable=True, retries=True, gpu=True)
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

    profile = None if heads is None else HeadProfile.read(_profile_file(work.store, heads))
    companions = []
    with ExitStack() as stack:
        if best_of is None and isinstance(get_policy(policy, **policy_options), SharedPrefillPolicy):
            for name, settings in together:
                other = get_policy(name, **settings)
                if isinstance(other, SharedPrefillPolicy):
                    digest = _profile_digest(work.store, heads) if other.profiled else None
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


@stage("judge", version=1, runtime=("timeout", "retries", "at_once", "per_minute"), resumable=True, retries=True)
def _judge(
    work: Work, *, answers: str | None, against: str | None, data: str | None, task: str, **endpoint: Any
) -> Stats:
    from longloom.tasks.longcontext.backends import EndpointBackend
    from longloom.tasks.longcontext.judge import LEDGER, build

    _take_up(work, LEDGER)
    places = {"answers": answers, "against": against, "data": data}
    found = {name: work.inputs.get(name) or (Path(place) if place else None) for name, place in places.items()}
    client = EndpointBackend(**endpoint, api="chat", tokenizer=None).client()
    assert found["answers"] is not None
    assert found["against"] is not None
    return build(
        found["answers"], found["against"], found["data"], work.out, task=task, client=client, progress=work.progress
    )


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

    _take_up(work, LEDGER)
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


def _take_up(work: Work, ledger: str) -> None:
    """What had not failed in the artifact that is built again."""
    if work.earlier is not None and not (work.out / ledger).exists():
        shutil.copy(work.earlier / ledger, work.out / ledger)


def _profile_file(store: Store, heads: ArtifactRef | str) -> Path:
    """The file of a head profile."""
    place = store.open(heads) if isinstance(heads, ArtifactRef) else Path(heads)
    if not place.is_dir():
        return place
    from longloom.tasks.longcontext.heads import PROFILE

    return place / PROFILE


def _profile_digest(store: Store, heads: ArtifactRef | str | None) -> str:
    """What stands for a head profile in a key."""
    assert heads is not None, "a policy that needs a head profile runs along, and no profile was handed over"
    return heads.digest if isinstance(heads, ArtifactRef) else fingerprint(store, [_profile_file(store, heads)])


def check_names(suite: str, tasks: Sequence[str]) -> None:
    """To be called before any work is done.

    Raises:
        ValueError: an unknown suite, the harness's suite without tasks.
    """
    from longloom.evals.registry import check_name as check_suite

    if suite == HARNESS:
        if not tasks:
            raise ValueError(f"suite {HARNESS!r} has no tasks of its own, expected some names of the harness's tasks")
    else:
        try:
            check_suite(suite)
        except ValueError as error:
            raise ValueError(f"{error}, and {HARNESS}") from None


def check_tasks(suite: str, tasks: Sequence[str], data: str | None) -> None:
    """Whether a suite knows these tasks, as far as can be told before there is a model; to be called before any work.

    Raises:
        ValueError: an unknown task, with the known ones; data that the suite cannot open.
    """
    from longloom.evals.registry import open_suite, suite_class
    from longloom.evals.suite import Source

    if not tasks or suite == HARNESS or makes_prompts(suite):
        return
    if data is None and suite_class(suite).hub is None:  # records that a run makes on its way
        return
    opened = open_suite(suite, Source(None if data is None else Path(data)))
    for task in tasks:
        opened.metric(task)


def known_policies(policies: Sequence[Policy]) -> list[KnownPolicy]:
    """The KV policies of these names and options, in order.

    Raises:
        ValueError: an unknown one or option of one, an option out of range, one listed twice.
    """
    from longloom.kernels.kvcache.registry import get_policy, policy_settings, policy_text

    found: list[KnownPolicy] = []
    for name, options in policies:
        policy = get_policy(name, **options)
        known = KnownPolicy(name, policy_settings(policy), policy_text(policy), policy.profiled)
        if known in found:  # in whatever words
            raise ValueError(f"KV policy {name!r} is listed twice with the same options")
        found.append(known)
    return found


def options_of(suite: str, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered options that a suite has."""
    from longloom.evals.registry import suite_class

    names = () if suite == HARNESS else suite_class(suite).option_names
    return {name: offered[name] for name in names if name in offered}


def check_judged(task: str) -> None:
    """Raises ValueError for what is no open-ended task of L-Eval, with those that are."""
    from longloom.evals.leval.tasks import OPEN

    if task not in OPEN:
        raise ValueError(f"task {task!r} has no answers to judge; L-Eval's open-ended tasks: {', '.join(OPEN)}")


def check_contexts(suite: str) -> None:
    """Raises ValueError for the suite whose prompts no retriever can look into."""
    if suite == HARNESS:
        raise ValueError(f"suite {HARNESS!r} tells no context from its prompts, so nothing can be retrieved")


def makes_prompts(suite: str) -> bool:
    """Whether a suite makes prompts of given lengths, for which it needs the tokenizer of the model under test."""
    from longloom.evals.registry import suite_class

    return suite != HARNESS and "lengths" in suite_class(suite).option_names


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
    if best_of is not None:  # else no part of the key
        inputs["reward"] = best_of.reward
        options["best_of"] = {"samples": best_of.samples, "temperature": best_of.temperature, "seed": best_of.seed}
    options |= {
        "policy": policy.name,
        "policy_options": policy.options,
        "together": [(other.name, other.options) for other in together],
        "heads": heads,
    }
    # A digest of its own in place of an input: the others of the run need the profile too, and not in their keys.
    identity = {"heads": _profile_digest(store, heads)} if policy.profiled else {}
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


def judge(
    store: Store,
    answers: ArtifactRef | str,
    against: ArtifactRef | str,
    data: ArtifactRef | str | None,
    *,
    label: str,
    **options: Any,
) -> ArtifactRef:
    """Which of two models answers L-Eval's open-ended questions better, by a judge behind an endpoint.

    Args:
        store: where it goes.
        answers, against: an evaluation, or an official prediction file.
        data: L-Eval's records, which an evaluation's questions come from; None: the hub's.
        label: for the run's name.
        options: of the stage.
    """
    inputs: dict[str, ArtifactRef] = {}
    identity: dict[str, str] = {}
    places: dict[str, str | None] = {}
    for name, place in (("answers", answers), ("against", against)):
        places[name] = None
        if isinstance(place, ArtifactRef):
            inputs[name] = place
        else:
            identity[name], places[name] = fingerprint_folder(store, Path(place)), place
    if inputs:  # two prediction files hold their questions
        source = suite_data(store, "leval", data)
        inputs, identity, places["data"] = inputs | source.inputs, identity | source.identity, source.place
    else:
        places["data"] = None
    return _judge(store, inputs, label=label, identity=identity, **places, **options)


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
        identity = {**identity, "harness": _HARNESS_TABLES}
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
