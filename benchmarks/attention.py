"""The attention kernels on a CPU: ratios against transformers' eager attention and torch's own, in one run.

    python benchmarks/attention.py
    python benchmarks/attention.py --rounds 9 --json results.json

Each row times two ways in turns and shows the least, median and largest of the rounds' ratios. Before a time is told,
both ways must agree (or, where one of them computes something else on purpose, the row says so). float32, random data,
the shape of one layer of Llama-3.1-8B: 32 query heads, 8 KV heads, head size 128.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import machine
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers.models.llama.modeling_llama import eager_attention_forward

from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.decode import decode
from longloom.kernels.attention.gather import gather_attention
from longloom.kernels.attention.head_probe import head_probe
from longloom.kernels.attention.prefill import prefill
from longloom.kernels.attention.spans import vote_spans
from longloom.kernels.attention.topk import topk_votes
from longloom.kernels.minisequence.linear_cross_entropy import linear_cross_entropy

HQ, HKV, D = 32, 8, 128
SCALE = D**-0.5


def eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """transformers' own eager attention: [B, H, S, D] in and out."""
    layer = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1], training=False)
    return eager_attention_forward(layer, query, key, value, mask, scaling=SCALE)[0].transpose(1, 2)


def packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's attention of one query, the heads of a group as rows: the best full cache there is on a CPU."""
    rows = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])  # [B, Hkv, G, D]
    return scaled_dot_product_attention(rows, key, value).reshape(query.shape)


def compare(
    name: str,
    peer: Callable[[], Tensor],
    ours: Callable[[], Tensor],
    rounds: int,
    *,
    tolerance: float | None = 1e-4,
    note: str = "",
) -> dict[str, Any]:
    """Time both ways in turns, after they were seen to agree."""
    wanted, found = peer(), ours()
    if tolerance is not None:
        error = float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))
        if not error <= tolerance:
            raise SystemExit(f"{name}: the two ways disagree by {error:.1e}, so there is no speed to tell")
    del wanted, found
    times: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(rounds):
        for way, run in (("peer", peer), ("ours", ours)):
            began = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - began)
    ratios = sorted(a / b for a, b in zip(times["peer"], times["ours"], strict=True))
    row = {
        "name": name,
        "peer_ms": round(1e3 * statistics.median(times["peer"]), 2),
        "ours_ms": round(1e3 * statistics.median(times["ours"]), 2),
        "ratio": [round(value, 2) for value in (ratios[0], statistics.median(ratios), ratios[-1])],
    }
    if note:
        row["note"] = note
    low, median, high = row["ratio"]
    print(f"{name:<76} {row['peer_ms']:>9.2f} ms {row['ours_ms']:>9.2f} ms  {median:.2f}x ({low}-{high})", flush=True)
    return row


def decode_rows(tokens: int, rounds: int) -> list[dict[str, Any]]:
    """A decode step: full caches three ways, and Razor's compression to 3.125x."""
    key, value = torch.randn(2, 1, HKV, tokens, D)
    query = torch.randn(1, HQ, 1, D)
    everything = torch.full((1, HKV), -1, dtype=torch.int32)
    window = everything.clone()
    window[:, 1:] = round((HKV / 3.125 - 1) / (HKV - 1) * tokens) - 4  # one retrieval head of eight
    full = compress(key, value, everything, sink=4)
    razor = compress(key, value, window, sink=4)
    bytes_ratio = round(full.bytes() / razor.bytes(), 3)
    where = f"decode, {tokens} tokens"
    note = f"one retrieval head of {HKV}; bytes held: 1/{bytes_ratio} of the full cache's"
    return [
        compare(
            f"{where}: full ragged cache | eager attention",
            lambda: eager(query, key, value),
            lambda: decode(query, full, scale=SCALE)[0],
            rounds,
        ),
        compare(
            f"{where}: full ragged cache | torch SDPA, heads packed",
            lambda: packed(query, key, value),
            lambda: decode(query, full, scale=SCALE)[0],
            rounds,
        ),
        compare(
            f"{where}: razor {bytes_ratio}x | torch SDPA on the full cache",
            lambda: packed(query, key, value),
            lambda: decode(query, razor, scale=SCALE)[0],
            rounds,
            tolerance=None,
            note=note,
        ),
        compare(
            f"{where}: razor {bytes_ratio}x | full ragged cache",
            lambda: decode(query, full, scale=SCALE)[0],
            lambda: decode(query, razor, scale=SCALE)[0],
            rounds,
            tolerance=None,
            note=note,
        ),
    ]


def prefill_rows(tokens: int, rounds: int) -> list[dict[str, Any]]:
    """A prompt at once: dense, and with sliding windows and sinks."""
    query = torch.randn(1, HQ, tokens, D)
    key, value = torch.randn(2, 1, HKV, tokens, D)
    cu = torch.tensor([0, tokens], dtype=torch.int32)
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]
    future = torch.full((tokens, tokens), -torch.inf).triu(1)[None, None]
    window, sink = torch.full((HKV,), 256, dtype=torch.int32), torch.full((HKV,), 4, dtype=torch.int32)
    ahead = torch.arange(tokens)[:, None] - torch.arange(tokens)
    hidden = (ahead >= 256) & (torch.arange(tokens) >= 4)
    banded = future.masked_fill(hidden, -torch.inf)

    def ours(**options: Any) -> Tensor:
        return prefill(*flat, cu, cu, scale=SCALE, **options).transpose(0, 1)[None]

    return [
        compare(
            f"prefill, {tokens} tokens: the dispatcher's choice | eager attention",
            lambda: eager(query, key, value, future),
            ours,
            rounds,
        ),
        compare(
            f"prefill, {tokens} tokens: reference | eager attention",
            lambda: eager(query, key, value, future),
            lambda: ours(implementation="reference"),
            rounds,
        ),
        compare(
            f"prefill, {tokens} tokens, sink 4 + window 256: reference | eager, masked",
            lambda: eager(query, key, value, banded),
            lambda: ours(window=window, sink=sink),
            rounds,
        ),
    ]


def window_row(tokens: int, rounds: int) -> dict[str, Any]:
    """Windows on a longer prompt, where eager attention's T x T matrix no longer fits in a budget."""
    query = torch.randn(1, HQ, tokens, D)
    key, value = torch.randn(2, 1, HKV, tokens, D)
    cu = torch.tensor([0, tokens], dtype=torch.int32)
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]
    window, sink = torch.full((HKV,), 1024, dtype=torch.int32), torch.full((HKV,), 4, dtype=torch.int32)
    return compare(
        f"prefill, {tokens} tokens: sink 4 + window 1024 | torch SDPA, dense",
        lambda: scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALE, enable_gqa=True),
        lambda: prefill(*flat, cu, cu, scale=SCALE, window=window, sink=sink),
        rounds,
        tolerance=None,
        note="another function on purpose: a window instead of everything",
    )


def selection_rows(tokens: int, rounds: int) -> list[dict[str, Any]]:
    """A LongCache step: exact scores of all keys, votes and spans, attention over 8192 of them."""
    key, value = torch.randn(2, 1, HKV, tokens, D)
    query = torch.randn(1, HQ, 1, D)
    scope, local = 8192, 4096
    begin, end = (torch.tensor([place], dtype=torch.int32) for place in (32, tokens - local))
    cos, sin = torch.ones(scope, D // 2), torch.zeros(scope, D // 2)

    def select() -> tuple[Tensor, Tensor]:
        votes = topk_votes(query, key, 4, begin=begin, end=end)
        return vote_spans(votes, 127, 32, begin=begin, end=end)

    def step() -> Tensor:
        positions, count = select()
        chosen = int(count[0])
        whole = torch.cat((torch.arange(32), positions[0, :chosen], torch.arange(tokens - local, tokens)))
        index = whole.to(torch.int32)[None]
        return gather_attention(
            query, key, value, index, torch.tensor([index.shape[1]], dtype=torch.int32), cos, sin, scale=SCALE
        )[0]

    return [
        compare(
            f"LongCache's selection, {tokens} keys: exact top 4, votes, spans | scores alone",
            lambda: key[0] @ query.view(HKV, -1, D).mT,
            lambda: select()[0],
            rounds,
            tolerance=None,
            note="the peer reads the keys once and keeps the scores: the floor of the exact way",
        ),
        compare(
            f"LongCache's step, {tokens} tokens, scope 8192 | torch SDPA on all of them",
            lambda: packed(query, key, value),
            step,
            rounds,
            tolerance=None,
            note="another function on purpose: a finite scope",
        ),
    ]


def probe_row(period: int, rounds: int) -> dict[str, Any]:
    """RazorAttention's head scores of a sequence repeated four times."""
    tokens, heads = 1 + 4 * period, 8
    query, key = torch.randn(2, heads, tokens, D)

    def dense() -> Tensor:
        logits = (query @ key.mT) * SCALE
        weights = logits.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        inner = weights[:, 1:, 1:]
        ahead = torch.arange(tokens - 1)[:, None] - torch.arange(tokens - 1)
        scores = []
        for offset in (0, 1):
            target = ((ahead + offset) % period == 0) & (ahead + offset > 0) & (ahead >= 0)
            target &= torch.arange(tokens - 1) >= offset
            scores.append((inner * target)[:, period:].sum(dim=(1, 2)) / (tokens - 1 - period))
        return torch.stack(scores, dim=-1)

    return compare(
        f"head probe, {tokens} tokens, {heads} heads | dense weights",
        dense,
        lambda: head_probe(query, key, period, scale=SCALE),
        rounds,
    )


def loss_row(tokens: int, rounds: int) -> dict[str, Any]:
    """Linear layer and cross-entropy, forward and backward."""
    vocabulary, size = 32_000, 256
    hidden = torch.randn(tokens, size, requires_grad=True)
    weight = (torch.randn(vocabulary, size) * 0.05).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,))

    def run(loss: Callable[[], Tensor]) -> Tensor:
        hidden.grad = weight.grad = None
        loss().backward()
        assert hidden.grad is not None
        return hidden.grad

    return compare(
        f"linear cross-entropy, {tokens} tokens, vocabulary {vocabulary} | torch, logits whole",
        lambda: run(lambda: cross_entropy(hidden @ weight.T, labels)),
        lambda: run(lambda: linear_cross_entropy(hidden, weight, labels)),
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.manual_seed(0)
    rounds = options.rounds
    with torch.inference_mode():
        rows = decode_rows(32_768, rounds)
        rows += prefill_rows(2048, rounds)
        rows.append(window_row(8192, rounds))
        rows += selection_rows(65_536, rounds)
        rows.append(probe_row(1024, rounds))
    rows.append(loss_row(2048, rounds))
    about = machine()
    print(f"rounds {rounds}, {about}")
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
