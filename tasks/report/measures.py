"""What of a report is measured but has no samples to pair: losses, perplexities, accuracies, correlations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from longloom.tasks.report.order import rank
from longloom.tasks.report.preference import NAMES, conditions_of
from longloom.tasks.report.proof_words import share_name

Numbers = Mapping[str, Any]
#: Part, name.
Key = tuple[str, str]


@dataclass(frozen=True)
class Measure:
    """One number of one report.

    Attributes:
        value: the number.
        low, high: its own 95% interval or range over seeds; None: it has none.
        better: "lower" or "higher"; "": neither is.
        section: the label of the artifact that it stands in.
    """

    value: float
    low: float | None = None
    high: float | None = None
    better: str = ""
    section: str = ""


def measures(report: Numbers) -> dict[Key, Measure]:
    """The measures of a report.json, in the order of its sections."""
    return dict(_all(report))


def _all(report: Numbers) -> Iterator[tuple[Key, Measure]]:
    training = report.get("model", {}).get("training")
    if training and training["final_loss"] is not None:
        yield ("training loss", "base model"), Measure(training["final_loss"], better="lower", section="model")
    for row in report.get("memorization", {}).get("rows", ()):
        if row["rho"] is not None:
            name = f"{row['task']}, {row['set']}, n = {row['n']}, {row['model']}"
            yield (
                (f"memorization, {row['measure']}", name),
                Measure(row["rho"], row["low"], row["high"], section="trace"),
            )
    for name, found in report.get("contamination", {}).items():
        if found["records"]:
            share = found["contaminated"] / found["records"]
            yield ("contamination", f"{name}, share of the records"), Measure(share, section=f"contamination/{name}")
    yield from _proof(report.get("proof"))
    for name, rows in (report.get("extension") or {}).get("perplexity", {}).items():
        for row in rows:
            place = f"{name}, after {row['first']:,} to {row['last']:,} tokens"
            yield ("perplexity", place), Measure(row["perplexity"], better="lower", section=f"positions/{name}")
    for name, run in sorted(report.get("finetune", {}).items(), key=lambda run: rank(run[0])):
        if run["final_loss"] is not None:
            section = (
                name if name == "extended" else f"{'tune' if name in report.get('tuning', {}) else 'finetune'}/{name}"
            )
            yield ("training loss", name), Measure(run["final_loss"], better="lower", section=section)
    if report.get("preference"):
        yield from _preference(report["preference"])


def _proof(proof: Numbers | None) -> Iterator[tuple[Key, Measure]]:
    for row in (proof or {}).get("rows", ()):
        loss = row["loss"]
        name = f"{row['method']} at {share_name(row['share'])}"
        yield ("held-out loss", name), Measure(loss["mean"], loss["low"], loss["high"], "lower", "proof")


def preference_scores(report: Numbers) -> dict[Key, dict[str, Any]]:
    """The preference accuracies that have credits by prompt, under their names as measures, as scores to be paired."""
    return {
        _preference_key(name, condition): {
            "suite": "preference",
            "task": name,
            "metric": "accuracy",
            "model": "reward model",
            "policy": NAMES[condition],
            "score": own["value"],
            "better": _better(condition),
            "sample_scores": found["credits"][condition],
            "section": f"preference/{name}",
        }
        for name, found in report.get("preference", {}).get("sets", {}).items()
        for condition, own in conditions_of(found).items()
        if found.get("credits", {}).get(condition)
    }


def _preference_key(name: str, condition: str) -> Key:
    return "preference accuracy", f"{name}, {NAMES[condition]}"


def _better(condition: str) -> str:
    """With the negated criterion preferences should turn around; a nonsense one should say nothing."""
    return {"negated": "lower", "nonsense": ""}.get(condition, "higher")


def _preference(preference: Numbers) -> Iterator[tuple[Key, Measure]]:
    for name, found in preference["sets"].items():
        for condition, own in conditions_of(found).items():
            if own["value"] is not None:
                measure = Measure(own["value"], own["low"], own["high"], _better(condition), f"preference/{name}")
                yield _preference_key(name, condition), measure
    for name, found in preference["judges"].items():
        for condition, own in found["conditions"].items():
            if own["value"] is not None:
                key = ("judge’s accuracy", f"{name}, {NAMES[condition]}")
                yield key, Measure(own["value"], own["low"], own["high"], "higher", f"preference-judge/{name}")
    best_of = preference["best_of"]
    if best_of is not None:
        yield ("best of several", "mean of subsets"), Measure(best_of["score"], better="higher", section="best-of")
        for row in best_of["subsets"]:
            key = ("best of several", row["subset"])
            yield key, Measure(row["score"], row["low"], row["high"], "higher", "best-of")
