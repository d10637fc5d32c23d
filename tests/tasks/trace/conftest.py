"""A corpus of a few sentences, its index both real and by brute force, a tiny model, and embeddings by letters."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams.build import build as build_index
from longloom.tasks.ngrams.query import Index, open_index
from longloom.tasks.trace.records import build as build_records

#: "red fox" and "sly animal" stand together in two documents, "green frog" never with anything it is asked with.
DOCUMENTS = (
    "The red fox is a sly animal. The red fox runs.",
    "A sly animal may well be a red fox .",
    "The red fox sleeps.",
    "The green frog jumps.",
    "One sly animal hides, another sly animal waits.",
    "The blue whale is a huge animal that swims.",
)
WINDOW = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are faster on one thread, and the suite shares its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Found:
    """A document, or a probability: what callers look at."""

    id: str = ""
    tokens: Any = None
    probability: float = 0.0


class Brute:
    """Stands for an index of bytes: looks at every position of every document."""

    def __init__(self, documents: Sequence[str]) -> None:
        self.rows = [list(text.encode()) for text in documents]

    def encode(self, text: str) -> list[int]:
        if "\N{SNOWMAN}" in text:  # as a tokenizer may say
            raise ValueError("not in the vocabulary")
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def positions(self, query: Sequence[int]) -> np.ndarray:
        size, query = len(query), list(query)
        found = [
            (number, start)
            for number, row in enumerate(self.rows)
            for start in range(len(row) - size + 1)
            if row[start : start + size] == query
        ]
        return np.array(found, np.int64).reshape(-1, 2)

    def counts(self, queries: Sequence[Sequence[int]]) -> np.ndarray:
        return np.array([len(self.positions(query)) for query in queries], np.int64)

    def documents(self, query: Sequence[int]) -> np.ndarray:
        return np.unique(self.positions(query)[:, 0])

    def document(self, ordinal: int) -> Found:
        return Found(id=f"d{ordinal}", tokens=np.array(self.rows[ordinal]))

    def cooccurrences(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> np.ndarray:
        return np.array([len(set(self.documents(x)) & set(self.documents(y))) for x, y in pairs], np.int64)

    def infgram_probability(self, context: Sequence[int], token: int) -> Found:
        for size in range(len(context), -1, -1):
            suffix = list(context[len(context) - size :])
            total = len(self.positions(suffix)) if suffix else sum(len(row) + 1 for row in self.rows)
            if total:
                return Found(probability=len(self.positions([*suffix, token])) / total)
        raise AssertionError("the empty context is always there")

    def infgram_probabilities(self, contexts: Sequence[Sequence[int]], tokens: Sequence[int]) -> Any:
        found = [self.infgram_probability(*query).probability for query in zip(contexts, tokens, strict=True)]
        return SimpleNamespace(probability=np.array(found))


@pytest.fixture(scope="session")
def brute() -> Brute:
    return Brute(DOCUMENTS)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"id": f"d{number}", "source": "s", "text": text} for number, text in enumerate(DOCUMENTS)]
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=4) as writer:
        writer.write(rows)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers with a byte-level BPE that joins a space to the word behind it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [text.rstrip(".") for text in DOCUMENTS] * 3,
        trainers.BpeTrainer(vocab_size=340, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False),
    )
    folder = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=core.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    made = LlamaForCausalLM(config)
    made.generation_config.repetition_penalty = 1.5  # as some checkpoints bring it: greedy is greedy all the same
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def index(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Of raw bytes, so that it must say what `brute` says."""
    folder = tmp_path_factory.mktemp("index")
    build_index(corpus_folder, None, folder, threads=1, memory_gib=0.5)
    return open_index(folder)


@pytest.fixture(scope="session")
def index_folder(index: Index) -> Path:
    return index.path


@pytest.fixture(scope="session")
def token_index(corpus_folder: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Of the model's tokens."""
    folder = tmp_path_factory.mktemp("token_index")
    build_index(corpus_folder, model_folder, folder, threads=1, memory_gib=0.5)
    return open_index(folder)


def letters(texts: Sequence[str]) -> np.ndarray:
    """Embeds texts by their words, each of which is a random direction: what shares a word is near."""
    rows = np.zeros((len(texts), 24), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.lower().split():
            row += np.random.default_rng(zlib.crc32(word.encode())).normal(size=24).astype(np.float32)
        row /= max(1e-9, float(np.linalg.norm(row)))
    return rows


@pytest.fixture
def make_records(tmp_path: Path) -> Callable[..., Path]:
    """Writes (input, output) pairs as records; returns the artifact's folder."""

    def make(rows: Sequence[tuple[str, str]], name: str = "set", template: str = "{input} ") -> Path:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"input": x, "output": y}) + "\n" for x, y in rows))
        folder = tmp_path / f"{name}-records"
        folder.mkdir()
        build_records(file, folder, evaluation=None, evaluated=None, tokenizer=None, template=template, limit=None)
        return folder

    return make
