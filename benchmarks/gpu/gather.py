"""Attention over selected keys of a million, a token and a chunk of them, against copying, rotating and attending."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from gpu.harness import Run, close, same
from gpu.timing import Call
from longloom.kernels.attention.gather import gather_attention


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked.

    Attributes:
        scope: slots attended to: 32 global ones, spans of 32 chosen ones, and as many local ones as those two.
        far: elements of keys in the check of offsets, beyond 32 bits.
    """

    keys: int = 1 << 20
    scope: int = 8192
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    queries: tuple[int, ...] = (1, 512)
    span: int = 32
    sets: int = 8
    far: int = (1 << 31) + (1 << 27)
    fuzz: int = 16


def tables(run: Run, slots: int, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin [slots, D / 2] of Llama-3's frequencies."""
    frequencies = 500_000.0 ** (-torch.arange(0, size, 2, device=run.device, dtype=torch.float64) / size)
    angles = torch.arange(slots, device=run.device, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def selection(run: Run, sizes: Sizes) -> Tensor:
    """[1, scope] positions as LongCache makes them: the first span, random spans, the last half."""
    local = sizes.scope // 2
    chosen = torch.randperm((sizes.keys - local) // sizes.span - 1, device=run.device)
    chosen = chosen[: (sizes.scope - local) // sizes.span - 1].sort().values + 1
    starts = torch.cat([torch.zeros_like(chosen[:1]), chosen]) * sizes.span
    spans = (starts[:, None] + torch.arange(sizes.span, device=run.device)).flatten()
    return torch.cat([spans, torch.arange(sizes.keys - local, sizes.keys, device=run.device)])[None].int()


def rotate(part: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Llama's rotation of [B, H, S, D] by tables [S, D / 2], in the tables' type."""
    first, second = part.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(part.dtype)


def measure(run: Run, sizes: Sizes) -> None:
    """Selections rotate among random ones, so their keys are not in the cache."""
    size = sizes.head_dim
    if not run.fits(f"{sizes.keys} keys", 4 * sizes.kv_heads * sizes.keys * size):
        return
    key, value = (run.randn(1, sizes.kv_heads, sizes.keys, size) for _ in range(2))
    picks = [selection(run, sizes) for _ in range(sizes.sets)]
    slots = picks[0].shape[1]
    cos, sin = tables(run, slots, size)
    count = torch.tensor([slots], dtype=torch.int32, device=run.device)
    for steps in sizes.queries:
        query = run.randn(1, sizes.heads, steps, size)
        options = {"scale": size**-0.5, "implementation": run.implementation}
        calls = [
            functools.partial(gather_attention, query, key, value, chosen, count, cos, sin, **options)
            for chosen in picks
        ]
        pairs = steps * slots - steps * (steps - 1) // 2
        counted = {
            "moved": 4 * sizes.kv_heads * slots * size + 4 * slots * (size + 1) + 4 * query.numel(),
            "flops": 4 * pairs * sizes.heads * size,
        }
        case = f"{steps} queries, scope {slots} of {sizes.keys // 1024}K"
        row = run.time(case, run.implementation, calls, graph=True, peak=True, **counted)
        plain = functools.partial(_copied, query, key, value, picks, cos, sin)
        peer = run.fastest(case, {"gathered copy, sdpa": plain}, graph=True, peak=True, **counted)
        run.target(f"{case} over a gathered copy: ratio", peer.seconds / row.seconds if peer else None, 1.0)


def _copied(
    query: Tensor, key: Tensor, value: Tensor, picks: Sequence[Tensor], cos: Tensor, sin: Tensor
) -> Sequence[Call]:
    steps, slots = query.shape[2], picks[0].shape[1]
    mask = causal_lower_right(steps, slots) if steps > 1 else None

    def call(chosen: Tensor) -> Tensor:
        near = rotate(key.index_select(2, chosen), cos, sin)
        asked = rotate(query, cos[-steps:], sin[-steps:])
        seen = value.index_select(2, chosen)
        return scaled_dot_product_attention(asked, near, seen, attn_mask=mask, enable_gqa=True)

    return [functools.partial(call, chosen[0]) for chosen in picks]


def expected(query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One row in float64, a KV head after the other; all of `chosen` [M] is in use."""
    steps, slots = query.shape[2], len(chosen)
    group = query.shape[1] // key.shape[1]
    turned = rotate(query.double(), cos[slots - steps : slots].double(), sin[slots - steps : slots].double())
    hidden = torch.ones(steps, slots, dtype=torch.bool, device=query.device).triu(slots - steps + 1)
    outputs = []
    for h in range(key.shape[1]):
        near = rotate(key[:, h : h + 1, chosen.long()].double(), cos[:slots].double(), sin[:slots].double())
        logits = turned[:, h * group : (h + 1) * group] @ near.mT * query.shape[3] ** -0.5
        outputs.append(logits.masked_fill(hidden, -torch.inf).softmax(-1) @ value[:, h : h + 1, chosen.long()].double())
    return torch.cat(outputs, dim=1)


def check_scope(run: Run, sizes: Sizes) -> None:
    """A selection of the full scope, from keys beyond 2^31 elements where there is room, against float64."""
    size = sizes.head_dim
    far = sizes.far // (sizes.kv_heads * size)
    keys = far if run.fits("far keys", 4 * sizes.far) else sizes.keys
    key, value = (run.randn(1, sizes.kv_heads, keys, size) for _ in range(2))
    chosen = selection(run, sizes) + (keys - sizes.keys)
    slots = chosen.shape[1]
    cos, sin = tables(run, slots, size)
    count = torch.tensor([slots], dtype=torch.int32, device=run.device)
    for steps in sizes.queries:
        query = run.randn(1, sizes.heads, steps, size)
        found, again = (
            gather_attention(
                query, key, value, chosen, count, cos, sin, scale=size**-0.5, implementation=run.implementation
            )
            for _ in range(2)
        )
        same(found, again)
        close(found[0], expected(query, key, value, chosen[0], cos, sin))


def check_fuzz(run: Run, sizes: Sizes) -> None:
    """Random shapes and counts against the reference in float64."""
    for _ in range(sizes.fuzz):
        kv_heads, group, size = random.choice([1, 2, 4]), random.choice([1, 3, 4]), random.choice([64, 80, 128])
        dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
        batch, keys, slots = random.randint(1, 3), random.randint(300, 2000), random.randint(40, 300)
        steps = random.choice([1, 2, 37])
        chosen = torch.rand(batch, keys, device=run.device).topk(slots).indices.sort().values.int()
        count = torch.randint(steps, slots + 1, (batch,), device=run.device).int()
        query = run.randn(batch, kv_heads * group, steps, size, dtype=dtype)
        key, value = (run.randn(batch, kv_heads, keys, size, dtype=dtype) for _ in range(2))
        rest = chosen, count, *tables(run, slots, size)
        with run.no_waits():
            found = gather_attention(query, key, value, *rest, scale=size**-0.5, implementation=run.implementation)
        exact = (part.double() for part in (query, key, value))
        wanted = gather_attention(*exact, *rest, scale=size**-0.5, implementation="reference")
        close(found[0], wanted[0])
        close(found[1], wanted[1], tolerance=1e-3)


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {
    "a scope of 8192 against float64": check_scope,
    "random shapes and counts": check_fuzz,
}
