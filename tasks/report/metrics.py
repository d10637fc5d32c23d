"""What must be known of a metric: which of two scores is better, and which may be averaged and written alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from longloom.tasks.suite_data import HARNESS

#: Metrics of which less is better, where the row of the score does not tell: artifacts of earlier versions.
LOWER_IS_BETTER = frozenset({"bits_per_byte", "byte_perplexity", "loss", "perplexity", "word_perplexity"})

#: Suite, and its metric where the suite's metrics are unlike each other.
Unit = tuple[str, str]


def better(score: Mapping[str, Any]) -> str:
    """ "lower" or "higher", whichever is better of a row of report.json's scores; "": neither is, as it says itself."""
    if "better" in score:
        return str(score["better"])
    told = score.get("higher_is_better")
    if told is None:
        told = score["metric"].partition(",")[0] not in LOWER_IS_BETTER
    return "higher" if told else "lower"


def unit_of(suite: str, metric: str) -> Unit:
    """Scores of one unit share a scale, so that their mean says something: a suite of ours, or a metric of lm-eval."""
    return suite, metric if suite == HARNESS else ""


def score_digits(values: Iterable[float | None]) -> int:
    """Decimals for scores that share a scale: one on a scale to 100, three on a scale to 1."""
    return 1 if any(value is not None and abs(value) > 1 for value in values) else 3


def unit_digits(scores: Iterable[tuple[str, str, float | None]]) -> dict[Unit, int]:
    """The decimals of each unit's scores, of (suite, metric, score)."""
    values: dict[Unit, list[float | None]] = {}
    for suite, metric, score in scores:
        values.setdefault(unit_of(suite, metric), []).append(score)
    return {unit: score_digits(found) for unit, found in values.items()}
