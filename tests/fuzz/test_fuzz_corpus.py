"""Damaged sources of every format: corpora, instructions, conversations, preference pairs; stopped at and skipped.

A stage that returns has written a table that can be read; one that stops names file and line; one that skips has said
so with counts and with examples that a manifest can hold.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longloom.storage.parquet import count_rows, read_table
from longloom.storage.stats import Stats
from longloom.tasks.corpus import build as corpora
from longloom.tasks.corpus import instructions
from longloom.tasks.preference import pairs
from longloom.tasks.training import conversations

from .damage import SHARED, changed, damaged, damaged_json, damaged_lines, examples, survives, written

Build = Callable[[list[str], Path, str], Stats]
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Ada."}]},
]
SHAREGPT = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]
RUBRIC = (
    "###The instruction to evaluate:\nWho?\n\n###Response to evaluate:\n{}\n\n###Score Rubrics:\n[Is it kind?]\n"
    "Score 1: no\nScore 5: yes\n\n###Feedback: "
)


def _corpus(sources: list[str], out: Path, policy: str) -> Stats:
    return corpora.build(sources, out, text_field="text", id_field="id", on_bad_record=policy)


def _instructions(sources: list[str], out: Path, policy: str) -> Stats:
    return instructions.build(sources, out, on_bad_record=policy)


def _conversations(sources: list[str], out: Path, policy: str) -> Stats:
    return conversations.build(sources, out, kind=None, on_bad_record=policy)


def _pairs(sources: list[str], out: Path, policy: str) -> Stats:
    return pairs.build(sources, out, contexts="criteria", on_bad_record=policy)


#: Stage -> how it is built, the table that it writes, records of each of its formats.
STAGES: dict[str, tuple[Build, str, list[dict[str, Any]]]] = {
    "corpus": (
        _corpus,
        "documents",
        [{"id": "a", "text": "one", "source": "web"}, {"id": 7, "text": "two\n"}, {"text": "three"}],
    ),
    "instructions": (
        _instructions,
        "instructions",
        [
            {"id": "a", "instruction": "Add.", "input": "1 + 1", "output": "2", "source": "x"},
            {"messages": TURNS, "tools": [{"name": "f"}]},
            {"conversations": SHAREGPT, "system": "Be kind."},
            {"prompt": TURNS[:2], "completion": [{"role": "assistant", "content": "Ada."}]},
            {"question": "Who?", "answer": "Ada", "rationale": "She is."},
        ],
    ),
    "conversations": (
        _conversations,
        "conversations",
        [
            {"messages": TURNS[:2], "answers": ["Ada."], "document": "Ada keeps the mill."},
            {"messages": TURNS[:2], "answers": ["Ada."], "ctxs": [{"title": "t", "text": "Ada keeps the mill."}]},
            {"question": "Who?", "sub-paragraphs": ["Ada.", "Bo."], "answer": "Ada"},
            {"messages": TURNS},
        ],
    ),
    "pairs": (
        _pairs,
        "comparisons",
        [
            {"id": "a", "prompt": "Who?", "chosen": "Ada", "rejected": "Bo", "context": "Be true.", "tie": False},
            {"chosen": "\n\nHuman: Who?\n\nAssistant: Ada", "rejected": "\n\nHuman: Who?\n\nAssistant: Bo"},
            {"prompt": "Who?", "response_a": "Ada", "response_b": "Bo", "criteria_x": "Be true.", "criteria_y": "Lie."},
            {"prompt": "Who?", "response 1": "Ada", "response 2": "Bo", "label": 1, "scenario": "s"},
            {"chosen_instruction": RUBRIC.format("Ada"), "rejected_instruction": RUBRIC.format("Bo")},
        ],
    ),
}


def attempt(build: Build, table: str, path: Path, content: bytes, out: Path) -> None:
    """Reads the file under both policies into an empty folder."""
    path.write_bytes(content)
    for policy in ("stop", "skip"):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        stats = survives(lambda policy=policy: build([str(path)], out, policy), names=(str(path), path.name))
        if stats is not None:
            assert count_rows(out, table) == read_table(out, table).num_rows > 0
            assert policy == "skip" or stats.counts["skipped"] == 0
            told = stats.values["skipped_examples"]
            json.dumps(told, allow_nan=False, ensure_ascii=False).encode()
            assert all(len(one) <= 1200 and "\n" not in one for one in told), told  # type: ignore[union-attr]


@pytest.mark.parametrize("form", [".jsonl", ".json", ".jsonl.gz"])
@pytest.mark.parametrize("stage", list(STAGES))
def test_damaged_json_is_read_or_refused(tmp_path: Path, stage: str, form: str) -> None:
    build, table, records = STAGES[stage]
    path = tmp_path / f"data{form}"
    if form == ".json" and stage != "corpus":
        strategy = damaged_json(records)
    elif form == ".jsonl.gz":
        whole = gzip.compress(b"".join(written(record) + b"\n" for record in records), mtime=0)
        strategy = damaged(whole)
    else:
        strategy = damaged_lines(records)

    @examples(12)
    @given(strategy)
    def check(content: bytes) -> None:
        attempt(build, table, path, content, tmp_path / "out")

    check()


def parquet(records: list[Any]) -> bytes | None:
    """The records as a table, columns of one kind each; None where Arrow has no type for them."""
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(records), buffer, compression="zstd")
    except (pa.ArrowException, TypeError, AttributeError, OverflowError, UnicodeError):
        return None
    return buffer.getvalue()


@pytest.mark.parametrize("stage", list(STAGES))
def test_damaged_parquet_is_read_or_refused(tmp_path: Path, stage: str) -> None:
    build, table, records = STAGES[stage]
    alike = [{"id": "a", **records[0]}, {**records[0], "id": "b"}, {**records[0], "id": "c"}]
    whole = parquet(alike)
    assert whole is not None

    @examples(25)
    @given(st.one_of(damaged(whole), changed(alike).map(parquet)))
    def check(content: bytes | None) -> None:
        if content is not None:
            attempt(build, table, tmp_path / "data.parquet", content, tmp_path / "out")

    check()


@pytest.mark.parametrize(
    ("name", "stage", "whole"),
    [
        ("data.txt", "corpus", "Ada keeps the mill.\n\nBo – does not.\n".encode()),
        ("data.md.gz", "corpus", gzip.compress(b"# Ada\n\nkeeps the mill", mtime=0)),
        ("data.py", "corpus", b"def ada():\n    return 'mill'\n"),
        ("data.txt.zst", "corpus", pa.Codec("zstd").compress(b"Ada keeps the mill.", asbytes=True)),
        ("data.tsv", "instructions", b"Who?\tAda\tShe\\nis.\nWhere?\tmill\t\n"),
    ],
)
def test_damaged_texts_are_read_or_refused(tmp_path: Path, name: str, stage: str, whole: bytes) -> None:
    build, table, _ = STAGES[stage]

    @examples(12)
    @given(damaged(whole))
    def check(content: bytes) -> None:
        attempt(build, table, tmp_path / name, content, tmp_path / "out")

    check()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the checkout")
@pytest.mark.parametrize(
    ("stage", "source"),
    [
        ("corpus", "corpus/LLaMA-Factory/c4_demo.jsonl"),
        ("instructions", "instruct/LLaMA-Factory/alpaca_en_demo.json"),
        ("instructions", "instruct/LLaMA-Factory/glaive_toolcall_en_demo.json"),
        ("instructions", "instruct/LLaMA-Factory/v1_sft_demo.jsonl"),
        ("pairs", "preference/prometheus/autoj_pairwise.json"),
        ("pairs", "preference/prometheus/hhh_alignment_eval.json"),
    ],
)
def test_damaged_real_files(tmp_path: Path, stage: str, source: str) -> None:
    build, table, _ = STAGES[stage]
    file = SHARED / source
    text = file.read_text(encoding="utf-8")
    if text.startswith("["):
        strategy = damaged_json(json.loads(text)[:3])
    else:
        strategy = damaged_lines([json.loads(line) for line in itertools.islice(text.splitlines(), 3)])

    @examples(8)
    @given(strategy)
    def check(content: bytes) -> None:
        attempt(build, table, tmp_path / file.name, content, tmp_path / "out")

    check()
