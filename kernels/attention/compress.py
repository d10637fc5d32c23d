"""Compress a prompt's cache: each KV head keeps its first and last tokens, the mean of the rest stands for it.

    mean_key = 1 / N_d sum_{j dropped} R(j) k_j,   mean_value likewise,   N_d = number dropped

(RazorAttention, arXiv 2407.15891, section 3.3; `decode` puts log N_d on the mean's logit.) Retrieval heads keep
everything. What is not kept takes no memory: the pages are counted first, then filled in one pass over the source.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longloom.kernels.attention.pages import PAGE, UNLIMITED, RaggedKV, side_by_side, upload
from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal


@torch.no_grad()
def compress(
    key: Tensor,
    value: Tensor,
    window: Tensor,
    *,
    sink: int,
    start: Tensor | None = None,
    compensate: bool = True,
    fold: bool = False,
    page: int = PAGE,
    implementation: str | None = None,
) -> RaggedKV:
    """The tokens that each row's KV heads keep of a prompt, and the means of those they drop.

    Of a row's n = N - start[b] tokens a head keeps the first `sink` and the last window[b, h], in order, or all of them
    if these are n or more. Not differentiable.

    Args:
        key: [B, Hkv, N, D], rotated; any strides but for the last dimension's, which is 1.
        value: [B, Hkv, N, D], likewise.
        window: [B, Hkv] int32 on the CPU; -1: that head keeps everything (a retrieval head).
        sink: tokens at the beginning that are always kept.
        start: [B] int32 on the CPU, 0 .. N: left padding to skip; None: there is none.
        compensate: whether to keep the means; else the cache has none.
        fold: whether heads with a window never hold more than sink + window tokens: `append` will fold the oldest of
            the window into the mean. Heads that are not full yet fill up first.
        page: tokens a page, a power of two >= 16.
        implementation: "triton" or "reference"; None: the fastest that can.

    Returns:
        A cache on exactly the pages it needs, each head's side by side, which shares no memory with `key` and `value`.

    Raises:
        ValueError: shapes, types or devices that do not fit, a value out of range, or an implementation that cannot do
            this.
    """
    check = Arguments("compress")
    check.tensor("key", key, "B Hkv N D", FLOATS, strided=True)
    check.tensor("value", value, "B Hkv N D", key.dtype, strided=True)
    rows, heads, tokens, size = key.shape
    check.require(0 <= sink <= UNLIMITED, "sink", f"0 to {UNLIMITED}", sink)
    check.require(page >= 16 and page & (page - 1) == 0, "page", "a power of two >= 16", page)
    check.require(compensate or not fold, "compensate", "True where fold is", compensate)
    window = _on_host(check, "window", window, "B Hkv", -1, UNLIMITED - sink)
    check.require(not fold or bool((window != 0).all()), "window", "-1 or at least 1 where fold is True", 0)
    padding = _on_host(check, "start", torch.zeros(rows, dtype=torch.int32) if start is None else start, "B", 0, tokens)

    everything = (tokens - padding)[:, None].expand(rows, heads)
    kept = torch.where(window < 0, everything, torch.minimum(everything, sink + window))
    table = side_by_side(-(-kept // page))
    pages = int((table >= 0).sum())
    means = {}
    if compensate:
        means = {name: key.new_empty(rows, heads, size, dtype=torch.float32) for name in ("mean_key", "mean_value")}
        means["dropped"] = upload((everything - kept).int(), key.device)
    cache = RaggedKV.from_host(
        key.new_empty(pages, page, size),
        key.new_empty(pages, page, size),
        table,
        kept.int(),
        limit=torch.where(window < 0, 0, sink + window).int() if fold else None,
        sink=sink,
        **means,
    )
    candidates = {
        "triton": triton_refusal(key, asked=implementation == "triton", head_dim=size),
        "reference": None,
    }
    if choose("compress", candidates, implementation) == "triton":
        from longloom.kernels.attention.triton.compress import compress as run
    else:
        run = reference
    run(key, value, padding.int(), cache)
    return cache


def _on_host(check: Arguments, name: str, value: Tensor, dims: str, least: int, most: int) -> Tensor:
    """Check integers of the host; they come back as int64."""
    host = Arguments(check.operation, check.sizes)
    host.tensor(name, value, dims, torch.int32)
    host.require(value.device.type == "cpu", name, "on the CPU", value.device)
    wrong = value[(value < least) | (value > most)]
    if wrong.numel():
        host.require(False, name, f"{least} to {most}", int(wrong[0]))
    return value.long()


def reference(key: Tensor, value: Tensor, start: Tensor, cache: RaggedKV) -> None:
    """Fill the pages and means of a cache that is laid out; one row and KV head after the other, on views."""
    rows, heads, _, size = key.shape
    exact = torch.promote_types(key.dtype, torch.float32)
    for source, pool, mean in ((key, cache.keys, cache.mean_key), (value, cache.values, cache.mean_value)):
        slots = pool.view(-1, size)
        for b in range(rows):
            for h in range(heads):
                tokens = source[b, h, int(start[b]) :]
                kept, first = int(cache.host_len[b, h]), int(cache.host_table[b, h, 0]) * cache.page
                behind = cache.sink + len(tokens) - kept  # the dropped ones stand between the sinks and this
                own = slots[first : first + kept]
                own[: cache.sink] = tokens[: cache.sink]
                own[cache.sink :] = tokens[behind:]
                if mean is not None:
                    mean[b, h] = tokens[cache.sink : behind].sum(dim=0, dtype=exact) / max(1, len(tokens) - kept)
