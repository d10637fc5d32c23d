"""Flow `evaluate`: a model on a suite, once for each KV policy, or a model behind an endpoint."""

from __future__ import annotations

from typing import Any

from prefect import flow

from longloom.flows.artifacts import publish_heads, publish_scores
from longloom.flows.checks import check_evaluated, check_model
from longloom.flows.contamination import check_records, contamination_of
from longloom.flows.model import label_of, model_of
from longloom.flows.params import DEFAULT_STORE, ModelParams
from longloom.flows.params_evaluate import EvaluateParams, parse_policy
from longloom.flows.preference import reward_model_of
from longloom.flows.sources import RUN_PREFIX, of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.longcontext.asked import KnownPolicy, check_names, known_policies, makes_prompts, options_of
from longloom.tasks.longcontext.heads_task import heads as heads_task
from longloom.tasks.longcontext.task import BestAnswers, Passages, ask
from longloom.tasks.longcontext.task import evaluate as evaluate_task


def check_evaluation(params: EvaluateParams) -> None:
    """Finds unknown names and what does not go together before the first stage runs (ValueError)."""
    check_names(params.suite, params.tasks)
    if params.exclude_contaminated is not None:
        check_records(params.suite)
    if params.truncation and makes_prompts(params.suite):
        raise ValueError(f"truncation with suite {params.suite!r}, whose prompts are never cut; expected none")
    policies = _policies(params)
    if params.heads is not None and not any(policy.profiled for policy in policies):
        raise ValueError(
            f"heads is {params.heads}, a head profile that {', '.join(params.policies)} does not use; omit it"
        )
    if params.endpoint.url is not None and params.policies != ["full"]:
        raise ValueError(
            f"policies are {', '.join(params.policies)} with an endpoint, which has a cache of its own; expected full"
        )


def _policies(params: EvaluateParams) -> list[KnownPolicy]:
    return known_policies([parse_policy(text) for text in params.policies])


def _heads_of(
    store: Store, log: RunLog, label: str, model: ArtifactRef, params: EvaluateParams
) -> ArtifactRef | str | None:
    """The model's head profile, if a policy needs it: as given, or else made now, once a run and model."""
    if not any(policy.profiled for policy in _policies(params)):
        return None
    given, noted = params.heads, f"heads/{label}"
    if given is not None and not given.startswith(RUN_PREFIX):
        return given
    if noted in log.run.stages:
        return log.run.stages[noted]
    if given is not None:
        return log.add(noted, of_run(store, given, "heads"))
    made = heads_task(store, model, label=label, length=None, repeats=4, seed=0, scores=None, layout=None)
    publish_heads(store, made, key=label)
    return log.add(noted, made)


def _best_of(store: Store, log: RunLog, params: EvaluateParams) -> BestAnswers | None:
    """How answers are sampled and picked, if they are; the reward model is noted once a run."""
    if params.best_of is None or params.reward is None:
        return None
    reward = log.run.stages.get("reward-model")
    if reward is None:
        reward = log.add("reward-model", reward_model_of(store, params.reward))
    return BestAnswers(reward, params.best_of, params.temperature, params.seed)


def evaluations_of(
    store: Store,
    log: RunLog,
    label: str,
    model: ArtifactRef | str,
    params: EvaluateParams,
    *,
    suite: str,
    data: ArtifactRef | str | None,
    tasks: list[str] | None = None,
    passages: Passages | None = None,
    part: str = "evaluation",
) -> dict[str, ArtifactRef]:
    """One evaluation artifact a KV policy (or one of the endpoint), each with its table artifact in the UI.

    What was asked with a `max_length` bears it in its name (`longcache@8192:local=512`); with `truncation` there is
    `full` besides, whose prompts are cut to the model's window.

    Args:
        store: where they go.
        log: of the run.
        label: of the model, for the run's names.
        model: to be evaluated; the model's name, if it is behind an endpoint.
        params: policies, limits, options of suites, the endpoint.
        suite: which one.
        data: an artifact, a place, or None for the hub's data set.
        tasks: of the suite; None: all that the data has.
        passages: what stands in for the contexts; None: nothing does.
        part: of the run's labels, where a report looks for it.
    """
    # Lengths that somebody named are meant, whatever the model's window is.
    named = max(params.lengths, default=None) if makes_prompts(suite) and params.endpoint.url is None else None
    contamination = None
    if params.exclude_contaminated is not None and not makes_prompts(suite):  # no corpus holds prompts made just now
        contamination = contamination_of(
            store,
            log,
            params.exclude_contaminated,
            suite=suite,
            data=data,
            tasks=tasks,
            suite_options=options_of(suite, params.suite_options(suite)),
            limit=params.limit,
            seed=params.seed,
        )
    common: dict[str, Any] = {
        "suite": suite,
        "tasks": tasks,
        "suite_options": options_of(suite, params.suite_options(suite)),
        "limit": params.limit,
        "max_length": named if params.max_length is None else params.max_length,
        "seed": params.seed,
        "passages": passages,
        "contamination": contamination,
    }
    limited = "" if params.max_length is None else f"@{params.max_length}"
    behind = "" if passages is None else f"/{passages.label}"
    found = {}

    def name_of(shown: str) -> str:
        return f"{label}-{suite}-{shown}{behind}" if part == "evaluation" else f"{label}-{part}-{suite}-{shown}{behind}"

    def note(shown: str, ref: ArtifactRef) -> None:
        found[shown + behind] = log.add(f"{part}/{label}/{suite}/{shown}{behind}", ref)
        publish_scores(store, ref, key=name_of(shown))

    endpoint = params.endpoint
    if isinstance(model, str):
        shown = f"endpoint{limited}"
        note(shown, ask(store, data, label=name_of(shown), model=model, **endpoint.model_dump(), **common))
        return found

    def measure(shown: str, policy: KnownPolicy, together: list[KnownPolicy], **change: Any) -> None:
        ref = evaluate_task(
            store,
            model,
            data,
            label=name_of(shown),
            policy=policy,
            together=together,
            heads=heads,
            batch_size=params.batch,
            device=None,
            dtype=None,
            best_of=best_of,
            **{**common, **change},
        )
        note(shown, ref)

    policies = _policies(params)
    heads = _heads_of(store, log, label, model, params)
    best_of = _best_of(store, log, params)
    picked = "" if best_of is None else f"+best-of-{best_of.samples}"
    names = [policy.name for policy in policies]
    for policy in policies:
        settings = policy.text.removeprefix(policy.name) if names.count(policy.name) > 1 else ""  # several of one
        measure(f"{policy.name}{limited}{settings}{picked}", policy, [other for other in policies if other != policy])
    if params.truncation and passages is None and not makes_prompts(suite):  # whose prompts are never cut
        (full,) = known_policies([("full", {})])
        measure(f"{full.name}{picked}", full, [], max_length=None)
    return found


def check_start(store: Store, model: ModelParams, params: EvaluateParams) -> None:
    """Finds a model or records that are not there before the first stage runs (ValueError, FileNotFoundError)."""
    if params.endpoint.url is None:
        check_model(store, model, trained=False)
    check_evaluated(store, params)


def model_and_label(
    store: Store, log: RunLog, model: ModelParams, params: EvaluateParams
) -> tuple[ArtifactRef | str, str]:
    """What to evaluate, and what to call it."""
    label = label_of(model)
    if params.endpoint.url is not None:
        if model.source == "base":
            raise ValueError("model base: the endpoint's model has a name of its own there, expected that one")
        return model.source, label
    return log.add("model", model_of(store, model, None, None)), label


@flow(name="evaluate", flow_run_name="evaluate-{evaluate.suite}")
def evaluate(
    model: ModelParams = ModelParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    evaluate: EvaluateParams = EvaluateParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Evaluates a model on a long-context suite, or on any task of lm-eval, under one or several KV policies."""
    check_evaluation(evaluate)
    place = Store(store)
    check_start(place, model, evaluate)
    with RunLog(place, "evaluate", {"model": model.model_dump(), "evaluate": evaluate.model_dump()}) as log:
        network, label = model_and_label(place, log, model, evaluate)
        return evaluations_of(
            place, log, label, network, evaluate, suite=evaluate.suite, data=evaluate.data, tasks=evaluate.tasks or None
        )
