"""Completions: prompts out of the corpus with their documents, greedy answers, the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus import tokenizer as bpe
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.sources.completions import build
from longloom.tasks.sources.explain import texts_of

SHORT = "too short"
TEXTS = {f"d{number}": " ".join(f"word{number}x{place}" for place in range(60)) for number in range(5)} | {"s": SHORT}
OPTIONS: dict[str, Any] = {"count": 4, "prompt_tokens": 24, "new_tokens": 6, "seed": 0, "device": "cpu"}
WINDOW = 48


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows: list[dict[str, object]] = [{"id": name, "source": "s", "text": text} for name, text in TEXTS.items()]
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=2) as writer:
        writer.write(rows)
    return folder


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    bpe.build(corpus, folder, vocab_size=300)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=300, max_position_embeddings=WINDOW, initializer_range=0.3, eos_token_id=0, **size)
    made = LlamaForCausalLM(config)
    made.generation_config.repetition_penalty = 1.5  # as some checkpoints bring it: greedy is greedy all the same
    made.save_pretrained(folder)
    return folder


def made(model: Path, corpus: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    out.mkdir()
    stats = build(model, corpus, out, **OPTIONS | changes)
    rows: list[dict[str, Any]] = pq.read_table(out / "samples.parquet").to_pylist()
    assert stats.counts == {"completions": len(rows)}
    return rows


def test_prompts_are_pieces_of_their_documents_and_answers_are_greedy(
    model: Path, corpus: Path, tmp_path: Path
) -> None:
    rows = made(model, corpus, tmp_path / "out")
    assert [row["sample"] for row in rows] == list(range(4))
    assert len({row["task"] for row in rows}) == 4
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for row in rows:
        assert row["prompt"] in TEXTS[row["task"]]
        assert (row["prompt_tokens"], row["new_tokens"]) == (24, 6)
        ids = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        if len(ids) == 24:  # a piece may be cut within a word, and is then other tokens when it stands alone
            for _ in range(6):
                ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
            assert row["prediction"] == tokenizer.decode(ids[24:], skip_special_tokens=True)


def test_the_same_each_time_and_other_places_for_another_seed(model: Path, corpus: Path, tmp_path: Path) -> None:
    first, again, other = (
        made(model, corpus, tmp_path / name, seed=seed) for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert first == again
    assert [row["prompt"] for row in first] != [row["prompt"] for row in other]


def test_explain_reads_them_as_an_evaluations_answers(model: Path, corpus: Path, tmp_path: Path) -> None:
    rows = made(model, corpus, tmp_path / "out")
    names = [f"completion {row['task']} greedy {row['sample']}" for row in rows if row["prediction"].strip()]
    assert [name for name, _ in texts_of(tmp_path / "out", None)] == names


def test_the_window_leaves_less_room(model: Path, corpus: Path, tmp_path: Path) -> None:
    rows = made(model, corpus, tmp_path / "out", prompt_tokens=1000, new_tokens=20)
    assert {row["prompt_tokens"] for row in rows} == {WINDOW - 20}


def test_a_small_corpus_has_fewer(model: Path, corpus: Path, tmp_path: Path) -> None:
    assert {row["task"] for row in made(model, corpus, tmp_path / "out", count=100)} == TEXTS.keys() - {"s"}
    with ShardWriter(tmp_path, "documents", SCHEMA, rows_per_shard=2) as writer:
        writer.write([{"id": "s", "source": "s", "text": SHORT}])
    with pytest.raises(
        ValueError, match=r"^corpus: found no document of at least 12 tokens to continue, expected one$"
    ):
        made(model, tmp_path, tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_tokens": WINDOW}, f"new_tokens is {WINDOW}, expected less than the model's window of {WINDOW}"),
    ],
)
def test_bad_input(model: Path, corpus: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(model, corpus, tmp_path, **OPTIONS | changes)
    assert not list(tmp_path.iterdir())
