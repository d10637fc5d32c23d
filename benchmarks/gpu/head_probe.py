"""The head probe on RazorAttention's 10,001 tokens, against the dense matrix of one head after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu.harness import Run, close, same
from longloom.kernels.attention.head_probe import head_probe


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked: a layer of Llama-3.1-8B."""

    tokens: int = 10_001
    period: int = 2500
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128


def dense(query: Tensor, key: Tensor, period: int, scale: float) -> Tensor:
    """Echo and induction scores [Hq, 2] from the whole matrix of one head at a time, in the inputs' type."""
    tokens, group = query.shape[1], len(query) // len(key)
    row = torch.arange(tokens - 1, device=query.device)
    behind = row[:, None] - row  # r - column
    hidden = behind.new_ones(tokens, tokens, dtype=torch.bool).triu_(1)
    hits = [  # column c + offset, for the earlier occurrences c = r - m * period
        (behind >= 0) & (behind + offset > 0) & ((behind + offset) % period == 0) & (row >= offset) for offset in (0, 1)
    ]
    scores = []
    for head in range(len(query)):
        logits = query[head] @ key[head // group].T * scale
        weights = logits.masked_fill_(hidden, -torch.inf).softmax(-1)[1:, 1:]
        scores += [weights.masked_fill(~hit, 0).sum(-1)[period:].mean() for hit in hits]
    return torch.stack(scores).view(-1, 2).float()


def measure(run: Run, sizes: Sizes) -> None:
    """Time and scratch of a layer."""
    size = sizes.head_dim
    query, key = (run.randn(heads, sizes.tokens, size) for heads in (sizes.heads, sizes.kv_heads))
    probe = functools.partial(head_probe, scale=size**-0.5, implementation=run.implementation)
    pairs = sizes.tokens * (sizes.tokens + 1) // 2
    counted = {"moved": 2 * (query.numel() + key.numel()), "flops": 2 * pairs * sizes.heads * size}
    case = f"{sizes.tokens} tokens, {sizes.heads} heads"
    row = run.time(case, run.implementation, [lambda: probe(query, key, sizes.period)], peak=True, **counted)
    peer = [functools.partial(dense, query, key, sizes.period, size**-0.5)]
    run.fastest(case, {"dense, head by head": lambda: peer}, peak=True, **counted)
    run.target(f"{case}: MB of scratch", None if row.extra_bytes is None else row.extra_bytes / 1e6, 50, most=True)


def check_dense(run: Run, sizes: Sizes) -> None:
    """The scores of heads that do attend to earlier occurrences, against the dense matrix in float64; runs alike."""
    size = sizes.head_dim
    tokens = torch.randint(997, (sizes.period,), device=run.device)
    repeated = tokens.repeat(-(-sizes.tokens // sizes.period))[: sizes.tokens - 1]
    vectors = run.randn(sizes.kv_heads, 997, size)
    bos = run.randn(sizes.kv_heads, 1, size)
    key = torch.cat([bos, vectors[:, repeated]], dim=1)
    own = key.repeat_interleave(sizes.heads // sizes.kv_heads, dim=0)
    query = own + run.randn(*own.shape)
    query[1::2] = query[1::2].roll(-1, dims=1)  # these look for the token that follows
    found, again = (
        head_probe(query, key, sizes.period, scale=size**-0.5, implementation=run.implementation) for _ in range(2)
    )
    same([found], [again])
    some = slice(0, 2 * sizes.heads // sizes.kv_heads)
    close(found[some], dense(query[some].double(), key[:2].double(), sizes.period, size**-0.5), tolerance=1e-3)


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {"10,001 tokens against the dense matrix": check_dense}
