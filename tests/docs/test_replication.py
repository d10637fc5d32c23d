"""README has the table of the seven papers that the repository keeps, and its verdicts follow from the rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longloom.tasks.replicate.claims import CLAIMS
from longloom.tasks.replicate.words import table

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "replicate.json"

pytestmark = pytest.mark.skipif(not RESULT.exists(), reason="`longloom replicate --out benchmarks/results` has not run")


@pytest.fixture
def numbers() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return found


def test_readme_has_the_table(numbers: dict[str, Any]) -> None:
    assert table(numbers) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_verdicts_are_those_of_the_rules_today(numbers: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in numbers["rows"]}
    assert list(rows) == [claim.name for claim in CLAIMS]
    for claim in CLAIMS:
        row = rows[claim.name]
        assert row["verdict"] == claim.rule.verdict(tuple(row["values"])), claim.name
        assert row["rule"] == claim.rule.words(claim.unit)
