"""Links from a page's numbers to the artifacts that they stand in: their manifests, at the end of the page."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup, escape

#: Section of the page -> the artifacts its numbers are from: labels, or with a slash at the end all below it.
SOURCES = {
    "corpus": ("corpus", "tokenizer", "index"),
    "model": ("model",),
    "memorization": ("trace",),
    "explained": ("explain", "explain/completions"),
    "contamination": ("contamination/", "planted"),
    "coreset": ("instructions", "coreset/"),
    "proof": ("proof",),
    "extension": ("packed", "extended", "positions/"),
    "tuning": ("tune/",),
    "finetune": ("finetune/", "extended", "tune/"),
    "preference": ("preference/", "preference-judge/", "best-of"),
    "beyond": ("long/",),
}

Numbers = dict[str, Any]


def anchor(label: str) -> str:
    """The id of an artifact on a page, from its label alone, so that other pages can link to it."""
    return f"artifact-{hashlib.sha256(label.encode()).hexdigest()[:10]}"


class Links:
    """The links of one page.

    Args:
        labels: of the artifacts whose manifests it shows; others are not linked.
        scores: rows with model, policy, retrieval, suite and section, the label of their artifact.
    """

    def __init__(self, labels: Iterable[str], scores: Iterable[Mapping[str, Any]]) -> None:
        self._labels = list(labels)
        self._scores = {_case(row): row["section"] for row in scores}

    def at(self, text: str, *labels: str) -> Markup:
        """`text`, linked to the first of the labels that is there."""
        label = next((label for label in labels if label in self._labels), None)
        return escape(text) if label is None else Markup('<a href="#{}">{}</a>').format(anchor(label), text)

    def scored(self, text: str, **case: str | None) -> Markup:
        """`text`, linked to the evaluation of this model, policy, retrieval and suite."""
        return self.at(text, self._scores.get(_case(case), ""))

    def sectioned(self, rows: Iterable[Numbers]) -> list[Numbers]:
        """The rows with the label of their evaluation as `section`."""
        return [{**row, "section": self._scores.get(_case(row), "")} for row in rows]

    def of(self, section: str) -> list[str]:
        """The labels of the artifacts that a section of the page shows."""
        return [
            label
            for source in SOURCES[section]
            for label in self._labels
            if label == source or (source.endswith("/") and label.startswith(source))
        ]


def _case(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    return row["model"], row["policy"], row.get("retrieval") or None, row["suite"]
