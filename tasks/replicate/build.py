"""The table of claims: artifacts in; what was measured, its spread over runs and the verdict of each rule out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longloom.storage.manifest import MANIFEST
from longloom.storage.stats import Stats
from longloom.tasks.replicate.claim import Claim
from longloom.tasks.replicate.claims import CLAIMS, PAPERS
from longloom.tasks.replicate.measures import MEASURES, Evidence, Missing
from longloom.tasks.replicate.page import page
from longloom.tasks.replicate.words import markdown

#: Role of the page that shows what was measured.
REPORT = "report"
NUMBERS, MARKDOWN, PAGE = "replicate.json", "report.md", "index.html"
#: What a claim's verdict is where there is no measure.
NOT_MEASURED = "not measured"
FORMAT = 1
#: Behind the point, of values: sums of floats in another order must not give another table.
DIGITS = 6


def build(evidence: Mapping[str, Path], places: Mapping[str, str], out: Path, *, papers: Sequence[str]) -> Stats:
    """Writes replicate.json, report.md and index.html (volatile: it links artifacts by their places).

    Args:
        evidence: role and seed -> folder of the artifact, as `measures` names them; `report`: the page.
        places: the same names -> place below the store's root.
        out: an empty folder.
        papers: whose claims to list.

    Raises:
        ValueError: an unknown paper.
    """
    unknown = [paper for paper in papers if paper not in PAPERS]
    if unknown:
        raise ValueError(f"paper {unknown[0]!r}: unknown, expected some of {', '.join(PAPERS)}")
    digests = {name: _digest(folder) for name, folder in evidence.items()}
    rows = [_row(claim, evidence, digests) for claim in CLAIMS if claim.paper in papers]
    verdicts = Counter(row["verdict"] for row in rows)
    numbers: dict[str, Any] = {
        "format": FORMAT,
        "papers": {name: {"title": title, "arxiv": arxiv} for name, (title, arxiv) in PAPERS.items() if name in papers},
        "verdicts": dict(sorted(verdicts.items())),
        "rows": rows,
    }
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
    (out / NUMBERS).write_text(text + "\n", encoding="utf-8")
    (out / MARKDOWN).write_text(markdown(numbers), encoding="utf-8")
    (out / PAGE).write_text(page(numbers, places, shown_in=REPORT), encoding="utf-8")
    counts = {"claims": len(rows)} | {name.replace(" ", "_"): count for name, count in sorted(verdicts.items())}
    return Stats(counts=counts, volatile=(PAGE,))


def _row(claim: Claim, evidence: Mapping[str, Path], digests: Mapping[str, str]) -> dict[str, Any]:
    found = Evidence(evidence)
    note = ""
    if claim.earlier is not None:
        exact: tuple[float, ...] = claim.earlier.values
    else:
        try:
            exact = MEASURES[claim.name](found)
        except Missing as missing:
            exact, note = (), str(missing)
    values = tuple(round(value, DIGITS) for value in exact)
    earlier = claim.earlier
    return {
        "name": claim.name,
        "paper": claim.paper,
        "claim": claim.claim,
        "figure": claim.figure,
        "place": claim.place,
        "measure": claim.measure,
        "unit": claim.unit,
        "digits": claim.digits,
        "rule": claim.rule.words(claim.unit),
        "values": list(values),
        "verdict": claim.rule.verdict(values) if values else NOT_MEASURED,
        "note": note,
        "section": claim.section,
        "artifacts": {name: digests[name] for name in found.read} if values else {},
        "earlier": None
        if earlier is None
        else {name: getattr(earlier, name) for name in ("file", "command", "machine", "date")},
    }


def _digest(folder: Path) -> str:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return str(manifest["digest"])
