"""Ragged decode: Triton and the reference against a plain loop in float64."""

import math
import re

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.decode import decode
from longloom.kernels.attention.pages import RaggedKV


def ragged(
    lengths: list[list[int]],
    *,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    page: int = 16,
    dropped: list[list[int]] | None = None,
    seed: int = 0,
) -> RaggedKV:
    """Random keys and values on pages in random order, with pages between that belong to nobody."""
    generator = torch.Generator().manual_seed(seed)
    kv_len = torch.tensor(lengths, dtype=torch.int32)
    needed = -(-kv_len // page)
    total = int(needed.sum()) + 3
    order = torch.randperm(total, generator=generator).tolist()
    table = torch.full((*kv_len.shape, max(1, int(needed.max()))), -1, dtype=torch.int32)
    for b, h in torch.cartesian_prod(*map(torch.arange, kv_len.shape)).tolist():
        for place in range(int(needed[b, h])):
            table[b, h, place] = order.pop()
    means = {}
    if dropped is not None:
        means = {
            "mean_key": torch.randn(*kv_len.shape, head_dim, generator=generator).to(device),
            "mean_value": torch.randn(*kv_len.shape, head_dim, generator=generator).to(device),
            "dropped": torch.tensor(dropped, dtype=torch.int32, device=device),
        }
    keys, values = torch.randn(2, total, page, head_dim, generator=generator).to(dtype).to(device)
    return RaggedKV(keys, values, table.to(device), kv_len.to(device), **means)


def by_hand(query: Tensor, cache: RaggedKV, scale: float, alibi: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The formula, one query after the other, in float64."""
    batch, heads, steps, _ = query.shape
    kv_heads = cache.kv_len.shape[1]
    output = torch.zeros(query.shape, dtype=torch.float64)
    lse = torch.full(query.shape[:3], -math.inf, dtype=torch.float64)
    for b in range(batch):
        for head in range(heads):
            h = head // (heads // kv_heads)
            length = int(cache.kv_len[b, h])
            slots = [divmod(slot, cache.page) for slot in range(length)]
            places = [(int(cache.table[b, h, page]), inside) for page, inside in slots]
            for i in range(steps):
                last = length - steps + i
                q = query[b, head, i].double().cpu()
                logits = [float(q @ cache.keys[place].double().cpu()) * scale for place in places[: last + 1]]
                if alibi is not None:
                    logits = [logit + float(alibi[head]) * (j - last) for j, logit in enumerate(logits)]
                seen = [cache.values[place].double().cpu() for place in places[: last + 1]]
                if cache.dropped is not None and int(cache.dropped[b, h]):
                    mean = float(q @ cache.mean_key[b, h].double().cpu()) * scale
                    logits.append(mean + math.log(int(cache.dropped[b, h])))
                    seen.append(cache.mean_value[b, h].double().cpu())
                if logits:
                    scores = torch.tensor(logits, dtype=torch.float64)
                    lse[b, head, i] = scores.logsumexp(0)
                    output[b, head, i] = scores.softmax(0) @ torch.stack(seen)
    return output, lse


CASES = {
    "one row": ([[70, 5, 1, 33]], 2, 1, None),
    "empty heads": ([[0, 17], [64, 0]], 1, 1, None),
    "compensation": ([[40, 100, 16]], 4, 1, [[0, 60, 1000]]),
    "compensation alone": ([[0, 3]], 2, 1, [[7, 0]]),
    "three queries a step": ([[50, 9], [3, 31]], 3, 3, [[5, 0], [0, 2]]),
    "many queries": ([[90]], 5, 17, None),
    "batch of five": ([[n, 2 * n, 90 - n] for n in (1, 15, 16, 17, 45)], 2, 1, [[n, 0, 3] for n in range(5)]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("head_dim", [32, 80])
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_equals_the_formula(case, head_dim, implementation, dtype, device, assert_close):
    lengths, group, steps, dropped = CASES[case]
    cache = ragged(lengths, head_dim=head_dim, dtype=dtype, device=device, dropped=dropped)
    query = torch.randn(len(lengths), len(lengths[0]) * group, steps, head_dim).to(dtype).to(device)
    output, lse = decode(query, cache, scale=head_dim**-0.5, implementation=implementation)
    expected, expected_lse = by_hand(query, cache, head_dim**-0.5)
    assert output.dtype == dtype
    assert_close(output, expected)
    assert_close(lse, expected_lse, tolerance=1e-3 if dtype != torch.float32 else 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_alibi_counts_from_the_newest_slot(implementation, device, assert_close):
    cache = ragged([[40, 7]], head_dim=64, dtype=torch.float32, device=device)
    query, slopes = torch.randn(1, 6, 2, 64, device=device), torch.rand(6, device=device)
    output, lse = decode(query, cache, scale=0.1, alibi=slopes, implementation=implementation)
    expected, expected_lse = by_hand(query, cache, 0.1, slopes)
    assert_close(output, expected)
    assert_close(lse, expected_lse)


@pytest.mark.parametrize(("head_dim", "page"), [(256, 16), (128, 64), (96, 32)])
def test_head_sizes_and_pages(head_dim, page, dtype, device, assert_close):
    lengths = [[130, 20, 64]]
    cache = ragged(lengths, head_dim=head_dim, dtype=dtype, device=device, page=page, dropped=[[9, 0, 3]])
    query = torch.randn(1, 6, 1, head_dim).to(dtype).to(device)
    output, _ = decode(query, cache, scale=head_dim**-0.5, implementation="triton")
    assert_close(output, by_hand(query, cache, head_dim**-0.5)[0])


@pytest.mark.parametrize("processors", [1, 3, 50])
def test_any_number_of_programs_shares_the_work(processors, device, assert_close, monkeypatch):
    monkeypatch.setattr("longloom.kernels.attention.triton.decode.multiprocessors", lambda _: processors)
    lengths, dropped = [[300, 0, 5], [64, 129, 1]], [[0, 3, 1], [0, 3, 1]]
    cache = ragged(lengths, head_dim=32, dtype=torch.float32, device=device, dropped=dropped)
    query = torch.randn(2, 6, 2, 32, device=device)
    output, lse = decode(query, cache, scale=0.2, implementation="triton")
    expected, expected_lse = by_hand(query, cache, 0.2)
    assert_close(output, expected)
    assert_close(lse, expected_lse)


@pytest.mark.parametrize("converted", [1, 1 << 12, 1 << 19])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_the_reference_takes_lines_together(converted, dtype, device, assert_close, monkeypatch):
    """Lines of equal length, side by side and not; in pieces where they must be converted."""
    monkeypatch.setattr("longloom.kernels.attention.decode._CONVERTED", converted)
    key, value = torch.randn(2, 3, 4, 50, 32, device=device).to(dtype)
    together = compress(key, value, torch.tensor([[-1, -1, 20, 20]] * 3, dtype=torch.int32), sink=4, page=16)
    apart = ragged([[50, 50, 24, 24]] * 3, head_dim=32, dtype=dtype, device=device, dropped=[[0, 0, 26, 1]] * 3)
    query = torch.randn(3, 8, 1, 32, device=device).to(dtype)
    for cache in (together, apart):
        output, lse = decode(query, cache, scale=0.2, implementation="reference")
        expected, expected_lse = by_hand(query, cache, 0.2)
        assert_close(output, expected, tolerance=1e-2 if dtype == torch.bfloat16 else 1e-12)
        assert_close(lse, expected_lse, tolerance=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 0, 32), (1, 0, 1, 32), (0, 4, 1, 32)])
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_no_queries_give_nothing(implementation, shape, device):
    cache = ragged([[20, 5]], head_dim=32, dtype=torch.float32, device=device)
    cache = RaggedKV(cache.keys, cache.values, cache.table[: shape[0]], cache.kv_len[: shape[0]])
    output, lse = decode(torch.zeros(shape, device=device), cache, scale=1.0, implementation=implementation)
    assert output.shape == shape
    assert lse.shape == shape[:3]


def test_one_dropped_token_is_that_token(device, assert_close):
    """|D| = 1: the compensation slot is exact."""
    cache = ragged([[20, 20]], head_dim=32, dtype=torch.float64, device=device)
    query = torch.randn(1, 4, 1, 32, dtype=torch.float64, device=device)
    whole, _ = decode(query, cache, scale=0.3)
    first = cache.table[0, :, 0].long()
    mean_key, mean_value = (pool[first, 0].float() for pool in (cache.keys, cache.values))
    cache.keys[first, 0], cache.values[first, 0] = mean_key.double(), mean_value.double()
    whole, _ = decode(query, cache, scale=0.3)
    moved = RaggedKV(
        cache.keys.clone(),
        cache.values.clone(),
        cache.table,
        cache.kv_len - 1,
        mean_key[None],
        mean_value[None],
        torch.ones(1, 2, dtype=torch.int32, device=device),
    )
    for h in range(2):  # the last slot takes the place of the first, which moves into the mean
        last = (int(cache.table[0, h, 1]), 3)
        moved.keys[int(first[h]), 0], moved.values[int(first[h]), 0] = cache.keys[last], cache.values[last]
    assert_close(decode(query, moved, scale=0.3)[0], whole, tolerance=1e-12)


def change(cache: RaggedKV, **parts: Tensor | None) -> RaggedKV:
    fields = ("keys", "values", "table", "kv_len", "mean_key", "mean_value", "dropped")
    return RaggedKV(**({name: getattr(cache, name) for name in fields} | parts))


BAD = {
    "keys must be of float16": lambda c: {"keys": c.keys.to(torch.int32)},
    "values must be [P, page, D] with P=6, page=16, D=32": lambda c: {"values": c.values[:, :, :16].contiguous()},
    "keys must be of a power of two >= 16 tokens a page": lambda c: {
        "keys": c.keys[:, :8].contiguous(),
        "values": c.values[:, :8].contiguous(),
    },
    "values must be contiguous": lambda c: {"values": c.values.transpose(0, 2).contiguous().transpose(0, 2)},
    "table must be of int32, found int64": lambda c: {"table": c.table.long()},
    "table must be -1 to 5, found 6": lambda c: {"table": c.table.clone().fill_(6)},
    "table must be a page for every slot in use, found -1": lambda c: {"table": c.table.clone().fill_(-1)},
    "table must be pages of one row and head each, found page 1 4 times": lambda c: {"table": c.table.clone().fill_(1)},
    "kv_len must be 0 to 32, found -1": lambda c: {"kv_len": c.kv_len - 21},
    "kv_len must be 0 to 32, found 40": lambda c: {"kv_len": c.kv_len + 20},
    "kv_len must be [B, Hkv] with B=1, Hkv=2": lambda c: {"kv_len": c.kv_len[0]},
    "mean_key, mean_value and dropped must be given together": lambda c: {"dropped": c.kv_len},
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_cache_is_refused(message):
    cache = ragged([[20, 5]], head_dim=32, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=re.escape(f"ragged KV: {message}")):
        change(cache, **BAD[message](cache))


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (torch.zeros(1, 4, 1, 16), {}, "decode: cache.keys must be [P, page, D] with D=16, found [6, 16, 32]"),
        (torch.zeros(1, 4, 32), {}, "decode: query must be [B, Hq, nq, D], found [1, 4, 32]"),
        (torch.zeros(2, 4, 1, 32), {}, "decode: cache.kv_len must be [B, Hkv] with B=2, found [1, 2]"),
        (torch.zeros(1, 3, 1, 32), {}, "decode: 3 query heads are no multiple of 2 KV heads"),
        (torch.zeros(1, 4, 1, 32).half(), {}, "decode: cache.keys must be of float16, found float32"),
        (torch.zeros(1, 4, 32, 1).mT.expand(1, 4, 2, 32), {}, "decode: query must be contiguous"),
        (torch.zeros(1, 4, 1, 32), {"alibi": torch.zeros(2)}, "decode: alibi must be [Hq] with Hq=4, found [2]"),
        (torch.zeros(1, 4, 1, 32), {"scale": math.nan}, "decode: scale must be finite, found nan"),
        (torch.zeros(1, 4, 1, 32), {"implementation": "cuda"}, "must be one of triton, reference, found 'cuda'"),
        (torch.zeros(1, 4, 1, 32, device="meta"), {}, "decode: cache.keys must be on meta like query, found cpu"),
    ],
)
def test_a_bad_call_is_refused(query, options, message):
    cache = ragged([[20, 5]], head_dim=32, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=re.escape(message)):
        decode(query, cache, **{"scale": 1.0} | options)
