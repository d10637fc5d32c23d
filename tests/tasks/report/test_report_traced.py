"""What texts owe to the corpus on the page: memorization, explained completions, contamination; the tables' values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.tasks.report.build import build
from longloom.tasks.report.differences import compare
from longloom.tasks.report.memorization import ASKED, INFINITY_GRAM, TASK_GRAM, memorization_lines, memorization_numbers
from longloom.tasks.report.memorization_plots import memorization_curves
from longloom.tasks.report.sourced import contamination_numbers, explained_numbers

HOSTILE = "<script>alert('x')</script> & | **b**"
MODELS = {"large": 1_115_264, "small": 151_872}  # not in the order of their sizes
SETS = ("corpus", "held-out")


def study(tasks: tuple[str, ...] = tuple(ASKED), ns: tuple[int, ...] = (2,)) -> dict[str, Any]:
    """A trace.json with a value of its own in every row."""
    rows, dropped, number = [], [], 0
    for name in SETS:
        for n in ns:
            for task in tasks:
                lost = {"pairs": 200 + number, "kept": 150, "unseen": 20, "zero": 28 + number, "rare": 1, "unknown": 1}
                dropped.append({"set": name, "task": task, "n": n, **lost, "share_dropped": 0.15})
                for model, size in MODELS.items():
                    for measure, rule in ((TASK_GRAM, "all"), (TASK_GRAM, "disjoint"), (INFINITY_GRAM, "all")):
                        number += 1
                        rho = (-1) ** number * (0.111 + number / 100)
                        row = {"set": name, "task": task, "n": n, "model": model, "parameters": size}
                        row |= {"measure": measure, "rule": rule, "points": 170, "records": 50, "rho": rho}
                        row |= {"p": 0.0001 if number % 3 else 0.25, "low": rho - 0.05, "high": rho + 0.05}
                        rows.append({**row, "tau": 0.1, "distance": 0.45, "unscored": 0})
    gammas = {str(n): 0.3 for n in ns}
    found = {"mode": "paper", "gammas": gammas, "embeddings": ["input-embeddings"]}
    return found | {"memorization": rows, "dropped": dropped}


def write_study(folder: Path, found: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "trace.json").write_text(json.dumps(found or study()))
    return folder


def explanation(name: str, text: str, spans: list[tuple[str, list[str], int]], documents: list[str]) -> dict[str, Any]:
    """Of explain.json; a span is its text, the documents listed for it, and how many hold it."""
    rows = [
        {"begin": text.index(span), "end": text.index(span) + len(span), "text": span, "tokens": 3,
         "log_probability": -20.5, "occurrences": 7, "in_documents": count, "matches": [{"id": one} for one in ids]}
        for span, ids, count in spans
    ]  # fmt: skip
    held = [
        {"document": place, "id": one, "source": "s", "spans": [1], "characters": 40 - place}
        for place, one in enumerate(documents)
    ]
    return {"name": name, "text": text, "tokens": 9, "found": 4, "covered": 0.5, "spans": rows, "documents": held}


def write_explained(root: Path) -> tuple[Path, Path]:
    """Three completions: of the source that holds the most, of one that comes second, of one that is not found."""
    texts = {
        "a.py": ("one two three four", [("one two", ["a.py"], 1), ("four", ["b.py"], 60)], ["a.py", "b.py"]),
        "b.py": ("five six", [("five six", ["a.py", "b.py"], 2)], ["a.py", "b.py"]),
        HOSTILE: (f"seven {HOSTILE}", [(HOSTILE, ["c.py"], 1)], ["c.py"]),
    }
    explain, completions = root / "explain", root / "completions"
    explain.mkdir(parents=True)
    completions.mkdir()
    found = [
        explanation(f"completion {name} greedy {number}", text, spans, documents)
        for number, (name, (text, spans, documents)) in enumerate(texts.items())
    ]
    (explain / "explain.json").write_text(json.dumps(found))
    rows = [
        {"suite": "completion", "task": name, "policy": "greedy", "sample": number, "source": "s",
         "prompt": f"a prompt of {number} ", "prediction": text, "prompt_tokens": 5, "new_tokens": 9}
        for number, (name, (text, *_)) in enumerate(texts.items())
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), completions / "samples.parquet")
    return explain, completions


def write_contamination(root: Path, records: int = 3, flagged: tuple[int, ...] = (0,)) -> tuple[Path, Path]:
    folder, planted = root / "contamination", root / "planted"
    folder.mkdir(parents=True)
    planted.mkdir()
    rows = [
        {"suite": "jsonl", "task": "planted", "sample": number, "contaminated": number in flagged,
         "verdict": "dirty" if number in flagged else "clean", "8-gram_share": 0.975 if number in flagged else 0.012,
         "50-char_share": None, "match": "some words" if number in flagged else None,
         "id": "lib/source.py" if number in flagged else None}
        for number in range(records)
    ]  # fmt: skip
    schema = pa.Table.from_pylist(rows).schema
    schema = schema.set(schema.get_field_index("50-char_share"), pa.field("50-char_share", pa.float64()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "contamination.parquet")
    lines = [
        json.dumps({"id": f"module{number}.py:f", "planted": number == 0, "text": "t"}) for number in range(records)
    ]
    (planted / "planted.jsonl").write_text("\n".join(lines) + "\n")
    return folder, planted


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Path]:
    explain, completions = write_explained(tmp_path / "e")
    contamination, planted = write_contamination(tmp_path / "c")
    return {
        "trace": write_study(tmp_path / "t"),
        "explain": explain,
        "explain/completions": completions,
        "contamination/planted": contamination,
        "planted": planted,
    }


MANIFESTS: dict[str, dict[str, Any]] = {"contamination/planted": {"parameters": {"by": ["8-gram", "50-char"]}}}


def report(sections: dict[str, Path], out: Path) -> tuple[str, str, dict[str, Any]]:
    out.mkdir()
    manifests = {label: manifest for label, manifest in MANIFESTS.items() if label in sections}
    build(sections, manifests, out, title="t")
    numbers: dict[str, Any] = json.loads((out / "report.json").read_text())
    return (out / "index.html").read_text(), (out / "report.md").read_text(), numbers


def minus(value: float) -> str:
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def test_every_value_of_the_study_is_shown(sections: dict[str, Path], tmp_path: Path) -> None:
    page, markdown, numbers = report(sections, tmp_path / "out")
    body = page[page.index('id="memorization"') : page.index('id="explained"')]
    source = study()
    wanted = [row for row in source["memorization"] if row["rule"] == "all"]
    assert numbers["memorization"]["rows"] == [
        {k: row[k] for k in numbers["memorization"]["rows"][0]} for row in wanted
    ]
    for row in wanted:
        p = "p &lt; 0.001" if row["p"] < 0.05 else "p = 0.250"
        cell = f"{minus(row['rho'])}</span><small>{minus(row['low'])} to {minus(row['high'])}</small><small>{p}</small>"
        best = ' class="best"' if row["p"] < 0.05 else ""
        assert f'<td{best}><span class="score">{cell}' in body
        if row["measure"] == TASK_GRAM:
            assert f"{minus(row['rho'])} ({minus(row['low'])} to {minus(row['high'])}; {p})" in markdown
    for row in source["memorization"]:
        assert (f'"score">{minus(row["rho"])}<' in body) is (row["rule"] == "all")
    for row in source["dropped"]:
        gone = row["zero"] + 2
        assert f"<td>{row['pairs']}</td><td>20</td><td>{gone} ({100 * gone / row['pairs']:.1f}%)</td>" in body
    assert body.index("small") < body.index("152 k") < body.index("1.12 M")
    assert all(text in body for text in ASKED.values())
    assert (
        "On held-out questions the answers of large follow the counts in the corpus with a rank correlation (Mem) of"
        in page
    )


def test_lines_keep_the_order_of_tasks_and_the_smallest_model_comes_first(tmp_path: Path) -> None:
    numbers = memorization_numbers(write_study(tmp_path / "t", study(("b", "a"), ns=(2, 3))))
    lines = memorization_lines(numbers, TASK_GRAM)
    places = [(line.task, line.n, line.set) for line in lines]
    assert places == [(task, n, name) for task in ("b", "a") for n in (2, 3) for name in SETS]
    first = next(row for row in numbers["rows"] if row["model"] == "small")
    assert lines[0].values[0] is not None
    assert lines[0].values[0].rho == minus(first["rho"])
    svg = str(memorization_curves(numbers))
    assert svg.count("152 k") == 2  # a panel a task
    assert "n = 3" in svg
    assert "held-out" in svg


def test_marks_are_hollow_where_p_is_large(tmp_path: Path) -> None:
    found = study(("one",))
    for row in found["memorization"]:
        row["p"] = 0.2
    numbers = memorization_numbers(write_study(tmp_path / "hollow", found))
    assert "fill: var(--page" in str(memorization_curves(numbers))
    for row in numbers["rows"]:
        row["p"] = 0.01
    assert "fill: var(--page" not in str(memorization_curves(numbers))


def test_what_is_not_defined_is_left_out_of_the_figure(tmp_path: Path) -> None:
    found = study(("one", "two"))
    for row in found["memorization"]:
        if row["task"] == "one":
            row |= dict.fromkeys(("rho", "p", "low", "high"))
    page, _, numbers = report({"trace": write_study(tmp_path / "t", found)}, tmp_path / "out")
    assert memorization_lines(numbers["memorization"], TASK_GRAM)[0].values == [None, None]
    assert 'aria-label="Memorization against model size: two"' in page
    assert "knowledge" not in page  # what the demo's tasks ask is told of them alone
    for row in numbers["memorization"]["rows"]:
        row["rho"] = None
    assert memorization_curves(numbers["memorization"]) == ""


def test_completions_tell_whether_their_source_was_found(sections: dict[str, Path], tmp_path: Path) -> None:
    page, markdown, numbers = report(sections, tmp_path / "out")
    found = numbers["explained"]
    assert [one["place"] for one in found["shown"]] == [1, 2, None]
    assert (found["texts"], found["completions"], found["first"], found["among"]) == (3, 3, 1, 2)
    assert [[span["of_origin"] for span in one["spans"]] for one in found["shown"]] == [[True, None], [True], [False]]
    body = page[page.index('id="explained"') : page.index('id="contamination"')]
    assert "for <strong>1</strong> of 3, and is among those found for <strong>2</strong>" in body
    assert "<strong>Source found:</strong> of all documents, a.py holds the most of it." in body
    assert "b.py is number 2 of the 2 documents" in body
    assert body.count("<strong>Source not found:</strong>") == 1
    assert '<span class="asked">… a prompt of 0 </span><span class="level-1">one two</span> three <span' in body
    assert page.count("<script>") == 1  # its own
    assert "| a.py | 1 | 9 | one two |" in markdown


def test_texts_that_are_no_completions_have_no_source(sections: dict[str, Path], tmp_path: Path) -> None:
    page, markdown, numbers = report({"explain": sections["explain"]}, tmp_path / "out")
    assert {one["origin"] for one in numbers["explained"]["shown"]} == {None}
    assert "Texts and their sources" in page
    assert "Source found" not in page
    assert "Completions" not in markdown


def test_the_planted_record_is_flagged(sections: dict[str, Path], tmp_path: Path) -> None:
    page, markdown, numbers = report(sections, tmp_path / "out")
    found = numbers["contamination"]["planted"]
    assert (found["records"], found["contaminated"], found["measures"]) == (3, 1, ["8-gram"])
    body = page[page.index('id="contamination"') :]
    assert (
        "<strong>1</strong> of 3 records is flagged, of which 70% of the windows of 8 words stand in the corpus."
        in body
    )
    assert "1 was copied out of the corpus on purpose, and is flagged; of those from held-out modules" in body
    rows = re.findall(r"<tr><th scope=\"row\">(module\d)\.py:f</th>(.*?)</tr>", body)
    told = [(name, *re.findall(r">([^<>]+)<", cells)) for name, cells in rows]
    assert told == [
        ("module0", "the corpus", "97.5%", "flagged", "lib/source.py"),
        ("module1", "held out", "1.2%", "clean", "–"),
        ("module2", "held out", "1.2%", "clean", "–"),
    ]
    assert "| module0.py:f | 97.5% | **flagged** | lib/source.py |" in markdown


def test_a_planted_record_that_is_missed_is_said_to_be(tmp_path: Path) -> None:
    folder, planted = write_contamination(tmp_path / "c", flagged=(1,))
    page, _, _ = report({"contamination/planted": folder, "planted": planted}, tmp_path / "out")
    assert "and is NOT flagged; of those from held-out modules, which are in no document of the corpus, 1 is." in page


def test_of_a_large_set_only_what_is_flagged_is_shown(tmp_path: Path) -> None:
    folder, _ = write_contamination(tmp_path / "c", records=60, flagged=tuple(range(0, 60, 2)))
    found = contamination_numbers(folder, ["13-gram"], None)
    assert (len(found["rows"]), found["more"], found["rule"]) == (20, 10, "")
    assert all(row["contaminated"] and row["name"] is None for row in found["rows"])


def test_runs_with_and_without_compare(sections: dict[str, Path], tmp_path: Path) -> None:
    _, _, numbers = report(sections, tmp_path / "a")
    _, _, without = report({}, tmp_path / "b")
    assert compare(numbers, numbers).changes == ()
    assert compare(numbers, without).sections == {"contamination/planted": "a"}
    assert compare(without, numbers).rows == ()


@pytest.mark.parametrize(
    ("label", "name", "text", "message"),
    [
        ("trace", "trace.json", "{}", "is not a study of memorization"),
        ("trace", "trace.json", "{", "cannot read"),
        ("explain", "explain.json", '[{"name": "a"}]', "is not an explanation"),
        ("explain", "explain.json", "no", "cannot read"),
        ("contamination/planted", "contamination.parquet", "no", "cannot read"),
        ("planted", "planted.jsonl", "[]", "is no set with planted records"),
    ],
)
def test_damaged_files_are_named(
    sections: dict[str, Path], tmp_path: Path, label: str, name: str, text: str, message: str
) -> None:
    (sections[label] / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^report: .*{re.escape(name)}.*") as raised:
        report(sections, tmp_path / "out")
    assert message in str(raised.value)


def test_an_explanation_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "explain.json").write_text("[]")
    assert explained_numbers(tmp_path, None) == {"texts": 0, "completions": 0, "first": 0, "among": 0, "shown": []}
