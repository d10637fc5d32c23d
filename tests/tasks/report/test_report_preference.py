"""Evaluations of reward models on the page: what is said follows from the numbers, whichever way they turned out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.tasks.report.build import build
from longloom.tasks.report.differences import compare
from longloom.tasks.report.gather import gather
from longloom.tasks.report.preference import best_of_lines, category_lines, preference_numbers, set_lines, verdicts
from longloom.tasks.report.preference_plots import condition_bars, profile_curve

HOSTILE = "<script>alert('x')</script> & $a$ | **b**"

Numbers = dict[str, Any]


def accuracy(value: float | None, width: float | None = 0.02, comparisons: int = 100) -> Numbers:
    low, high = (None, None) if value is None or width is None else (value - width, value + width)
    return {"value": value, "low": low, "high": high, "comparisons": comparisons, "equal": 0}


def one_set(*, gain: float = 0.4, two_step: bool = True, contexts: bool = True) -> Numbers:
    conditions = {"nc": accuracy(0.5, 0.0)}
    if contexts:
        conditions |= {"ctx": accuracy(0.5 + gain), "nonsense": accuracy(0.51), "negated": accuracy(0.1)}
    point = {
        "inferred": 0.8,
        "inferred_low": 0.7,
        "inferred_high": 0.9,
        "weighted": 0.82,
        "weighted_low": 0.72,
        "weighted_high": 0.92,
    }
    steps = {
        "comparisons": 60,
        "candidates": 8,
        "expected_utility": accuracy(0.55),
        "borda": accuracy(0.53),
        "decomposition": {"pairs": 30, "total": 0.3, "prediction": 0.2, "inference": 0.15, "violations": 0},
    }
    return {
        "comparisons": 103,
        "judged": 100,
        "ties": 2,
        "too_long": 1,
        "without_context": 0,
        "prompts": 50,
        "contexts": 9,
        "context_free": {"best": 50, "of": 100, "balanced": True},
        "conditions": conditions,
        "gain": {"value": gain, "low": gain - 0.05, "high": gain + 0.05},
        "turned": {"value": 0.75, "low": 0.7, "high": 0.8},
        "negations": {"listed": 10, "by_rule": 90},
        "categories": [{"category": HOSTILE, "comparisons": 7, "conditions": {"nc": accuracy(0.5, None)}}],
        "profiles": {
            "profiles": 3,
            "comparisons": 48,
            "nc": 0.5,
            "ctx": 0.95,
            "points": [{"k": 0, "recovered": None, **point}, {"k": 2, "recovered": 0.5, **point}],
        },
        "two_step": steps if two_step else None,
    }


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    judged = {**accuracy(0.7), "as_a": 0.8, "as_b": 0.6, "judged_twice": 90, "disagreements": 18}
    judged |= {"wins": 60, "ties": 10, "losses": 20, "unread": 3, "failed": 0}
    best_of = {
        "prompts": 30,
        "responses": 120,
        "too_long": 0,
        "score": 0.6,
        "subsets": [
            {"subset": "Math", "prompts": 20, "score": 0.5, "low": 0.4, "high": 0.6, "chance": 0.25},
            {"subset": "Ties", "prompts": 10, "score": 0.7, "low": None, "high": None, "chance": None},
        ],
        "ties": {"ref": 1, "tied": 0.5, "preferred": 0.5, "preferred_hard": 0.5, "margin": -0.25, "score": 0.7},
    }
    files = {
        "preference/modules": ("preference.json", one_set()),
        f"preference/{HOSTILE}": ("preference.json", one_set(gain=0.0, two_step=False)),
        "preference-judge/modules": ("judge.json", {"comparisons": 100, "conditions": {"ctx": judged}}),
        "best-of": ("best_of.json", best_of),
    }
    found = {}
    for number, (label, (name, content)) in enumerate(files.items()):
        found[label] = tmp_path / str(number)
        found[label].mkdir()
        (found[label] / name).write_text(json.dumps(content))
    return found


def test_the_page_shows_every_part(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    build(folders, {label: {} for label in folders}, out, title="t")
    page, text = ((out / name).read_text() for name in ("index.html", "report.md"))
    assert page.count("<script>") == 1  # its own
    assert page.count('<section id="preference">') == 1
    shown = (
        "On modules the better response is found in 50.0% without a context and in 90.0%",
        "It listens: the gain is beyond its interval.",
        "That it listens cannot be told: the interval of the gain holds 0.",
        "the negation turns 75.0% of the preferences around",
        "Every comparison is there in both orders",
        "2 ties, 1 too long",
        "modules: 3 profiles",
        "<td>0.300</td><td>0.200</td><td>0.150</td><td>0.350</td><td>0</td>",
        "70.0% (68.0% to 72.0%)",
        "<td>20.0%</td><td>3</td>",  # orders that disagree, replies unread
        "mean of subsets",
        "tie-breaking margin −0.250.",
    )
    assert [words for words in shown if words not in page] == []
    assert page.count("<svg") == 3
    assert "| modules | 100 | 50.0% (50.0% to 50.0%) | 90.0% (88.0% to 92.0%) |" in text
    assert "| mean of subsets | 30 | 60.0% |" in text
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["preference"]["sets"]["modules"]["gain"]["value"] == 0.4


def test_what_is_said_without_contexts_and_of_a_model_that_is_misled() -> None:
    bare, misled = verdicts({"a": one_set(contexts=False), "b": one_set(gain=-0.2)})
    assert bare == "On a the better response is found in 50.0% without a context; no comparison has one."
    assert "The context misleads it: the loss is beyond its interval." in misled
    columns, lines = set_lines({"a": one_set(contexts=False, two_step=False)})
    assert columns == ["no context"]
    assert [cell.text for cell in lines[0][3]] == ["50.0%"]


def test_columns_of_sets_that_differ() -> None:
    columns, lines = set_lines({"a": one_set(), "b": one_set(contexts=False, two_step=False)})
    assert columns == ["no context", "its context", "nonsense", "negated", "inferred"]
    assert [cell.text for cell in lines[1][3]] == ["50.0%", "–", "–", "–", "–"]


def test_many_categories_are_cut() -> None:
    found = one_set()
    found["categories"] *= 45
    columns, lines, more = category_lines(found)
    assert (columns, len(lines), more) == (["no context"], 40, 5)


def test_figures_of_little() -> None:
    assert not condition_bars({})
    assert "<svg" in condition_bars({"a": one_set(contexts=False, two_step=False)})
    found = one_set()["profiles"]
    for point in found["points"]:
        point["inferred_low"] = point["inferred_high"] = None
    assert "<svg" in profile_curve(found, title="a")


def test_nothing_to_show(tmp_path: Path) -> None:
    assert preference_numbers({}, {}, None) is None
    (tmp_path / "preference.json").write_text("[]")
    with pytest.raises(ValueError, match="expected an object"):
        preference_numbers({"a": tmp_path}, {}, None)
    assert [line[0] for line in best_of_lines({"subsets": [], "prompts": 0, "score": 0.0})] == ["mean of subsets"]


def report_of(folder: Path, right: dict[str, int], *, prompts: int = 40, **digests: str) -> Numbers:
    """A report of one set, a comparison a prompt, of which a condition has so many right."""
    folder.mkdir()
    conditions = {name: accuracy(count / prompts) for name, count in right.items()}
    (folder / "preference.json").write_text(json.dumps({**one_set(two_step=False), "conditions": conditions}))
    rows = [
        {"id": f"{number}", "condition": name, "context": "c", "rejected": 0.5, "chosen": float(number < count)}
        | ({"prompt": f"p{number}", **digests} if digests else {})
        for name, count in right.items()
        for number in range(prompts)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    return gather({"preference/modules": folder}, {}, title=folder.name).numbers


def test_preference_accuracies_on_the_same_comparisons_are_paired(tmp_path: Path) -> None:
    first = report_of(tmp_path / "a", {"nc": 20, "ctx": 20, "nonsense": 20, "negated": 20}, responses="r")
    second = report_of(tmp_path / "b", {"nc": 21, "ctx": 32, "nonsense": 32, "negated": 8}, responses="r")
    comparison = compare(first, second)
    assert [row for row in comparison.measures if row.part == "preference accuracy"] == []
    verdicts = {"no context": "", "its context": "better", "nonsense": "", "negated": "better"}  # this one is lower
    assert {row.policy: row.verdict for row in comparison.rows} == verdicts
    assert {(row.suite, row.task, row.samples) for row in comparison.rows} == {("preference", "modules", 40)}
    pair = next(row.paired for row in comparison.rows if row.policy == "its context")
    assert pair is not None
    assert (pair.difference, pair.p) == (pytest.approx(0.3), pytest.approx(0, abs=0.01))
    assert 0 < pair.low < 0.3 < pair.high


@pytest.mark.parametrize("other", [{}, {"responses": "s"}, {"responses": "r", "prompts": 41}])
def test_other_comparisons_stand_side_by_side(tmp_path: Path, other: dict[str, Any]) -> None:
    first = report_of(tmp_path / "a", {"ctx": 20}, responses="r")
    comparison = compare(first, report_of(tmp_path / "b", {"ctx": 40}, **other))
    assert comparison.rows == ()
    measured = [(row.name, row.verdict) for row in comparison.measures if row.part == "preference accuracy"]
    assert measured == [("modules, its context", "better")]
