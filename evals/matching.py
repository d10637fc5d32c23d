"""Scores by containment, shared by suites: RULER's `string_match_all`."""

from __future__ import annotations

from collections.abc import Sequence


def string_match(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that the prediction contains, upper and lower case alike.

    Source: RULER (arXiv 2404.06654), `string_match_all`, for one sample.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("string_match: got no references, expected at least one")
    text = prediction.lower()
    return sum(reference.lower() in text for reference in references) / len(references)
