"""The start page of a store: its runs, newest first, with their pages and what was set otherwise; its comparisons.

A view of the store, rewritten after every run that makes a page, and no artifact: nothing reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longloom.storage.atomic import write_atomic
from longloom.storage.manifest import MANIFEST, Manifest
from longloom.storage.runs import PAGES, Run, list_runs
from longloom.storage.store import Store
from longloom.tasks.report.formats import flat
from longloom.tasks.report.read import read_json
from longloom.tasks.report.summary import summary
from longloom.tasks.report.templates import environment

PAGE = "index.html"
#: Runs in the table, and those of them that are told in detail: the newest.
LISTED, DETAILED = 1000, 50

Numbers = dict[str, Any]


def write_start(store: Store) -> Path:
    """Writes `<store>/index.html`; its links are relative, so that a copied or served store keeps them.

    Returns:
        Where it lies.
    """
    target = store.root / PAGE
    write_atomic(target, start_page(store))
    return target


def start_page(store: Store) -> str:
    """The page as text; equal stores, equal text."""
    runs = list_runs(store)
    reports = _manifests(store, "report")
    lines = [_line(run, store, reports) for run in runs[:LISTED]]
    pages = dict.fromkeys(line["page"] for line in lines[:DETAILED])  # several runs may have made the same report
    briefs = {page: _brief(store, page) for page in pages}
    template = environment().get_template("start.html")
    text = template.render(
        title="Runs",
        store=store.root.name.lstrip(".") if store.root.name else "",
        runs=lines,
        more=len(runs) - len(lines),
        details=[
            {**_detail(run, runs[place + 1 :]), **line, "brief": briefs[line["page"]]}
            for place, (run, line) in enumerate(zip(runs[:DETAILED], lines, strict=False))
        ],
        comparisons=[_comparison(manifest, store) for manifest in reversed(_manifests(store, "compare"))],
    )
    return text + "\n"


def _manifests(store: Store, kind: str) -> list[Manifest]:
    """Of all artifacts of a kind that can be read, oldest first."""
    found = []
    for path in store.records("artifacts").glob(f"{kind}/*/{MANIFEST}"):
        try:
            found.append(Manifest.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):  # collected meanwhile, or damaged
            continue
    return sorted(found, key=lambda manifest: (manifest.created, manifest.key))


def _line(run: Run, store: Store, reports: Sequence[Manifest]) -> Numbers:
    page = _page_of(run, store, reports)
    return {
        "id": run.id,
        "flow": run.flow,
        "state": run.state,
        "started": run.started[:19].replace("T", " "),
        "seconds": _seconds(run),
        "artifacts": len(run.stages),
        "page": page,
        "kind": page.split("/")[1] if page else "",
    }


def _seconds(run: Run) -> float | None:
    if not run.ended:
        return None
    # A clock that was set back in between tells nothing.
    return max(0.0, (datetime.fromisoformat(run.ended) - datetime.fromisoformat(run.started)).total_seconds())


def _page_of(run: Run, store: Store, reports: Sequence[Manifest]) -> str:
    """The report of a run: the one it made, else one made of the same artifacts later (`longloom report`), else any
    other page that it made."""
    made = run.stages.get("report")
    if made is not None:
        return _page(store, made.uri)
    digests = {label: ref.digest for label, ref in run.stages.items() if ref.kind not in PAGES}
    same = next((manifest for manifest in reversed(reports) if digests and manifest.parents == digests), None)
    if same is not None:
        return _page(store, same.ref().uri)
    return next(filter(None, (_page(store, ref.uri) for ref in reversed(run.stages.values()))), "")


def _page(store: Store, uri: str) -> str:
    return f"{uri}/{PAGE}" if (store.root / uri / PAGE).is_file() else ""


def _detail(run: Run, before: Sequence[Run]) -> Numbers:
    """What was set, and what of it otherwise than in the run of the same flow before."""
    earlier = next((other for other in before if other.flow == run.flow), None)
    return {
        "earlier": earlier.id if earlier else "",
        "changes": _changes(earlier.parameters, run.parameters) if earlier else [],
        "parameters": list(flat(run.parameters).items()),
        "stages": list(run.stages.items()),
    }


def _brief(store: Store, page: str) -> list[tuple[str, bool]]:
    """What the report says in short; nothing where it cannot be read."""
    if not page:
        return []
    try:
        return summary(read_json(store.root / Path(page).with_name("report.json")))
    except (ValueError, KeyError, TypeError):  # damaged, or of another version: the page itself may still be read
        return []


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Parameters that were set otherwise: name, before, now; None where one lacks it."""
    a, b = flat(before), flat(now)
    return [(name, a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def _comparison(manifest: Manifest, store: Store) -> Numbers:
    ref = manifest.ref()
    try:
        titles = read_json(store.root / ref.uri / "compare.json").get("titles", ["", ""])
    except ValueError:
        titles = ["", ""]
    return {
        "made": manifest.created[:19].replace("T", " "),
        "titles": [str(title) for title in titles],
        "scores": manifest.counts.get("scores"),
        "page": _page(store, ref.uri),
        "key": manifest.key,
    }
