"""Starts a small Llama with an induction circuit.

The circuit needs two parts: heads that tell each token what stood before it, and a head of a later layer that looks
for the last symbols in what the first ones wrote. From random weights a model must find both before either pays, waits
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

#: Scale of the second part's queries and keys, for the token at hand and for those before it, and of what both parts
#: write.
MATCH = 1.5
MATCH_BEFORE = 1.25
WRITE = 0.15

#: Tokens before it that each token is told: to match one alone confuses every "for" of a text with every other.
LAGS = 3


@torch.no_grad()
def seed_induction(model: LlamaForCausalLM, *, seed: int) -> None:
    """Makes the first layer tell each token the three before it, and KV head 0 of the second one copy by them.

    All embeddings get one common direction u (under tied weights it shifts every logit alike, so predictions do not
    change). KV head n = 0, 1, 2 of the first layer and its first query head read u only: key k0 = 1 on the fastest
    rotary pairs, query q0 = R(-1 - n) k0. With RoPE the logit of (i, j) is |u.x|^2 * sum_f cos((i - 1 - n - j)
    theta_f), largest where j = i - 1 - n: for n = 0 it gets 98% of the weight within 256 tokens. All other queries and
    keys are made blind to u, which would give each of them a distance of its own to prefer. The value is a projection
    of the token (for n > 0 half as wide), written to a subspace S_n. In the second layer the keys of KV head 0 read
    S_0, S_1, S_2 where its queries read the token itself, S_0, S_1, through random matrices, on the slow rotary pairs,
    which hardly tell distances: the token after an earlier occurrence of the last three answers. Its value goes out as
    it came in: with tied embeddings, as a vote for that token.

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
    lags = min(LAGS, config.num_key_value_heads)
    generator = torch.Generator().manual_seed(seed)
    # Orthogonal to each other where the width has room for all of them.
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    common, rest = basis[:, 0], basis[:, 1:]
    token, *before, copied = _side_by_side(rest, [size, size, *[size // 2] * (lags - 1), size])

    embeddings = model.model.embed_tokens.weight  # [V, d]
    embeddings -= torch.outer(embeddings @ common, common)
    embeddings += common * embeddings.norm(dim=1).mean()
    for layer in model.model.layers:
        for reader in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
            reader -= torch.outer(reader @ common, common)
        layer.self_attn.o_proj.weight *= ATTENTION_OUTPUT
        layer.mlp.down_proj.weight *= MLP_OUTPUT

    attention = model.model.layers[0].self_attn
    for lag, memory in enumerate(before):
        query, key = _apart(config, lag + 1)
        rows, own = slice(lag * size, (lag + 1) * size), lag * group * size  # of the KV head, of its first query head
        attention.q_proj.weight[own : own + size] = torch.outer(query, common)
        attention.k_proj.weight[rows] = torch.outer(key, common)
        attention.v_proj.weight[rows] = token.T
        attention.o_proj.weight[:, own : own + size] = 0
        attention.o_proj.weight[:, own : own + memory.shape[1]] = WRITE * memory

    attention = model.model.layers[1].self_attn
    half = size // 2
    slow = torch.cat((torch.arange(half // 2, half), torch.arange(half + half // 2, size)))
    asked, answering = torch.zeros(2, len(slow), width)
    for lag, (now, then) in enumerate(zip([token, *before], before, strict=False)):
        rank = then.shape[1]
        mixed = torch.linalg.qr(torch.randn(max(rank, len(slow)), len(slow), generator=generator))[0][:rank].T
        scale = MATCH_BEFORE if lag else MATCH
        asked += scale * mixed @ now[:, :rank].T
        answering += scale * mixed @ then.T
    attention.k_proj.weight[:size] = 0
    attention.k_proj.weight[slow] = answering
    attention.v_proj.weight[:size] = copied.T
    for head in range(group):
        attention.q_proj.weight[head * size : (head + 1) * size] = 0
        attention.q_proj.weight[head * size + slow] = asked
        attention.o_proj.weight[:, head * size : (head + 1) * size] = WRITE * copied


def _side_by_side(basis: Tensor, widths: list[int]) -> list[Tensor]:
    """Subspaces of so many columns, one after the other as far as there is room."""
    begins = [min(sum(widths[:place]), basis.shape[1] - width) for place, width in enumerate(widths)]
    return [basis[:, begin : begin + width] for begin, width in zip(begins, widths, strict=True)]


def _apart(config: LlamaConfig, distance: int) -> tuple[Tensor, Tensor]:
    """The query and the key [D] that answer each other so many positions apart."""
    assert config.rope_parameters is not None
    base = config.rope_parameters["rope_theta"]
    assert base is not None
    assert config.head_dim is not None
    half = config.head_dim // 2
    theta = distance * float(base) ** (-torch.arange(half) / half)
    key = torch.zeros(2 * half)
    key[: min(PAIRS, half)] = 1.0
    return torch.cat((key[:half] * torch.cos(theta), -key[:half] * torch.sin(theta))), key
