"""Gathers what a report shows from the artifacts' folders: the deterministic numbers, and what only the page shows.

The numbers are what report.json holds. No time enters them, and nothing of a volatile file (cost.parquet,
speed.parquet) or of a manifest's values does, since equal inputs must give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longloom.evals.published import published
from longloom.tasks.progress import Progress, silent
from longloom.tasks.report.beyond import beyond_window, by_asked_length
from longloom.tasks.report.breakdown import by_group, by_length
from longloom.tasks.report.coreset import coreset_numbers, map_of
from longloom.tasks.report.data import corpus_numbers, index_numbers
from longloom.tasks.report.evaluation import Evaluations, read_evaluations
from longloom.tasks.report.extension import extension_numbers
from longloom.tasks.report.memorization import memorization_numbers
from longloom.tasks.report.order import rank
from longloom.tasks.report.preference import preference_numbers
from longloom.tasks.report.read import read_json
from longloom.tasks.report.retrieval import comparisons
from longloom.tasks.report.sourced import contamination_numbers, explained_numbers
from longloom.tasks.report.training import probe_numbers, speed_numbers, training_numbers
from longloom.tasks.report.tuning import tuning_numbers

#: Version of report.json's layout.
REPORT_FORMAT = 1
#: What of a manifest is a function of the run's inputs alone.
DETERMINISTIC = ("stage", "version", "kind", "key", "digest", "parameters", "parents", "counts")

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Gathered:
    """All that a report shows.

    Attributes:
        numbers: report.json; a part is absent where its section is.
        evaluations: the answers and costs, for the page alone.
        long: those beyond the model's window, likewise.
        manifests: the whole manifests, for the page alone.
        maps: method -> the picture of its coreset, likewise.
        speeds: label -> speed and memory of a training, likewise.
    """

    numbers: Numbers
    evaluations: Evaluations
    long: Evaluations
    manifests: Mapping[str, Mapping[str, Any]]
    maps: Mapping[str, Numbers]
    speeds: Mapping[str, Numbers]


def gather(
    sections: Mapping[str, Path],
    manifests: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    progress: Progress = silent,
) -> Gathered:
    """Reads every section that is there.

    Args:
        sections: label -> artifact folder.
        manifests: label -> manifest of the same artifact.
        title: the report's heading.
        progress: told of every shard of the corpus, the only long read.

    Raises:
        ValueError: a section's folder is missing, or one of its files is unreadable; one line that names it.
    """
    for label, folder in sections.items():
        if not folder.is_dir():
            raise ValueError(f"report: section {label} should be the folder {folder}, which is not there")
    numbers: Numbers = {"format": REPORT_FORMAT, "title": title}
    if "corpus" in sections:
        numbers["corpus"] = corpus_numbers(sections["corpus"], progress)
    if "index" in sections:
        numbers["index"] = index_numbers(sections["index"])
    if "model" in sections:
        model = {"training": training_numbers(sections["model"]), **probe_numbers(sections["model"])}
        numbers["model"] = {name: value for name, value in model.items() if value is not None}
    if "trace" in sections:
        numbers["memorization"] = memorization_numbers(sections["trace"])
    if "explain" in sections:
        numbers["explained"] = explained_numbers(sections["explain"], sections.get("explain/completions"))
    looked_up = {
        name: contamination_numbers(
            folder,
            manifests.get(f"contamination/{name}", {}).get("parameters", {}).get("by", ()),
            sections.get("planted") if name == "planted" else None,
        )
        for name, folder in _below(sections, "contamination").items()
    }
    if looked_up:
        numbers["contamination"] = looked_up
    pool, coresets = sections.get("instructions"), _below(sections, "coreset")
    if pool or coresets:
        numbers["coreset"] = coreset_numbers(pool, coresets)
    if "proof" in sections:
        numbers["proof"] = read_json(sections["proof"] / "proof.json")
    if "packed" in sections:
        measured = _below(sections, "positions")
        numbers["extension"] = extension_numbers(sections["packed"], sections.get("extended"), measured)
    runs = {name: training_numbers(folder) for name, folder in _below(sections, "finetune").items()}
    if "extended" in sections:
        runs["extended"] = training_numbers(sections["extended"])
    tuned = _below(sections, "tune")
    if tuned:
        numbers["tuning"] = tuning_numbers(tuned)
        runs |= {name: training_numbers(tuned[name]) for name in numbers["tuning"]}
    if any(runs.values()):
        numbers["finetune"] = {name: run for name, run in runs.items() if run}
    preference = preference_numbers(
        _below(sections, "preference"), _below(sections, "preference-judge"), sections.get("best-of")
    )
    if preference is not None:
        numbers["preference"] = preference
    folders = {label: sections[label] for label in _ordered(sections, "evaluation")}
    evaluations = read_evaluations(folders)
    if folders:
        numbers["evaluation"] = {
            "scores": evaluations.scores,
            "grids": evaluations.grids,
            "lengths": by_length(evaluations.measured),
            "groups": by_group(evaluations.measured),
            "published": _published(evaluations.scores),
        }
        retrieval = comparisons(evaluations.measured)
        if retrieval:
            numbers["retrieval"] = retrieval
    long = read_evaluations({label: sections[label] for label in _ordered(sections, "long")})
    beyond = [*beyond_window(evaluations.measured), *beyond_window(long.measured)]
    if beyond:
        numbers["beyond"] = beyond
    if long.scores:
        numbers["long"] = by_asked_length(long.measured)
    numbers["manifests"] = {
        label: {name: manifest[name] for name in DETERMINISTIC if name in manifest}
        for label, manifest in sorted(manifests.items())
    }
    maps = {method: drawn for method, folder in coresets.items() if (drawn := map_of(folder)) is not None}
    speeds = {label: speed for label, folder in sections.items() if (speed := speed_numbers(folder)) is not None}
    return Gathered(numbers, evaluations, long, manifests, maps, speeds)


def _published(scores: Sequence[Numbers]) -> list[Numbers]:
    """What is published of the suites and tasks that were run with direct long context."""
    ran: dict[str, list[str]] = {}
    for row in scores:
        if row["retrieval"] is None:
            ran.setdefault(row["suite"], []).append(row["task"])
    return [asdict(row) for suite in sorted(ran) for row in published(suite, ran[suite])]


def _ordered(sections: Mapping[str, Path], stage: str) -> list[str]:
    labels = [label for label in sections if label.split("/")[0] == stage]
    return sorted(labels, key=lambda label: [rank(part) for part in label.split("/")[1:]])


def _below(sections: Mapping[str, Path], stage: str) -> dict[str, Path]:
    """`{"coreset/tagcos": folder}` -> `{"tagcos": folder}`, in the order of display."""
    return {label.partition("/")[2] or stage: sections[label] for label in _ordered(sections, stage)}
