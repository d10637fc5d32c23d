"""Preference data of every format becomes the same comparisons; bad records are named, or counted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.storage.parquet import read_table
from longloom.storage.stats import Stats
from longloom.tasks.preference.pairs import SCHEMA, build

DATA = Path(__file__).resolve().parents[3] / "../shared/data/preference"


def run(source: Path, out: Path, *, on_bad_record: str = "stop", contexts: str = "criteria") -> Stats:
    out.mkdir(exist_ok=True)
    return build([str(source)], out, contexts=contexts, on_bad_record=on_bad_record)


def rows(folder: Path) -> list[dict[str, Any]]:
    table = read_table(folder, "comparisons")
    assert table.schema.equals(SCHEMA)
    return table.to_pylist()


def written(folder: Path, *records: dict[str, Any], name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


ASKED = [{"role": "user", "content": "q"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "r"}, {"role": "user", "content": "s"}]
RPR = {
    "prompt": "q",
    "response_a": "a",
    "response_b": "b",
    "criteria_x": "short",
    "criteria_y": "long",
    "category_x": "style",
    "category_y": "depth",
    "scenario_x": "in haste",
    "scenario_y": "at leisure",
    "profile_0": "p",
    "id": 7,
}
#: As prometheus-eval writes it: task, instruction, response, rubric.
JUDGED = (
    "###Task Description:\nWrite feedback.\n\n###The instruction to evaluate:\n{}\n\n###Response to evaluate:\n{}\n\n"
    "###Score Rubrics:\n[{}]\nScore 1: bad.\nScore 5: good.\n\n###Feedback: "
)


def hhh(chosen: str = "a", rejected: str = "b", *, other: str = "q") -> dict[str, str]:
    return {
        "source": "honest",
        "chosen_instruction": JUDGED.format("q", chosen, "Is it true?"),
        "rejected_instruction": JUDGED.format(other, rejected, "Is it true?"),
    }


def comparison(**fields: Any) -> dict[str, Any]:
    return {"prompt": ASKED, "chosen": "a", "rejected": "b", "context": None, "category": None, "tie": False, **fields}


AUTO_J = {"prompt": "q", "response 1": "a", "response 2": "b", "scenario": "chat"}
TURN = [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]

FORMATS: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "rpr": (
        "rpr",
        RPR,
        [
            comparison(context="short", category="style"),
            comparison(chosen="b", rejected="a", context="long", category="depth"),
        ],
    ),
    "auto-j, the first": ("auto-j", AUTO_J | {"label": 0}, [comparison(category="chat")]),
    "auto-j, the second": ("auto-j", AUTO_J | {"label": 1}, [comparison(chosen="b", rejected="a", category="chat")]),
    "auto-j, neither": ("auto-j", AUTO_J | {"label": 2}, [comparison(category="chat", tie=True)]),
    "hhh": ("hhh", hhh(), [comparison(context="Is it true?", category="honest")]),
    "hh-rlhf": (
        "chosen-rejected",
        {
            "chosen": "\n\nHuman: q\n\nAssistant: r\n\nHuman: s\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: r\n\nHuman: s\n\nAssistant: b",
        },
        [comparison(prompt=ANSWERED)],
    ),
    "text": ("chosen-rejected", {"prompt": "q", "chosen": "a", "rejected": "b"}, [comparison()]),
    "text with all": (
        "chosen-rejected",
        {"prompt": "q", "chosen": "a", "rejected": "b", "context": "c", "category": "k", "tie": True},
        [comparison(context="c", category="k", tie=True)],
    ),
    "blank context": (
        "chosen-rejected",
        {"prompt": "q", "chosen": "a", "rejected": "b", "context": " "},
        [comparison()],
    ),
    "messages": (
        "chosen-rejected",
        {"prompt": ANSWERED, "chosen": TURN[0], "rejected": TURN[1]},
        [comparison(prompt=ANSWERED)],
    ),
    "messages, prompt within": (
        "chosen-rejected",
        {"chosen": [*ANSWERED, *TURN[0]], "rejected": [*ANSWERED, *TURN[1]]},
        [comparison(prompt=ANSWERED)],
    ),
    "messages, prompt beside and within": (
        "chosen-rejected",
        {"prompt": "q", "chosen": [*ASKED, *TURN[0]], "rejected": [*ASKED, *TURN[1]]},
        [comparison()],
    ),
}


@pytest.mark.parametrize("container", ["lines", "array", "parquet"])
@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_told_by_their_fields(tmp_path: Path, kind: str, container: str) -> None:
    name, record, expected = FORMATS[kind]
    path = tmp_path / ("a.parquet" if container == "parquet" else "a.json")
    if container == "parquet":
        pq.write_table(pa.Table.from_pylist([record]), path)
    else:
        path.write_text(json.dumps([record] if container == "array" else record))
    stats = run(path, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [{key: row[key] for key in expected[0]} for row in found] == expected
    assert stats.values["formats"] == {name: len(expected)}
    assert {row["source"] for row in found} == {path.name}
    if kind == "rpr":
        assert [row["id"] for row in found] == ["7/x", "7/y"]


def test_a_scenario_may_be_the_context(tmp_path: Path) -> None:
    run(written(tmp_path, RPR), tmp_path / "out", contexts="scenario")
    assert [row["context"] for row in rows(tmp_path / "out")] == ["in haste", "at leisure"]
    with pytest.raises(ValueError, match=r"^contexts 'profile': unknown, expected one of criteria, scenario$"):
        run(tmp_path / "a.jsonl", tmp_path / "out", contexts="profile")


PLAIN = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "identical": (PLAIN | {"rejected": "a"}, "found the same response twice, 'a', expected two"),
    "identical, a tie": (AUTO_J | {"label": 2, "response 2": "a"}, "found the same response twice, 'a', expected two"),
    "empty": (PLAIN | {"rejected": " \n"}, "found an empty rejected response, expected text"),
    "empty prompt": (PLAIN | {"prompt": ""}, "found an empty string in the field 'prompt', expected text"),
    "no context": (
        {key: value for key, value in RPR.items() if key != "criteria_y"},
        "found no 'criteria_y', expected the context of the preference",
    ),
    "blank criterion": (RPR | {"criteria_x": ""}, "found an empty string in the field 'criteria_x', expected text"),
    "label": (AUTO_J | {"label": 3}, "found a number in the field 'label', expected 0, 1 or 2"),
    "tie": (PLAIN | {"tie": "no"}, "found the string 'no' in the field 'tie', expected true or false"),
    "number": (PLAIN | {"chosen": 3}, "found a number in chosen, expected text"),
    "no transcript": (
        {"chosen": "a", "rejected": "b"},
        "found the text 'a' in 'chosen', expected a transcript that begins with an empty line and 'Human:',"
        " or a field 'prompt' beside it",
    ),
    "no response": (
        {"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q"},
        "found no turn of the assistant at the end of 'chosen', expected the response there",
    ),
    "parted": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: a"},
        "found conversations of 2 and 2 turns that part before the last one, expected two responses to the same prompt",
    ),
    "no question": (
        {"prompt": [*ASKED, *TURN[0]], "chosen": "a", "rejected": "b"},
        "found a prompt without a turn that asks for a response, expected one at its end",
    ),
    "prompt that is not theirs": (
        {"prompt": "other", "chosen": [*ASKED, *TURN[0]], "rejected": [*ASKED, *TURN[1]]},
        "found a prompt that 'chosen' does not begin with, expected the same one or none",
    ),
    "two rubrics": (
        hhh(other="other"),
        "found two instructions or rubrics for the two responses, expected the same for both",
    ),
    "no rubric": (
        {"chosen_instruction": "a", "rejected_instruction": "b"},
        "found 'a' in 'chosen_instruction', expected an instruction, a response and a rubric under prometheus's"
        " headings (###The instruction to evaluate, ###Response to evaluate, ###Score Rubrics)",
    ),
    "unknown": (
        {"question": "q"},
        "found an object with the fields question, expected the fields of one of the known formats: prompt, response_a,"
        " response_b; prompt, response 1, response 2, label; chosen_instruction, rejected_instruction;"
        " chosen, rejected",
    ),
    "id": (PLAIN | {"id": [1]}, "found a list in the field 'id', expected a string or integer"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_named_or_counted(tmp_path: Path, kind: str) -> None:
    record, fault = BAD[kind]
    path = written(tmp_path, PLAIN, record)
    message = re.escape(f"{path}, line 2: {fault} (on_bad_record='skip' goes on without it)")
    with pytest.raises(ValueError, match=f"^{message}$"):
        run(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    stats = run(path, tmp_path / "out", on_bad_record="skip")
    assert (stats.counts["comparisons"], stats.counts["skipped"]) == (1, 1)
    assert stats.counts["identical"] == kind.startswith("identical")
    assert stats.values["skipped_examples"] == [f"a.jsonl:2: {fault}"]


def test_ties_and_missing_contexts_are_counted(tmp_path: Path) -> None:
    tie = {"prompt": "t", "context": "c", "tie": True}
    records = [PLAIN, PLAIN | {"tie": True}, PLAIN | tie, PLAIN | {"context": "c"}, PLAIN | {"prompt": "p"}]
    counts = run(written(tmp_path, *records), tmp_path / "out").counts
    assert counts == {
        "comparisons": 5,
        "ties": 2,
        "without_context": 3,
        "in_context": 1,
        "prompts": 3,
        "skipped": 0,
        "identical": 0,
    }


def test_nothing_but_bad_records_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN | {"rejected": "a"})
    with pytest.raises(ValueError, match=r"no comparisons found \(1 bad records were skipped, the first: a\.jsonl:1: "):
        run(path, tmp_path / "out", on_bad_record="skip")


def test_repeated_ids_are_bad(tmp_path: Path) -> None:
    path = written(tmp_path, RPR, RPR | {"prompt": "other"})
    with pytest.raises(ValueError, match=r"line 2: found the id '7/x', which .*line 1 has; expected unique ids"):
        run(path, tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    stats = run(path, tmp_path / "out", on_bad_record="skip")
    assert [row["id"] for row in rows(tmp_path / "out")] == ["7/x", "7/y"]
    assert stats.counts["comparisons"] == 2
    assert stats.values["context_free"] == {"best": 1, "of": 2, "balanced": True}


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, RPR, PLAIN, hhh())
    for name in "ab":
        run(path, tmp_path / name)
    assert (tmp_path / "a/comparisons.parquet").read_bytes() == (tmp_path / "b/comparisons.parquet").read_bytes()


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the checkout")
@pytest.mark.parametrize(
    ("name", "comparisons", "ties", "skipped", "identical"),
    [
        ("hh-rlhf/harmless-base/test.jsonl.gz", 2303, 0, 9, 0),  # 5 part before the last turn, 4 have an empty response
        ("prometheus/hhh_alignment_eval.json", 221, 0, 0, 0),
        ("prometheus/autoj_pairwise.json", 1382, 365, 10, 9),  # the tenth has an empty response
    ],
)
def test_shared_data(tmp_path: Path, name: str, comparisons: int, ties: int, skipped: int, identical: int) -> None:
    stats = run(DATA / name, tmp_path / "out", on_bad_record="skip")
    found = [stats.counts[key] for key in ("comparisons", "ties", "skipped", "identical")]
    assert found == [comparisons, ties, skipped, identical]
    table = rows(tmp_path / "out")
    assert all(row["prompt"][-1]["role"] == "user" for row in table)
    if "hhh" in name:
        assert len({row["context"] for row in table}) == 4
        assert len({row["category"] for row in table}) == 4
        assert sum(len(row["prompt"]) > 1 for row in table) == 41
        assert not any("###" in row["chosen"] + row["rejected"] for row in table)
    else:
        assert stats.counts["without_context"] == comparisons
