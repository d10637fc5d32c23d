"""Flow `pipeline`: corpus, index, model, trace, instructions, coreset, fine-tuning, evaluation, report."""

from __future__ import annotations

from prefect import flow

from longloom.flows.artifacts import publish_report
from longloom.flows.checks import (
    check_coreset,
    check_encoder,
    check_evaluated,
    check_model,
    check_sources,
    check_tokenizer,
)
from longloom.flows.coreset import coresets_of
from longloom.flows.evaluate import check_evaluation, evaluations_of
from longloom.flows.index import tokenizer_of
from longloom.flows.model import is_small, model_of
from longloom.flows.params import DEFAULT_STORE, STAGES, STANDARD_LIBRARY, StageName
from longloom.flows.params_evaluate import EvaluateParams, parse_policy
from longloom.flows.params_pipeline import PipelineParams
from longloom.flows.rag import check_rag, retrieved
from longloom.flows.traced import explained, flagged, memorized
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import make_records, read_corpus, read_instructions
from longloom.tasks.longcontext.asked import known_policies
from longloom.tasks.ngrams.task import build_index
from longloom.tasks.report.task import renew_start_page, report
from longloom.tasks.training.task import finetune

#: Characters of the contexts of derived evaluation records: within the demo model's window of 1,024 tokens.
RECORD_CHARACTERS = [600, 1200, 2000]


class _Range:
    """Which stages run: those before `first` must be in the store, those after `last` are left out."""

    def __init__(self, root: str, first: StageName, last: StageName) -> None:
        self.first, self.last = STAGES.index(first), STAGES.index(last)
        self.stores = (Store(root), Store(root, frozen=True))

    def store(self, stage: StageName) -> Store:
        """The store as this stage may use it."""
        return self.stores[STAGES.index(stage) < self.first]

    def has(self, stage: StageName) -> bool:
        """Whether the stage comes no later than the last one."""
        return STAGES.index(stage) <= self.last


@flow(name="pipeline", flow_run_name="pipeline-{params.model.source}-{params.evaluate.suite}")
def pipeline(params: PipelineParams = PipelineParams(), store: str = DEFAULT_STORE) -> dict[str, ArtifactRef]:  # noqa: B008
    """From a corpus and instructions to a trained, evaluated model and a report; without parameters, the demo."""
    check_evaluation(_swept(params))
    if params.beyond:
        check_evaluation(_long(params))
    if params.rag:
        check_rag(params.evaluate.suite, params.retrieval)
    stages = _Range(store, params.from_stage, params.until_stage)
    _check_places(params, stages)
    with RunLog(stages.stores[0], "pipeline", params.model_dump()) as log:
        _run(params, stages, log)
    renew_start_page(stages.stores[0])
    return log.run.stages


def _check_places(params: PipelineParams, stages: _Range) -> None:
    """Finds what is not there before the first stage runs (ValueError, FileNotFoundError)."""
    place = stages.stores[0]
    check_sources(params.corpus.sources)
    if stages.has("index"):
        check_tokenizer(place, params.index.tokenizer)
    if stages.has("model"):
        check_model(place, params.model, trained=True)
    if params.trace and stages.has("trace"):
        check_model(place, params.tracing.small, trained=True, option="tracing.small")
    if stages.has("instructions"):
        check_sources(params.instructions.sources)
    check_coreset(params.coreset)
    check_evaluated(place, params.evaluate)
    if params.rag:
        check_encoder(place, params.retrieval)


def _run(params: PipelineParams, stages: _Range, log: RunLog) -> None:
    place = stages.store("corpus")
    corpus = log.add("corpus", read_corpus(place, **params.corpus.model_dump()))
    if not stages.has("index"):
        return

    place = stages.store("index")
    tokenizer = tokenizer_of(place, corpus, params.index)
    if tokenizer is not None:
        log.add("tokenizer", tokenizer)
    options = params.index
    how = options.model_dump(include={"threads", "memory_gib", "shard_tokens", "workers"})
    index = log.add("index", build_index(place, corpus, tokenizer, **how))
    if not stages.has("model"):
        return

    model = log.add("model", model_of(stages.store("model"), params.model, corpus, tokenizer))
    if params.trace and stages.has("trace"):
        place, tracing = stages.store("trace"), params.tracing
        if params.corpus.sources == [STANDARD_LIBRARY]:
            start = tokenizer or model  # an index of bytes has no tokenizer to train the small model with
            memorized(place, log, tracing, corpus=corpus, tokenizer=start, index=index, model=model)
            flagged(place, log, tracing, index=index)
        explained(place, log, tracing, corpus=corpus, index=index, model=model)
    if not stages.has("instructions"):
        return

    place = stages.store("instructions")
    instructions = log.add("instructions", read_instructions(place, **params.instructions.model_dump()))
    if not stages.has("coreset"):
        return

    coresets: dict[str, ArtifactRef | None] = dict(
        coresets_of(stages.store("coreset"), log, model, instructions, params.coreset)
    )
    if not stages.has("finetune"):
        return

    if params.full_pool:
        coresets["all"] = None
    models = {"base": model}
    for label, chosen in coresets.items():
        place = stages.store("finetune")
        tuned = finetune(place, model, instructions, chosen, label=label, **params.finetune.of(is_small(place, model)))
        models[label] = log.add(f"finetune/{label}", tuned)
    if stages.has("evaluate"):
        _evaluate(params, stages.store("evaluate"), log, models)
    if stages.has("report"):
        place = stages.store("report")
        page = log.add(
            "report",
            report(place, dict(log.run.stages), title="longloom: " + ", ".join(map(_name, params.corpus.sources))),
        )
        publish_report(place, page, key="pipeline")


def _evaluate(params: PipelineParams, store: Store, log: RunLog, models: dict[str, ArtifactRef]) -> None:
    data: ArtifactRef | str | None = params.evaluate.data
    haystack = log.run.stages["corpus"]
    if params.corpus.sources == [STANDARD_LIBRARY]:
        haystack = log.add("held-out", read_corpus(store, sources=[STANDARD_LIBRARY], held_out=True))
    if data is None and params.evaluate.suite == "records":
        records = make_records(
            store, records_per_task=params.records, characters=RECORD_CHARACTERS, seed=params.evaluate.seed
        )
        data = log.add("records", records)
    if data is None and params.evaluate.suite == "needle":
        data = haystack
    tasks = params.evaluate.tasks or None
    for label, model in models.items():
        asked = _swept(params) if label == "all" else params.evaluate
        evaluations_of(store, log, label, model, asked, suite=asked.suite, data=data, tasks=tasks)
        if params.needle and asked.suite != "needle":
            evaluations_of(store, log, label, model, asked, suite="needle", data=haystack, tasks=["single"])
        if params.beyond and label == "all":
            far = _long(params)
            evaluations_of(store, log, label, model, far, suite="needle", data=haystack, tasks=["single"], part="long")
    if params.rag:  # on the last model: that of the whole pool, if there is one
        asked = params.evaluate
        one = asked.model_copy(update={"policies": asked.policies[:1]})
        for passages in retrieved(store, log, model, one, params.retrieval, suite=asked.suite, data=data, tasks=tasks):
            evaluations_of(store, log, label, model, one, suite=asked.suite, data=data, tasks=tasks, passages=passages)


def _swept(params: PipelineParams) -> EvaluateParams:
    """What the model of the whole pool is asked: the sweep's KV policies too, but those that are there in any words."""
    asked = params.evaluate.policies
    known = {policy.text for policy in known_policies([parse_policy(text) for text in asked])}
    further = [text for text in params.sweep if known_policies([parse_policy(text)])[0].text not in known]
    return params.evaluate.model_copy(update={"policies": [*asked, *further]})


def _long(params: PipelineParams) -> EvaluateParams:
    """What the model of the whole pool is asked beyond its window."""
    asked = params.evaluate
    shared = {name: getattr(asked, name) for name in ("style", "seed", "batch")}
    return EvaluateParams(suite="needle", **shared, **params.long.model_dump())


def _name(source: str) -> str:
    """The last part of a place: no path of a machine goes into a report."""
    return source.rstrip("/").rsplit("/", 1)[-1]
