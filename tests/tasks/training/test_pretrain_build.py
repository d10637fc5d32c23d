"""Pretraining from start to end on a tiny shape: artifacts, determinism, and kills at several points."""

from __future__ import annotations

import dataclasses
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
from longloom.tasks.ngrams.encode import TokenizerEncoder
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training import pretrain
from longloom.tasks.training.loop import linear
from longloom.tasks.training.mix import Facts, Turns, batch_of
from longloom.tasks.training.recipe import RECIPES, SHAPES
from longloom.tasks.training.tokens import write_tokens
from longloom.tasks.training.watched import CHECKPOINTS

TURNS = Turns(user=1, assistant=2, end=0)
NO_FACTS = Facts(lambda text: [], [], "")
Contents = Callable[[Path], dict[str, bytes]]
pytestmark = pytest.mark.usefixtures("tiny")


def build(corpus: Path, start: Path, out: Path, recipe: str, *, progress: Progress = silent, **changes: Any) -> Stats:
    out.mkdir(exist_ok=True)
    options = {"size": "tiny", "tokens": None, "seed": 0} | changes
    return pretrain.build(corpus, start, out, recipe=recipe, progress=progress, **options)


def test_from_scratch(
    corpus: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    contents: Contents,
) -> None:
    calls: list[tuple[int, int | None]] = []
    stats = build(
        corpus, tokenizer_folder, tmp_path / "a", "scratch", progress=lambda done, total: calls.append((done, total))
    )
    build(corpus, tokenizer_folder, tmp_path / "b", "scratch")
    files = contents(tmp_path / "a")
    assert files == contents(tmp_path / "b")
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.parquet", "probes.json"} <= set(files)
    assert not any(name.endswith((".bin", ".pt", ".pth")) or CHECKPOINTS in name for name in files)
    here = str(tmp_path_factory.getbasetemp()).encode()
    assert not any(here in content for content in files.values())
    assert stats.counts["training_tokens"] == 2048
    assert calls[0] == (128, 2048)
    assert calls[-1] == (2048, 2048)

    phases = RECIPES["scratch"]["tiny"]
    rates = [
        rate
        for phase in phases
        for rate in linear(phase.steps, peak=phase.learning_rate, final=phase.final_learning_rate, warmup=50)
    ]
    rows = pq.read_table(tmp_path / "a" / "training.parquet").to_pylist()
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["tokens"] for row in rows] == [128 * i for i in range(1, 5)] + [512 + 192 * i for i in range(1, 9)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "a").config.use_cache is True


def test_the_first_loss_is_that_of_the_first_batch(
    corpus: Path, tokenizer_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    build(corpus, model_folder, tmp_path / "out", "continue")
    stream = write_tokens(corpus, TokenizerEncoder(tokenizer_folder), tmp_path / "tokens.bin", end=0)
    ids, labels = batch_of(
        RECIPES["continue"]["tiny"][0], 0, seed=0, corpus=stream, vocab=300, first=4, turns=TURNS, facts=NO_FACTS
    )
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(model_folder)(torch.from_numpy(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.from_numpy(labels)[:, 1:].flatten())
    row = pq.read_table(tmp_path / "out" / "training.parquet").to_pylist()[0]
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("recipe", "kill"),
    [
        ("scratch", "before a checkpoint"),
        ("scratch", "between checkpoints"),
        ("scratch", "at the end"),
        ("continue", "in another phase"),
    ],
)
def test_a_killed_run_ends_with_the_same_bytes(
    corpus: Path,
    tokenizer_folder: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
    recipe: str,
    kill: str,
) -> None:
    monkeypatch.setattr(pretrain, "ROWS", 6)  # a row each 2 steps, a checkpoint each 4
    monkeypatch.setattr(pretrain, "SAVES", 4)
    start = tokenizer_folder if recipe == "scratch" else model_folder
    build(corpus, start, tmp_path / "whole", recipe)
    tokens = {"before a checkpoint": 256, "between checkpoints": 896, "in another phase": 1856}.get(kill)

    def stop(done: int, total: int | None) -> None:
        if done == tokens:
            raise KeyboardInterrupt

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        if kill == "at the end":
            patch.setattr(pretrain, "measure", fail)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, start, out, recipe, progress=stop)
    assert (tokens == 256) == (list((out / CHECKPOINTS).glob("checkpoint-*")) == [])
    calls: list[int] = []
    build(corpus, start, out, recipe, progress=lambda done, total: calls.append(done))
    assert len(calls) == {256: 12, 896: 8, 1856: 4, None: 0}[tokens]
    assert contents(out) == contents(tmp_path / "whole")


def test_bad_parameters(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe 'quick': unknown, expected one of \['continue', 'scratch'\]"):
        build(corpus, tokenizer_folder, tmp_path, "quick")
    with pytest.raises(ValueError, match=r"model size '7b': unknown for 'scratch', .* \['1m', 'short', 'tiny'\]"):
        build(corpus, tokenizer_folder, tmp_path, "scratch", size="7b")


def test_a_model_whose_window_is_too_short_for_the_recipe(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(corpus, tokenizer_folder, tmp_path / "model", "scratch")
    wide = dataclasses.replace(RECIPES["continue"]["tiny"][0], length=129)
    monkeypatch.setitem(RECIPES["continue"], "wide", (wide,))
    with pytest.raises(ValueError, match=r"^model: has a window of 128, expected at least the 129 of the size 'wide'$"):
        build(corpus, tmp_path / "model", tmp_path / "out", "continue", size="wide")


def test_a_short_corpus(corpus: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "write_tokens", lambda *args, **options: np.zeros(64, np.uint32))
    with pytest.raises(ValueError, match="corpus: 64 tokens, expected more than one window of 64"):
        build(corpus, tokenizer_folder, tmp_path, "scratch")


def test_a_tokenizer_without_an_end(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match="tokenizer: has no eos token"):
        build(corpus, tmp_path / "start", tmp_path / "out", "scratch")


def test_tokens_scale_the_recipe(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    stats = build(corpus, tokenizer_folder, tmp_path, "scratch", tokens=1024)
    assert stats.counts["training_tokens"] == 2 * 128 + 4 * 192
    assert json.loads((tmp_path / "probes.json").read_text())["induction"]


def test_the_stream(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    stream = write_tokens(corpus, TokenizerEncoder(tokenizer_folder), tmp_path / "tokens.bin", end=0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    texts = [text for path in sorted(corpus.glob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]
    assert stream.tolist() == [
        token for text in texts for token in (0, *tokenizer(text, add_special_tokens=False)["input_ids"])
    ]
    assert np.fromfile(tmp_path / "tokens.bin", "<u4").tolist() == stream.tolist()


def test_a_model_that_never_saw_turns_has_no_chat_template(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", dataclasses.replace(SHAPES["tiny"], chat=False))
    build(corpus, tokenizer_folder, tmp_path, "scratch")
    assert AutoTokenizer.from_pretrained(tokenizer_folder).chat_template
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None
    assert not hasattr(LlamaForCausalLM.from_pretrained(tmp_path).config, "chat")
