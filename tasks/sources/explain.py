"""Explains texts by the corpus: the rarest of their verbatim spans, with the documents that hold them.

explain.json   what `Explained` says, a list of texts
index.html     the same as a page without script or network (volatile: a rendered page)

After OLMoTrace (arXiv 2504.07096, section 3): of a text's maximal spans the K = ceil(0.05 L) with the smallest unigram
probability are kept, L being its tokens. Where more documents hold a span than are shown, OLMoTrace draws ten at random
and ranks them by BM25; here those come first that hold the most of the text, for they are the likeliest source, and
nothing is drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from longloom.storage.parquet import read_table
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.sources.located import Corpus, Located, locate, open_corpus
from longloom.tasks.sources.matches import Places, places_of, snippet
from longloom.tasks.sources.page import page
from longloom.tasks.sources.spans import Range, Unigrams, maximal_spans, whole_words

EXPLAINED = "explain.json"
PAGE = "index.html"

Row = dict[str, Any]


def build(
    index: Path,
    answers: Path | None,
    out: Path,
    *,
    text: str | None,
    limit: int | None,
    share: float,
    documents: int,
    context: int,
    progress: Progress = silent,
) -> Stats:
    """Writes `explain.json` and `index.html`.

    Args:
        index: folder of an n-gram index.
        answers: an evaluation's folder, whose answers are explained, or a file of text; None: `text` is.
        out: an empty folder.
        text: to be explained, where `answers` is None.
        limit: at most so many answers, the first ones; None: all.
        share: spans that are kept, of a text's tokens.
        documents: shown a span.
        context: tokens shown on either side of a span.
        progress: told of texts done and in all.

    Returns:
        Counts of texts, tokens, spans found and spans kept, and of the distinct documents shown.

    Raises:
        FileNotFoundError, ValueError: no index or answers, or damaged ones; an empty text.
    """
    texts = [("text", text)] if answers is None else texts_of(answers, limit)
    corpus = open_corpus(index)
    unigrams = Unigrams(corpus.index)
    found = []
    for number, (name, body) in enumerate(texts):
        progress(number, len(texts))
        assert body is not None
        said = explain(corpus, unigrams, body, share=share, documents=documents, context=context)
        found.append({"name": name, **said})
    progress(len(texts), len(texts))
    written = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    (out / EXPLAINED).write_text(written + "\n", encoding="utf-8")
    (out / PAGE).write_text(page(found), encoding="utf-8")
    return Stats(
        counts={
            "texts": len(found),
            "tokens": sum(one["tokens"] for one in found),
            "spans": sum(one["found"] for one in found),
            "kept": sum(len(one["spans"]) for one in found),
            "documents": len({shown["document"] for one in found for shown in one["documents"]}),
        },
        values={"share": share},
        volatile=(PAGE,),
    )


def texts_of(place: Path, limit: int | None) -> list[tuple[str, str]]:
    """Name and text of each answer of an evaluation that is not blank, or of one file.

    Raises:
        FileNotFoundError: no such place, or a folder without samples.
        ValueError: a file that is no UTF-8 or blank, an evaluation without an answer.
    """
    if place.is_dir():
        names = ("suite", "task", "policy", "sample")
        rows = read_table(place, "samples", [*names, "prediction"]).to_pylist()
        seen = {(*(row[name] for name in names),): row["prediction"] for row in rows}  # several metrics, one answer
        texts = [
            (" ".join(str(part) for part in name), answer) for name, answer in seen.items() if (answer or "").strip()
        ]
        if not texts:
            raise ValueError(f"{place}: holds no answer to explain")
        return texts[:limit]
    try:
        text = place.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise ValueError(f"{place}: is blank, expected a text to explain")
    return [(place.name, text)]


def explain(corpus: Corpus, unigrams: Unigrams, text: str, *, share: float, documents: int, context: int) -> Row:
    """Explains one text; arguments as of `build`.

    Returns:
        `text`, `tokens`, `found` (its maximal spans), `covered` (the share of its characters that they cover), `spans`
        and `documents`. A span, the rarest first, has `begin` and `end` (characters), `text`, `tokens`,
        `log_probability` (natural, of its tokens as unigrams), `occurrences`, `in_documents` and `matches` (as
        `matches.snippet` gives them). A document, which holds the most of the text first, has `document`, `id`,
        `source`, `spans` (their ranks) and `characters` (of the text, in spans that are kept).
    """
    located = locate(corpus.encoder, text)
    spans = whole_words(located, maximal_spans(corpus.index, located.tokens, corpus.encoder.unknown))
    kept = rarest(located, spans, unigrams, share)
    looked = [places_of(corpus.index, located.tokens[slice(*located.tokens_within(*span))]) for span, _ in kept]
    held = _held([span for span, _ in kept], looked)
    rows: list[Row] = []
    for (span, log), places in zip(kept, looked, strict=True):
        standing = zip(places.documents.tolist(), places.offsets.tolist(), strict=True)
        likeliest = sorted(standing, key=lambda place: (-held[place[0]], place[0]))[:documents]
        matches = [snippet(corpus.index, *place, len(places.tokens), context) for place in likeliest]
        rows.append(
            {
                "begin": span[0],
                "end": span[1],
                "text": text[slice(*span)],
                "tokens": len(places.tokens),
                "log_probability": log,
                "occurrences": places.occurrences,
                "in_documents": len(places.documents),
                "matches": matches,
            }
        )
    return {
        "text": text,
        "tokens": len(located.tokens),
        "found": len(spans),
        "covered": _size(spans) / len(text) if text else 0.0,
        "spans": rows,
        "documents": _documents(rows, held),
    }


def rarest(located: Located, spans: Sequence[Range], unigrams: Unigrams, share: float) -> list[tuple[Range, float]]:
    """The ceil(share * tokens) spans of the smallest unigram probability, that one first; ties as in the text.

    Args:
        located: the text.
        spans: ranges of its characters.
        unigrams: of the corpus.
        share: of the text's tokens, 0 to 1.
    """
    most = math.ceil(Fraction(str(share)) * len(located.tokens))  # in floats, 0.05 * 60 is more than 3
    scored = [(span, unigrams.log_probability(located.tokens[slice(*located.tokens_within(*span))])) for span in spans]
    return sorted(scored, key=lambda one: (one[1], one[0]))[:most]


def _held(spans: Sequence[Range], looked: Sequence[Places]) -> dict[int, int]:
    """Document -> characters of the text that it holds in these spans, overlapping ones counted once."""
    of: dict[int, list[Range]] = {}
    for span, places in zip(spans, looked, strict=True):
        for ordinal in places.documents.tolist():
            of.setdefault(ordinal, []).append(span)
    return {ordinal: _size(sorted(own)) for ordinal, own in of.items()}


def _size(spans: Sequence[Range]) -> int:
    """Characters that sorted spans cover."""
    total = reached = 0
    for begin, end in spans:
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _documents(rows: Sequence[Row], held: dict[int, int]) -> list[Row]:
    found: dict[int, Row] = {}
    for rank, row in enumerate(rows, start=1):
        for match in row["matches"]:
            ordinal = match["document"]
            named = {name: match[name] for name in ("document", "id", "source")}
            entry = found.setdefault(ordinal, {**named, "spans": [], "characters": held[ordinal]})
            entry["spans"].append(rank)
    return sorted(found.values(), key=lambda entry: (-entry["characters"], entry["document"]))
