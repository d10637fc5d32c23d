"""The table: rows with and without a measure, its page and its Markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from longloom.tasks.replicate.build import build
from longloom.tasks.replicate.claims import CLAIMS, PAPERS
from longloom.tasks.replicate.words import measured, table

from .conftest import Artifacts


@pytest.fixture
def razor(artifacts: Artifacts) -> Artifacts:
    """Two seeds of the needles; Razor's second run loses much."""
    for seed, found in enumerate(([1, 1, 1, 1], [1, 0, 0, 0])):
        artifacts.answers(f"needle/full/{seed}", {1000: [1, 1, 1, 1]}, kv_bytes=100)
        artifacts.answers(f"needle/razor/{seed}", {1000: found}, kv_bytes=25)
    artifacts.folder("report")
    return artifacts


def made(artifacts: Artifacts, out: Path, *papers: str) -> dict[str, Any]:
    out.mkdir()
    places = {role: f"artifacts/kind/{folder.name}" for role, folder in artifacts.folders.items()}
    build(artifacts.folders, places, out, papers=papers)
    numbers: dict[str, Any] = json.loads((out / "replicate.json").read_text())
    return numbers


def test_rows_have_values_verdicts_and_what_they_come_from(razor: Artifacts, tmp_path: Path) -> None:
    numbers = made(razor, tmp_path / "out", "razor")
    rows = {row["name"]: row for row in numbers["rows"]}
    assert list(numbers["papers"]) == ["razor"]
    assert list(rows) == [claim.name for claim in CLAIMS if claim.paper == "razor"]
    assert (rows["razor-cache"]["values"], rows["razor-cache"]["verdict"]) == ([75.0, 75.0], "holds")
    assert (rows["razor-quality"]["values"], rows["razor-quality"]["verdict"]) == ([0.0, 75.0], "does not")
    assert set(rows["razor-cache"]["artifacts"]) == {
        f"needle/{role}/{seed}" for role in ("razor", "full") for seed in (0, 1)
    }
    manifest = json.loads((razor.folders["needle/razor/1"] / "manifest.json").read_text())
    assert rows["razor-cache"]["artifacts"]["needle/razor/1"] == manifest["digest"]
    assert (rows["razor-heads"]["values"], rows["razor-heads"]["verdict"]) == ([], "not measured")
    assert rows["razor-heads"]["artifacts"] == {}
    assert numbers["verdicts"] == {"does not": 1, "holds": 1, "not measured": 2}


def test_the_page_leads_to_the_report_and_the_artifacts(razor: Artifacts, tmp_path: Path) -> None:
    made(razor, tmp_path / "out", "razor")
    page = (tmp_path / "out" / "index.html").read_text()
    report = razor.folders["report"].name
    assert f'href="../../../artifacts/kind/{report}/index.html#kv"' in page
    links = re.findall(r'href="([^"#]+)"', page)
    assert f"../../../artifacts/kind/{razor.folders['needle/razor/0'].name}/manifest.json" in links
    assert all(link.startswith(("../../../artifacts/", "data:")) for link in links)
    assert page.count('<tr id="') == 4
    assert page.count("in the report") == 2  # not where nothing was measured


def test_equal_evidence_gives_equal_bytes(razor: Artifacts, tmp_path: Path) -> None:
    for name in ("one", "two"):
        made(razor, tmp_path / name, *PAPERS)
    for file in ("replicate.json", "report.md", "index.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_what_was_measured_earlier_says_so(artifacts: Artifacts, tmp_path: Path) -> None:
    numbers = made(artifacts, tmp_path / "out", "minisequence")
    (row,) = [row for row in numbers["rows"] if row["earlier"]]
    assert row["verdict"] != "not measured"
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"measured earlier: `{row['earlier']['command']}`" in text
    assert f"earlier ({row['earlier']['date']})" in table(numbers)


def test_an_unknown_paper_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"paper 'raisor': unknown, expected some of ngrams, tagcos"):
        build({}, {}, tmp_path, papers=["raisor"])


@pytest.mark.parametrize(
    ("values", "unit", "digits", "text"),
    [
        ([], "x", 1, "–"),
        ([18.04], "x", 1, "18.0x"),
        ([1.0, 7.25, 4.5], " points", 1, "4.2 points (1.0 to 7.2)"),
        ([-0.004, 0.002], "", 2, "0.00 (0.00 to 0.00)"),
    ],
)
def test_how_a_measure_is_written(values: list[float], unit: str, digits: int, text: str) -> None:
    assert measured({"values": values, "unit": unit, "digits": digits}) == text


def test_the_table_of_readme_has_a_line_a_claim(artifacts: Artifacts, tmp_path: Path) -> None:
    numbers = made(artifacts, tmp_path / "out", *PAPERS)
    lines = table(numbers).splitlines()
    assert len(lines) == 2 + len(CLAIMS)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in lines)
    assert sum("arxiv.org/abs/" in line for line in lines) == len(PAPERS)
