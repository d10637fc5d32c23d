"""The commands that index a corpus, look things up in it and trace answers to it, registered by cli.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from longloom.flows.command import Flat, Json, Store, Whole, begin, check_file, show
from longloom.flows.params import DEFAULT_STORE, CorpusParams, IndexParams
from longloom.flows.params_sources import ContaminationParams, ExplainParams, PromptsParams
from longloom.flows.params_trace import TraceParams

IndexFolder = Annotated[
    str | None, Parameter(help="run:ID:LABEL or folder of an index; that of the newest run with one by default.")
]


def index(
    corpus: Annotated[CorpusParams, Flat] = CorpusParams(),  # noqa: B008
    *,
    index: Annotated[IndexParams, Flat] = IndexParams(),  # noqa: B008
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Read a corpus and build an n-gram index of it."""
    begin(store)
    from longloom.flows.index import build_index

    show({"index": build_index(corpus, index, store=store)}, json)


def delete(*, ids: str, index: str | None = None, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Delete documents from an n-gram index, for every query from now on.

    Args:
        ids: File of document ids, one a line.
        index: run:ID:LABEL, or the folder of an index of the store; that of the newest run with one by default.
    """
    begin(store)
    from longloom.flows.delete import delete as flow

    show({"deletion": flow(ids, index, store=store)}, json)


def count(
    text: list[str],
    *,
    index: IndexFolder = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Count how often each text stands in an indexed corpus, as the index's tokens.

    Args:
        text: One or several.
    """
    from longloom.flows.queries import count_behind_blanks, count_texts
    from longloom.flows.show_ngrams import show_behind_blanks

    show(count_texts(text, index, store), json)
    if not json:
        show_behind_blanks(count_behind_blanks(text, index, store))


def search(
    text: str, *, limit: Whole = 10, index: IndexFolder = None, store: Store = DEFAULT_STORE, json: Json = False
) -> None:
    """Show the documents of an indexed corpus that hold a text, each with its first match in context.

    Args:
        text: Found as the index's tokens.
        limit: Documents to show, the first of the corpus.
    """
    from longloom.flows.queries import count_behind_blanks, search_text
    from longloom.flows.show_ngrams import show_behind_blanks, show_matches

    show_matches(search_text(text, index, store, limit=limit), as_json=json)
    if not json:
        show_behind_blanks(count_behind_blanks([text], index, store))


def cooccur(
    *,
    pairs: str,
    within: Whole | None = None,
    sample: Whole | None = None,
    seed: Whole = 0,
    memory_gib: float = 1.0,
    out: str | None = None,
    index: IndexFolder = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Count the documents of an indexed corpus that hold both texts of each pair: exact, unless a sample is asked for.

    Args:
        pairs: File of pairs, one a line: JSON Lines of [first, second], or two columns with a tab between (.tsv).
        within: At most so many tokens between the two texts, in either order; anywhere in the document by default.
        sample: Estimate from so many documents drawn at random: unbiased, with a 95% interval.
        seed: Of the sample.
        memory_gib: Memory that occurrences may take; beyond it they go to disk.
        out: Also write the table to this Parquet file.
    """
    check_file("--out", out)
    from longloom.flows.queries import cooccur as ask
    from longloom.flows.show_ngrams import ROWS, show_cooccurrence

    limit = None if json else ROWS
    found = ask(
        pairs,
        index,
        store,
        within=within,
        sample=sample,
        seed=seed,
        memory_gib=memory_gib,
        out=out,
        limit=limit,
    )
    show_cooccurrence(found, as_json=json)


def trace(*, trace: Annotated[TraceParams, Flat], store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Trace models' answers back to an indexed corpus: memorization, performance, novelty and influence by size."""
    begin(store)
    from longloom.flows.show_trace import show_trace
    from longloom.flows.trace import trace as flow

    show_trace(flow(trace, store=store), store, as_json=json)


def explain(
    explain: Annotated[ExplainParams, Flat] = ExplainParams(),  # noqa: B008
    *,
    out: str | None = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Show what of a text, or of an evaluation's answers, stands verbatim in an indexed corpus, and in which documents.

    Args:
        out: Also copy the page to this file.
    """
    check_file("--out", out)
    if explain.text is None and explain.answers is None and not sys.stdin.isatty():
        explain = ExplainParams(**{**explain.model_dump(), "text": sys.stdin.read()})
    begin(store)
    from longloom.flows.explain import explain as flow
    from longloom.flows.show_sources import show_explanation

    show_explanation(flow(explain, store=store), store, out, as_json=json)


def contamination(
    *,
    contamination: Annotated[ContaminationParams | None, Flat] = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Find the evaluation records that stand in an indexed corpus."""
    contamination = contamination or ContaminationParams()  # which says what is missing
    begin(store)
    from longloom.flows.contamination import contamination as flow
    from longloom.flows.show_sources import show_contamination

    show_contamination(flow(contamination, store=store), store, as_json=json)


def prompts(
    *, prompts: Annotated[PromptsParams | None, Flat] = None, store: Store = DEFAULT_STORE, json: Json = False
) -> None:
    """Rank prompts by how often their n-grams stand in an indexed corpus; a model may rewrite one in both ways."""
    prompts = prompts or PromptsParams()  # which says what is missing
    begin(store)
    from longloom.flows.prompts import prompts as flow
    from longloom.flows.show_sources import show_prompts

    show_prompts(flow(prompts, store=store), store, as_json=json)


COMMANDS: tuple[Callable[..., None], ...] = (
    index,
    delete,
    count,
    search,
    cooccur,
    trace,
    explain,
    contamination,
    prompts,
)
