"""Compress: Triton and the reference against a plain loop in float64, and what decode makes of the result."""

import re
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.decode import decode
from longloom.kernels.attention.pages import RaggedKV


def held(cache: RaggedKV, pool: Tensor, b: int, h: int) -> Tensor:
    """What one head holds, slot after slot: [n, D]."""
    slots = [divmod(slot, cache.page) for slot in range(int(cache.kv_len[b, h]))]
    rows = [pool[int(cache.table[b, h, page]), inside] for page, inside in slots]
    return torch.stack(rows) if rows else pool.new_empty(0, pool.shape[2])


def by_hand(tokens: Tensor, window: int, sink: int) -> tuple[Tensor, Tensor, int]:
    """Those kept of one head's tokens [n, D], the mean of the others in float64 (0 without any) and their number."""
    n = len(tokens)
    kept = [j for j in range(n) if window < 0 or j < sink or n - j <= window]
    gone = [j for j in range(n) if j not in kept]
    mean = tokens[gone].double().mean(dim=0) if gone else torch.zeros(tokens.shape[1], dtype=torch.float64)
    return tokens[kept], mean, len(gone)


def windows(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


CASES = {
    # tokens, windows, sink, padding
    "one row": (100, [[-1, 40, 7]], 4, None),
    "padding": (70, [[20, -1], [66, 13], [1, 64]], 4, [0, 3, 33]),
    "an empty row": (40, [[8, -1], [8, -1]], 2, [40, 0]),
    "nothing is dropped": (30, [[26, 100, -1, 30]], 4, None),
    "one is dropped": (30, [[25, -1]], 4, None),
    "sinks alone": (50, [[0, 0]], 5, None),
    "no sinks": (50, [[17, 0]], 0, [0]),
    "more sinks than tokens": (5, [[3, 0]], 9, None),
    "several chunks": (700, [[100, 3], [-1, 420]], 4, [0, 37]),
    "sinks beyond a chunk": (600, [[30, 300]], 290, None),
    "no tokens": (0, [[4, -1]], 4, None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("head_dim", [16, 80])
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_equals_a_loop(case, head_dim, implementation, dtype, device, assert_close):
    tokens, window, sink, padding = CASES[case]
    key, value = torch.randn(2, len(window), len(window[0]), tokens, head_dim).to(dtype).to(device)
    start = None if padding is None else torch.tensor(padding, dtype=torch.int32)
    cache = compress(key, value, windows(window), sink=sink, start=start, page=16, implementation=implementation)
    assert torch.equal(cache.host_len, cache.kv_len.cpu())
    assert torch.equal(cache.host_table, cache.table.cpu())
    assert cache.limit is None
    for b, row in enumerate(window):
        for h, width in enumerate(row):
            begin = 0 if padding is None else padding[b]
            for pool, mean, source in (
                (cache.keys, cache.mean_key, key),
                (cache.values, cache.mean_value, value),
            ):
                kept, expected, number = by_hand(source[b, h, begin:].cpu(), width, sink)
                assert torch.equal(held(cache, pool, b, h).cpu(), kept)
                assert int(cache.dropped[b, h]) == number
                assert_close(mean[b, h], expected)


@pytest.mark.parametrize(("head_dim", "page"), [(256, 64), (128, 16), (32, 256)])
def test_strided_sources_head_sizes_and_pages(head_dim, page, dtype, device, assert_close):
    """As they lie in a cache with room behind, or as the projections leave them."""
    window, sink = windows([[-1, 30], [9, 64]]), 3
    key = torch.randn(2, 2, 130, head_dim).to(dtype).to(device)[:, :, :90]
    value = torch.randn(2, 90, 2, head_dim).to(dtype).to(device).transpose(1, 2)
    found = compress(key, value, window, sink=sink, page=page, implementation="triton")
    expected = compress(key, value, window, sink=sink, page=page, implementation="reference")
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
        assert torch.equal(held(found, found.keys, b, h), held(expected, expected.keys, b, h))
        assert torch.equal(held(found, found.values, b, h), held(expected, expected.values, b, h))
    assert_close(found.mean_key, expected.mean_key)
    assert_close(found.mean_value, expected.mean_value)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_the_same_bits_each_time(implementation, device):
    key, value = torch.randn(2, 1, 2, 900, 16, device=device)
    one, two = (compress(key, value, windows([[7, 9]]), sink=4, implementation=implementation) for _ in range(2))
    assert torch.equal(one.mean_key, two.mean_key)
    assert torch.equal(one.mean_value, two.mean_value)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_exactly_the_pages_needed_side_by_side(implementation, device):
    key, value = torch.randn(2, 2, 2, 100, 32, device=device)
    start = torch.tensor([0, 30], dtype=torch.int32)
    cache = compress(
        key, value, windows([[-1, 20], [20, -1]]), sink=4, start=start, page=16, implementation=implementation
    )
    pages = [[7, 2], [2, 5]]  # of 100, 24, 24 and 70 slots
    assert cache.kv_len.tolist() == [[100, 24], [24, 70]]
    assert (cache.table >= 0).sum(dim=-1).tolist() == pages
    assert cache.table[cache.table >= 0].tolist() == list(range(16))
    small = 4 * 7 * 4 + 4 * 4 + 4 * 4  # table, kv_len, dropped
    assert cache.bytes() == 2 * 16 * 16 * 32 * 4 + 2 * 4 * 32 * 4 + small
    assert cache.bytes() < 0.7 * (key.nbytes + value.nbytes)
    lean = compress(key, value, windows([[-1, 20]] * 2), sink=4, compensate=False, implementation=implementation)
    assert lean.mean_key is None
    assert lean.mean_value is None
    assert lean.dropped is None
    assert torch.equal(held(lean, lean.keys, 1, 1), torch.cat((key[1, 1, :4], key[1, 1, -20:])))


def dense(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of [B, Hq, 1, D] over [B, Hkv, N, D] in float64."""
    group = query.shape[1] // key.shape[1]
    key, value = (part.double().repeat_interleave(group, dim=1) for part in (key, value))
    return ((query.double() @ key.mT) * scale).softmax(dim=-1) @ value


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("window", [[-1, -1], [200, 96], [95, -1], [95, 95]], ids=str)
def test_exact_where_at_most_one_is_dropped(window, implementation, device, assert_close):
    """All heads retrieval; a prompt that the window holds; |D| = 1."""
    key, value = torch.randn(2, 2, 2, 100, 32, device=device)
    cache = compress(key, value, windows([window] * 2), sink=4, page=16, implementation=implementation)
    query = torch.randn(2, 6, 1, 32, device=device)
    output, _ = decode(query, cache, scale=0.3, implementation=implementation)
    assert_close(output, dense(query, key, value, 0.3))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_exact_where_the_dropped_have_one_key(implementation, device, assert_close):
    key, value = torch.randn(2, 1, 2, 100, 32, device=device)
    key[:, :, 4:60] = key[:, :, 4:5]
    cache = compress(key, value, windows([[40, 40]]), sink=4, implementation=implementation)
    query = torch.randn(1, 6, 1, 32, device=device)
    output, _ = decode(query, cache, scale=0.3, implementation=implementation)
    assert_close(output, dense(query, key, value, 0.3))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_the_mean_counts_as_often_as_tokens_were_dropped(implementation, device, assert_close):
    """The paper's formula with N_d before both of its terms: N_d tokens with the mean key and value."""
    key, value = torch.randn(2, 2, 1, 100, 32, device=device)
    cache = compress(key, value, windows([[20], [50]]), sink=4, implementation=implementation)
    query = torch.randn(2, 3, 1, 32, device=device)
    output, lse = decode(query, cache, scale=0.3, implementation=implementation)
    for b, width in enumerate((20, 50)):
        key[b, :, 4:-width] = key[b, :, 4:-width].mean(dim=1, keepdim=True)
        value[b, :, 4:-width] = value[b, :, 4:-width].mean(dim=1, keepdim=True)
    assert_close(output, dense(query, key, value, 0.3))
    assert_close(lse, ((query.double() @ key.double().mT) * 0.3).logsumexp(dim=-1), tolerance=1e-5)


def test_limits_where_it_folds(device):
    key, value = torch.randn(2, 2, 3, 40, 16, device=device)
    start = torch.tensor([0, 37], dtype=torch.int32)
    cache = compress(key, value, windows([[-1, 8, 100]] * 2), sink=4, start=start, fold=True)
    assert cache.limit.tolist() == [[0, 12, 104]] * 2
    assert cache.turn.tolist() == [[0, 0, 0]] * 2
    assert cache.kv_len.tolist() == [[40, 12, 40], [3, 3, 3]]
    assert cache.dropped.tolist() == [[0, 28, 0], [0, 0, 0]]
    assert (cache.sink, cache.host_limit.tolist()) == (4, cache.limit.tolist())
    RaggedKV(**{part.name: getattr(cache, part.name) for part in fields(RaggedKV) if part.init})  # finds nothing wrong


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_reference_in_types_that_the_interpreter_lacks(dtype, device, assert_close):
    key, value = torch.randn(2, 1, 1, 5000, 16, device=device).add(3).to(dtype)
    cache = compress(key, value, windows([[10]]), sink=4, implementation="reference")
    assert cache.keys.dtype == dtype
    assert_close(cache.mean_key, key[:, :, 4:-10].double().mean(dim=2), tolerance=1e-6)
    assert_close(cache.mean_value, value[:, :, 4:-10].double().mean(dim=2), tolerance=1e-6)


def test_no_wait_for_the_device(device):
    if device.type != "cuda":
        pytest.skip("the CPU waits for nothing")
    key, value = torch.randn(2, 2, 2, 600, 64, device=device)
    compress(key, value, windows([[-1, 40]] * 2), sink=4, fold=True)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        cache = compress(key, value, windows([[-1, 40]] * 2), sink=4, fold=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert cache.kv_len.tolist() == [[600, 44]] * 2


FULL = torch.zeros(1, 2, 30, 32)
WINDOW = windows([[-1, 8]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": FULL[0]}, "compress: key must be [B, Hkv, N, D], found [2, 30, 32]"),
        ({"key": FULL.long()}, "compress: key must be of float16, bfloat16, float32, float64, found int64"),
        ({"value": FULL[:, :, 1:]}, "compress: value must be [B, Hkv, N, D] with B=1, Hkv=2, N=30, D=32, found [1, 2,"),
        ({"value": FULL.half()}, "compress: value must be of float32, found float16"),
        (
            {"key": FULL.mT.contiguous().mT},
            "compress: key must be contiguous in its last dimension, found strides (1920, 960, 1, 30)",
        ),
        ({"window": WINDOW.long()}, "compress: window must be of int32, found int64"),
        ({"window": WINDOW[0]}, "compress: window must be [B, Hkv] with B=1, Hkv=2, found [2]"),
        ({"window": WINDOW - 1}, "compress: window must be -1 to 1073741820, found -2"),
        ({"window": WINDOW.to("meta")}, "compress: window must be on the CPU, found meta"),
        ({"window": windows([[0, 8]]), "fold": True}, "window must be -1 or at least 1 where fold is True, found 0"),
        ({"sink": -1}, "compress: sink must be 0 to 1073741824, found -1"),
        ({"sink": 2**31}, "compress: sink must be 0 to 1073741824, found 2147483648"),
        ({"start": WINDOW}, "compress: start must be [B] with B=1, found [1, 2]"),
        ({"start": WINDOW[0, :1] + 32}, "compress: start must be 0 to 30, found 31"),
        ({"start": WINDOW[0, :1]}, "compress: start must be 0 to 30, found -1"),
        ({"fold": True, "compensate": False}, "compress: compensate must be True where fold is, found False"),
        ({"page": 24}, "compress: page must be a power of two >= 16, found 24"),
        ({"page": 8}, "compress: page must be a power of two >= 16, found 8"),
        ({"implementation": "cuda"}, "compress: implementation must be one of triton, reference, found 'cuda'"),
    ],
)
def test_a_bad_call_is_refused(change, message):
    given = {"key": FULL, "value": FULL, "window": WINDOW, "sink": 4} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        compress(given.pop("key"), given.pop("value"), given.pop("window"), **given)


def test_what_triton_cannot_do_it_says():
    wide = torch.zeros(1, 2, 4, 300)
    with pytest.raises(ValueError, match="take head sizes 16 to 256, found 300"):
        compress(wide, wide, WINDOW, sink=1, implementation="triton")
