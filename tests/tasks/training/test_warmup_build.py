"""The warm-up's checkpoints, against AdamW written by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from longloom.storage.stats import Stats
from longloom.tasks.training import warmup
from longloom.tasks.training.finetune import with_lora
from longloom.tasks.training.loop import linear
from longloom.tasks.training.sft import encode_all, epoch_batches, load_examples, pad

OPTIONS: dict[str, Any] = {
    "share": 1.0,
    "checkpoints": 3,
    "epochs": 2,
    "batch": 4,
    "learning_rate": 1e-2,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "max_length": 64,
    "seed": 0,
}


def build(model: Path, pool: Path, out: Path, **changes: Any) -> Stats:
    out.mkdir(exist_ok=True)
    return warmup.build(model, pool, out, **OPTIONS | changes)


def by_hand(model_folder: Path, pool: Path, at: list[int]) -> list[dict[str, torch.Tensor]]:
    """Adam's moments and the weights at the steps `at`; Kingma and Ba, algorithm 1, on gradients clipped to norm 1."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    examples, _ = encode_all(tokenizer, load_examples(pool), max_length=64)
    batches = epoch_batches([len(ids) for ids, _ in examples], batch=4, epochs=2, seed=0)
    torch.manual_seed(0)
    model = with_lora(LlamaForCausalLM.from_pretrained(model_folder), rank=4, alpha=8, dropout=0.0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    first = {name: torch.zeros_like(p) for name, p in trained.items()}
    second = {name: torch.zeros_like(p) for name, p in trained.items()}
    found = []
    for step, (rows, rate) in enumerate(
        zip(batches, linear(len(batches), peak=1e-2, final=0.0, warmup=1), strict=True), start=1
    ):
        batch = pad([examples[row] for row in rows], pad_id=3)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
        gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        with torch.no_grad():
            for name, parameter in trained.items():
                gradient = gradients[name] * min(1.0, 1.0 / norm.item())
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient.square()
                scale = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
                parameter -= rate * first[name] / (1 - 0.9**step) / scale
        if step in at:
            moments = {f"exp_avg.{name}": value for name, value in first.items()}
            moments |= {f"exp_avg_sq.{name}": value for name, value in second.items()}
            found.append(moments | {name: parameter.detach().clone() for name, parameter in trained.items()})
    return found


def test_moments_and_learning_rates(model_folder: Path, pool: Path, tmp_path: Path) -> None:
    stats = build(model_folder, pool, tmp_path)
    assert stats.counts == {"examples": 25, "steps": 14, "checkpoints": 3}
    folders = [tmp_path / f"checkpoint-{number:05d}" for number in (1, 2, 3)]
    at = [5, 9, 14]
    rates = linear(14, peak=1e-2, final=0.0, warmup=1)
    for folder, (since, step) in zip(folders, itertools.pairwise([0, *at]), strict=True):
        told = json.loads((folder / "checkpoint.json").read_text())
        assert told["step"] == step
        assert told["mean_learning_rate"] == pytest.approx(sum(rates[since:step]) / (step - since))
    for folder, expected in zip(folders, by_hand(model_folder, pool, at), strict=True):
        moments = load_file(folder / "optimizer.safetensors")
        adapted = PeftModel.from_pretrained(
            LlamaForCausalLM.from_pretrained(model_folder), str(folder), is_trainable=True
        )
        trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
        assert set(moments) | set(trained) == set(expected)
        for name, value in (moments | trained).items():
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3 * scale, msg=name)
    rows = pq.read_table(tmp_path / "training.parquet").to_pylist()
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)


def test_artifact(
    model_folder: Path,
    pool: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    for name in ("a", "b"):
        build(model_folder, pool, tmp_path / name, dropout=0.1)
    files = contents(tmp_path / "a")
    assert files == contents(tmp_path / "b")
    parts = ("adapter_config.json", "adapter_model.safetensors", "checkpoint.json", "optimizer.safetensors")
    assert set(files) == {f"checkpoint-0000{n}/{part}" for n in (1, 2, 3) for part in parts} | {"training.parquet"}
    here = str(tmp_path_factory.getbasetemp()).encode()
    assert not any(here in content for content in files.values())
    # peft keeps them in a set, and a set of strings has another order in another process
    targets = json.loads(files["checkpoint-00001/adapter_config.json"])["target_modules"]
    assert targets == sorted(targets)


@pytest.mark.parametrize(
    ("share", "checkpoints", "batch", "examples"),
    [(0.5, 2, 4, 13), (0.01, 2, 4, 8), (0.01, 3, 16, 26)],
)
def test_the_sample(
    model_folder: Path, pool: Path, tmp_path: Path, share: float, checkpoints: int, batch: int, examples: int
) -> None:
    stats = build(model_folder, pool, tmp_path, share=share, checkpoints=checkpoints, batch=batch, epochs=2)
    assert stats.counts["examples"] + stats.values["without_label"] == examples  # type: ignore[operator]
    assert stats.counts["checkpoints"] == len(list(tmp_path.glob("checkpoint-*"))) == checkpoints


def test_more_checkpoints_than_steps(model_folder: Path, pool: Path, tmp_path: Path) -> None:
    stats = build(model_folder, pool, tmp_path, checkpoints=5, batch=16, epochs=1)
    assert stats.counts["steps"] == stats.counts["checkpoints"] == 2
    steps = [json.loads(path.read_text())["step"] for path in sorted(tmp_path.glob("checkpoint-*/checkpoint.json"))]
    assert steps == [1, 2]


def test_no_label(model_folder: Path, pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="instructions: none of 26 sampled examples has an answer within 1 tokens"):
        build(model_folder, pool, tmp_path, max_length=1)


def test_an_example_that_the_chat_template_refuses_is_named(model_folder: Path, refused: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^example '12': the tokenizer's chat template refuses the conversation"):
        build(model_folder, refused, tmp_path / "out")
