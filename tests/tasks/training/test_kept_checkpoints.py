"""Checkpoints that stay in an artifact: where they are, what they hold, and that the training is the same with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training import finetune, pretrain, task
from longloom.tasks.training.checkpoints import mean_rates, spaced
from longloom.tasks.training.loop import linear

Contents = Callable[[Path], dict[str, bytes]]
TUNED: dict[str, Any] = {"epochs": 2, "batch": 4, "learning_rate": 1e-2, "rank": 4, "alpha": 8, "dropout": 0.1} | {
    "max_length": 64,
    "seed": 0,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return LlamaForCausalLM.from_pretrained(folder).state_dict()


def kept(files: dict[str, bytes]) -> set[str]:
    return {name.split("/")[1] for name in files if name.startswith("checkpoints/")}


@pytest.mark.parametrize(
    ("steps", "count", "at"),
    [(12, 0, []), (12, 1, [12]), (12, 2, [6, 12]), (14, 3, [5, 9, 14]), (2, 5, [1, 2]), (1, 3, [1])],
)
def test_they_are_evenly_spaced(steps: int, count: int, at: list[int]) -> None:
    assert spaced(steps, count) == at
    rates = [float(step) for step in range(1, steps + 1)]
    means = mean_rates(at, rates)
    parts = [mean * (last - first) for mean, (first, last) in zip(means, pairwise([0, *at]), strict=True)]
    assert sum(parts) == pytest.approx(sum(rates) if at else 0)


def run_pretrain(corpus: Path, start: Path, out: Path, checkpoints: int, progress: Progress = silent) -> Stats:
    out.mkdir(exist_ok=True)
    return pretrain.build(
        corpus,
        start,
        out,
        recipe="scratch",
        size="tiny",
        tokens=None,
        seed=0,
        checkpoints=checkpoints,
        progress=progress,
    )


def test_pretraining_is_the_same_with_them(
    tiny: None,
    corpus: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
) -> None:
    none = run_pretrain(corpus, tokenizer_folder, tmp_path / "none", 0)
    calls: list[int] = []
    two = run_pretrain(corpus, tokenizer_folder, tmp_path / "two", 2, lambda done, total: calls.append(done))
    assert "checkpoints" not in none.counts
    assert two.counts == none.counts | {"checkpoints": 2}
    files = contents(tmp_path / "two")
    assert {name: content for name, content in files.items() if not name.startswith("checkpoints/")} == contents(
        tmp_path / "none"
    )
    assert kept(files) == {"step-6", "step-12"}
    names = {name.removeprefix("checkpoints/step-6/") for name in files if name.startswith("checkpoints/step-6/")}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "checkpoint.json"}
    first, last, whole = (
        weights(tmp_path / "two" / name) for name in ("checkpoints/step-6", "checkpoints/step-12", "")
    )
    assert all(torch.equal(last[name], whole[name]) for name in whole)
    assert not any(torch.equal(first[name], whole[name]) for name in whole)
    rates = linear(4, peak=3e-3, final=3e-3, warmup=pretrain.WARMUP)
    rates += linear(8, peak=2e-3, final=2e-4, warmup=pretrain.WARMUP)
    for step, used in ((6, rates[:6]), (12, rates[6:])):
        told = json.loads(files[f"checkpoints/step-{step}/checkpoint.json"])
        assert told == {"step": step, "mean_learning_rate": pytest.approx(sum(used) / 6)}

    def stop(done: int, total: int | None) -> None:
        if done == calls[7]:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "ROWS", 4)  # a row each 3 steps, a checkpoint of the Trainer each 3
    monkeypatch.setattr(pretrain, "SAVES", 4)
    run_pretrain(corpus, tokenizer_folder, tmp_path / "whole", 2)
    with pytest.raises(KeyboardInterrupt):
        run_pretrain(corpus, tokenizer_folder, tmp_path / "killed", 2, stop)
    (tmp_path / "killed" / "checkpoints" / "step-6" / "model.safetensors").touch()
    run_pretrain(corpus, tokenizer_folder, tmp_path / "killed", 2)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_fine_tuning_is_the_same_with_them(
    model_folder: Path, pool: Path, tmp_path: Path, contents: Contents, tuning: str
) -> None:
    for name, checkpoints in (("none", 0), ("three", 3)):
        (tmp_path / name).mkdir()
        options = TUNED | {"checkpoints": checkpoints}
        stats = finetune.build(model_folder, pool, None, tmp_path / name, tuning=tuning, **options)
    assert stats.counts == {"examples": 25, "steps": 14, "checkpoints": 3}
    files = contents(tmp_path / "three")
    assert {name: content for name, content in files.items() if not name.startswith("checkpoints/")} == contents(
        tmp_path / "none"
    )
    assert kept(files) == {"step-5", "step-9", "step-14"}
    assert not any("adapter" in name or "optimizer" in name for name in files)
    states = [weights(tmp_path / "three" / "checkpoints" / f"step-{step}") for step in (5, 9, 14)]
    final, start = weights(tmp_path / "three"), weights(model_folder)
    changed = {name for name in final if not torch.equal(final[name], start[name])}
    for name in final:
        torch.testing.assert_close(states[2][name], final[name], rtol=0, atol=0)
        assert (name in changed) == (not torch.equal(states[0][name], start[name]))
        assert (name in changed) == (not torch.equal(states[0][name], states[1][name]))


def test_none_are_no_part_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    for name in ("_pretrain", "_finetune"):
        monkeypatch.setattr(task, name, lambda *_, **options: asked.append(options))
    nothing: Any = None
    for checkpoints in (0, 2):
        task.pretrain(nothing, nothing, nothing, recipe="r", size="s", tokens=None, seed=0, checkpoints=checkpoints)
        task.finetune(nothing, nothing, nothing, None, label="l", seed=0, checkpoints=checkpoints)
    assert ["checkpoints" in options for options in asked] == [False, False, True, True]
