"""Pack: chosen tokens in pages, against a plain loop, and what decode makes of the result."""

import re

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.append import append
from longloom.kernels.attention.decode import decode
from longloom.kernels.attention.pack import pack
from longloom.kernels.attention.pages import RaggedKV


def held(cache: RaggedKV, pool: Tensor, b: int, h: int) -> Tensor:
    """What one head holds, slot after slot: [n, D]."""
    slots = [divmod(slot, cache.page) for slot in range(int(cache.kv_len[b, h]))]
    rows = [pool[int(cache.table[b, h, page]), inside] for page, inside in slots]
    return torch.stack(rows) if rows else pool.new_empty(0, pool.shape[2])


def drawn(count: Tensor, tokens: int, most: int, device: torch.device) -> Tensor:
    """Tokens of each head in any order, and behind those that count some that are none: [B, Hkv, most]."""
    chosen = torch.zeros(*count.shape, most, dtype=torch.int64)
    for own in chosen.flatten(0, 1):
        own[: min(tokens, most)] = torch.randperm(tokens)[:most]
    spare = torch.arange(most) >= count[..., None]
    outside = torch.tensor([-(2**40), -1, tokens, 2**40])[torch.randint(4, chosen.shape)]
    return torch.where(spare, outside, chosen).to(device)


CASES = {
    # tokens, counts
    "one row": (50, [[50, 17, 1]]),
    "ragged": (130, [[16, 33], [130, 0], [15, 64]]),
    "an empty row": (40, [[0, 0], [9, 40]]),
    "whole pages": (64, [[16, 32, 48, 64]]),
    "nothing": (20, [[0, 0], [0, 0]]),
    "no tokens": (0, [[0, 0]]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("page", [16, 64])
@pytest.mark.parametrize("beyond", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_a_loop(case, page, beyond, dtype, device):
    """`chosen` has as many columns as the longest head, or more."""
    tokens, counts = CASES[case]
    count = torch.tensor(counts, dtype=torch.int32)
    key, value = torch.randn(2, *count.shape, tokens, 24).to(dtype).to(device)
    chosen = drawn(count, tokens, int(count.max()) + beyond, device)
    cache = pack(key, value, chosen, count, page=page)
    pages = -(-count.long() // page)
    assert cache.keys.shape == cache.values.shape == (int(pages.sum()), page, 24)
    assert torch.equal((cache.table >= 0).sum(dim=-1).cpu(), pages)
    assert cache.table[cache.table >= 0].tolist() == list(range(int(pages.sum())))  # side by side
    assert torch.equal(cache.kv_len.cpu(), count)
    assert torch.equal(cache.host_len, count)
    assert torch.equal(cache.host_table, cache.table.cpu())
    assert cache.dropped is None
    assert cache.limit is None
    for b, row in enumerate(counts):
        for h, number in enumerate(row):
            own = chosen[b, h, :number]
            assert torch.equal(held(cache, cache.keys, b, h), key[b, h, own])
            assert torch.equal(held(cache, cache.values, b, h), value[b, h, own])
    RaggedKV(cache.keys, cache.values, cache.table, cache.kv_len)  # finds nothing wrong


def test_strided_sources(device):
    """As they lie in a cache with room behind, or as the projections leave them; `chosen` is a slice as well."""
    count = torch.tensor([[7, 20], [20, 3]], dtype=torch.int32)
    key = torch.randn(2, 2, 90, 32, device=device)[:, :, :60]
    value = torch.randn(2, 60, 2, 32, device=device).transpose(1, 2)
    chosen = torch.stack([torch.randperm(60) for _ in range(4)]).view(2, 2, 60).to(device)[..., :20]
    cache = pack(key, value, chosen, count)
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
        own = chosen[b, h, : count[b, h]]
        assert torch.equal(held(cache, cache.keys, b, h), key[b, h, own])
        assert torch.equal(held(cache, cache.values, b, h), value[b, h, own])


def test_a_token_may_be_chosen_twice(device):
    key, value = torch.randn(2, 1, 1, 5, 16, device=device)
    cache = pack(key, value, torch.tensor([[[3, 3, 0]]], device=device), torch.tensor([[3]], dtype=torch.int32))
    assert torch.equal(held(cache, cache.keys, 0, 0), key[0, 0, [3, 3, 0]])


def test_memory_is_its_own_and_no_more_than_the_pages(device):
    key, value = torch.randn(2, 1, 2, 1000, 16, device=device)
    count = torch.tensor([[100, 20]], dtype=torch.int32)
    chosen = torch.arange(100, device=device).expand(1, 2, 100)
    cache = pack(key, value, chosen, count)
    assert cache.bytes() == 2 * 3 * 64 * 16 * 4 + 4 * 2 * 2 + 4 * 2  # pages; table; lengths
    before = cache.keys.clone(), cache.values.clone()
    key.zero_()
    value.zero_()
    count.zero_()
    assert torch.equal(cache.keys, before[0])
    assert torch.equal(cache.values, before[1])
    assert cache.host_len.tolist() == cache.kv_len.tolist() == [[100, 20]]


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_decode_sees_the_chosen_and_what_is_appended(implementation, device, assert_close):
    key, value = torch.randn(2, 2, 2, 80, 16, device=device)
    count = torch.tensor([[64, 1], [0, 40]], dtype=torch.int32)
    chosen = torch.stack([torch.randperm(70) for _ in range(4)]).view(2, 2, 70).to(device)
    cache = pack(key, value, chosen, count)
    for now in range(70, 80):
        append(cache, key[:, :, now : now + 1], value[:, :, now : now + 1], implementation=implementation)
    query = torch.randn(2, 6, 1, 16, device=device)
    output, _ = decode(query, cache, scale=0.3, implementation=implementation)
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
        own = [*chosen[b, h, : count[b, h]].tolist(), *range(70, 80)]
        q = query[b, 3 * h : 3 * h + 3, 0].double()
        weights = (q @ key[b, h, own].double().T * 0.3).softmax(dim=-1)
        assert_close(output[b, 3 * h : 3 * h + 3, 0], weights @ value[b, h, own].double())


def test_a_cache_keeps_no_gradients(device):
    key = torch.randn(1, 2, 20, 32, device=device, requires_grad=True)
    chosen = torch.arange(20, device=device).expand(1, 2, 20)
    cache = pack(key, key, chosen, torch.full((1, 2), 9, dtype=torch.int32))
    assert not cache.keys.requires_grad


def test_no_wait_for_the_device(device):
    if device.type != "cuda":
        pytest.skip("the CPU waits for nothing")
    key, value = torch.randn(2, 2, 2, 600, 64, device=device)
    chosen = torch.arange(100, device=device).expand(2, 2, 100)
    count = torch.tensor([[100, 7]] * 2, dtype=torch.int32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        cache = pack(key, value, chosen, count)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert cache.kv_len.tolist() == [[100, 7]] * 2


FULL = torch.zeros(1, 2, 30, 32)
CHOSEN = torch.zeros(1, 2, 8, dtype=torch.int64)
COUNT = torch.tensor([[8, 3]], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": FULL[0]}, "pack: key must be [B, Hkv, N, D], found [2, 30, 32]"),
        ({"key": FULL.long()}, "pack: key must be of float16, bfloat16, float32, float64, found int64"),
        (
            {"value": FULL[:, :, 1:]},
            "pack: value must be [B, Hkv, N, D] with B=1, Hkv=2, N=30, D=32, found [1, 2, 29, 32]",
        ),
        ({"value": FULL.half()}, "pack: value must be of float32, found float16"),
        (
            {"value": FULL.mT.contiguous().mT},
            "pack: value must be contiguous in its last dimension, found strides (1920, 960, 1, 30)",
        ),
        ({"chosen": CHOSEN.int()}, "pack: chosen must be of int64, found int32"),
        ({"chosen": CHOSEN[:, :1]}, "pack: chosen must be [B, Hkv, M] with B=1, Hkv=2, found [1, 1, 8]"),
        ({"chosen": CHOSEN.to("meta")}, "pack: chosen must be on cpu like key, found meta"),
        ({"count": COUNT.to("meta")}, "pack: count must be on the CPU, found meta"),
        ({"count": COUNT.long()}, "pack: count must be int32 [1, 2], found torch.int64 [1, 2]"),
        ({"count": COUNT[0]}, "pack: count must be int32 [1, 2], found torch.int32 [2]"),
        ({"count": COUNT + 1}, "pack: count must be 0 to 8, found 9"),
        ({"count": COUNT - 4}, "pack: count must be 0 to 8, found -1"),
        ({"page": 24}, "pack: page must be a power of two >= 16, found 24"),
        ({"page": 8}, "pack: page must be a power of two >= 16, found 8"),
    ],
)
def test_a_bad_call_is_refused(change, message):
    given = {"key": FULL, "value": FULL, "chosen": CHOSEN, "count": COUNT} | change
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        pack(given.pop("key"), given.pop("value"), given.pop("chosen"), given.pop("count"), **given)
