"""Tiny random models for the tests of this folder, and prompts for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

LAYERS, VOCABULARY = 2, 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_model(model_type: str = "llama", *, attention: str = "eager", **overrides: Any) -> PreTrainedModel:
    """A tiny model with weights wide enough for sharp attention, and norms and biases that are not neutral.

    Args:
        model_type: as transformers names it.
        attention: the model's own implementation.
        **overrides: of SHAPE, or the type's own settings.
    """
    torch.manual_seed(0)
    kind = CONFIG_MAPPING[model_type]
    # Falcon computes its head_dim from the others.
    shape = {name: value for name, value in SHAPE.items() if not isinstance(getattr(kind, name, None), property)}
    config = AutoConfig.for_model(model_type, **{**shape, **overrides})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
