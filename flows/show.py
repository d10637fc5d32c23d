"""What the command line prints: tables for people, one JSON object for machines."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from longloom.flows.command import check_folder
from longloom.storage.copies import copy_artifact, foreign_file
from longloom.storage.refs import ArtifactRef
from longloom.storage.remote import local_folder
from longloom.storage.runs import check_records, delete_runs, list_runs, starting, unfinished_since
from longloom.storage.store import Store


def console() -> Console:
    """Standard output, wide where it is no terminal; a user's text may hold brackets, so there is no markup."""
    width = None if sys.stdout.isatty() else 200
    return Console(highlight=False, markup=False, soft_wrap=True, width=width)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    # Some metrics are not defined for some answers, and JSON has no NaN.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(value: object, *, as_json: bool) -> None:
    """A dict of refs or plain values."""
    if as_json:
        sys.stdout.write(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) + "\n")
        return
    assert isinstance(value, dict)
    for name, entry in value.items():
        if isinstance(entry, ArtifactRef):
            console().print(f"{name:<16} {entry.uri}")
        else:
            console().print(f"{name:<16} {entry:,}" if isinstance(entry, int) else f"{name:<16} {entry}")


def show_runs(store: str, limit: int, *, html: bool, as_json: bool) -> None:
    """The newest runs; with `html`, where the start page of all of them lies."""
    place = Store(store)
    found = list_runs(place, newest=limit)
    page = {}
    if html:
        from longloom.tasks.report.task import start_page

        page = {"page": str(start_page(place))}
    if as_json:
        show({"runs": found, **page}, as_json=True)
        return
    table = Table("run", "flow", "state", "started", "artifacts", box=None, pad_edge=False)
    for run in found:
        table.add_row(run.id, run.flow, run.state, _local(run.started), str(len(run.stages)))
    console().print(table if found else f"no runs in the store {store}")
    for name, file in page.items():
        console().print(f"{name}  {file}")


def _local(moment: str) -> str:
    """A moment of a record, which is in UTC, by the clock of this machine and how far that is from UTC."""
    try:
        return datetime.fromisoformat(moment).astimezone().isoformat(sep=" ", timespec="seconds")
    except (ValueError, OverflowError):  # of a record that is not ours
        return moment


def scores_table(rows: list[dict[str, Any]]) -> Table:
    """Scores of direct long context with one column a label; below a score the mended one, where it differs."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    table = Table("suite", "task", "metric", *labels, box=None, pad_edge=False)
    grouped: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        grouped.setdefault((row["suite"], row["task"], row["metric"]), {})[row["label"]] = _score(row)
    for key, cells in grouped.items():
        table.add_row(*key, *(cells.get(label, "") for label in labels))
    return table


def lines_table(rows: list[dict[str, Any]], head: str) -> Table:
    """Scores with a row a label and a column a task and metric: sweeps of policies or of retrieval have many labels."""
    keys = list(dict.fromkeys((row["suite"], row["task"], row["metric"]) for row in rows))
    several = len({suite for suite, _, _ in keys}) > 1
    metrics = Counter((suite, task) for suite, task, _ in keys)  # lm-eval's tasks may have several
    names = [
        " ".join([*([suite] if several else []), task, *([metric] if metrics[suite, task] > 1 else [])])
        for suite, task, metric in keys
    ]
    table = Table(head, *names, box=None, pad_edge=False)
    grouped: dict[str, dict[tuple[str, str, str], str]] = {}
    for row in rows:
        grouped.setdefault(row["label"], {})[row["suite"], row["task"], row["metric"]] = _score(row)
    for label, cells in grouped.items():
        table.add_row(label, *(cells.get(key, "") for key in keys))
    return table


def _score(row: dict[str, Any]) -> str:
    digits = 4 if row["full_score"] == 1 else 2
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    failed += f" ({row['contaminated']} left out)" if row.get("contaminated") else ""
    fixed = "" if row["fixed"] is None else f"{row['fixed']:.{digits}f}"
    official = f"{row['score']:.{digits}f}"
    return f"{official}{failed}" + (f"\nfixed {fixed}" if fixed not in ("", official) else "")


def _print_scores(rows: list[dict[str, Any]]) -> None:
    direct = [row for row in rows if row["retrieval"] is None]
    retrieved = [row for row in rows if row["retrieval"] is not None]
    swept = [row for row in direct if ":" in row["label"]]  # a policy with several settings: too many for columns
    if plain := [row for row in direct if row not in swept]:
        console().print(scores_table(plain))
    if swept:
        console().print(lines_table(swept, "sweep"))
    if retrieved:
        console().print(lines_table(retrieved, "context"))


def show_evaluations(found: dict[str, ArtifactRef], store: str, *, as_json: bool) -> None:
    """Scores of one model under several KV policies."""
    from longloom.storage.catalog import Catalog

    place = Store(store)
    rows = Catalog(place).scores({policy: place.open(ref) for policy, ref in found.items()})
    if as_json:
        show({"evaluations": found, "scores": rows}, as_json=True)
        return
    _print_scores(rows)
    for policy, ref in found.items():
        if "/" in policy:  # a sweep of retrieval has many; --json tells them all
            continue
        console().print(f"{policy}: samples in {place.open(ref) / 'samples.parquet'}", style="dim")


def show_judgement(ref: ArtifactRef, store: str, *, as_json: bool) -> None:
    """Win rate and counts; where the verdicts are."""
    place = Store(store)
    manifest = place.verify(place.open(ref))
    values = {"win_rate": manifest.values["win_rate"], **manifest.counts}
    if as_json:
        show({"judge": ref, **values, **manifest.values}, as_json=True)
        return
    show(values, as_json=False)
    console().print(f"verdicts in {place.open(ref) / 'verdicts.parquet'}", style="dim")


def show_heads(ref: ArtifactRef, store: str, *, as_json: bool) -> None:
    """The strongest heads and which of them are protected; where the profile and its heat map are."""
    place = Store(store)
    folder = place.open(ref)
    manifest = place.verify(folder)
    files = {"profile": str(folder / "heads.json"), "map": str(folder / "heads.png")}
    if as_json:
        show({"heads": ref, **files, **manifest.counts, **manifest.values}, as_json=True)
        return
    table = Table("layer", "KV head", "induction", "echo", "protected by", box=None, pad_edge=False)
    strongest: Any = manifest.values["strongest"]
    for row in strongest:
        scores = ("" if row[name] is None else f"{row[name]:.4f}" for name in ("induction", "echo"))
        table.add_row(str(row["layer"]), str(row["kv_head"]), *scores, row["protected"])
    console().print(table)
    counts = manifest.counts
    console().print(f"{counts['protected']} of {counts['kv_heads']} KV heads are protected by the paper's shares")
    sliding: Any = manifest.values["sliding_layers"]
    if sliding:
        console().print(f"left alone, for they attend to a sliding window: layers {', '.join(map(str, sliding))}")
    for name, file in files.items():
        console().print(f"{name} in {file}", style="dim")


def _print_beyond(report: Path) -> None:
    """Needles beyond the window: a row a KV policy, a column a length."""
    for entry in json.loads(report.read_text(encoding="utf-8")).get("beyond", []):
        columns = [f"within {entry['window']:,}", *(f"{length:,}" for length in entry["lengths"])]
        title = f"{entry['suite']} {entry['task']}, {entry['model']}"
        table = Table(title, *columns, box=None, pad_edge=False)
        for row in entry["rows"]:
            cells = (row["within"], *row["at"])
            table.add_row(row["policy"], *("" if cell is None else f"{cell['score']:.2f}" for cell in cells))
        console().print(table)


def show_pipeline(stages: dict[str, ArtifactRef], store: str, *, as_json: bool) -> None:
    """What a pipeline run made: the digests, the scores, the page."""
    place = Store(store)
    if as_json:
        show({"stages": stages}, as_json=True)
        return
    evaluations = {
        label.removeprefix("evaluation/"): place.open(ref)
        for label, ref in stages.items()
        if label.startswith("evaluation/")
    }
    if evaluations:
        from longloom.storage.catalog import Catalog

        rows = Catalog(place).scores(evaluations)
        for row in rows:  # base/longbench/full -> base full; a retrieval follows the policy
            model, _, *context = str(row["label"]).split("/", 3)
            row["label"] = " ".join([model, *context])
        _print_scores(rows)
    if "report" in stages:
        folder = place.open(stages["report"])
        _print_beyond(folder / "report.json")
        console().print(f"report  {folder / 'index.html'}")


def show_report(ref: ArtifactRef, store: str, out: str | None, *, as_json: bool) -> None:
    """Where the page is; with `out`, a copy of it."""
    page = Store(store).open(ref) / "index.html"
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, out)
        page = Path(out)
    show({"report": ref, "page": str(page)} if as_json else {"report": str(page)}, as_json=as_json)


def show_comparison(ref: ArtifactRef, runs: tuple[str, str], store: str, *, as_json: bool) -> None:
    """The comparison as text, under the ids of its runs, or as JSON."""
    folder = Store(store).open(ref)
    if as_json:
        sys.stdout.write((folder / "compare.json").read_text(encoding="utf-8"))
        return
    for name, run in zip("ab", runs, strict=True):
        console().print(f"{name}: run {run}")
    sys.stdout.write((folder / "compare.txt").read_text(encoding="utf-8"))
    console().print(f"page  {folder / 'index.html'}")


def check_export(folder: str | None, store: str) -> None:
    """Raises ValueError if no artifact can be copied there; before the work that makes it."""
    check_folder("--export", folder)
    if folder is None:
        return
    target, root = Path(folder).resolve(), local_folder(store).resolve()
    if target.is_relative_to(root):
        raise ValueError(f"--export {folder}: lies in the store {store}, expected a folder outside of it")
    if (name := foreign_file(target, root)) is not None:
        raise ValueError(f"--export {folder}: holds {name}, expected an empty folder, or an earlier export alone")


def export_artifact(ref: ArtifactRef, store: str, folder: str) -> None:
    """Copies an artifact with its manifest out of the store, in place of an earlier export."""
    check_export(folder, store)
    copy_artifact(Store(store).open(ref), Path(folder).resolve())


def collect(store: str, keep: int) -> dict[str, object]:
    """Deletes old runs, then what no kept run needs; runs that are to start meanwhile wait.

    Raises:
        ValueError: a run is going on, or the record of one cannot be read.
    """
    place = Store(store)
    with starting(place):
        check_records(place)
        going = [run.id for run in list_runs(place) if run.state == "running"]
        if going:  # it may have found an artifact that no record names yet
            raise ValueError(f"run {going[0]}: is going on; collect when it has ended")
        gone = delete_runs(place, keep)
        runs = list_runs(place)
        needed = {ref.digest for run in runs for ref in run.stages.values()}
        for kind in ("report", "compare"):  # comparisons are of reports; some of both are on no run's record
            pages = [manifest for manifest in place.manifests() if manifest.kind == kind]
            needed |= {page.digest for page in pages if needed.issuperset(page.parents.values())}
        deleted = place.gc(needed, begun_since=unfinished_since(runs))
    from longloom.tasks.report.task import renew_start_page

    renew_start_page(place)  # it links what was deleted
    return {"runs_deleted": len(gone), "artifacts_deleted": len(deleted)}
