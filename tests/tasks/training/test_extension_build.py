"""Context extension from start to end: the artifact, the same bytes, and a kill at several points."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training import extension, pack
from longloom.tasks.training.extension import load_extended, row_order
from longloom.tasks.training.pack import read_rows
from longloom.tasks.training.watched import CHECKPOINTS

Contents = Callable[[Path], dict[str, bytes]]
LENGTH = 96
OPTIONS: dict[str, Any] = {
    "rope": "base",
    "base": None,
    "steps": 8,
    "batch": 3,
    "learning_rate": 3e-3,
    "warmup": 0.1,
    "recompute": True,
    "offload": False,
    "seed": 0,
}


@pytest.fixture(scope="module")
def packed(model_folder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Rows of one and a half windows, by separator."""
    root = tmp_path_factory.mktemp("packed")

    def make(separator: str) -> Path:
        folder = root / separator
        if not folder.exists():
            folder.mkdir()
            options = {"text": "<s>", "long": None, "short_share": 0.1, "tokens": None, "seed": 0}
            pack.build(model_folder, corpus, folder, length=LENGTH, separator=separator, **options)
        return folder

    return make


def build(model: Path, rows: Path, out: Path, *, progress: Progress = silent, **changes: Any) -> Stats:
    out.mkdir(exist_ok=True)
    return extension.build(model, rows, out, progress=progress, **OPTIONS | changes)


@pytest.mark.parametrize("separator", ["text", "mask"])
def test_artifact(
    model_folder: Path,
    packed: Callable[[str], Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    contents: Contents,
    separator: str,
) -> None:
    rows = packed(separator)
    stats = build(model_folder, rows, tmp_path / "a")
    build(model_folder, rows, tmp_path / "b")
    files = contents(tmp_path / "a")
    assert files == contents(tmp_path / "b")
    assert all((tmp_path / "a" / name).is_file() for name in stats.volatile)
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.parquet", "extension.json"} <= set(files)
    assert not any(CHECKPOINTS in name or name.endswith((".bin", ".pt")) for name in files)
    here = str(tmp_path_factory.getbasetemp()).encode()
    assert not any(here in content for content in files.values())
    assert stats.counts == {"steps": 8, "training_tokens": 8 * 3 * LENGTH, "window": LENGTH}

    longer = LlamaForCausalLM.from_pretrained(tmp_path / "a")
    assert longer.config.max_position_embeddings == LENGTH
    assert longer.config.use_cache is True
    assert longer.config.rope_parameters["rope_theta"] == pytest.approx(10_000 * 1.5 ** (8 / 6))
    assert AutoTokenizer.from_pretrained(tmp_path / "a").model_max_length == LENGTH
    told = json.loads((tmp_path / "a" / "extension.json").read_text())
    assert (told["window"], told["kind"], told["plan"]["tokens"]) == (64, "base", 8 * 3 * LENGTH)
    before = LlamaForCausalLM.from_pretrained(model_folder).state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in longer.state_dict().items())
    log = pq.read_table(tmp_path / "a" / "training.parquet").to_pylist()
    assert [row["tokens"] for row in log] == [3 * LENGTH * step for step in range(1, 9)]
    assert sum(row["loss"] for row in log[-3:]) < sum(row["loss"] for row in log[:3])


@pytest.mark.parametrize("separator", ["text", "mask"])
def test_the_first_loss_is_that_of_the_first_rows_read_alone(
    model_folder: Path, packed: Callable[[str], Path], tmp_path: Path, separator: str
) -> None:
    """The mean over all labels of the step, not over its rows: rows of a document mask have different many."""
    build(model_folder, packed(separator), tmp_path / "out", steps=1)
    rows, numbers = read_rows(packed(separator))
    model, _ = load_extended(model_folder, length=numbers["length"], rope="base", base=None)
    total, labels = 0.0, 0
    for row in row_order(len(rows.ids), 3, seed=0).tolist():
        batch = rows.batch(row)
        expected = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, expected, reduction="sum"))
        labels += int((expected != -100).sum())
    found = pq.read_table(tmp_path / "out" / "training.parquet").to_pylist()[0]["loss"]
    assert found == pytest.approx(total / labels, rel=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_kind_of_memory_changes_rounding_alone(
    model_folder: Path, packed: Callable[[str], Path], tmp_path: Path, recompute: bool
) -> None:
    changes: dict[str, Any] = {"recompute": recompute, "offload": recompute}
    build(model_folder, packed("text"), tmp_path / "one", **changes)
    build(model_folder, packed("text"), tmp_path / "other")
    one, other = (pq.read_table(tmp_path / name / "training.parquet")["loss"].to_numpy() for name in ("one", "other"))
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("kill", ["before a checkpoint", "between checkpoints", "at the end"])
def test_a_killed_run_ends_with_the_same_bytes(
    model_folder: Path,
    packed: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
    kill: str,
) -> None:
    monkeypatch.setattr(extension, "SAVES", 4)  # a checkpoint each 2 steps
    rows = packed("mask")
    build(model_folder, rows, tmp_path / "whole")
    step = {"before a checkpoint": 1, "between checkpoints": 5}.get(kill, 0)

    def stop(done: int, total: int | None) -> None:
        if done == step * 3 * LENGTH:
            raise KeyboardInterrupt

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if kill == "at the end":
            patch.setattr(extension, "write_rows", fail)
        with pytest.raises(KeyboardInterrupt):
            build(model_folder, rows, tmp_path / "killed", progress=stop)
    calls: list[int] = []
    build(model_folder, rows, tmp_path / "killed", progress=lambda done, total: calls.append(done))
    assert len(calls) == {"before a checkpoint": 8, "between checkpoints": 4, "at the end": 0}[kill]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_the_model_is_saved_in_the_type_that_it_is_stored_in(
    model_folder: Path, packed: Callable[[str], Path], tmp_path: Path
) -> None:
    LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "half")
    build(tmp_path / "half", packed("text"), tmp_path / "out", steps=1)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_every_pass_reads_every_row_in_another_order() -> None:
    order = row_order(7, 17, seed=3)
    assert sorted(order[:7].tolist()) == sorted(order[7:14].tolist()) == list(range(7))
    assert order[:7].tolist() != order[7:14].tolist()
    assert np.array_equal(order, row_order(7, 17, seed=3))
    assert not np.array_equal(order, row_order(7, 17, seed=4))


@pytest.mark.parametrize(
    ("separator", "changes", "said"),
    [
        ("text", {"recompute": False, "offload": True}, "offload: what waits in host memory"),
        ("text", {"base": 1.0}, "base is 1, expected at least the model's 10,000"),
        ("text", {"rope": "alibi"}, "rope 'alibi': unknown"),
        ("text", {"learning_rate": 1e30}, "lower the learning rate"),
    ],
)
def test_bad_wishes(
    model_folder: Path,
    packed: Callable[[str], Path],
    tmp_path: Path,
    separator: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(ValueError, match=said):
        build(model_folder, packed(separator), tmp_path / "out", **changes)
