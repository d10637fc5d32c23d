"""Flow `extend`: a model trained for a longer window on long documents; or, dry, the accounting of its tokens alone."""

from __future__ import annotations

from prefect import flow

from longloom.flows.artifacts import publish_report
from longloom.flows.checks import check_model, check_sources
from longloom.flows.model import is_small, model_of
from longloom.flows.params import DEFAULT_STORE, STANDARD_LIBRARY, CorpusParams, ModelParams
from longloom.flows.params_extend import ExtendParams, PackParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import read_corpus
from longloom.tasks.report.task import report
from longloom.tasks.training.task import check_extension, perplexity_by_position
from longloom.tasks.training.task import extend as extend_task
from longloom.tasks.training.task import pack as pack_task


@flow(name="extend", flow_run_name="extend-{model.source}-{pack.length}")
def extend(
    corpus: CorpusParams = CorpusParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    model: ModelParams = ModelParams(),  # noqa: B008
    pack: PackParams = PackParams(),  # noqa: B008
    extend: ExtendParams = ExtendParams(),  # noqa: B008
    held_out: CorpusParams | None = None,
    dry_run: bool = False,
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Extends a model's context: longer rotary positions, then training on packed rows of the new window.

    `held_out` is the text whose perplexity by position is measured before and after; the standard library has modules
    of its own for that, of another corpus nothing is measured by default. `dry_run` packs and trains nothing.
    """
    place = Store(store)
    check_sources(corpus.sources)
    check_model(place, model, trained=False)
    if held_out is not None:
        check_sources(held_out.sources)
    given = {
        "corpus": corpus.model_dump(),
        "model": model.model_dump(),
        "pack": pack.model_dump(),
        "extend": extend.model_dump(),
        "held_out": held_out.model_dump() if held_out else None,
        "dry_run": dry_run,
    }
    with RunLog(place, "extend", given) as log:
        documents = log.add("corpus", read_corpus(place, **corpus.model_dump()))
        start = log.add("model", model_of(place, model, None, None))
        positions = extend.model_dump(include={"rope", "base"})
        check_extension(place, start, length=pack.length, **positions)
        texts = _measured(place, corpus, held_out) if extend.texts and not dry_run else None
        if texts is not None:
            log.add("held-out", texts)
        packed = log.add("packed", pack_task(place, start, documents, label=f"{pack.length}", **pack.model_dump()))
        if dry_run:
            return {"packed": packed}
        measured: dict[str, ArtifactRef] = {}

        def measure(name: str, network: ArtifactRef) -> None:
            if texts is not None:
                options = {"length": pack.length, "texts": extend.texts, "policy": "full", "options": {}}
                found = perplexity_by_position(place, network, texts, label=name, **options)
                measured[f"positions/{name}"] = log.add(f"positions/{name}", found)

        measure("before", start)  # first, so that what cannot be measured is known before a long training
        options = extend.of(is_small(place, start))
        longer = log.add("extended", extend_task(place, start, packed, label=f"{pack.length}", **options))
        measure("after", longer)
        sections = {"packed": packed, "extended": longer, **measured}
        page = log.add("report", report(place, sections, title="longloom: context extension"))
        publish_report(place, page, key="extend")
    return {"packed": packed, "model": longer, **measured, "report": page}


def _measured(store: Store, corpus: CorpusParams, held_out: CorpusParams | None) -> ArtifactRef | None:
    """The corpus that perplexity is measured on."""
    if held_out is not None:
        return read_corpus(store, **held_out.model_dump())
    if corpus.sources == [STANDARD_LIBRARY]:
        return read_corpus(store, sources=[STANDARD_LIBRARY], held_out=True)
    return None
