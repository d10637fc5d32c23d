"""Greedy tokens are the likeliest ones, whatever the checkpoint's generation_config.json asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from longloom.kernels.huggingface.greedy import greedy

from .models import prompts, random_model


def likeliest(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    ids = [*prompt]
    for _ in range(count):
        with torch.inference_mode():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 3, "length_penalty": 2.0},
        {"do_sample": True, "temperature": 5.0, "top_k": 50},
        {"suppress_tokens": list(range(3, 30)), "forced_eos_token_id": 2, "max_length": 8},
    ],
)
def test_a_checkpoints_own_way_to_generate_changes_nothing(tmp_path: Path, asked: dict[str, Any]) -> None:
    model = random_model()
    model.generation_config.eos_token_id = None
    model.generation_config.update(**asked)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    own = loaded.generation_config.to_dict()
    for prompt in prompts(1, 7):
        assert greedy(loaded, prompt, new_tokens=12, pad_token_id=0) == likeliest(model, prompt, 12)
    assert loaded.generation_config.to_dict() == own  # as it was


def test_the_checkpoints_end_tokens_end_it() -> None:
    model = random_model()
    model.generation_config.eos_token_id = None
    [prompt] = prompts(5)
    tokens = likeliest(model, prompt, 12)
    last = tokens[4]
    model.generation_config.eos_token_id = [last, 2]
    found = greedy(model, prompt, new_tokens=12, pad_token_id=0)
    assert found == tokens[: tokens.index(last) + 1]
    assert greedy(model, prompt, new_tokens=3, pad_token_id=0) == found[:3]
