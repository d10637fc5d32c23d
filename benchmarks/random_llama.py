"""Models of Llama's shapes with random weights, and random head profiles: speed and memory do not depend on either."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longloom.kernels.kvcache.heads import HeadProfile

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """Of a Llama: layers of `width` features, with MLPs of `mlp`."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


#: Source: the models' config.json.
LLAMA_3_2_1B = Shape(16, 2048, 8192, 32, 8, 64, 128_256)
LLAMA_3_1_8B = Shape(32, 4096, 14_336, 32, 8, 128, 128_256)


def random_llama(shape: Shape, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model of this shape, made where it is to run, with an embedding that is not tied to the output layer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    made: PreTrainedModel = model.eval().to(device)
    return made


def random_profile(weights: str, shape: Shape, seed: int = 0) -> HeadProfile:
    """Random scores of both kinds, the ones high where the others are low, so that no head is protected twice.

    Args:
        weights: the model's fingerprint.
        shape: of the model.
        seed: of the scores.
    """
    rng = random.Random(seed)
    scores = tuple(tuple(rng.random() for _ in range(shape.kv_heads)) for _ in range(shape.layers))
    echo = tuple(tuple(1 - score for score in row) for row in scores)
    return HeadProfile("random", weights, scores, echo, settings=(("seed", seed),))


@torch.inference_mode()
def feed(model: PreTrainedModel, cache: Any, ids: Tensor, chunk: int) -> Tensor:
    """Feed a prompt [B, N] in chunks within `policy_attention`, as `generate` does; the last logits [B, vocabulary]."""
    for piece in ids.split(chunk, dim=1):
        logits = model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    last: Tensor = logits[:, -1]
    return last
