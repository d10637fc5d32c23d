"""Flow `preference-evaluation`: whether a reward model listens to the context, by comparisons it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect import flow

from longloom.flows.artifacts import publish_report
from longloom.flows.checks import check_loadable, check_place, check_sources
from longloom.flows.params import DEFAULT_STORE, STANDARD_LIBRARY
from longloom.flows.params_preference import ComparisonsParams
from longloom.flows.params_preference_evaluation import PreferenceEvaluationParams
from longloom.flows.preference import SIDES, reward_model_of
from longloom.flows.sources import RUN_PREFIX, of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog, list_runs
from longloom.storage.store import Store
from longloom.tasks.preference.task import (
    best_of,
    evaluate_preferences,
    infer_contexts,
    judge_preferences,
    read_comparisons,
)
from longloom.tasks.report.task import report

KIND = "comparisons"
#: What a run of the flow `preference` trained on, the first that it has.
_TRAINED_ON = (f"{KIND}/train", KIND)


@flow(name="preference-evaluation", flow_run_name="preference-evaluation-{evaluation.model}")
def preference_evaluation(
    evaluation: PreferenceEvaluationParams = PreferenceEvaluationParams(),  # noqa: B008 (frozen; the form's default)
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Judges a reward model without contexts, with the right, a nonsense and a negated one, and in two steps."""
    place = Store(store)
    _check_places(place, evaluation)
    with RunLog(place, "preference-evaluation", evaluation.model_dump()) as log:
        model = log.add("reward-model", reward_model_of(place, evaluation.model))
        origin = _origin(place, model)
        sets = {name: log.add(f"{KIND}/{name}", ref) for name, ref in _sets(place, evaluation, origin).items()}
        train = _train(place, evaluation, origin)
        if train is not None:
            log.add("train", train)
        found: dict[str, ArtifactRef] = {}
        for name, comparisons in sets.items():
            found |= _judged(place, log, evaluation, model, name, comparisons, train)
        if evaluation.best_of:
            bench = best_of(place, model, sources=evaluation.best_of, on_bad_record=evaluation.on_bad_record)
            found["best-of"] = log.add("best-of", bench)
        sections = {"reward-model": model, **{f"{KIND}/{name}": ref for name, ref in sets.items()}, **found}
        page = log.add("report", report(place, sections, title="longloom: preferences in their context"))
        publish_report(place, page, key="preference")
        return {**found, "report": page}


def _check_places(store: Store, params: PreferenceEvaluationParams) -> None:
    """Finds what is not there before the first stage runs (ValueError, FileNotFoundError)."""
    check_loadable(store, params.model, kind="reward-model")
    for source in [*params.on, *filter(None, [params.train])]:
        if source.startswith(RUN_PREFIX):
            of_run(store, source, KIND)
        else:
            check_sources([source])
    check_place(params.negations)
    if params.best_of:
        check_sources(params.best_of)


def _judged(
    store: Store,
    log: RunLog,
    params: PreferenceEvaluationParams,
    model: ArtifactRef,
    name: str,
    comparisons: ArtifactRef,
    train: ArtifactRef | None,
) -> dict[str, ArtifactRef]:
    """What is made of one set of comparisons; where none tells its context, no two-step model and no judge."""
    asked = {"model": params.language_model, **params.endpoint.model_dump()}
    sampled: dict[str, Any] = params.model_dump(include={"sampled", "seed"})
    found: dict[str, ArtifactRef] = {}
    contexts = None
    sampling = params.sampled > 0 and _in_context(comparisons) > 0
    if sampling:
        contexts = found[f"contexts/{name}"] = infer_contexts(
            store,
            comparisons,
            train,
            label=name,
            method=params.selector or ("prior" if train is None else "trained"),
            endpoint=asked,
            candidates=params.candidates,
            **sampled,
        )
        log.add(f"contexts/{name}", contexts)
    options = params.model_dump(include={"negations", "samples", "seed"})
    judged = evaluate_preferences(store, model, comparisons, contexts, label=name, **options)
    found[f"preference/{name}"] = log.add(f"preference/{name}", judged)
    if params.judge and sampling:
        verdicts = judge_preferences(store, comparisons, label=name, endpoint=asked, **sampled)
        found[f"preference-judge/{name}"] = log.add(f"preference-judge/{name}", verdicts)
    return found


def _in_context(comparisons: ArtifactRef) -> int:
    """Comparisons that are no ties and have a context."""
    counts = comparisons.counts
    # Those of earlier versions tell of contexts alone, whether on ties or not.
    return counts.get("in_context", counts["comparisons"] - counts["without_context"])


def _origin(store: Store, model: ArtifactRef) -> dict[str, ArtifactRef]:
    """The artifacts of the newest run that trained a model; none of one that comes from elsewhere."""
    runs = (run for run in list_runs(store) if run.flow == "preference")
    return next((run.stages for run in runs if model.digest in {ref.digest for ref in run.stages.values()}), {})


def _sets(store: Store, params: PreferenceEvaluationParams, origin: dict[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """The comparisons to judge by, by their names."""
    if not params.on:
        held_out = {
            label.partition("/")[2]: ref
            for label, ref in origin.items()
            if label.startswith(f"{KIND}/") and label not in _TRAINED_ON
        }
        if not held_out:
            raise ValueError(
                f"model {params.model!r}: no run of this store trained it and held comparisons out, expected some to"
                " judge it by (--on)"
            )
        return held_out
    found: dict[str, ArtifactRef] = {}
    for source in params.on:
        for name, ref in _read(store, params, source):
            if name in found:
                raise ValueError(f"on: found two sets that are called {name!r}, expected names that differ")
            found[name] = ref
    return found


def _train(store: Store, params: PreferenceEvaluationParams, origin: dict[str, ArtifactRef]) -> ArtifactRef | None:
    """The comparisons whose contexts are the candidates; None: there are none, or none has a context."""
    if params.train is None:
        found = next((origin[label] for label in _TRAINED_ON if label in origin), None)
    else:
        ((_, found), *more) = _read(store, params, params.train)
        if more:
            raise ValueError(f"train {params.train!r}: found held-out sets, expected comparisons to train on")
    return found if found is not None and _in_context(found) > 0 else None


def _read(store: Store, params: PreferenceEvaluationParams, source: str) -> Iterable[tuple[str, ArtifactRef]]:
    """What a source stands for: sets and their names."""
    if source.startswith(RUN_PREFIX):
        return [(source.rpartition(":")[2].removeprefix(f"{KIND}/"), of_run(store, source, KIND))]
    options: dict[str, Any] = params.model_dump(include={"contexts", "on_bad_record", "seed"})
    library = source == STANDARD_LIBRARY
    rows = ComparisonsParams().held_out_rows
    names = SIDES if library else (_name(source),)
    return [(name, read_comparisons(store, sources=[source], side=name, rows=rows, **options)) for name in names]


def _name(source: str) -> str:
    """hub:microsoft/rpr?split=test -> rpr; data/hhh.json -> hhh."""
    return Path(source.partition("?")[0].rstrip("/")).name.partition(".")[0] or source
