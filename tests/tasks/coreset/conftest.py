"""A toy warm-up: a two-layer Llama with a character tokenizer, two LoRA checkpoints with moments, and a pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: The schedule's means at the two checkpoints; their weights are 1/4 and 3/4.
RATES = (1e-3, 3e-3)
ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)


@dataclass(frozen=True)
class Toy:
    """Folders of the toy's artifacts."""

    model: Path
    instructions: Path
    warmup: Path


def turns(*contents: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def write_pool(folder: Path, conversations: list[list[dict[str, str]]]) -> Path:
    """An instructions artifact with two sources."""
    folder.mkdir(parents=True)
    rows = [{"id": f"e{i}", "source": f"s{i % 2}", "messages": messages} for i, messages in enumerate(conversations)]
    pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), folder / "instructions.parquet")
    return folder


def conversations() -> list[list[dict[str, str]]]:
    """Ten, of them: 3 repeats 2, 5 has no assistant, 7 an answer of nothing, 8 two answers."""
    made = [turns(f"say {word}", word * 2) for word in ("ab", "cab", "fade", "fade", "bed", "dab", "face", "g", "h")]
    made[5] = turns("nobody answers")
    made[7] = turns("say nothing", "")
    made[8] = turns("one", "a b c", "two", "dd")
    made.append(turns("a question that is longer than the others " * 3, "tail"))
    return made


@pytest.fixture
def pool_of(tmp_path: Path) -> Callable[..., Path]:
    """`pool_of([user, assistant, ...], ...)`: an instructions artifact of these conversations."""
    return lambda *contents: write_pool(tmp_path / "pool", [turns(*one) for one in contents])


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Model, pool and warm-up; read-only."""
    root = tmp_path_factory.mktemp("toy")
    letters = [*"abcdefghijklmnopqrstuvwxyz .?"]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*SPECIAL, *letters])}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    base = LlamaForCausalLM(config)
    base.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    adapted = get_peft_model(
        base,
        LoraConfig(r=2, lora_alpha=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    for number, rate in enumerate(RATES, start=1):
        folder = root / "warmup" / f"checkpoint-{number:05d}"
        moments = {}
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
                    moments[f"exp_avg.{name}"] = 0.01 * torch.randn_like(parameter)
                    moments[f"exp_avg_sq.{name}"] = (0.01 * torch.randn_like(parameter)).square()
        adapted.save_pretrained(folder)
        save_file(moments, folder / "optimizer.safetensors")
        (folder / "checkpoint.json").write_text(json.dumps({"step": 10 * number, "mean_learning_rate": rate}))
    return Toy(root / "model", write_pool(root / "instructions", conversations()), root / "warmup")
