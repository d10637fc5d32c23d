"""Prefill: sliding window and sinks at 128K against dense attention; plain dense for what the dispatcher's choice is
worth; a chunk of queries at the end of a long cache."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from gpu.harness import Row, Run, close, same
from gpu.peers import BACKENDS, Peers, sdpa
from gpu.timing import Call
from longloom.kernels.attention.prefill import prefill, prefill_lse


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked; `far` elements of queries in the check of offsets, beyond 32 bits."""

    context: int = 131_072
    dense: tuple[int, ...] = (8192, 16_384, 32_768)
    chunk: int = 512
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    sink: int = 4
    window: int = 4096
    far: int = (1 << 31) + (1 << 24)
    fuzz: int = 16


Inputs = tuple[Tensor, Tensor, Tensor]  # query [T, Hq, D], key and value [N, Hkv, D]


def window_pairs(tokens: int, window: int, sink: int) -> int:
    """Pairs of query and key that a causal window with sinks sees; a window of `tokens` is dense."""
    window = min(window, tokens)
    inside = window * (window + 1) // 2 + (tokens - window) * window
    behind = tokens - window  # queries that see less than everything: 1, 2, ... keys are out of their window
    reach = min(sink, behind)
    return inside + reach * (reach + 1) // 2 + (behind - reach) * reach


def inputs(run: Run, tokens: int, keys: int, sizes: Sizes) -> Inputs:
    heads = sizes.heads, sizes.kv_heads, sizes.kv_heads
    query, key, value = (run.randn(n, h, sizes.head_dim) for n, h in zip((tokens, keys, keys), heads, strict=True))
    return query, key, value


def ours(run: Run, given: Inputs, sizes: Sizes, window: int | None = None, sink: int = 0) -> Call:
    """A call of ours on one row; a window of None is dense."""
    ends = [torch.tensor([0, len(part)], dtype=torch.int32) for part in given[:2]]
    limits = None if window is None else _each_head(run, window, sizes)
    sinks = None if window is None else _each_head(run, sink, sizes)
    options = {"scale": sizes.head_dim**-0.5, "implementation": run.implementation}
    return functools.partial(prefill, *given, *ends, window=limits, sink=sinks, **options)


def measure(run: Run, sizes: Sizes) -> None:
    """The window's forward and backward, then dense ones, then the chunk."""
    tokens = sizes.context
    case = f"{tokens // 1024}K"
    if run.fits(case, 12 * tokens * (sizes.heads + sizes.kv_heads) * sizes.head_dim):
        given = inputs(run, tokens, tokens, sizes)
        call = ours(run, given, sizes, sizes.window, sizes.sink)
        pairs = window_pairs(tokens, sizes.window, sizes.sink)
        found = _both_ways(run, f"{case}, sink and window", {run.implementation: call}, given, pairs, sizes)
        dense = _both_ways(run, f"{case}, dense", _dense_peers(given), given, window_pairs(tokens, tokens, 0), sizes)
        for direction, row, peer in zip(("forward", "backward"), found, dense, strict=True):
            ratio = peer.seconds / row.seconds if row and peer else None
            run.target(f"{case}, sink and window over dense, {direction}: ratio", ratio, 5.0)
        del given, call
    for tokens in sizes.dense:
        given = inputs(run, tokens, tokens, sizes)
        for ways in ({run.implementation: ours(run, given, sizes)}, _dense_peers(given)):
            _both_ways(run, f"{tokens // 1024}K, dense", ways, given, window_pairs(tokens, tokens, 0), sizes)
        del given, ways
    _measure_chunk(run, sizes)


def _measure_chunk(run: Run, sizes: Sizes) -> None:
    """Queries at the end of a long cache: bottom-right aligned."""
    given = inputs(run, sizes.chunk, sizes.context, sizes)
    before = sizes.context - sizes.chunk
    pairs = window_pairs(sizes.context, sizes.context, 0) - window_pairs(before, before, 0)
    q, k, v = (part.transpose(0, 1)[None] for part in given)
    mask = torch.ones(sizes.chunk, sizes.context, dtype=torch.bool, device=run.device)
    mask = mask.tril(before)
    peers: Peers = {
        f"{name}, mask": lambda backend=backend: [functools.partial(sdpa, backend, q, k, v, attn_mask=mask)]
        for name, backend in BACKENDS.items()
    }
    corner = causal_lower_right(sizes.chunk, sizes.context)
    attention = torch.nn.functional.scaled_dot_product_attention
    peers["sdpa lower right"] = lambda: [functools.partial(attention, q, k, v, attn_mask=corner, enable_gqa=True)]
    case = f"{sizes.chunk} queries at the end of {sizes.context // 1024}K"
    counted = {"moved": _moved(given), "flops": 4 * pairs * sizes.heads * sizes.head_dim}
    run.time(case, run.implementation, [ours(run, given, sizes)], peak=True, **counted)
    run.fastest(case, peers, **counted)


def _both_ways(
    run: Run, case: str, ways: dict[str, Call], given: Inputs, pairs: int, sizes: Sizes
) -> tuple[Row | None, Row | None]:
    """The fastest way's forward and backward; 2 products a pair of query and key forward, 5 backward."""
    products = 2 * pairs * sizes.heads * sizes.head_dim
    upstream = torch.randn_like(given[0])

    def forward(call: Call) -> Sequence[Call]:
        return [call]

    def backward(call: Call) -> Sequence[Call]:
        for part in given:
            part.requires_grad_()
        output = call()
        assert isinstance(output, Tensor)
        grad = upstream if output.shape == upstream.shape else upstream.transpose(0, 1)[None]
        return [functools.partial(torch.autograd.grad, output, given, grad, retain_graph=True)]

    rows: list[Row | None] = []
    for direction, make, count in (("forward", forward, 2), ("backward", backward, 5)):
        made: Peers = {f"{name}, {direction}": functools.partial(make, call) for name, call in ways.items()}
        moved = _moved(given) * (1 if count == 2 else 2)
        if list(ways) == [run.implementation]:
            name, calls = made.popitem()
            rows.append(run.time(case, name, calls(), moved=moved, flops=count * products, peak=True))
        else:
            rows.append(run.fastest(case, made, moved=moved, flops=count * products))
        for part in given:
            part.requires_grad_(False)
    return rows[0], rows[1]


def _dense_peers(given: Inputs) -> dict[str, Call]:
    def call(backend: torch.nn.attention.SDPBackend) -> Tensor:  # the views belong into the graph
        query, key, value = (part.transpose(0, 1)[None] for part in given)
        return sdpa(backend, query, key, value, is_causal=True)

    return {name: functools.partial(call, backend) for name, backend in BACKENDS.items()}


def _moved(given: Inputs) -> int:
    return 2 * (2 * given[0].numel() + given[1].numel() + given[2].numel())


def _each_head(run: Run, value: int, sizes: Sizes) -> Tensor:
    return torch.full((sizes.kv_heads,), value, dtype=torch.int32, device=run.device)


def check_long(run: Run, sizes: Sizes) -> None:
    """Some queries of a long prompt with window and sinks, against float64."""
    given = inputs(run, sizes.context, sizes.context, sizes)
    output = ours(run, given, sizes, sizes.window, sizes.sink)()
    assert isinstance(output, Tensor)
    rows = torch.randint(sizes.context, (32,), device=run.device)
    places = torch.arange(sizes.context, device=run.device)
    distance = rows[:, None] - places
    seen = (distance >= 0) & ((distance < sizes.window) | (places < sizes.sink))
    for h in range(sizes.kv_heads):
        group = slice(h * sizes.heads // sizes.kv_heads, (h + 1) * sizes.heads // sizes.kv_heads)
        query, key, value = given[0][rows, group].double(), given[1][:, h].double(), given[2][:, h].double()
        logits = torch.einsum("rgd,nd->grn", query, key) * sizes.head_dim**-0.5
        expected = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ value
        close(output[rows, group], expected.transpose(0, 1))


def check_far(run: Run, sizes: Sizes) -> None:
    """Offsets beyond 2^31 elements, forward and backward: with a window the end of a prompt stands for itself."""
    tokens, window = sizes.far // (sizes.heads * sizes.head_dim), 256
    if not run.fits("far queries", 2 * sizes.far * 6):
        return
    given = inputs(run, tokens, tokens, sizes)
    tail = 2 * window
    ends = tuple(part[-tail:].clone() for part in given)
    upstream = torch.randn_like(given[0])
    results = []
    for parts, grad in ((given, upstream), (ends, upstream[-tail:])):
        for part in parts:
            part.requires_grad_()
        output = ours(run, parts, sizes, window)()
        assert isinstance(output, Tensor)
        gradients = torch.autograd.grad(output, parts, grad)
        results.append([result[-window:].detach() for result in (output, *gradients)])
        del output, gradients
    for far, near in zip(*results, strict=True):
        close(far, near)


def check_fuzz(run: Run, sizes: Sizes) -> None:
    """Random rows, windows and slopes against the reference in float64, with gradients; two runs are bitwise alike."""
    for trial in range(sizes.fuzz):
        kv_heads, group, size = random.choice([1, 2, 4]), random.choice([1, 3, 4]), random.choice([64, 80, 128])
        dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
        more = torch.randint(1, 300, (random.randint(1, 4),))
        steps = torch.randint(0, 400, more.shape)
        ends = [torch.nn.functional.pad(part.cumsum(0), (1, 0)).int() for part in (steps, steps + more)]
        options: dict[str, Any] = {"scale": size**-0.5}
        if trial % 2:
            options["window"] = torch.randint(-1, 200, (kv_heads,), device=run.device).int()
            options["sink"] = torch.randint(0, 9, (kv_heads,), device=run.device).int()
        if trial % 3 == 2:
            options["alibi"] = torch.rand(kv_heads * group, device=run.device) / 8
        query = run.randn(int(ends[0][-1]), kv_heads * group, size, dtype=dtype)
        pair = [run.randn(int(ends[1][-1]), kv_heads, size, dtype=dtype) for _ in range(2)]
        grad = torch.randn_like(query)

        def results(kind: torch.dtype, way: str) -> list[Tensor]:
            parts = [part.detach().to(kind).requires_grad_() for part in (query, *pair)]  # noqa: B023
            output = prefill(*parts, *ends, implementation=way, **options)  # noqa: B023
            lse = prefill_lse(*(part.detach() for part in parts), *ends, implementation=way, **options)[1]  # noqa: B023
            return [output.detach(), *torch.autograd.grad(output, parts, grad.to(kind)), lse]  # noqa: B023

        expected = results(torch.float64, "reference")
        with run.no_waits():
            found, again = (results(dtype, run.implementation) for _ in range(2))
        same(found, again)
        for one, two in zip(found[:-1], expected[:-1], strict=True):
            close(one, two)
        close(found[-1], expected[-1], tolerance=1e-3)


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {
    "128K with a window against float64": check_long,
    "queries beyond 2^31 elements": check_far,
    "random rows, windows and slopes": check_fuzz,
}
