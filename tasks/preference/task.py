"""Prefect tasks of preference data and of reward models: comparisons, their split, training, scores, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.corpus.task import STANDARD_LIBRARY, check_unchanged, identity_of, library_identity
from longloom.tasks.stage import Work, stage

#: How a server is asked is no part of what it is asked.
ASKING = ("timeout", "retries", "at_once", "per_minute")


@stage("comparisons", version=2, runtime=("expected",))
def _comparisons(work: Work, *, expected: str, sources: list[str], contexts: str, on_bad_record: str) -> Stats:
    from longloom.tasks.preference.pairs import build

    stats = build(sources, work.out, contexts=contexts, on_bad_record=on_bad_record, progress=work.progress)
    check_unchanged(work.store, sources, expected)
    return stats


@stage("stdlib-comparisons", kind="comparisons", version=2)
def _library_comparisons(work: Work, *, side: str, rows: int, seed: int) -> Stats:
    from longloom.tasks.corpus.standard_library.preferences import PREFERENCES
    from longloom.tasks.corpus.standard_library.preferences import build as make
    from longloom.tasks.preference.pairs import build

    made = make(work.out, rows=rows, side=side, seed=seed, progress=work.progress)
    read = build([str(work.out / PREFERENCES)], work.out, contexts="criteria", on_bad_record="stop")
    return Stats(counts=made.counts | read.counts, values=made.values | read.values)


@stage("comparisons-split", kind="comparisons", version=2)
def _split(work: Work, **options: Any) -> Stats:
    from longloom.tasks.preference.split import build

    return build(work.inputs["comparisons"], work.out, **options)


@stage("comparisons-coreset", kind="comparisons", version=2)
def _chosen(work: Work) -> Stats:
    from longloom.tasks.preference.chosen import build

    return build(work.inputs["comparisons"], work.inputs["coreset"], work.out)


@stage("reward-model", version=2, resumable=True, gpu=True)
def _reward_model(work: Work, **options: Any) -> Stats:
    from longloom.tasks.preference.training import build

    return build(work.inputs["model"], work.inputs["comparisons"], work.out, progress=work.progress, **options)


@stage("reward-warmup", kind="warmup", version=2, gpu=True)
def _warm_up(work: Work, **options: Any) -> Stats:
    from longloom.tasks.preference.warmup import build

    return build(work.inputs["model"], work.inputs["comparisons"], work.out, progress=work.progress, **options)


@stage("import-reward-model", kind="reward-model", version=1)
def _import(work: Work, *, source: str) -> Stats:
    from longloom.tasks.training.imported import build

    return build(source, work.out)


@stage("reward-scores", version=2, runtime=("expected",), gpu=True)
def _scores(work: Work, *, expected: str, sources: list[str], on_bad_record: str, on_too_long: str) -> Stats:
    from longloom.tasks.preference.scores import build

    stats = build(
        work.inputs["model"],
        sources,
        work.out,
        on_bad_record=on_bad_record,
        on_too_long=on_too_long,
        progress=work.progress,
    )
    check_unchanged(work.store, sources, expected)
    return stats


@stage("contexts", version=1)
def _contexts(work: Work, **options: Any) -> Stats:
    from longloom.tasks.preference.inference import build

    return build(work.inputs["comparisons"], work.inputs.get("train"), work.out, **options)


@stage("endpoint-contexts", kind="contexts", version=1, runtime=ASKING, resumable=True, retries=True)
def _named_contexts(work: Work, *, candidates: int, sampled: int, seed: int, **endpoint: Any) -> Stats:
    from longloom.tasks.preference.selector import LEDGER, build

    return build(
        work.inputs["comparisons"],
        work.inputs.get("train"),
        work.out,
        client=_client(work, LEDGER, **endpoint),
        candidates=candidates,
        sampled=sampled,
        seed=seed,
        progress=work.progress,
    )


@stage("preference-evaluation", version=3, gpu=True)
def _evaluation(work: Work, **options: Any) -> Stats:
    from longloom.tasks.preference.evaluation import build
    from longloom.tasks.preference.scorer import load_scorer
    from longloom.tasks.preference.scoring import fits_of

    scorer = load_scorer(work.inputs["model"])
    return build(
        scorer,
        work.inputs["comparisons"],
        work.inputs.get("contexts"),
        work.out,
        fits=fits_of(scorer),
        progress=work.progress,
        **options,
    )


@stage("preference-judge", version=1, runtime=ASKING, resumable=True, retries=True)
def _judge(work: Work, *, sampled: int, seed: int, **endpoint: Any) -> Stats:
    from longloom.tasks.preference.judge import LEDGER, build

    client = _client(work, LEDGER, **endpoint)
    return build(
        work.inputs["comparisons"], work.out, client=client, sampled=sampled, seed=seed, progress=work.progress
    )


@stage("best-of", version=2, runtime=("expected",), gpu=True)
def _best_of(work: Work, *, expected: str, sources: list[str], on_bad_record: str) -> Stats:
    from longloom.tasks.preference.best_of import build
    from longloom.tasks.preference.scorer import load_scorer
    from longloom.tasks.preference.scoring import fits_of

    scorer = load_scorer(work.inputs["model"])
    stats = build(scorer, sources, work.out, on_bad_record=on_bad_record, fits=fits_of(scorer), progress=work.progress)
    check_unchanged(work.store, sources, expected)
    return stats


def _client(work: Work, ledger: str, **endpoint: Any) -> Any:
    """The server's client, and in the folder what had not failed in the artifact that is built again."""
    from longloom.tasks.longcontext.backends import EndpointBackend

    work.take_up(ledger)
    return EndpointBackend(**endpoint, api="chat", tokenizer=None).client()


def check_template(template: str) -> None:
    """Raises ValueError for a template that lacks a part; to be called before any work is done."""
    from longloom.tasks.preference.template import check

    check(template)


def read_comparisons(
    store: Store, *, sources: list[str], contexts: str, on_bad_record: str, side: str, rows: int, seed: int
) -> ArtifactRef:
    """Comparisons from files, or made from the standard library.

    Args:
        store: where they go.
        sources: places; or `stdlib` alone.
        contexts: `criteria` or `scenario`, of RPR's records.
        on_bad_record: `stop` or `skip`.
        side, rows, seed: of the standard library's: `train`, or which held-out set; reversal pairs; of the draw.
    """
    if sources == [STANDARD_LIBRARY]:
        identity = library_identity(store)
        return _library_comparisons(store, label=side, identity=identity, side=side, rows=rows, seed=seed)
    found = identity_of(store, sources)
    return _comparisons(
        store,
        identity={"sources": found},
        expected=found,
        sources=sources,
        contexts=contexts,
        on_bad_record=on_bad_record,
    )


def split_comparisons(store: Store, comparisons: ArtifactRef, *, part: str, share: float, seed: int) -> ArtifactRef:
    """The comparisons to train on (`train`), or those that are held out (`held-out`), of the same split."""
    return _split(store, {"comparisons": comparisons}, label=part, part=part, share=share, seed=seed)


def choose_comparisons(store: Store, comparisons: ArtifactRef, coreset: ArtifactRef) -> ArtifactRef:
    """Those of the comparisons that a coreset chose."""
    return _chosen(store, {"comparisons": comparisons, "coreset": coreset})


def train_reward_model(
    store: Store, model: ArtifactRef, comparisons: ArtifactRef, *, label: str, **options: Any
) -> ArtifactRef:
    """A reward model trained on comparisons."""
    return _reward_model(store, {"model": model, "comparisons": comparisons}, label=label, **options)


def warm_up_reward(store: Store, model: ArtifactRef, comparisons: ArtifactRef, **options: Any) -> ArtifactRef:
    """Checkpoints of a reward model's adapters, trained on a sample of the comparisons, for a coreset of them."""
    return _warm_up(store, {"model": model, "comparisons": comparisons}, **options)


def import_reward_model(store: Store, source: str) -> ArtifactRef:
    """A reward model from a local folder or the hub, as an artifact."""
    from longloom.storage.fingerprint import fingerprint_folder
    from longloom.tasks.training.imported import revision

    place = Path(source)
    if place.exists():
        return _import(store, label=place.name, identity={"source": fingerprint_folder(store, place)}, source=source)
    identity = revision(source)  # and the download is of this commit, see `training.task.import_model`
    return _import(store, label=source, identity={"source": identity}, source=identity)


def score_responses(
    store: Store, model: ArtifactRef, *, label: str, sources: list[str], on_bad_record: str, on_too_long: str
) -> ArtifactRef:
    """Scores of the responses in files, by a reward model."""
    found = identity_of(store, sources)
    return _scores(
        store,
        {"model": model},
        label=label,
        identity={"sources": found},
        expected=found,
        sources=sources,
        on_bad_record=on_bad_record,
        on_too_long=on_too_long,
    )


def infer_contexts(
    store: Store,
    comparisons: ArtifactRef,
    train: ArtifactRef | None,
    *,
    label: str,
    method: str,
    endpoint: Mapping[str, Any],
    **options: Any,
) -> ArtifactRef:
    """p(z|x) of a sample of comparisons.

    Args:
        store: where it goes.
        comparisons: to be judged.
        train: others, whose contexts are the candidates; None: their own.
        label: for the run's name.
        method: `prior`, `trained` or `endpoint`.
        endpoint: of the last: url, model, timeout, retries, at_once, per_minute.
        options: candidates, sampled, seed.
    """
    inputs = {"comparisons": comparisons} | ({} if train is None else {"train": train})
    if method == "endpoint":
        return _named_contexts(store, inputs, label=label, **endpoint, **options)
    return _contexts(store, inputs, label=label, method=method, **options)


def evaluate_preferences(
    store: Store,
    model: ArtifactRef,
    comparisons: ArtifactRef,
    contexts: ArtifactRef | None,
    *,
    label: str,
    negations: str | None,
    samples: Sequence[int],
    seed: int,
) -> ArtifactRef:
    """Whether a reward model listens to the contexts of comparisons.

    Args:
        store: where it goes.
        model: the reward model.
        comparisons: that it was not trained on.
        contexts: inferred for them; None: no two-step model.
        label: for the run's name.
        negations: a file with a list of them besides the comparisons' own.
        samples, seed: as `evaluation.build` takes them.
    """
    from longloom.tasks.preference.conditions import read_negations

    inputs = {"model": model, "comparisons": comparisons} | ({} if contexts is None else {"contexts": contexts})
    return _evaluation(
        store,
        inputs,
        label=label,
        negations={} if negations is None else read_negations(Path(negations)),
        samples=list(samples),
        seed=seed,
    )


def judge_preferences(
    store: Store, comparisons: ArtifactRef, *, label: str, endpoint: Mapping[str, Any], sampled: int, seed: int
) -> ArtifactRef:
    """A sample of comparisons judged by a language model; `endpoint` as of `infer_contexts`."""
    return _judge(store, {"comparisons": comparisons}, label=label, sampled=sampled, seed=seed, **endpoint)


def best_of(store: Store, model: ArtifactRef, *, sources: list[str], on_bad_record: str) -> ArtifactRef:
    """A reward model on prompts with several responses, as RewardBench 2 has them."""
    found = identity_of(store, sources)
    return _best_of(
        store,
        {"model": model},
        identity={"sources": found},
        expected=found,
        sources=sources,
        on_bad_record=on_bad_record,
    )
