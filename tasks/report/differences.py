"""What differs between two reports: each score of both, paired where samples align, every other measure, and what was
set or given differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from longloom.tasks.report.formats import flat
from longloom.tasks.report.intervals import SIGNIFICANT, Paired, paired
from longloom.tasks.report.measures import Measure, measures, preference_scores
from longloom.tasks.report.metrics import better
from longloom.tasks.report.order import natural, rank

#: What makes two scores the same thing measured twice.
KEY = ("suite", "task", "metric", "model", "policy", "retrieval")
#: The parents of an evaluation that hold its questions: only of the same ones are samples the same.
QUESTIONS = ("data", "harness", "records", "datasets", "comparisons")

Report = Mapping[str, Any]
Scores = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """One score of both runs.

    Attributes:
        suite, task, metric, model, policy, retrieval: what was measured; no retrieval is direct long context.
        a, b: the scores; None where a run lacks it.
        samples: how many samples the paired comparison rests on; 0 without one.
        paired: b - a over the same samples, with interval and p; None where the samples do not align.
        better: "lower" or "higher"; "": neither is.
        artifacts: the labels of the artifacts of a and of b; empty where a run lacks it or does not tell.
    """

    suite: str
    task: str
    metric: str
    model: str
    policy: str
    retrieval: str | None
    a: float | None
    b: float | None
    samples: int
    paired: Paired | None
    better: str = "higher"
    artifacts: tuple[str, str] = ("", "")

    @property
    def difference(self) -> float | None:
        """b - a of the scores as reported."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def verdict(self) -> str:
        """Whether b is "better" or "worse", where the difference is unlikely to be chance."""
        if not self.better or self.paired is None or self.paired.p >= SIGNIFICANT:
            return ""
        return "better" if (self.paired.difference > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class Beside:
    """A measure that has no samples to pair, of both runs; None where a run lacks it."""

    part: str
    name: str
    a: Measure | None
    b: Measure | None

    @property
    def difference(self) -> float | None:
        """b - a."""
        return None if self.a is None or self.b is None else self.b.value - self.a.value

    @property
    def verdict(self) -> str:
        """Whether b is "better" or "worse", where both have intervals and these do not overlap."""
        a, b = self.a, self.b
        if a is None or b is None or not a.better or a.low is None or a.high is None or b.low is None or b.high is None:
            return ""
        if a.low <= b.high and b.low <= a.high:
            return ""
        return "better" if (b.value > a.value) == (a.better == "higher") else "worse"


@dataclass(frozen=True)
class Change:
    """A parameter, an input or a stage's version that differs, or that one run alone has (the other is then None)."""

    section: str
    parameter: str
    a: Any
    b: Any
    only: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        titles: of a and b.
        rows: every score that either has, those beyond the window by length; preference accuracies of both on the same
            comparisons, over prompts.
        measures: every other measure that either has.
        changes: of the manifests of both, what differs: parameters; inputs that no artifact of their own run is, whose
            changes are told where that was made; versions of stages.
        sections: sections that only one has: name -> "a" or "b".
    """

    titles: tuple[str, str]
    rows: tuple[Difference, ...]
    measures: tuple[Beside, ...]
    changes: tuple[Change, ...]
    sections: Mapping[str, str]


def compare(a: Report | Scores, b: Report | Scores) -> Comparison:
    """Compares two reports, as read from report.json, or two lists of scores as they stand there under evaluation.

    A list's rows hold suite, task, metric, model, policy, retrieval (where there is one), score and, for the paired
    comparison, sample_scores {sample id: score}. Samples align when both runs scored the same ids, of the same
    data where reports tell it. The p values are not corrected for the number of rows.

    Raises:
        ValueError: one of the two is neither, or a row lacks a part of its name; says which.
    """
    scores_a, scores_b = _scores(a, "a"), _scores(b, "b")
    preferences_a, preferences_b = (preference_scores(run) if isinstance(run, Mapping) else {} for run in (a, b))
    same = [
        name
        for name, row in preferences_a.items()
        if row["sample_scores"].keys() == preferences_b.get(name, {}).get("sample_scores", {}).keys()
    ]
    scores_a |= {_key(preferences_a[name]): preferences_a[name] for name in same}
    scores_b |= {_key(preferences_b[name]): preferences_b[name] for name in same}
    order = sorted(
        scores_a | scores_b,
        key=lambda key: (key[0], natural(key[1]), key[2], rank(key[3]), rank(key[4]), natural(key[5])),
    )
    measures_a, measures_b = (measures(run) if isinstance(run, Mapping) else {} for run in (a, b))
    made = {manifest.get("digest") for run in (a, b) for manifest in _manifests(run).values()}
    settings_a, settings_b = _settings(a, made), _settings(b, made)
    alone = settings_a.keys() ^ settings_b.keys()
    return Comparison(
        titles=(_title(a, "a"), _title(b, "b")),
        rows=tuple(
            _difference(key, row_a, row_b, same=_questions(a, row_a) == _questions(b, row_b))
            for key in order
            for row_a, row_b in [(scores_a.get(key), scores_b.get(key))]
        ),
        measures=tuple(
            Beside(*key, measures_a.get(key), measures_b.get(key)) for key in measures_a | measures_b if key not in same
        ),
        changes=tuple(
            change
            for section in sorted(settings_a.keys() & settings_b.keys())
            for change in _changes(section, settings_a[section], settings_b[section])
        ),
        sections={section: "a" if section in settings_a else "b" for section in sorted(alone)},
    )


def _scores(run: Report | Scores, name: str) -> dict[tuple[str, ...], Mapping[str, Any]]:
    rows = [*run.get("evaluation", {}).get("scores", []), *_long(run)] if isinstance(run, Mapping) else run
    found: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for row in rows:
        missing = [part for part in (*KEY, "score") if part not in (*row, "retrieval")]
        if missing:
            raise ValueError(f"compare: a score of run {name} lacks {', '.join(missing)}; has {', '.join(row)}")
        found[_key(row)] = row
    if not rows and not (isinstance(run, Mapping) and "format" in run):
        raise ValueError(f"compare: run {name} is no report.json and holds no scores")
    return found


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row.get(part) or "" for part in KEY)


def _long(report: Report) -> list[dict[str, Any]]:
    """The scores of prompts beyond the window, each length a task of its own."""
    return [
        {
            **row,
            "suite": f"{row['suite']}, long",
            "task": row["task"] if row["length"] is None else f"{row['task']} at {row['length']} tokens",
        }
        for row in report.get("long", [])
    ]


def _title(run: Report | Scores, name: str) -> str:
    return str(run.get("title", name)) if isinstance(run, Mapping) else name


def _manifests(run: Report | Scores) -> Mapping[str, Any]:
    return run.get("manifests", {}) if isinstance(run, Mapping) else {}


def _questions(run: Report | Scores, row: Mapping[str, Any] | None) -> dict[str, str]:
    """Where the questions of a score's samples come from, as far as the run tells."""
    parents = _manifests(run).get((row or {}).get("section", ""), {}).get("parents") or {}
    return {name: parents[name] for name in QUESTIONS if name in parents}


def _settings(run: Report | Scores, made: Set[str | None]) -> dict[str, dict[str, Any]]:
    """What was set and given, section by section; what the runs `made` has a section of its own."""
    found = {}
    for label, manifest in _manifests(run).items():
        parents = manifest.get("parents") or {}
        inputs = {f"input {name}": value for name, value in parents.items() if value not in made}
        version = {"stage's version": manifest["version"]} if "version" in manifest else {}
        found[label] = flat(manifest.get("parameters") or {}) | inputs | version
    return found


def _changes(section: str, a: dict[str, Any], b: dict[str, Any]) -> list[Change]:
    return [
        Change(section, name, a.get(name), b.get(name), "a" if name not in b else "b" if name not in a else "")
        for name in sorted(a.keys() | b.keys())
        if name not in a or name not in b or a[name] != b[name]
    ]


def _difference(
    key: tuple[str, ...], a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, *, same: bool
) -> Difference:
    """One row; with `same` questions, its samples may be paired."""
    samples_a, samples_b = ((row or {}).get("sample_scores") or {} for row in (a, b))
    both = None
    if same and samples_a and samples_a.keys() == samples_b.keys():
        names = sorted(samples_a)
        both = paired(*(np.array([side[name] for name in names], dtype=np.float64) for side in (samples_a, samples_b)))
    suite, task, metric, model, policy, retrieval = key
    return Difference(
        suite=suite,
        task=task,
        metric=metric,
        model=model,
        policy=policy,
        retrieval=retrieval or None,
        a=None if a is None else a["score"],
        b=None if b is None else b["score"],
        samples=len(samples_a) if both else 0,
        paired=both,
        better=better(b or a or {"metric": metric}),
        artifacts=((a or {}).get("section", ""), (b or {}).get("section", "")),
    )
