"""A reward model from start to end: it learns to read the context, kills, the same bytes, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from longloom.storage.parquet import read_table
from longloom.storage.stats import Stats
from longloom.tasks.preference import training
from longloom.tasks.preference.encoding import Reading
from longloom.tasks.preference.reward_model import start
from longloom.tasks.preference.reward_trainer import Pair
from longloom.tasks.preference.scorer import Asked, load_scorer
from longloom.tasks.preference.template import DEFAULT
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.sft import epoch_batches
from longloom.tasks.training.watched import CHECKPOINTS

Contents = Callable[[Path], dict[str, bytes]]
AsComparisons = Callable[[list[dict[str, object]]], Path]
OPTIONS: dict[str, Any] = {
    "tuning": "full",
    "epochs": 1,
    "batch": 8,
    "learning_rate": 3e-3,
    "rank": 4,
    "alpha": 8,
    "margin": 0.0,
    "centre": 0.01,
    "template": DEFAULT,
    "max_length": 96,
    "on_too_long": "stop",
    "seed": 0,
}


def build(model: Path, comparisons: Path, out: Path, *, progress: Progress = silent, **changes: Any) -> Stats:
    out.mkdir(exist_ok=True)
    return training.build(model, comparisons, out, progress=progress, **OPTIONS | changes)


def accuracy(model: Path, comparisons: Path, *, context: bool = True) -> float:
    rows = read_table(comparisons, "comparisons").to_pylist()
    asked = [
        Asked(row["prompt"], row["context"] if context else None, row[side])
        for row in rows
        for side in ("chosen", "rejected")
    ]
    scores = load_scorer(model)(asked).reshape(-1, 2)
    return float((scores[:, 0] > scores[:, 1]).mean())


def test_learns_to_read_the_context(model_folder: Path, reversals: Path, tmp_path: Path) -> None:
    stats = build(model_folder, reversals, tmp_path, epochs=12, learning_rate=1e-2)
    assert stats.counts == {"comparisons": 48, "steps": 72, "without_context": 0, "ties": 0, "too_long": 0}
    assert accuracy(tmp_path, reversals) > 0.95
    assert accuracy(tmp_path, reversals, context=False) == 0.5
    rows = pq.read_table(tmp_path / "training.parquet").to_pylist()
    assert rows[-1]["accuracy"] == stats.values["final_accuracy"]
    assert rows[0]["loss"] > rows[-1]["loss"]
    assert rows[-1]["margin"] > 1


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_artifact(
    model_folder: Path, reversals: Path, tmp_path: Path, tmp_path_factory: Any, contents: Contents, tuning: str
) -> None:
    stats = build(model_folder, reversals, tmp_path / "a", tuning=tuning)
    build(model_folder, reversals, tmp_path / "b", tuning=tuning)
    files = contents(tmp_path / "a")
    assert files == contents(tmp_path / "b")
    assert {"model.safetensors", "config.json", "tokenizer.json", "reward.json", "training.parquet"} <= set(files)
    assert not any("adapter" in name or CHECKPOINTS in name or name.endswith(".bin") for name in files)
    assert not any(str(tmp_path_factory.getbasetemp()).encode() in content for content in files.values())
    assert stats.volatile == ("speed.parquet",)
    assert json.loads(files["reward.json"]) == {"template": DEFAULT, "max_length": 96, "ends": True, "opens": True}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    total = sum(parameter.numel() for parameter in model.parameters())
    lora = 32 + 2 * 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32))  # the head; layers, rank, q + (k, v) + o
    assert stats.values["trainable"] == {"lora": lora, "full": total}[tuning]

    # As transformers alone reads it.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    text = "<|user|>q\n\n[criteria] z<|end|><|assistant|>a<|end|>"
    with torch.inference_mode():
        alone = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item()
    scored = load_scorer(tmp_path / "a")([Asked([{"role": "user", "content": "q"}], "z", "a")])
    assert scored[0] == pytest.approx(alone, abs=1e-5)


def test_loss_is_bradley_terry_with_margin_and_centring(model_folder: Path, reversals: Path, tmp_path: Path) -> None:
    """The first step's loss, at the weights of the start, in float64."""
    build(model_folder, reversals, tmp_path / "a", batch=48, margin=0.7, centre=0.3)
    found = pq.read_table(tmp_path / "a" / "training.parquet")["loss"][0].as_py()
    model, tokenizer = start(model_folder, seed=0)
    model.double()
    losses = []
    for row in read_table(reversals, "comparisons").to_pylist():
        scores = []
        for side in ("chosen", "rejected"):
            asked = f"{row['prompt'][0]['content']}\n\n[criteria] {row['context']}"
            text = f"<|user|>{asked}<|end|><|assistant|>{row[side]}<|end|>"
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            with torch.inference_mode():
                scores.append(model(**ids).logits.item())
        difference = scores[0] - scores[1] - 0.7
        losses.append(np.log1p(np.exp(-difference)) + 0.3 * (scores[0] + scores[1]) ** 2)
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_both_orders_of_a_reversal_share_a_batch(batch: int) -> None:
    of = [0, 1, 2, 0, 3, 2, 1, 4, 4, 3, 5]  # 5 has no other order
    pairs = [Pair([number] * (number + 1), [number], (str(group),)) for number, group in enumerate(of)]
    batches = training.together(pairs, batch=batch, epochs=3, seed=0)
    assert sorted(number for one in batches for number in one) == sorted(3 * list(range(len(of))))
    for one in batches:
        assert {number for number in range(len(of)) if of[number] in {of[other] for other in one}} == set(one)
        assert len(one) <= max(2, batch + 1)
    assert batches == training.together(pairs, batch=batch, epochs=3, seed=0)
    alone = [Pair(pair.chosen, pair.rejected, (str(number),)) for number, pair in enumerate(pairs)]
    lengths = [len(pair.chosen) + len(pair.rejected) for pair in pairs]
    expected = epoch_batches(lengths, batch=batch, epochs=3, seed=0)
    assert training.together(alone, batch=batch, epochs=3, seed=0) == expected


def test_merged_adapters_score_as_before(
    model_folder: Path, reversals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(4, 44)[None]
    seen = []
    merge = PeftModel.__getattr__

    def spy(self: PeftModel, name: str) -> Any:
        if name == "merge_and_unload":
            seen.append(self.eval()(input_ids=ids).logits.detach())
        return merge(self, name)

    monkeypatch.setattr(PeftModel, "__getattr__", spy)
    build(model_folder, reversals, tmp_path, tuning="lora", learning_rate=1e-2)
    assert len(seen) == 1
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(model(ids).logits, seen[0], rtol=1e-4, atol=1e-4)
    begun, _ = start(model_folder, seed=0)
    assert (begun(ids).logits - seen[0]).abs() > 0.01
    assert not torch.equal(begun.score.weight, model.score.weight)  # the head is trained beside the adapters


@pytest.mark.parametrize(("tuning", "step"), [("lora", 2), ("lora", 7), ("lora", None), ("full", 11)])
@pytest.mark.parametrize("padding", ["own", "end"])
def test_a_killed_run_ends_with_the_same_bytes(
    model_folder: Path,
    reversals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
    tuning: str,
    step: int | None,
    padding: str,
) -> None:
    model = model_folder if padding == "own" else padded_with_end(model_folder, tmp_path / "model")
    monkeypatch.setattr(training, "ROWS", 6)  # a row each 2 steps, a checkpoint each 4
    monkeypatch.setattr(training, "SAVES", 3)
    calls: list[int] = []
    options = {"tuning": tuning, "epochs": 2}
    build(model, reversals, tmp_path / "whole", progress=lambda done, total: calls.append(done), **options)
    assert len(calls) == 12

    def stop(done: int, total: int | None) -> None:
        if step is not None and done == calls[step - 1]:
            raise KeyboardInterrupt

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        if step is None:
            save = PreTrainedModel.save_pretrained
            patch.setattr(
                PreTrainedModel,
                "save_pretrained",
                lambda self, folder, *args, **options: (fail if Path(folder) == out else save)(
                    self, folder, *args, **options
                ),
            )
        with pytest.raises(KeyboardInterrupt):
            build(model, reversals, out, progress=stop, **options)
    again: list[int] = []
    build(model, reversals, out, progress=lambda done, total: again.append(done), **options)
    assert again == {2: calls, 7: calls[4:], 11: calls[8:], None: []}[step]
    assert contents(out) == contents(tmp_path / "whole")


def padded_with_end(model: Path, folder: Path, *, padding: str | None = "<|end|>") -> Path:
    """The model with a tokenizer whose padding token is the end token, or that has none; no other is in its words."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name, changes in (("config.json", {"pad_token_id": None}), ("tokenizer_config.json", {"pad_token": padding})):
        told = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    words = json.loads((folder / "tokenizer.json").read_text())
    pad = next(token for token in words["added_tokens"] if token["content"] == "<|pad|>")
    pad["content"] = "<|unused|>"
    vocabulary = words["model"]["vocab"]
    if "<|pad|>" in vocabulary:
        vocabulary["<|unused|>"] = vocabulary.pop("<|pad|>")
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return folder


@pytest.mark.parametrize("padding", ["<|end|>", None])
def test_padding_is_never_the_end_token(
    model_folder: Path, reversals: Path, tmp_path: Path, padding: str | None
) -> None:
    model = padded_with_end(model_folder, tmp_path / "model", padding=padding)
    stats = build(model, reversals, tmp_path / "out")
    assert stats.values["padding_added"] is True
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|pad|>", 300)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["pad_token_id"], config["eos_token_id"], config["vocab_size"]) == (300, 0, 301)
    # As with a padding token of its own, but for that token's row.
    build(model_folder, reversals, tmp_path / "own")
    one, other = (AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("out", "own"))
    for (name, found), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found[:300] if "embed" in name else found, expected, msg=name)


def test_ties_teach_nothing_and_missing_contexts_are_counted(
    model_folder: Path, tmp_path: Path, as_comparisons: AsComparisons
) -> None:
    pairs: list[dict[str, object]] = [{"prompt": f"q{i}", "chosen": "a b", "rejected": "c"} for i in range(4)]
    ties: list[dict[str, object]] = [{"prompt": "t", "chosen": "x", "rejected": "y", "tie": True}]
    stats = build(model_folder, as_comparisons([*pairs, *ties]), tmp_path)
    assert stats.counts == {"comparisons": 4, "steps": 1, "without_context": 4, "ties": 1, "too_long": 0}
    with pytest.raises(ValueError, match=r"comparisons: none of 1 is left to train on \(1 ties, 0 longer than 96"):
        build(model_folder, as_comparisons(ties), tmp_path / "b")


def test_longer_than_the_model(model_folder: Path, tmp_path: Path, as_comparisons: AsComparisons) -> None:
    records: list[dict[str, object]] = [
        {"id": "fits", "prompt": "q", "chosen": "a", "rejected": "b"},
        {"id": "long", "prompt": "q", "chosen": "weave " * 90, "rejected": "b"},
    ]
    comparisons = as_comparisons(records)
    with pytest.raises(ValueError, match=r"comparison 'long': \d+ tokens with its prompt, expected at most 96"):
        build(model_folder, comparisons, tmp_path / "a", max_length=4096)
    stats = build(model_folder, comparisons, tmp_path / "b", on_too_long="skip")
    assert (stats.counts["comparisons"], stats.counts["too_long"]) == (1, 1)


def test_a_reversal_that_is_too_long_in_one_context_goes_whole(
    model_folder: Path, tmp_path: Path, as_comparisons: AsComparisons
) -> None:
    pair = {"response_a": "warp", "response_b": "weft loom", "criteria_x": "short"}
    comparisons = as_comparisons(
        [
            {"id": 1, "prompt": "say 1", **pair, "criteria_y": "long"},
            {"id": 2, "prompt": "say 2", **pair, "criteria_y": "long " * 90},
        ]
    )
    tokenizer, reading = AutoTokenizer.from_pretrained(model_folder), Reading(DEFAULT, 96)
    pairs, told = training.read_pairs(comparisons, tokenizer, reading, on_too_long="skip")
    assert [pair.of[1] for pair in pairs] == ["say 1", "say 1"]
    assert told == {"without_context": 0, "ties": 0, "too_long": 2}


def test_bad_parameters(model_folder: Path, reversals: Path, tmp_path: Path) -> None:
    for changes, said in (
        ({"tuning": "prefix"}, "tuning 'prefix': unknown, expected one of lora, full"),
        ({"on_too_long": "cut"}, "on_too_long 'cut': unknown, expected one of stop, skip"),
        ({"template": "{prompt}"}, r"template '\{prompt\}': found \{context\} 0 times"),
        ({"learning_rate": 1e30}, r"training: .* lower the learning rate$"),
    ):
        with pytest.raises(ValueError, match=said):
            build(model_folder, reversals, tmp_path / str(len(said)), **changes)
