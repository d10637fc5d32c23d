"""A random two-layer Llama with a tokenizer of single bytes, and small suites for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WINDOW = 512


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["the value of the key is the value of the key"] * 2,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.3,  # wide, so that answers differ
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def records_folder(tmp_path: Path) -> Path:
    """Two tasks in LongBench's format, five records each; the last context is far too long."""
    folder = tmp_path / "records"
    (folder / "config").mkdir(parents=True)
    for task in ("keys", "lines"):
        rows = [
            {
                "input": f"Which key has number {number}?",
                "context": f"key{number} = {number}\n" * (number * number * 20 + 1),
                "answers": [f"key{number}"],
                "length": number,
                "dataset": task,
                "language": "en",
                "all_classes": None,
                "_id": str(number),
            }
            for number in range(5)
        ]
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {
        "prompt": {"keys": "{context}\n\n{input}", "lines": "{context}"},
        "maxlen": {"keys": 6, "lines": 9},
        "metric": {"keys": "string_match", "lines": "code_sim"},
        "chat": {"keys": True, "lines": False},
    }
    for name, table in tables.items():
        (folder / "config" / f"dataset2{name}.json").write_text(json.dumps(table))
    return folder
