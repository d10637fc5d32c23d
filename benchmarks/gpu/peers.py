"""Others who do the dense work: torch's attention by each backend, and flash_attn and FlashInfer where installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.timing import Call
from longloom.kernels.attention.pages import RaggedKV

Peers = dict[str, Callable[[], Sequence[Call]]]

#: The math backend is left out: it repeats keys and values and holds the whole matrix of logits.
BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """torch's attention by one backend alone; [B, Hq, Sq, D] against [B, Hkv, N, D]."""
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1], **options)


def packed(query: Tensor, kv_heads: int) -> Tensor:
    """[B, Hq, 1, D] -> [B, Hkv, G, D]: the heads of a group as queries, which spares the peer the group."""
    batch, heads, _, size = query.shape
    return query.view(batch, kv_heads, heads // kv_heads, size)


def decode_peers(queries: Sequence[Tensor], caches: Sequence[RaggedKV]) -> Peers:
    """Ways to decode one query a row over full caches, whose pages lie in order.

    Args:
        queries: [B, Hq, 1, D] of each set of inputs.
        caches: of the same length for all heads, a whole number of pages.
    """
    batch, kv_heads, pages = caches[0].table.shape
    dense = [
        tuple(pool.view(batch, kv_heads, pages * cache.page, -1) for pool in (cache.keys, cache.values))
        for cache in caches
    ]

    def torch_way(backend: SDPBackend, pack: bool) -> Sequence[Call]:
        asked = [packed(query, kv_heads) if pack else query for query in queries]
        return [functools.partial(sdpa, backend, q, k, v) for q, (k, v) in zip(asked, dense, strict=True)]

    ways: Peers = {name: functools.partial(torch_way, backend, False) for name, backend in BACKENDS.items()}
    ways |= {f"{name}, packed": functools.partial(torch_way, backend, True) for name, backend in BACKENDS.items()}
    if importlib.util.find_spec("flash_attn"):
        ways["flash_attn"] = functools.partial(_flash_attn, queries, dense)
    if importlib.util.find_spec("flashinfer"):
        ways["flashinfer"] = functools.partial(flashinfer_decode, queries, caches)
    return ways


def _flash_attn(queries: Sequence[Tensor], dense: Sequence[tuple[Tensor, ...]]) -> Sequence[Call]:
    from flash_attn import flash_attn_with_kvcache

    return [
        functools.partial(flash_attn_with_kvcache, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        for q, (k, v) in zip(queries, dense, strict=True)
    ]


def flashinfer_decode(queries: Sequence[Tensor], caches: Sequence[RaggedKV]) -> Sequence[Call]:
    """FlashInfer's paged decode, each KV head a request of its own: so it takes ragged heads, without compensation."""
    import flashinfer

    calls = []
    for query, cache in zip(queries, caches, strict=True):
        lines, group = cache.kv_len.numel(), query.shape[1] // cache.kv_len.shape[1]
        lengths = cache.host_len.flatten()
        pages = -(-lengths // cache.page)
        used = torch.arange(cache.table.shape[2]) < pages[:, None]
        workspace = torch.empty(128 << 20, dtype=torch.uint8, device=query.device)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        wrapper.plan(
            F.pad(pages.cumsum(0, dtype=torch.int32), (1, 0)).to(query.device),
            cache.host_table.view(lines, -1)[used].to(query.device),
            (lengths - (pages - 1) * cache.page).to(query.device, torch.int32),
            group,
            1,
            query.shape[-1],
            cache.page,
            q_data_type=query.dtype,
            kv_data_type=cache.keys.dtype,
        )
        pools = cache.keys[:, None], cache.values[:, None]  # [P, 1, page, D]
        calls.append(functools.partial(wrapper.run, query.view(lines, group, -1), pools))
    return calls
