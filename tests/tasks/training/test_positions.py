"""Perplexity by position, against logits of whole contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from longloom.storage.stats import Stats
from longloom.tasks.training import positions
from longloom.tasks.training.positions import STRETCHES

from .conftest import with_bos


def build(model: Path, corpus: Path, out: Path, **changes: Any) -> Stats:
    out.mkdir()
    options: dict[str, Any] = {"length": 130, "texts": 3, "policy": "full", "options": {}}
    return positions.build(model, corpus, out, **options | changes)


def test_each_stretch_is_the_mean_over_its_second_half(model_folder: Path, corpus: Path, tmp_path: Path) -> None:
    """Beyond the model's window of 64 too."""
    build(model_folder, corpus, tmp_path / "a")
    build(model_folder, corpus, tmp_path / "b")
    path = tmp_path / "a" / "positions.parquet"
    assert path.read_bytes() == (tmp_path / "b" / "positions.parquet").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    stream = [
        token
        for shard in sorted(corpus.glob("*.parquet"))
        for text in pq.read_table(shard)["text"].to_pylist()
        for token in (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
    ]
    model = LlamaForCausalLM.from_pretrained(model_folder)
    begins = [0, (len(stream) - 130) // 2, len(stream) - 130]
    texts = torch.tensor([stream[begin : begin + 130] for begin in begins])
    with torch.no_grad():
        scores = model(texts).logits.log_softmax(-1)
    losses = np.full((3, 130), np.nan)
    losses[:, 1:] = -scores[:, :-1].gather(2, texts[:, 1:, None])[..., 0].double().numpy()
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == STRETCHES
    for number, row in enumerate(rows):
        end = 130 * (number + 1) // STRETCHES
        assert (row["first"], row["last"], row["predicted"]) == (end - 4, end - 1, 12)
        assert row["perplexity"] == pytest.approx(np.exp(losses[:, end - 4 : end].mean()), rel=1e-4)


def test_before_every_context_stands_what_the_tokenizer_puts_there(
    model_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    """It is read, and the same tokens of the corpus are predicted."""
    begun = tmp_path / "begun"
    LlamaForCausalLM.from_pretrained(model_folder).save_pretrained(begun)
    tokenizer = with_bos(model_folder)
    tokenizer.save_pretrained(begun)
    build(begun, corpus, tmp_path / "a", texts=1)
    texts = [text for shard in sorted(corpus.glob("*.parquet")) for text in pq.read_table(shard)["text"].to_pylist()]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    stream = [token for text in texts for token in (*tokenizer(text, add_special_tokens=False).input_ids, eos)]
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(begun)(torch.tensor([[bos, *stream[:130]]])).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(stream[:130]), reduction="none").double()
    rows = pq.read_table(tmp_path / "a" / "positions.parquet").to_pylist()
    assert rows[-1]["last"] == 129
    for row in rows:
        expected = losses[row["first"] : row["last"] + 1].mean().exp().item()
        assert row["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_a_policy_of_a_short_scope_reads_otherwise(model_folder: Path, corpus: Path, tmp_path: Path) -> None:
    build(model_folder, corpus, tmp_path / "full")
    build(model_folder, corpus, tmp_path / "short", policy="streaming", options={"sink": 2, "window": 30})
    full, short = (
        pq.read_table(tmp_path / name / "positions.parquet")["perplexity"].to_numpy() for name in ("full", "short")
    )
    assert full[:3] == pytest.approx(short[:3], rel=1e-4)  # within the scope
    assert full[-1] != pytest.approx(short[-1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": 63}, "length is 63, expected at least 64 to measure 16 stretches"),
        ({"length": 10**6}, r"corpus: [0-9,]+ tokens to measure with, expected at least 1,000,000"),
        ({"policy": "snapkv", "options": {"budget": 0.5}}, "KV policy 'snapkv' reads texts with full attention"),
    ],
)
def test_bad_wishes(model_folder: Path, corpus: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(model_folder, corpus, tmp_path / "out", **changes)
