"""Append: Triton and the reference against a plain loop in float64; folding against compressing the longer prompt."""

import math
import re

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.append import append
from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.decode import decode
from longloom.kernels.attention.pages import RaggedKV


def held(cache: RaggedKV, pool: Tensor, b: int, h: int) -> Tensor:
    """What one head holds, slot after slot: [n, D]."""
    slots = [divmod(slot, cache.page) for slot in range(int(cache.kv_len[b, h]))]
    rows = [pool[int(cache.table[b, h, page]), inside] for page, inside in slots]
    return torch.stack(rows) if rows else pool.new_empty(0, pool.shape[2])


class Head:
    """One head's tokens of one kind, one after the other: slots, the sum of what was folded, in float64."""

    def __init__(self, tokens: Tensor, window: int, sink: int, fold: bool) -> None:
        self.slots: list[Tensor] = []
        self.sink, self.dropped, self.turn, self.limit = sink, 0, 0, math.inf
        self.sum = torch.zeros(tokens.shape[1], dtype=torch.float64)
        tokens = tokens.cpu()
        behind = max(sink, len(tokens) - window) if window >= 0 else 0
        for j, token in enumerate(tokens):
            if window < 0 or j < sink or j >= behind:
                self.slots.append(token)
            else:
                self.sum += token
                self.dropped += 1
        if fold and window >= 0:
            self.limit = sink + window

    def add(self, tokens: Tensor) -> None:
        for token in tokens.cpu():
            if len(self.slots) < self.limit:
                self.slots.append(token)
                continue
            self.sum += self.slots[self.sink + self.turn]
            self.dropped += 1
            self.slots[self.sink + self.turn] = token
            self.turn = (self.turn + 1) % (int(self.limit) - self.sink)


CASES = {
    # tokens, windows, sink, padding, fold
    "plain": (50, [[-1, 20, 9]], 4, None, False),
    "padding": (40, [[-1, 20], [9, -1], [30, 5]], 4, [0, 40, 38], False),
    "fold": (50, [[-1, 20, 9, 1]], 4, None, True),
    "filling up": (20, [[-1, 30, 18], [14, -1, 17]], 4, [0, 18], True),
    "sinks are missing": (3, [[5, 100], [2, -1]], 6, [0, 3], True),
    "no sinks": (20, [[7, 3]], 0, None, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [(1, 1, 1), (5, 1, 70, 2)], ids=str)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_equals_a_loop(case, steps, implementation, dtype, device, assert_close):
    """Slot for slot; in steps smaller and larger than rings, tiles and pages."""
    tokens, windows, sink, padding, fold = CASES[case]
    shape = (len(windows), len(windows[0]))
    source = torch.randn(2, *shape, tokens + sum(steps), 48).to(dtype).to(device)
    key, value = source[:, :, :, :tokens]
    start = torch.tensor(padding or [0] * shape[0], dtype=torch.int32)
    window = torch.tensor(windows, dtype=torch.int32)
    cache = compress(key, value, window, sink=sink, start=start, fold=fold, page=16, implementation="reference")
    oracle = {
        (b, h, kind): Head(part[b, h, int(start[b]) :], windows[b][h], sink, fold)
        for b in range(shape[0])
        for h in range(shape[1])
        for kind, part in enumerate((key, value))
    }
    begin = tokens
    for new in steps:
        key, value = source[:, :, :, begin : begin + new]
        append(cache, key, value, implementation=implementation)
        begin += new
        for (b, h, kind), head in oracle.items():
            head.add((key, value)[kind][b, h])
            assert torch.equal(held(cache, (cache.keys, cache.values)[kind], b, h).cpu(), torch.stack(head.slots))
            assert int(cache.dropped[b, h]) == head.dropped
            assert cache.turn is None or int(cache.turn[b, h]) == head.turn
            mean = (cache.mean_key, cache.mean_value)[kind][b, h]
            assert_close(mean, head.sum / max(1, head.dropped), tolerance=1e-5)
        assert torch.equal(cache.host_len, cache.kv_len.cpu())
        assert torch.equal(cache.host_table, cache.table.cpu())


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("steps", [[1] * 36, [36], [7, 20, 9]], ids=["one by one", "at once", "in pieces"])
def test_folding_is_compressing_the_longer_prompt(steps, implementation, device, assert_close):
    key, value = torch.randn(2, 2, 3, 106, 32, device=device)
    start = torch.tensor([0, 55], dtype=torch.int32)  # the second row's heads fill up first
    window = torch.tensor([[-1, 40, 13], [25, 60, -1]], dtype=torch.int32)
    options = {"sink": 4, "start": start, "fold": True, "page": 16, "implementation": implementation}
    cache = compress(key[:, :, :70], value[:, :, :70], window, **options)
    begin = 70
    for new in steps:
        append(cache, key[:, :, begin : begin + new], value[:, :, begin : begin + new], implementation=implementation)
        begin += new
    whole = compress(key, value, window, **options)
    assert torch.equal(cache.kv_len, whole.kv_len)
    assert torch.equal(cache.dropped, whole.dropped)
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        for pool, other in ((cache.keys, whole.keys), (cache.values, whole.values)):
            one, two = held(cache, pool, b, h), held(whole, other, b, h)
            assert torch.equal(one[:4], two[:4])  # the sinks stay where they are
            assert sorted(map(tuple, one.tolist())) == sorted(map(tuple, two.tolist()))
    assert_close(cache.mean_key, whole.mean_key)
    assert_close(cache.mean_value, whole.mean_value)
    query = torch.randn(2, 6, 1, 32, device=device)
    assert_close(decode(query, cache, scale=0.2)[0], decode(query, whole, scale=0.2)[0])


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_decode_after_many_steps_equals_dense_attention(fold, implementation, device, assert_close):
    """Ragged rows over borders of pages and several pools: the mean counts as often as tokens were dropped."""
    key, value = torch.randn(2, 2, 2, 30 + 75, 16, device=device)
    window, sink, begin = [[-1, 21], [10, 35]], 3, [0, 11]
    start = torch.tensor(begin, dtype=torch.int32)
    cache = compress(
        key[:, :, :30],
        value[:, :, :30],
        torch.tensor(window, dtype=torch.int32),
        sink=sink,
        start=start,
        page=16,
        fold=fold,
    )
    pools = {id(cache.keys): cache.keys}
    for now in range(31, 106):
        append(cache, key[:, :, now - 1 : now], value[:, :, now - 1 : now], implementation=implementation)
        pools[id(cache.keys)] = cache.keys
        if now % 25:
            continue
        query = torch.randn(2, 4, 1, 16, device=device)
        output, _ = decode(query, cache, scale=0.3, implementation=implementation)
        for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
            seen = now if fold else 30  # tokens that a head's window looks at
            dropped = range(0)
            if window[b][h] >= 0:
                dropped = range(begin[b] + sink, max(begin[b] + sink, seen - window[b][h]))
            k, v = (part[b, h, begin[b] : now].double() for part in (key, value))
            if dropped:
                inside = slice(dropped.start - begin[b], dropped.stop - begin[b])
                k[inside], v[inside] = k[inside].mean(dim=0), v[inside].mean(dim=0)
            q = query[b, 2 * h : 2 * h + 2, 0].double()
            assert_close(output[b, 2 * h : 2 * h + 2, 0], (q @ k.T * 0.3).softmax(dim=-1) @ v)
    assert len(pools) > 2


@pytest.mark.parametrize("head_dim", [16, 256])
def test_head_sizes_and_strides(head_dim, dtype, device):
    prompt = torch.randn(2, 2, 40, head_dim).to(dtype).to(device)
    cache = compress(prompt, prompt, torch.full((2, 2), -1, dtype=torch.int32), sink=0)
    new = torch.randn(2, 50, 2, head_dim).to(dtype).to(device).transpose(1, 2)  # as the projections leave them
    append(cache, new, new.clone(), implementation="triton")
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
        whole = torch.cat((prompt[b, h], new[b, h]))
        assert torch.equal(held(cache, cache.keys, b, h), whole)
        assert torch.equal(held(cache, cache.values, b, h), whole)


def test_more_tiles_than_the_grid_has_programs(device, monkeypatch):
    monkeypatch.setattr("longloom.kernels.attention.triton.append._MOST_CHUNKS", 3)
    prompt = torch.randn(1, 2, 10, 256, device=device)
    cache = compress(prompt, prompt, torch.full((1, 2), -1, dtype=torch.int32), sink=0)
    new = torch.randn(1, 2, 61, 256, device=device)  # 8 tiles
    append(cache, new, new, implementation="triton")
    assert cache.kv_len.tolist() == [[71, 71]]
    for h in range(2):
        assert torch.equal(held(cache, cache.keys, 0, h), torch.cat((prompt[0, h], new[0, h])))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_reference_in_types_that_the_interpreter_lacks(dtype, device, assert_close):
    key = torch.randn(1, 1, 300, 16, device=device).to(dtype)
    cache = compress(key[:, :, :100], key[:, :, :100], torch.tensor([[10]], dtype=torch.int32), sink=4, fold=True)
    for now in range(100, 300):
        append(cache, key[:, :, now : now + 1], key[:, :, now : now + 1], implementation="reference")
    assert cache.mean_key.dtype == torch.float32
    assert_close(cache.mean_key, key[:, :, 4:290].double().mean(dim=2), tolerance=1e-5)
    assert_close(cache.mean_value, key[:, :, 4:290].double().mean(dim=2), tolerance=1e-5)


def test_no_new_tokens(device):
    key = torch.randn(1, 2, 20, 32, device=device)
    cache = compress(key, key, torch.full((1, 2), -1, dtype=torch.int32), sink=0)
    keys = cache.keys
    append(cache, key[:, :, :0], key[:, :, :0])
    assert cache.keys is keys
    assert cache.kv_len.tolist() == cache.host_len.tolist() == [[20, 20]]


@pytest.mark.parametrize("fold", [False, True])
def test_no_wait_for_the_device(fold, device):
    if device.type != "cuda":
        pytest.skip("the CPU waits for nothing")
    key = torch.randn(2, 2, 60, 64, device=device)
    cache = compress(key, key, torch.tensor([[-1, 40]] * 2, dtype=torch.int32), sink=4, fold=fold)
    for new in (1, 40):
        append(cache, key[:, :, :new], key[:, :, :new])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        for new in (1, 1, 40, 60):
            append(cache, key[:, :, :new], key[:, :, :new])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert cache.kv_len.tolist() == cache.host_len.tolist()


def test_a_cache_keeps_no_gradients(device):
    key = torch.randn(1, 2, 20, 32, device=device, requires_grad=True)
    cache = compress(key, key, torch.full((1, 2), 9, dtype=torch.int32), sink=0, fold=True)
    append(cache, key, key)
    output, _ = decode(torch.randn(1, 2, 1, 32, device=device, requires_grad=True), cache, scale=0.2)
    assert not any(part.requires_grad for part in (cache.keys, cache.values, cache.mean_key, output))


NEW = torch.zeros(1, 2, 3, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": NEW[0]}, "append: key must be [B, Hkv, S, D], found [2, 3, 32]"),
        (
            {"value": NEW[:, :, :2]},
            "append: value must be [B, Hkv, S, D] with B=1, Hkv=2, S=3, D=32, found [1, 2, 2, 32]",
        ),
        ({"value": NEW.half()}, "append: value must be of float32, found float16"),
        ({"key": NEW.half(), "value": NEW.half()}, "append: cache.keys must be of float16, found float32"),
        (
            {"key": NEW[..., :16], "value": NEW[..., :16]},
            "cache.keys must be [P, page, D] with D=16, found [2, 64, 32]",
        ),
        ({"key": NEW[:, :1], "value": NEW[:, :1]}, "cache.kv_len must be [B, Hkv] with B=1, Hkv=1, found [1, 2]"),
        (
            {"key": NEW.mT.contiguous().mT},
            "append: key must be contiguous in its last dimension, found strides (192, 96, 1, 3)",
        ),
        ({"key": NEW.to("meta")}, "append: value must be on meta like key, found cpu"),
        ({"implementation": "cuda"}, "append: implementation must be one of triton, reference, found 'cuda'"),
    ],
)
def test_a_bad_call_is_refused(change, message):
    cache = compress(NEW, NEW, torch.full((1, 2), -1, dtype=torch.int32), sink=0)
    given = {"key": NEW, "value": NEW} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        append(cache, given.pop("key"), given.pop("value"), **given)
    assert cache.host_len.tolist() == [[3, 3]]
