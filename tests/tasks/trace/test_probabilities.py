"""Token scores against one plain pass a text, whatever the batch, the chunks and the window."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longloom.kernels.huggingface.load import load_model
from longloom.storage.parquet import read_table
from longloom.tasks.trace import probabilities
from longloom.tasks.trace.probabilities import score_texts
from longloom.tasks.trace.scores import build, rated, read_generations, read_tokens

from .conftest import DOCUMENTS, WINDOW

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> Loaded:
    return load_model(model_folder, device="cpu")


def plain(loaded: Loaded, ids: list[int]) -> list[float]:
    """log P of every token but the first, one after another, without batches or caches."""
    model, _ = loaded
    found = []
    with torch.no_grad():
        for place in range(1, len(ids)):
            logits = model(torch.tensor([ids[:place]])).logits[0, -1].double()
            found.append(float(logits.log_softmax(0)[ids[place]]))
    return found


@pytest.mark.parametrize("batch", [1, 4])
def test_every_token_of_every_text(loaded: Loaded, batch: int) -> None:
    texts = [*DOCUMENTS[:4], "a", "ünïcode 日本"]
    scored = score_texts(*loaded, texts, batch=batch)
    for text, scores in zip(texts, scored, strict=True):
        ids = loaded[1](text)["input_ids"]
        assert len(scores.logs) == len(ids)
        assert np.isnan(scores.logs[0])
        assert scores.logs[1:] == pytest.approx(plain(loaded, ids), abs=1e-4)
        assert not scores.cut


def test_an_ngram_is_the_product_of_its_tokens(loaded: Loaded) -> None:
    text = "What is it? A sly animal hides"
    [scores] = score_texts(*loaded, [text], batch=1)
    begin = text.index("sly")
    tokens = loaded[1](text)["input_ids"]
    before = loaded[1](text[: begin - 1])["input_ids"]  # the space belongs to the word's token
    until = loaded[1](text[: begin + len("sly animal")])["input_ids"]
    assert tokens[: len(until)] == until
    expected = sum(plain(loaded, until)[len(before) - 1 :])
    assert scores.log_probability(begin, begin + len("sly animal")) == pytest.approx(expected, abs=1e-4)
    assert scores.log_probability(begin, None) == pytest.approx(sum(plain(loaded, tokens)[len(before) - 1 :]), abs=1e-4)
    assert scores.log_probability(0, 4) is None  # nothing stands before
    assert scores.log_probability(len(text), None) is None


def test_a_window_keeps_the_end_and_chunks_change_nothing(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(DOCUMENTS) * 3
    ids = loaded[1](text)["input_ids"]
    assert len(ids) > WINDOW
    for chunk in (probabilities.CHUNK, 16):
        monkeypatch.setattr(probabilities, "CHUNK", chunk)
        [scores] = score_texts(*loaded, [text], batch=2)
        assert scores.cut
        assert len(scores.logs) == WINDOW
        assert scores.ends[-1] == len(text)
        assert scores.logs[1:] == pytest.approx(plain(loaded, ids[-WINDOW:]), abs=1e-4)
        assert scores.log_probability(0, 10) is None


@pytest.mark.parametrize(
    ("text", "output", "f1", "exact"),
    [
        *(("The", "A", 0, 0), ("A", "A", 1, 1), (" a\n", "a", 1, 1), ("", "the", 0, 0), ("?", "!", 0, 0)),
        *(("-5", "5", 0, 0), ("5", "-5", 0, 0), ("\N{MINUS SIGN}5", "-5", 1, 1), ("15", "1.5", 0, 0)),
        *(("1000", "1,000", 1, 1), ("1,5", "15", 0, 0), ("5.", "5", 1, 1), ("+5", "5", 1, 1), ("15", "1e5", 0, 0)),
        *(("1.50", "1.5", 1, 1), (".5", "0.5", 1, 1), ("five", "5", 0, 0), ("It is 5", "5", 0, 0), ("", "0", 0, 0)),
        *(("a Fox!", "the fox", 1, 1), ("red fox", "fox", 2 / 3, 0), ("5 foxes", "5 foxes", 1, 1)),
    ],
)
def test_an_answer_is_rated_as_squad_does_unless_it_would_lose_what_it_says(
    text: str, output: str, f1: float, exact: float
) -> None:
    assert rated(text, output) == {"f1": pytest.approx(f1), "exact": exact}


def test_scores_of_a_set(loaded: Loaded, model_folder: Path, make_records: Callable[..., Path], tmp_path: Path) -> None:
    records = make_records([("The red", "fox runs"), ("A sly " * 40, "animal\nhides")], template="Q: {input}\nA: ")
    settings: dict[str, Any] = {"batch": 2, "device": "cpu", "dtype": None}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        stats = build(model_folder, records, tmp_path / name, new_tokens=5, **settings)
    for file in ("tokens.parquet", "generations.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert stats.counts["cut"] == 1
    assert stats.values["parameters"] == sum(parameter.numel() for parameter in loaded[0].parameters())
    first, second = read_tokens(tmp_path / "one")
    [expected] = score_texts(*loaded, ["Q: The red\nA: fox runs"], batch=1)
    assert first.logs == pytest.approx(expected.logs, abs=1e-4, nan_ok=True)
    assert (first.begins == expected.begins).all()
    assert (first.cut, second.cut) == (False, True)
    generated = read_generations(tmp_path / "one")
    ids = loaded[1]("Q: The red\nA:")["input_ids"]
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(loaded[0](torch.tensor([ids])).logits[0, -1].argmax()))
    written = loaded[1].decode(ids[-5:], skip_special_tokens=True).strip(" ")
    assert generated[0]["text"] == written.lstrip("\n").split("\n")[0]
    assert all(0 <= row["f1"] <= 1 and row["exact"] in (0, 1) for row in generated)
    (tmp_path / "none").mkdir()
    build(model_folder, records, tmp_path / "none", new_tokens=0, **settings)
    assert read_table(tmp_path / "none", "generations").num_rows == 0
    with pytest.raises(ValueError, match=f"new_tokens is {WINDOW}, expected less than the model's window of {WINDOW}"):
        build(model_folder, records, tmp_path / "none", new_tokens=WINDOW, **settings)
    assert math.isnan(first.logs[0])
