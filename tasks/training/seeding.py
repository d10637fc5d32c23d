"""Starts a small Llama with one previous-token head.

An induction circuit needs two parts: a head that tells each token what stood before it, and a later head that looks
for the last symbol in what the first one wrote. From random weights a model must find both before either pays, and
waits millions of tokens for it. The first part is known in closed form under RoPE, so it is given: with two layers
the circuit then forms within 1.5M tokens, without it not within 3M. All of it stays trainable, and the four-layer
checkpoint went on to other heads of its own (docs/training.md).
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

#: Pairs of rotary dimensions used: the fast ones, which tell neighbours apart.
PAIRS = 4


@torch.no_grad()
def seed_previous_token_head(model: LlamaForCausalLM, *, seed: int, sharpness: float = 1.0) -> None:
    """Makes query head 0 of the first layer attend to the previous token.

    All embeddings get one common direction u (under tied weights it shifts every logit alike, so predictions do not
    change). The head's query and key read u only: key k0 = 1 on the fastest rotary pairs, query q0 = R(-1) k0. With
    RoPE the logit of (i, j) is |u.x|^2 * sum_f cos((i - 1 - j) theta_f), which is largest where j = i - 1.

    Args:
        model: freshly initialised, tied embeddings.
        seed: for the direction u.
        sharpness: scale of the two projections. In shape `1m` 1 gives the previous token 99% of the weight within 256
            tokens and 89% within 1,024: rotations of far tokens come round again.
    """
    config = model.config
    assert isinstance(config, LlamaConfig)
    assert config.head_dim is not None
    assert config.rope_parameters is not None
    size = config.head_dim
    half = size // 2
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(config.hidden_size, generator=generator)
    direction /= direction.norm()

    embeddings = model.model.embed_tokens.weight  # [V, d]
    embeddings -= torch.outer(embeddings @ direction, direction)
    embeddings += direction * embeddings.norm(dim=1).mean()

    base = config.rope_parameters["rope_theta"]
    assert base is not None
    theta = float(base) ** (-torch.arange(half) / half)
    key = torch.zeros(size)
    key[:PAIRS] = 1.0
    query = torch.zeros(size)
    query[:half] = key[:half] * torch.cos(theta)
    query[half:] = -key[:half] * torch.sin(theta)
    attention = model.model.layers[0].self_attn
    attention.q_proj.weight[:size] = sharpness * torch.outer(query, direction)
    attention.k_proj.weight[:size] = sharpness * torch.outer(key, direction)
