"""Scoring and top-k over a million keys, against a product of matrices and torch.topk; codes, and keys on the host."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu.harness import Run, close, same
from gpu.timing import Call
from longloom.kernels.attention.quantise import CODES, quantise
from longloom.kernels.attention.topk import topk_indices, topk_votes


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked; `page` keys of a piece, `far` elements of keys in the check of offsets, beyond 32
    bits."""

    keys: int = 1 << 20
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    queries: tuple[int, ...] = (1, 512)
    k: int = 4
    block: int = 128
    page: int = 4096
    far: int = (1 << 31) + (1 << 27)
    fuzz: int = 16


def measure(run: Run, sizes: Sizes) -> None:
    """Decode and a chunk of queries: indices, votes, the approximate rule; time and memory."""
    n, size = sizes.keys, sizes.head_dim
    shape = 1, sizes.kv_heads, n, size
    held = 2 * sizes.kv_heads * n * size
    if not run.fits(f"{n} keys", held):
        return
    keys = [run.randn(*shape) for _ in range(run.copies(held))]
    votes_bytes = 4 * n
    for steps in sizes.queries:
        queries = [run.randn(1, sizes.heads, steps, size) for _ in keys]
        case = f"{n // 1024}K keys, {steps} queries"
        moved = held + 2 * sizes.heads * steps * size
        flops = 2 * sizes.heads * steps * n * size
        picks = 4 * sizes.heads * steps * sizes.k
        small = steps == 1
        for operation, out, name in ((topk_indices, picks, "indices"), (topk_votes, votes_bytes, "votes")):
            for block in (None, sizes.block):
                calls = [
                    functools.partial(operation, q, k, sizes.k, block=block, implementation=run.implementation)
                    for q, k in zip(queries, keys, strict=True)
                ]
                way = f"{run.implementation}, {name}" + ("" if block is None else f", best of each {block}")
                row = run.time(case, way, calls, moved=moved + out, flops=flops, graph=small, peak=True)
                if block is None and small:
                    run.target(f"{case}, {name}: share of copy bandwidth", row.share, 0.8)
                if block is None and operation is topk_votes and row.extra_bytes is not None:
                    scratch = (row.extra_bytes - votes_bytes) / votes_bytes
                    run.target(f"{case}: memory beside the votes over the votes'", scratch, 1.0, most=True)
        _codes(
            run, sizes, case, queries, keys, moved=moved - held // 2 + 4 * sizes.kv_heads * n + votes_bytes, flops=flops
        )
        _hosted(run, sizes, case, queries[0], keys[0], moved=moved + votes_bytes, flops=flops)
        run.fastest(
            case,
            {"matmul and topk": functools.partial(_plain, queries, keys, sizes.k)},
            moved=moved + picks,
            flops=flops,
            peak=True,
        )


def _codes(
    run: Run, sizes: Sizes, case: str, queries: Sequence[Tensor], keys: Sequence[Tensor], *, moved: int, flops: int
) -> None:
    """Votes by 8-bit codes, half of the bytes."""
    for dtype in CODES:
        held = [quantise(key, dtype) for key in keys]
        calls = [
            functools.partial(topk_votes, q, codes, sizes.k, scales=scales, implementation=run.implementation)
            for q, (codes, scales) in zip(queries, held, strict=True)
        ]
        way = f"{run.implementation}, votes by {str(dtype).removeprefix('torch.')}"
        run.time(case, way, calls, moved=moved, flops=flops, graph=queries[0].shape[2] == 1)


def _hosted(run: Run, sizes: Sizes, case: str, query: Tensor, key: Tensor, *, moved: int, flops: int) -> None:
    """Votes by keys in host memory: at best as fast as they come."""
    pages = _pages(key, sizes.page)
    call = functools.partial(topk_votes, query, pages, sizes.k, implementation=run.implementation)
    way = f"{run.implementation}, votes, keys on the host"
    row = run.time(case, way, [call], moved=moved, flops=flops, peak=True)
    if row.extra_bytes is not None:
        two = 2 * pages[0].numel() * pages[0].element_size()
        run.target(f"{case}, keys on the host: memory over two pages'", row.extra_bytes / two, 2.0, most=True)


def _pages(key: Tensor, page: int) -> list[Tensor]:
    """Copies of the keys' pages in host memory, pinned where there is a GPU."""
    parts = key.split(page, dim=2)
    return [torch.empty(part.shape, dtype=part.dtype, pin_memory=key.is_cuda).copy_(part) for part in parts]


def _plain(queries: Sequence[Tensor], keys: Sequence[Tensor], k: int) -> Sequence[Call]:
    """One KV head's scores at a time, or a chunk's would not fit."""

    def call(query: Tensor, key: Tensor) -> list[Tensor]:
        group = query.shape[1] // key.shape[1]
        rows = query.view(key.shape[1], group * query.shape[2], -1)
        return [(rows[h] @ key[0, h].T).topk(k).indices for h in range(len(rows))]

    return [functools.partial(call, query, key) for query, key in zip(queries, keys, strict=True)]


def check_ties(run: Run, sizes: Sizes) -> None:
    """Small whole numbers, whose products are exact and often equal: the indices of torch.topk, ties to the later."""
    n, size = sizes.keys, sizes.head_dim
    query = torch.randint(-3, 4, (1, sizes.heads, 3, size), device=run.device).bfloat16()
    key = torch.randint(-3, 4, (1, sizes.kv_heads, n, size), device=run.device).bfloat16()
    found = topk_indices(query, key, sizes.k, implementation=run.implementation)
    votes = topk_votes(query, key, sizes.k, implementation=run.implementation)
    place = torch.arange(n, device=run.device)
    for head in range(sizes.heads):
        scores = query[0, head].float() @ key[0, head * sizes.kv_heads // sizes.heads].float().T
        expected = (scores.round().long() * n + place).topk(sizes.k).indices
        if not torch.equal(found[0, head].long(), expected):
            raise AssertionError(f"head {head}: {found[0, head, 0].tolist()}, expected {expected[0].tolist()}")
    if not torch.equal(votes[0].long(), found.flatten().long().bincount(minlength=n)):
        raise AssertionError("the votes are not the indices' counts")


def check_random(run: Run, sizes: Sizes) -> None:
    """Random numbers: the scores at the indices are torch.topk's in float64; two runs are alike."""
    query = run.randn(1, sizes.heads, 2, sizes.head_dim)
    key = run.randn(1, sizes.kv_heads, sizes.keys, sizes.head_dim)
    found, again = (topk_indices(query, key, sizes.k, implementation=run.implementation) for _ in range(2))
    same([found], [again])
    for head in range(0, sizes.heads, max(1, sizes.heads // 4)):
        scores = query[0, head].double() @ key[0, head * sizes.kv_heads // sizes.heads].double().T
        close(scores.gather(1, found[0, head].long()), scores.topk(sizes.k).values, tolerance=1e-5)


def check_pieces(run: Run, sizes: Sizes) -> None:
    """Keys in pages, on the device and on the host, with many equal scores across them: what they give in one piece."""
    n = sizes.keys
    query = torch.randint(-2, 3, (1, sizes.heads, 3, sizes.head_dim), device=run.device).bfloat16()
    key = torch.randint(-2, 3, (1, sizes.kv_heads, n, sizes.head_dim), device=run.device).bfloat16()
    begin, end = (torch.tensor([bound], dtype=torch.int32, device=run.device) for bound in (n // 9, n - n // 7))
    options: dict[str, Any] = {"begin": begin, "end": end, "implementation": run.implementation}
    expected = topk_indices(query, key, sizes.k, **options)
    for pages in (key.split(sizes.page, dim=2), _pages(key, sizes.page)):
        with run.no_waits():
            found = topk_indices(query, pages, sizes.k, **options)
        if not torch.equal(found, expected):
            raise AssertionError(f"pages on {pages[0].device}: {found[0, 0].tolist()}, not {expected[0, 0].tolist()}")


def check_codes(run: Run, sizes: Sizes) -> None:
    """Codes of random keys: the scores at the indices are the best of float64's products with codes times scales."""
    query = run.randn(1, sizes.heads, 2, sizes.head_dim)
    key = run.randn(1, sizes.kv_heads, sizes.keys, sizes.head_dim)
    for dtype in CODES:
        codes, scales = quantise(key, dtype)
        with run.no_waits():
            found = topk_indices(query, codes, sizes.k, scales=scales, implementation=run.implementation)
        for head in range(0, sizes.heads, max(1, sizes.heads // 4)):
            line = head * sizes.kv_heads // sizes.heads
            scores = query[0, head].double() @ codes[0, line].double().T * scales[0, line].double()
            close(scores.gather(1, found[0, head].long()), scores.topk(sizes.k).values, tolerance=1e-5)


def check_far_keys(run: Run, sizes: Sizes) -> None:
    """The last head's last keys lie beyond 2^31 elements, and are found."""
    n = sizes.far // (sizes.kv_heads * sizes.head_dim)
    if not run.fits("far keys", 2 * sizes.far):
        return
    query = run.randn(1, sizes.kv_heads, 1, sizes.head_dim)
    key = run.randn(1, sizes.kv_heads, n, sizes.head_dim)
    expected = torch.tensor([n - 1, n - 70, 5, n // 2], dtype=torch.int32, device=run.device)
    for factor, place in zip((5, 4, 3, 2), expected.tolist(), strict=True):
        key[0, :, place] = factor * query[0, :, 0]
    found = topk_indices(query, key, 4, implementation=run.implementation)[0, :, 0]
    if not (found == expected).all():
        raise AssertionError(f"found {found[-1].tolist()}, expected {expected.tolist()}")


def check_fuzz(run: Run, sizes: Sizes) -> None:
    """Random shapes and ranges in whole numbers against the reference; whole numbers make every score exact."""
    for trial in range(sizes.fuzz):
        kv_heads, group, size = random.choice([1, 2, 4]), random.choice([1, 3, 4]), random.choice([64, 80, 128])
        batch, n, steps = random.randint(1, 3), random.randint(1, 3000), random.randint(1, 70)
        dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
        query = torch.randint(-2, 3, (batch, kv_heads * group, steps, size), device=run.device).to(dtype)
        key = torch.randint(-2, 3, (batch, kv_heads, n, size), device=run.device).to(dtype)
        options: dict[str, Any] = {"block": sizes.block if trial % 3 == 2 else None}
        if trial % 2:
            ends = torch.randint(0, n + 1, (2, batch), device=run.device).int().sort(dim=0).values
            options |= {"begin": ends[0].contiguous(), "end": ends[1].contiguous()}
        k = random.randint(1, 8)
        for operation in (topk_indices, topk_votes):
            with run.no_waits():
                found = operation(query, key, k, implementation=run.implementation, **options)
            expected = operation(query, key, k, implementation="reference", **options)
            if not torch.equal(found, expected):
                raise AssertionError(f"{operation.__name__}: {list(query.shape)}, {list(key.shape)}, {k}, {options}")


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {
    "1M keys with ties": check_ties,
    "1M random keys": check_random,
    "1M keys in pages": check_pieces,
    "1M keys in 8 bits": check_codes,
    "keys beyond 2^31 elements": check_far_keys,
    "random shapes": check_fuzz,
}
