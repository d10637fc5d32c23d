"""A corpus, a model, instructions and evaluation records, as small as can be, made without importing torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from longloom.flows.params_pipeline import PipelineParams


def write_model(folder: Path) -> None:
    """A Llama of random weights with one layer, and a tokenizer of bytes."""
    folder.mkdir()
    width, vocabulary = 16, 260
    rng = np.random.default_rng(0)
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    shapes |= {f"{layer}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
    shapes |= {f"{layer}mlp.{name}_proj.weight": (width, width) for name in ("gate", "up", "down")}
    shapes |= {f"{layer}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|end|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "chat_template": "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_inputs(folder: Path) -> PipelineParams:
    """A corpus, a model, instructions and evaluation records, as small as can be, and the parameters that name them."""
    folder.mkdir()
    words = ["alpha", "beta", "gamma", "delta"]
    write_model(folder / "model")
    (folder / "corpus.txt").write_text("\n".join(" ".join(words[i % 4 :]) for i in range(200)))
    with (folder / "instructions.jsonl").open("w") as file:
        for i in range(20):
            word = words[i % 4]
            messages = [{"role": "user", "content": f"say {word} {i}"}, {"role": "assistant", "content": word}]
            file.write(json.dumps({"messages": messages}) + "\n")
    records = folder / "records"
    (records / "config").mkdir(parents=True)
    record = {"input": "?", "length": 3, "dataset": "copy", "language": "en", "all_classes": None}
    with (records / "copy.jsonl").open("w") as file:
        for i, word in enumerate(words):
            file.write(json.dumps(record | {"context": f"word: {word}", "answers": [word], "_id": str(i)}) + "\n")
    tables = {"prompt": "{context}\nword:", "maxlen": 4, "metric": "qa_f1", "chat": False}
    for name, value in tables.items():
        (records / "config" / f"dataset2{name}.json").write_text(json.dumps({"copy": value}))
    return PipelineParams.model_validate(
        {
            "corpus": {"sources": ["inputs/corpus.txt"]},
            "index": {"tokenizer": "bytes", "threads": 1, "memory_gib": 0.5, "shard_tokens": 2000},
            "model": {"source": "inputs/model"},
            "instructions": {"sources": ["inputs/instructions.jsonl"]},
            "coreset": {"methods": ["random"], "share": 0.2, "max_length": 64},
            "finetune": {"epochs": 1, "max_length": 64, "batch": 4},
            "evaluate": {"suite": "records", "data": "inputs/records", "policies": ["full"]},
            "sweep": [],
            "needle": False,
            "full_pool": False,
        }
    )
