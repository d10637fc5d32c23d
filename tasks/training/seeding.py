"""Starts a small Llama with an induction circuit.

The circuit needs two parts: a head that tells each token what stood before it, and a head of a later layer that looks
for the last symbol in what the first one wrote. From random weights a model must find both before either pays, waits
millions of tokens for it, and may settle on other distances than the next token (docs/training.md). Both are known in
closed form under RoPE, so they are given. All of it stays trainable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

#: Pairs of rotary dimensions of the first part: the fast ones, which tell neighbours apart.
PAIRS = 4

#: What is left of the initial output of attention and MLP: at the width of this initialization they drown out the
#: embeddings, and with them the circuit.
ATTENTION_OUTPUT = 0.2
MLP_OUTPUT = 0.1

#: Scale of the second part's queries and keys, and of what both parts write.
MATCH = 1.5
WRITE = 0.15


@torch.no_grad()
def seed_induction(model: LlamaForCausalLM, *, seed: int) -> None:
    """Makes KV head 0 of the first layer write the previous token, and KV head 0 of the second one copy by it.

    All embeddings get one common direction u (under tied weights it shifts every logit alike, so predictions do not
    change). Query head 0 of the first layer and its key read u only: key k0 = 1 on the fastest rotary pairs, query
    q0 = R(-1) k0. With RoPE the logit of (i, j) is |u.x|^2 * sum_f cos((i - 1 - j) theta_f), largest where j = i - 1:
    within 256 tokens it gets 98% of the weight. All other queries and keys are made blind to u, which would give each
    of them a distance of its own to prefer. The value of that KV head is a projection P of the token, written to a
    subspace S. In the second layer the keys of KV head 0 read S and its queries read P, through one random matrix, on
    the slow rotary pairs, which hardly tell distances: the token after an earlier occurrence answers. Its value goes
    out as it came in: with tied embeddings, as a vote for that token.

    Args:
        model: freshly initialised, tied embeddings, two layers or more, wider than a head.
        seed: for the random subspaces.
    """
    config = model.config
    assert isinstance(config, LlamaConfig)
    assert config.head_dim is not None
    size, width = config.head_dim, config.hidden_size
    assert config.num_key_value_heads is not None
    assert width > size
    group = config.num_attention_heads // config.num_key_value_heads
    generator = torch.Generator().manual_seed(seed)
    # u, P and S are orthogonal to each other where the width has room for all of them.
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    common, rest = basis[:, 0], basis[:, 1:]
    token, before, copied = (rest[:, begin : begin + size] for begin in _begins(width - 1, size))

    embeddings = model.model.embed_tokens.weight  # [V, d]
    embeddings -= torch.outer(embeddings @ common, common)
    embeddings += common * embeddings.norm(dim=1).mean()
    for layer in model.model.layers:
        for reader in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
            reader -= torch.outer(reader @ common, common)
        layer.self_attn.o_proj.weight *= ATTENTION_OUTPUT
        layer.mlp.down_proj.weight *= MLP_OUTPUT

    attention = model.model.layers[0].self_attn
    query, key = _previous(config)
    attention.q_proj.weight[:size] = torch.outer(query, common)
    attention.k_proj.weight[:size] = torch.outer(key, common)
    attention.v_proj.weight[:size] = token.T
    attention.o_proj.weight[:, :size] = WRITE * before

    attention = model.model.layers[1].self_attn
    half = size // 2
    slow = torch.cat((torch.arange(half // 2, half), torch.arange(half + half // 2, size)))
    mixed = torch.linalg.qr(torch.randn(size, len(slow), generator=generator))[0].T  # [slow, size]
    attention.k_proj.weight[:size] = 0
    attention.k_proj.weight[slow] = MATCH * mixed @ before.T
    attention.v_proj.weight[:size] = copied.T
    for head in range(group):
        attention.q_proj.weight[head * size : (head + 1) * size] = 0
        attention.q_proj.weight[head * size + slow] = MATCH * mixed @ token.T
        attention.o_proj.weight[:, head * size : (head + 1) * size] = WRITE * copied


def _begins(room: int, size: int) -> list[int]:
    """Where three subspaces begin: side by side as far as there is room."""
    return [min(place * size, room - size) for place in range(3)]


def _previous(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """The query and the key [D] that answer each other one position apart."""
    assert config.rope_parameters is not None
    base = config.rope_parameters["rope_theta"]
    assert base is not None
    assert config.head_dim is not None
    half = config.head_dim // 2
    theta = float(base) ** (-torch.arange(half) / half)
    key = torch.zeros(2 * half)
    key[: min(PAIRS, half)] = 1.0
    return torch.cat((key[:half] * torch.cos(theta), -key[:half] * torch.sin(theta))), key
