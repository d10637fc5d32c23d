"""Flow `tune`: instruction tuning in ChatQA 2's three stages, each from the model of the one before."""

from __future__ import annotations

from typing import Any

from prefect import flow

from longloom.flows.artifacts import publish_report
from longloom.flows.checks import check_model, check_sources
from longloom.flows.model import is_small, model_of
from longloom.flows.params import DEFAULT_STORE, CorpusParams, ModelParams
from longloom.flows.params_tune import DIALOGUES, POOL, RATE, SYNTHESIS, StageParams, TuneParams, pairs
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import make_dialogues, read_corpus, read_instructions
from longloom.tasks.report.task import report
from longloom.tasks.training.task import (
    check_blends,
    check_kinds,
    check_lengths,
    pool_as_conversations,
    read_conversations,
    synthesise,
)
from longloom.tasks.training.task import tune as tune_task

STAGES = ("instruct", "conversation", "long")


@flow(name="tune", flow_run_name="tune-{model.source}")
def tune(
    corpus: CorpusParams = CorpusParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    model: ModelParams = ModelParams(),  # noqa: B008
    tune: TuneParams = TuneParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Tunes a model in three stages and keeps each stage's model; the corpus has the documents of synthesised sets.

    With `tune.compare` also what the three stages are compared with.
    """
    stages: dict[str, StageParams] = {name: getattr(tune, name) for name in STAGES}
    shares = check_blends({name: stage.blend for name, stage in stages.items()}, list(pairs(tune.sets)))
    without = _without_long(shares) if "no-long" in tune.compare else {}
    place = Store(store)
    check_model(place, model, trained=False)
    used = {name for blend in shares.values() for name in blend}
    _check_sets(tune, corpus, used)
    given = {"corpus": corpus.model_dump(), "model": model.model_dump(), "tune": tune.model_dump()}
    with RunLog(place, "tune", given) as log:
        network = log.add("model", model_of(place, model, None, None))
        check_lengths(place, network, {name: stage.max_length for name, stage in stages.items()})
        sets = _sets(place, log, network, corpus, tune, used)
        options = tune.model_dump(include={"batch", "accumulate", "recompute", "offload", "seed"})
        if tune.tuning == "lora":  # of no other tuning's key
            options["lora"] = tune.model_dump(include={"rank", "alpha", "dropout"})
        made: dict[str, ArtifactRef] = {}
        small = is_small(place, network)

        def part(name: str, blend: dict[str, float]) -> dict[str, Any]:
            return {"stage": name, "shares": blend, **stages[name].model_dump(include={"examples", "max_length"})}

        def train(label: str, start: ArtifactRef, parts: list[dict[str, Any]], like: str) -> ArtifactRef:
            rate = stages[like].learning_rate or RATE.of(small)
            ref = tune_task(place, start, sets, label=label, parts=parts, learning_rate=rate, **options)
            made[label] = log.add(f"tune/{label}", ref)
            return ref

        current = network
        for name in STAGES:
            if name == "long" and without:
                train("no-long", current, [part(name, without)], name)
            current = train(name, current, [part(name, shares[name])], name)
        if "all-in-one" in tune.compare:
            train("all-in-one", network, [part(name, shares[name]) for name in STAGES], "long")
        sections = {f"tune/{label}": ref for label, ref in made.items()}
        page = log.add("report", report(place, sections, title="longloom: instruction tuning in stages"))
        publish_report(place, page, key="tune")
    return {**made, "report": page}


def _check_sets(params: TuneParams, corpus: CorpusParams, used: set[str]) -> None:
    """Raises ValueError for an unknown kind of answers, FileNotFoundError for a place that is not there."""
    check_kinds(pairs(params.kinds).values())
    places = pairs(params.sets)
    needed = {places[name] for name in used}
    if any(place.startswith(SYNTHESIS) for place in needed):
        check_sources(corpus.sources)
        needed |= {places[place.removeprefix(SYNTHESIS)] for place in needed if place.startswith(SYNTHESIS)}
    for place in sorted(needed):
        if place not in (POOL, DIALOGUES) and not place.startswith(SYNTHESIS):
            check_sources([place])


def _sets(
    store: Store, log: RunLog, model: ArtifactRef, corpus: CorpusParams, params: TuneParams, used: set[str]
) -> dict[str, ArtifactRef]:
    """The sets that a blend names; those that are made of another one come last."""
    places, kinds, library = pairs(params.sets), pairs(params.kinds), params.library
    needed = used | {places[name].removeprefix(SYNTHESIS) for name in used if places[name].startswith(SYNTHESIS)}
    found: dict[str, ArtifactRef] = {}
    for name in sorted(needed, key=lambda name: (places[name].startswith(SYNTHESIS), list(places).index(name))):
        source = places[name]
        if source == POOL:
            how = library.model_dump()
            pool = read_instructions(store, sources=["stdlib"], on_bad_record="stop", **how)
            found[name] = pool_as_conversations(store, pool, name=name)
        elif source == DIALOGUES:
            found[name] = make_dialogues(store, held_out=False, **library.model_dump())
        elif source.startswith(SYNTHESIS):
            documents = read_corpus(store, **corpus.model_dump())
            short = found[source.removeprefix(SYNTHESIS)]
            found[name] = synthesise(store, short, documents, model, label=name, **params.synthesis.model_dump())
        else:
            found[name] = read_conversations(
                store, name=name, sources=[source], kind=kinds.get(name), on_bad_record=params.on_bad_record
            )
        log.add(f"set/{name}", found[name])
    return found


def _without_long(shares: dict[str, dict[str, float]]) -> dict[str, float]:
    """The third stage's blend without the sets that the second has not (ValueError: nothing is left)."""
    left = {name: share for name, share in shares["long"].items() if name in shares["conversation"]}
    if not left:
        raise ValueError("no-long: the third stage's blend has no set of the second's, expected some to compare with")
    total = sum(left.values())
    return {name: share / total for name, share in left.items()}
