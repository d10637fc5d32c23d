"""Flow `evaluate`: a model on a suite, once for each KV policy."""

from __future__ import annotations

import re

from prefect import flow

from longloom.flows.artifacts import publish_scores
from longloom.flows.model import model_of
from longloom.flows.params import DEFAULT_STORE, EvaluateParams, ModelParams, parse_policy
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.longcontext.task import check_names
from longloom.tasks.longcontext.task import evaluate as evaluate_task


def check_evaluation(params: EvaluateParams) -> None:
    """Finds unknown names before the first stage runs (ValueError)."""
    check_names(params.suite, [parse_policy(text)[0] for text in params.policies])


def evaluations_of(
    store: Store,
    log: RunLog,
    label: str,
    model: ArtifactRef,
    params: EvaluateParams,
    *,
    suite: str,
    data: ArtifactRef | str | None,
) -> dict[str, ArtifactRef]:
    """One evaluation artifact a KV policy, each with its table artifact in the UI.

    Args:
        store: where they go.
        log: of the run.
        label: of the model, for the run's names.
        model: to be evaluated.
        params: tasks, policies, limits.
        suite: which one.
        data: an artifact, a place, or None for the hub's data set.
    """
    needle = {"lengths": params.lengths, "depths": params.depths, "samples": params.samples, "style": params.style}
    found = {}
    names = [parse_policy(text)[0] for text in params.policies]
    for text in params.policies:
        policy, options = parse_policy(text)
        shown = policy if names.count(policy) == 1 else text  # one policy with several settings
        ref = evaluate_task(
            store,
            model,
            data,
            label=f"{label}-{suite}-{shown}",
            suite=suite,
            tasks=params.tasks or None if suite == params.suite else None,
            suite_options=needle if suite == "needle" else {},
            policy=policy,
            policy_options=options,
            limit=params.limit,
            max_length=params.max_length,
            batch_size=params.batch,
            seed=params.seed,
            device=None,
            dtype=None,
        )
        found[shown] = log.add(f"evaluation/{label}/{suite}/{shown}", ref)
        publish_scores(store, ref, key=f"{label}-{suite}-{shown}")
    return found


@flow(name="evaluate", flow_run_name="evaluate-{evaluate.suite}")
def evaluate(
    model: ModelParams = ModelParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    evaluate: EvaluateParams = EvaluateParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Evaluates a model on LongBench, L-Eval or a needle grid under one or several KV policies."""
    check_evaluation(evaluate)
    place = Store(store)
    with RunLog(place, "evaluate", {"model": model.model_dump(), "evaluate": evaluate.model_dump()}) as log:
        network = log.add("model", model_of(place, model, None, None))
        label = re.split("[/:]", model.source.rstrip("/"))[-1]  # of a path, a hub name, run:ID:finetune/tagcos
        return evaluations_of(place, log, label, network, evaluate, suite=evaluate.suite, data=evaluate.data)
