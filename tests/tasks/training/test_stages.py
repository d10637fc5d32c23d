"""A stage on a blend: what is trained on, labels, the same bytes, kills, parts of steps, the all-in-one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training import stages
from longloom.tasks.training.conversations import NAME, SCHEMA
from longloom.tasks.training.mix import IGNORE
from longloom.tasks.training.watch import SPEED

Contents = Callable[[Path], dict[str, bytes]]
PART = {"stage": "one", "shares": {"a": 0.75, "b": 0.25}, "examples": 16, "max_length": 400}


@pytest.fixture(scope="session")
def wide(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a window that ChatQA's system line fits into."""
    folder = tmp_path_factory.mktemp("wide")
    model = LlamaForCausalLM.from_pretrained(model_folder, max_position_embeddings=512)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`a`: 5 conversations, the last of them without room for its answer. `b`: 9, whose contexts are cut."""
    found = {}
    for name, count in (("a", 5), ("b", 9)):
        found[name] = tmp_path_factory.mktemp(name)
        rows = [
            {
                "id": str(i),
                "source": name,
                "kind": "full" if name == "b" else "none",
                "context": "weft over warp. " * 60 if name == "b" else "",
                "messages": [{"role": "user", "content": f"weave {name} {i}?"}],
                "answer": f"warp {i} " + ("weft " * 400 if name == "a" and i == 4 else "weft"),
            }
            for i in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), found[name] / f"{NAME}.parquet")
    return found


def build(
    model: Path, sets: dict[str, Path], out: Path, *parts: dict[str, Any], progress: Progress = silent, **changes: Any
) -> Stats:
    out.mkdir(exist_ok=True)
    options: dict[str, Any] = {
        "batch": 4,
        "accumulate": 1,
        "learning_rate": 1e-3,
        "recompute": False,
        "offload": False,
        "seed": 0,
    }
    return stages.build(model, sets, out, parts=parts or (PART,), progress=progress, **options | changes)


def test_artifact(wide: Path, sets: dict[str, Path], tmp_path: Path, contents: Contents) -> None:
    stats = build(wide, sets, tmp_path / "a")
    build(wide, sets, tmp_path / "b")
    files = contents(tmp_path / "a")
    assert files == contents(tmp_path / "b")
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.parquet", "blend.parquet"} <= set(files)
    assert not any("checkpoint" in name for name in files)
    assert stats.volatile == (SPEED,)
    assert (tmp_path / "a" / SPEED).exists()

    a, b = pq.read_table(tmp_path / "a" / "blend.parquet").to_pylist()
    assert (a["stage"], a["set"], a["share"], a["size"]) == ("one", "a", 0.75, 5)
    assert a["examples"] + a["left_out"] == 12
    assert a["left_out"] in (2, 3)  # one of five, in 12 draws
    assert (b["examples"], b["cut"], a["cut"], b["size"]) == (4, 4, 0, 9)
    assert b["tokens"] <= 4 * 400
    assert stats.counts == {
        "examples": a["examples"] + 4,
        "steps": -(-(a["examples"] + 4) // 4),
        "tokens": a["tokens"] + b["tokens"],
        "cut": 4,
        "left_out": a["left_out"],
    }
    rows = pq.read_table(tmp_path / "a" / "training.parquet").to_pylist()
    assert rows[-1]["tokens"] == stats.counts["tokens"]
    before, after = (load_file(folder / "model.safetensors") for folder in (wide, tmp_path / "a"))
    assert all(not torch.equal(before[name], after[name]) for name in before)


def batches(
    monkeypatch: pytest.MonkeyPatch,
    wide: Path,
    sets: dict[str, Path],
    out: Path,
    *parts: dict[str, Any],
    **options: Any,
) -> list[dict[str, torch.Tensor]]:
    """What a training would be given."""
    found: list[dict[str, torch.Tensor]] = []

    class Seen(Exception):
        pass

    def train(model: Any, make: Any, tokens: list[int], rates: list[float], out: Path, **options: Any) -> None:
        found.extend(make(number) for number in range(len(rates) * options["accumulate"]))
        raise Seen

    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", train)
        with pytest.raises(Seen):
            build(wide, sets, out, *parts, **options)
    return found


def sequences(found: list[dict[str, torch.Tensor]]) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple(ids[mask.bool()].tolist())
        for batch in found
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )


def test_the_loss_is_on_the_answers_alone(
    wide: Path, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(wide)
    for batch in batches(monkeypatch, wide, sets, tmp_path / "out"):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            learnt = labels != IGNORE
            assert torch.equal(labels[learnt], ids[learnt])
            text = tokenizer.decode(ids[learnt])
            assert text.startswith(" warp ")
            assert text.endswith(f" weft{tokenizer.eos_token}")
            assert tokenizer.decode(ids[: int(learnt.nonzero()[0])]).endswith("?\n\nAssistant:")


def test_all_in_one_is_the_stages_examples_in_another_order(
    wide: Path, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [PART | {"stage": name, "max_length": length} for name, length in (("one", 300), ("two", 400))]
    apart = [batches(monkeypatch, wide, sets, tmp_path / "a", part) for part in parts]
    joined = batches(monkeypatch, wide, sets, tmp_path / "b", *parts)
    assert sequences(apart[0]) + sequences(apart[1]) == sequences(joined)
    assert sequences(apart[0]) != sequences(apart[1])


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_step_make_the_same_step(
    wide: Path, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    part = PART | {"shares": {"b": 1.0}}
    whole = batches(monkeypatch, wide, sets, tmp_path / "a", part)
    found = batches(monkeypatch, wide, sets, tmp_path / "b", part, accumulate=accumulate)
    assert len(found) == accumulate * len(whole)
    for step, batch in enumerate(whole):
        assert sequences(found[accumulate * step : accumulate * (step + 1)]) == sequences([batch])
    build(wide, sets, tmp_path / "c", part)
    build(wide, sets, tmp_path / "d", part, accumulate=accumulate)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "cd")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_recompute_changes_nothing_but_rounding(wide: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    build(wide, sets, tmp_path / "a")
    build(wide, sets, tmp_path / "b", recompute=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_the_model_is_saved_in_the_type_that_it_is_stored_in(wide: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(wide, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(wide).save_pretrained(tmp_path / "half")
    build(tmp_path / "half", sets, tmp_path / "out", PART | {"examples": 4})
    assert {part.dtype for part in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_are_merged_into_the_attention_alone(
    wide: Path, sets: dict[str, Path], tmp_path: Path, contents: Contents, recompute: bool
) -> None:
    options: dict[str, Any] = {"lora": {"rank": 2, "alpha": 8, "dropout": 0.1}, "recompute": recompute}
    build(wide, sets, tmp_path / "a", **options)
    build(wide, sets, tmp_path / "b", **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    before, after = (load_file(folder / "model.safetensors") for folder in (wide, tmp_path / "a"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "self_attn" in name}
    for name in changed:
        assert int(torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-4)) == 2, name
    LlamaForCausalLM.from_pretrained(tmp_path / "a")


def test_a_killed_stage_ends_with_the_same_bytes(
    wide: Path, sets: dict[str, Path], tmp_path: Path, contents: Contents
) -> None:
    build(wide, sets, tmp_path / "whole")
    calls: list[int] = []

    def stop(done: int, total: int | None) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(wide, sets, tmp_path / "killed", progress=stop)
    again: list[int] = []
    build(wide, sets, tmp_path / "killed", progress=lambda done, total: again.append(done))
    assert again[0] > calls[0]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_the_next_stage_starts_from_the_ones_before(wide: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    build(wide, sets, tmp_path / "one")
    first = pq.read_table(tmp_path / "one" / "training.parquet")["loss"].to_pylist()
    build(tmp_path / "one", sets, tmp_path / "two", PART | {"stage": "two"})
    second = pq.read_table(tmp_path / "two" / "training.parquet")["loss"].to_pylist()
    assert second[0] < first[0] - 0.1


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ({"max_length": 513}, {}, "stage one: max_length is 513, expected at most 512, the model's window"),
        ({"max_length": 16}, {}, "none of 16 examples fits its max_length"),
        ({"examples": 2}, {"accumulate": 4}, "accumulate is 4, expected at most the number of examples that fit, 2"),
    ],
)
def test_what_is_refused(
    wide: Path, sets: dict[str, Path], tmp_path: Path, part: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^stage") as caught:
        build(wide, sets, tmp_path, PART | part, **options)
    assert message in str(caught.value)
    assert not any(tmp_path.iterdir())
