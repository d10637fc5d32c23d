"""Every instruction format becomes the same messages; what teaches nothing is a bad record."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.storage.parquet import read_table
from longloom.storage.stats import Stats
from longloom.tasks.corpus.instructions import build

DATA = Path(__file__).resolve().parents[3] / "../shared/data/instruct"


def run(source: Path, out: Path, *, on_bad_record: str = "stop") -> Stats:
    out.mkdir(exist_ok=True)
    return build([str(source)], out, on_bad_record=on_bad_record)


def turns(folder: Path) -> list[list[tuple[str, str]]]:
    rows = read_table(folder, "instructions")["messages"].to_pylist()
    return [[(message["role"], message["content"]) for message in messages] for messages in rows]


QUESTION, ANSWER = ("user", "q"), ("assistant", "a")

FORMATS = {
    "messages": [
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, [QUESTION, ANSWER]),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "value": "r"}]},
                    {"role": "assistant", "content": "a", "loss_weight": 1.0},
                ]
            },
            [("user", "qr"), ANSWER],
        ),
    ],
    "sharegpt": [
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": "f()"},
                    {"from": "observation", "value": "1"},
                    {"from": "gpt", "value": "a"},
                    {"from": "tool", "value": "2"},
                ]
            },
            [("system", "s"), QUESTION, ("assistant", "f()"), ("tool", "1"), ANSWER, ("tool", "2")],
        ),
        (
            {"system": "s", "tools": "[t]", "conversations": [{"from": "gpt", "value": "a"}]},
            [("system", "s\n\n[t]"), ANSWER],
        ),
        ({"tools": "[]", "conversations": [{"from": "gpt", "value": "a"}]}, [ANSWER]),
    ],
    "alpaca": [
        ({"instruction": "q", "input": "", "output": "a", "category": "c"}, [QUESTION, ANSWER]),
        ({"instruction": "q", "input": "x", "output": "a"}, [("user", "q\n\nx"), ANSWER]),
        ({"instruction": "q", "output": "a"}, [QUESTION, ANSWER]),
    ],
    "prompt-completion": [
        ({"prompt": "q", "completion": "a"}, [QUESTION, ANSWER]),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            [QUESTION, ANSWER],
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "container"),
    [
        *((name, container) for name in FORMATS for container in ("array", "pretty array", "lines")),
        *((name, "parquet") for name in ("sharegpt", "alpaca")),  # a column is text or parts, not both as the others
    ],
)
def test_formats_are_told_by_their_fields(tmp_path: Path, name: str, container: str) -> None:
    records = [record for record, _ in FORMATS[name]]
    path = tmp_path / ("a.parquet" if container == "parquet" else "a.json")
    if container == "parquet":
        keys = {key for record in records for key in record}
        pq.write_table(pa.table({key: [record.get(key) for record in records] for key in sorted(keys)}), path)
    elif container == "lines":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        path.write_text(json.dumps(records, indent=2 if container == "pretty array" else None))
    stats = run(path, tmp_path / "out")
    assert turns(tmp_path / "out") == [messages for _, messages in FORMATS[name]]
    assert stats.values["formats"] == {name: len(records)}
    assert stats.counts["turns"] == sum(len(messages) for _, messages in FORMATS[name])
    ids = read_table(tmp_path / "out", "instructions")["id"].to_pylist()
    assert ids == [f"{path.name}:{number}" for number in range(1, len(records) + 1)]


def test_flan_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('Q "one?\\ntwo\t7\tBecause\\nit is.\nshort\tyes\t\n', encoding="utf-8")
    run(path, tmp_path / "out")
    assert turns(tmp_path / "out") == [
        [("user", 'Q "one?\ntwo'), ("assistant", "Because\nit is.\nThe answer is 7")],
        [("user", "short"), ("assistant", "yes")],
    ]


def test_ids_and_sources_are_kept_and_repeated_ids_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [
        {"id": name, "source": f"s{index}", "prompt": "q", "completion": "a"} for index, name in enumerate("xyx")
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: found the id 'x', which .*a\.jsonl, line 1 has"):
        run(path, tmp_path / "out")
    stats = run(path, tmp_path / "skipped", on_bad_record="skip")
    assert stats.counts == {"examples": 2, "turns": 4, "skipped": 1}
    rows = read_table(tmp_path / "skipped", "instructions", ["id", "source"]).to_pylist()
    assert rows == [{"id": "x", "source": "s0"}, {"id": "y", "source": "s1"}]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (
            {"question": "q"},
            "found an object with the fields question, expected the fields of one of the known formats",
        ),
        ({"instruction": "q", "output": ""}, r"found the turns user, assistant \(empty\), expected an assistant turn"),
        ({"instruction": "q", "output": None}, "expected the fields of one of the known formats"),
        ({"instruction": "q", "output": 5}, "found a number in output, expected text"),
        ({"messages": []}, "found the turns none, expected an assistant turn"),
        ({"messages": [{"role": "user", "content": "q"}]}, "found the turns user, expected an assistant turn"),
        ({"messages": "q"}, "found the string 'q' in the field 'messages', expected a list of turns"),
        ({"messages": ["q"]}, r"in messages\[0\], expected the fields role and content"),
        (
            {"messages": [{"role": "judge", "content": "q"}]},
            r"found the role 'judge' in messages\[0\], expected one of",
        ),
        ({"messages": [{"role": "user", "content": None}]}, r"found null in messages\[0\], expected text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "expected parts of type text alone"),
        ({"prompt": "q", "completion": "\ud800"}, "lone surrogate in completion"),
        ({"id": [], "prompt": "q", "completion": "a"}, "found an empty list in the field 'id'"),
        (["q", "a"], "found a list, expected a JSON object"),
    ],
)
def test_bad_records_are_named_or_counted(tmp_path: Path, record: object, fault: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"prompt": "q", "completion": "a"}, record]))
    with pytest.raises(ValueError, match=fault) as caught:
        run(path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}, item 2: found ")
    assert run(path, tmp_path / "skipped", on_bad_record="skip").counts == {"examples": 1, "turns": 2, "skipped": 1}


def test_files_without_examples(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"prompt": "q"')
    with pytest.raises(ValueError, match=r"a\.json: begins like a JSON array but cannot be read as one"):
        run(tmp_path / "a.json", tmp_path / "out", on_bad_record="skip")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(ValueError, match=r"b\.json: no examples found"):
        run(tmp_path / "b.json", tmp_path / "out")
    (tmp_path / "c.tsv").write_text("one\ttwo\n")
    with pytest.raises(ValueError, match=r"c\.tsv, line 1: found 2 columns, expected question, answer and rationale"):
        run(tmp_path / "c.tsv", tmp_path / "out")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match=r"d\.parquet: has none of the columns messages, .* only x"):
        run(tmp_path / "d.parquet", tmp_path / "out")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the checkout")
@pytest.mark.parametrize(
    ("name", "examples", "skipped"),
    [
        ("LLaMA-Factory/alpaca_en_demo.json", 999, 0),
        ("LLaMA-Factory/glaive_toolcall_en_demo.json", 300, 0),
        ("LLaMA-Factory/v1_sft_demo.jsonl", 500, 0),
        ("alpagasus/dolly_3k.json", 2996, 0),
        ("alpagasus/random_9k.json", 9225, 4),
        ("flan_cot/gsm8k_train.tsv", 7473, 0),
    ],
)
def test_shared_data(tmp_path: Path, name: str, examples: int, skipped: int) -> None:
    counts = run(DATA / name, tmp_path / "out", on_bad_record="skip").counts
    assert (counts["examples"], counts["skipped"]) == (examples, skipped)
