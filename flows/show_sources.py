"""What the command line prints of explanations, contamination and ranked prompts."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from longloom.flows.show import console, show
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store

#: The rarest span, the next ones and the rest; further documents of a span, and characters of them, that are printed.
_STYLES = ("black on bright_yellow", "black on yellow", "underline")
_DOCUMENTS = 3
_CHARACTERS = 160


def show_explanation(ref: ArtifactRef, store: str, out: str | None, *, as_json: bool) -> None:
    """Each text with its spans marked, and the spans with their documents; where the page is."""
    folder = Store(store).open(ref)
    page = folder / "index.html"
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, out)
        page = Path(out)
    found: list[dict[str, Any]] = json.loads((folder / "explain.json").read_text(encoding="utf-8"))
    if as_json:
        show({"explain": ref, "page": str(page), "texts": found}, as_json=True)
        return
    for one in found:
        _print_text(one)
    console().print(f"page  {page}")


def _print_text(one: dict[str, Any]) -> None:
    screen = console()
    covered = f"{one['tokens']:,} tokens, {one['found']:,} maximal spans over {one['covered']:.0%} of the characters"
    screen.print(f"{one['name']}: {covered}, the {len(one['spans'])} rarest below", style="bold")
    text = Text(one["text"])
    for rank in range(len(one["spans"]), 0, -1):  # the rarest last: later styles win
        span = one["spans"][rank - 1]
        text.stylize(_STYLES[min(rank, len(_STYLES)) - 1], span["begin"], span["end"])
    screen.print(text)
    for document in one["documents"][:_DOCUMENTS]:
        held = f"{document['characters']:,} characters in spans {', '.join(map(str, document['spans'][:8]))}"
        screen.print(Text.assemble((document["id"], "bold"), f"  {document['source']}  {held}"))
    for rank, span in enumerate(one["spans"], start=1):
        tokens, times = f"{span['tokens']} tokens", f"{span['occurrences']:,} in {span['in_documents']:,} documents"
        screen.print(Text.assemble(f"{rank:>3}  ", (_line(span["text"]), "bold"), f"  {tokens}, occurrences {times}"))
        for match in span["matches"][:_DOCUMENTS]:
            screen.print(_in_context(match))


def _in_context(match: dict[str, Any]) -> Text:
    """A span's document, and the span on one line with what stands around it."""
    before, after = match["before"][-_CHARACTERS // 2 :], match["after"][: _CHARACTERS // 2]
    parts = [re.sub(r"\s+", " ", part) for part in (before, match["match"], after)]
    return Text.assemble(f"     {match['id']}  ", (parts[0].lstrip(), "dim"), parts[1], (parts[2].rstrip(), "dim"))


def _line(text: str) -> str:
    """A text on one line, cut where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _CHARACTERS else f"{flat[: _CHARACTERS - 1]}…"


def show_contamination(ref: ArtifactRef, store: str, *, as_json: bool) -> None:
    """How many records are flagged, by task; the flagged ones; scores without them."""
    place = Store(store)
    folder = place.open(ref)
    manifest = place.verify(folder)
    rows = pq.read_table(folder / "contamination.parquet").to_pylist()
    scores = folder / "scores.parquet"
    rescored = pq.read_table(scores).to_pylist() if scores.is_file() else []
    if as_json:
        values = {**manifest.counts, **manifest.values, "records": rows}
        show({"contamination": ref, **values, "counts": manifest.counts, "scores": rescored}, as_json=True)
        return
    measures: Any = manifest.values["measures"]
    table = Table("task", "records", "contaminated", "suspicious", "too short", box=None, pad_edge=False)
    for name in measures:
        table.add_column(f"{name}, mean share", justify="right")
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        cells = [str(len(own)), *(str(_count(own, verdict)) for verdict in ("dirty", "suspicious", None))]
        table.add_row(task, *cells, *(_mean([row[f"{name}_share"] for row in own]) for name in measures))
    console().print(table)
    for row in [row for row in rows if row["contaminated"]][:10]:
        where = f"{row['task']} {row['sample']}: in {row['id']}  {row['source']}  "
        console().print(Text.assemble(where, (_line(row["match"]), "dim")))
    if rescored:
        console().print(_scores(rescored))
    left_out = [name for name in ("13-gram", "8-gram", "50-char") if name not in measures]
    if left_out:
        console().print(f"{', '.join(left_out)}: not measured, for that asks for an index of bytes", style="dim")
    console().print(f"records in {folder / 'contamination.parquet'}", style="dim")


def _count(rows: list[dict[str, Any]], verdict: str | None) -> int:
    return sum(row["verdict"] == verdict for row in rows)


def _mean(shares: list[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return f"{sum(known) / len(known):.1%}" if known else ""


def _scores(rows: list[dict[str, Any]]) -> Table:
    table = Table("task", "metric", "policy", "score", "clean score", "contaminated", box=None, pad_edge=False)
    for row in rows:
        policy = " ".join(filter(None, (row["policy"], row["retrieval"])))
        clean = "" if row["clean_score"] is None else f"{row['clean_score']:.2f}"
        flagged = f"{row['contaminated']} of {row['samples']}"
        table.add_row(row["task"], row["metric"], policy, f"{row['score']:.2f}", clean, flagged)
    return table


def show_prompts(ref: ArtifactRef, store: str, *, as_json: bool) -> None:
    """The prompts, the one of the most frequent n-grams first."""
    place = Store(store)
    folder = place.open(ref)
    manifest = place.verify(folder)
    rows = pq.read_table(folder / "prompts.parquet").to_pylist()
    if as_json:
        ends = {name: manifest.values[name] for name in ("most_frequent", "rarest")}
        show({"prompts": ref, **ends, "counts": manifest.counts, "rows": rows}, as_json=True)
        return
    table = Table("rank", "mean count", "in documents", "unseen", "origin", "prompt", box=None, pad_edge=False)
    for row in rows:
        means = ["" if row[name] is None else f"{row[name]:,.2f}" for name in ("mean_count", "mean_documents")]
        origin = row["origin"] if row["round"] is None else f"{row['origin']} {row['round']}"
        table.add_row(
            str(row["rank"]), *means, f"{row['unseen']} of {row['ngrams']}", Text(origin), Text(row["prompt"])
        )
    console().print(table)
    errors: Any = manifest.values["errors"]
    for error in errors:
        sys.stderr.write(f"a rewrite failed, and those after it were not asked for: {error}\n")
