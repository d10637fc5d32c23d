"""Score and top-k: Triton and the reference against a plain loop in float64."""

import re

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.topk import TRITON_K, topk_indices, topk_votes

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "triton"])


def by_hand(
    query: Tensor, key: Tensor, k: int, begin: list[int] | None, end: list[int] | None, block: int | None = None
) -> Tensor:
    """One query after the other: sort all keys by score, then by position."""
    batch, heads, steps, _ = query.shape
    indices = torch.full((batch, heads, steps, k), -1, dtype=torch.int32)
    query, key = query.double().cpu(), key.double().cpu()
    for b in range(batch):
        low, high = 0 if begin is None else begin[b], key.shape[2] if end is None else end[b]
        for head in range(heads):
            scores = query[b, head] @ key[b, head * key.shape[1] // heads].T
            for i in range(steps):
                ranked = [(float(scores[i, j]), j) for j in range(low, high)]
                if block is not None:
                    ranked = [max(ranked[first : first + block]) for first in range(0, len(ranked), block)]
                chosen = [j for _, j in sorted(ranked, reverse=True)[:k]]
                indices[b, head, i, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    return indices


def whole_numbers(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Small whole numbers: scores are exact in every type, and many are equal."""
    return torch.randint(-2, 3, shape).to(dtype).to(device)


# queries, KV heads, keys, head size, k, begin, end
CASES = {
    "a decode step": ((2, 8, 1), 2, 203, 32, 4, [3, 0], [203, 150]),
    "five queries": ((1, 6, 5), 3, 131, 80, 3, [7], None),
    "many queries": ((1, 8, 17), 1, 65, 16, 8, None, None),
    "one KV head a query head": ((1, 2, 17), 2, 150, 128, 1, [1], [149]),
    "an empty middle": ((2, 2, 2), 1, 40, 64, 4, [17, 3], [17, 40]),
    "fewer keys than k": ((2, 4, 1), 2, 9, 48, 5, [0, 8], [4, 9]),
    "one key": ((1, 2, 1), 1, 1, 32, 2, None, None),
    "no keys": ((1, 2, 3), 1, 0, 32, 2, None, None),
}


@pytest.mark.parametrize("case", CASES)
@IMPLEMENTATIONS
def test_equals_sorting(case, implementation, dtype, device):
    shape, kv_heads, tokens, size, k, begin, end = CASES[case]
    query = whole_numbers(*shape, size, dtype=dtype, device=device)
    key = whole_numbers(shape[0], kv_heads, tokens, size, dtype=dtype, device=device)
    bounds = {
        name: torch.tensor(bound, dtype=torch.int32, device=device)
        for name, bound in (("begin", begin), ("end", end))
        if bound is not None
    }
    found = topk_indices(query, key, k, **bounds, implementation=implementation)
    assert found.dtype == torch.int32
    assert torch.equal(found.cpu(), by_hand(query, key, k, begin, end))
    votes = topk_votes(query, key, k, **bounds, implementation=implementation)
    chosen = [row[row >= 0] for row in found.flatten(1).cpu()]
    assert torch.equal(votes.cpu(), torch.stack([row.bincount(minlength=tokens).int() for row in chosen]))


@pytest.mark.parametrize(("head_dim", "steps"), [(33, 3), (96, 1), (128, 5), (256, 1)])
@IMPLEMENTATIONS
def test_scores_are_as_good_as_the_best(head_dim, steps, implementation, dtype, device):
    """Of random keys: each one's score is the best still to be had, but for rounding."""
    query = torch.randn(1, 4, steps, head_dim).to(dtype).to(device)
    key = torch.randn(1, 2, 190, head_dim).to(dtype).to(device)
    found = topk_indices(query, key, 4, implementation=implementation).long()
    scores = query.double() @ key.double().repeat_interleave(2, dim=1).mT
    assert all(len(set(row)) == 4 for row in found.flatten(0, 2).tolist())
    assert torch.allclose(scores.gather(-1, found), scores.topk(4).values, rtol=1e-5, atol=1e-5 * head_dim)


@pytest.mark.parametrize("size", [32, 80, 128])
@pytest.mark.parametrize("steps", [1, 5])
@IMPLEMENTATIONS
def test_of_equal_keys_the_later_win(size, steps, implementation, device):
    """Un-rotated keys of equal tokens: equal bits, wherever in a tile, a chunk or its remainder they are."""
    if implementation == "triton" and device.type == "cpu":
        pytest.skip("the interpreter's products are numpy's, which give equal columns unequal sums")
    token = torch.randint(0, 5, (1, 1, 167, 1)).expand(1, 2, 167, size)
    key = torch.randn(1, 2, 5, size).gather(2, token).to(device)
    query = torch.randn(1, 6, steps, size, device=device)
    found = topk_indices(query, key, 6, implementation=implementation).flatten(0, 2).cpu()
    for row in found:
        best = token[0, 0, row[0], 0]
        places = (token[0, 0, :, 0] == best).nonzero()[:, 0].flip(0)[:6]
        assert row[: len(places)].tolist() == places.tolist()


@IMPLEMENTATIONS
def test_zeros_of_both_signs_are_equal(implementation, device):
    key = torch.zeros(1, 1, 70, 16, device=device)
    key[0, 0, 1::2, 0] = -1e-30  # too small a product: -0 where it is added without rounding first
    query = torch.full((1, 1, 1, 16), 1e-30, device=device)
    found = topk_indices(query, key, 3, implementation=implementation)
    assert found.tolist() == [[[[69, 68, 67]]]]


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("tokens", [31, 200, 256])
@IMPLEMENTATIONS
def test_of_a_block_only_the_best_competes(block, tokens, implementation, dtype, device):
    query = whole_numbers(2, 6, 3, 64, dtype=dtype, device=device)
    key = whole_numbers(2, 2, tokens, 64, dtype=dtype, device=device)
    begin, end = [13, 0], [tokens, tokens - 3]
    bounds = {"begin": torch.tensor(begin, dtype=torch.int32), "end": torch.tensor(end, dtype=torch.int32)}
    bounds = {name: bound.to(device) for name, bound in bounds.items()}
    found = topk_indices(query, key, 3, **bounds, block=block, implementation=implementation).cpu()
    assert torch.equal(found, by_hand(query, key, 3, begin, end, block))
    for row, low in zip(found.flatten(1, 2), begin, strict=True):
        blocks = [[(j - low) // block for j in chosen if j >= 0] for chosen in row.tolist()]
        assert all(len(set(chosen)) == len(chosen) for chosen in blocks)
    votes = topk_votes(query, key, 3, **bounds, block=block, implementation=implementation)
    assert int(votes.sum()) == int((found >= 0).sum())


@pytest.mark.parametrize("block", [None, 128])
@IMPLEMENTATIONS
def test_long_vectors_make_small_tiles(block, implementation, device):
    """float32 of 256: a tile of keys is a part of a block."""
    query = whole_numbers(1, 2, 1, 256, dtype=torch.float32, device=device)
    key = whole_numbers(1, 1, 250, 256, dtype=torch.float32, device=device)
    found = topk_indices(query, key, 2, block=block, implementation=implementation)
    assert torch.equal(found.cpu(), by_hand(query, key, 2, None, None, block))


@IMPLEMENTATIONS
def test_a_slice_of_a_cache_is_not_copied(implementation, device):
    cache = whole_numbers(2, 150, 3, 32, dtype=torch.float32, device=device).transpose(1, 2)
    query = whole_numbers(2, 6, 1, 32, dtype=torch.float32, device=device)
    found = topk_indices(query, cache[:, :, 5:140], 4, implementation=implementation)
    assert torch.equal(found.cpu(), by_hand(query, cache[:, :, 5:140], 4, None, None))
    bounds = [torch.full((2,), bound, dtype=torch.int32, device=device) for bound in (5, 140)]
    inside = topk_indices(query, cache, 4, begin=bounds[0], end=bounds[1], implementation=implementation)
    assert torch.equal(inside, found + 5)


@IMPLEMENTATIONS
def test_rows_of_the_batch_are_independent(implementation, device):
    query = whole_numbers(3, 4, 2, 32, dtype=torch.float32, device=device)
    key = whole_numbers(3, 2, 97, 32, dtype=torch.float32, device=device)
    votes = topk_votes(query, key, 4, implementation=implementation)
    alone = [topk_votes(query[b : b + 1], key[b : b + 1], 4, implementation=implementation) for b in range(3)]
    assert torch.equal(votes, torch.cat(alone))
    assert votes.sum(1).tolist() == [4 * 2 * 4] * 3


@IMPLEMENTATIONS
def test_a_query_head_sees_its_own_kv_head_alone(implementation, device):
    key = torch.zeros(1, 3, 60, 16, device=device)
    for head, place in enumerate((40, 11, 25)):
        key[0, head, place] = 1.0
    found = topk_indices(torch.ones(1, 6, 2, 16, device=device), key, 1, implementation=implementation)
    assert found[0, :, :, 0].tolist() == [[place] * 2 for place in (40, 40, 11, 11, 25, 25)]


@pytest.mark.parametrize("processors", [1, 7, 200])
def test_any_number_of_splits_shares_the_work(processors, device, monkeypatch):
    monkeypatch.setattr("longloom.kernels.attention.triton.topk.multiprocessors", lambda _: processors)
    query = whole_numbers(2, 2, 3, 32, dtype=torch.float32, device=device)
    key = whole_numbers(2, 1, 2000, 32, dtype=torch.float32, device=device)
    begin = torch.tensor([0, 1500], dtype=torch.int32, device=device)
    for block in (None, 32):
        found = topk_indices(query, key, 5, begin=begin, block=block, implementation="triton")
        assert torch.equal(found.cpu(), by_hand(query, key, 5, begin.tolist(), None, block))


def test_more_parts_than_one_step_merges(device, monkeypatch):
    monkeypatch.setattr("longloom.kernels.attention.triton.topk.multiprocessors", lambda _: 20)
    query = whole_numbers(1, 1, 1, 16, dtype=torch.float32, device=device)
    key = whole_numbers(1, 1, 2500, 16, dtype=torch.float32, device=device)
    found = topk_indices(query, key, TRITON_K, implementation="triton")
    assert torch.equal(found.cpu(), by_hand(query, key, TRITON_K, None, None))


@pytest.mark.parametrize("steps", [1, 60])
def test_the_reference_merges_chunks(steps, device, monkeypatch):
    """Chunks of keys and tiles of rows far smaller than usual."""
    monkeypatch.setattr("longloom.kernels.attention.topk_reference._CHUNK", 64)
    monkeypatch.setattr("longloom.kernels.attention.topk_reference._SCORES", 64 * 2 * 50)
    for dtype in (torch.float64, torch.float16):
        query = whole_numbers(1, 4, steps, 16, dtype=dtype, device=device)
        key = whole_numbers(1, 2, 330, 16, dtype=dtype, device=device)
        for block in (None, 32):
            found = topk_indices(query, key, 4, block=block, implementation="reference")
            assert torch.equal(found.cpu(), by_hand(query, key, 4, None, None, block))


def test_the_reference_ranks_float64_by_float64(device):
    key = torch.ones(1, 1, 50, 16, dtype=torch.float64, device=device)
    key[0, 0, 20, 0] += 1e-12
    assert topk_indices(torch.ones_like(key[:, :, :1]), key, 2).tolist() == [[[[20, 49]]]]


def test_no_queries_give_nothing(device):
    query, key = torch.zeros(1, 2, 0, 32, device=device), torch.zeros(1, 2, 9, 32, device=device)
    for implementation in ("reference", "triton"):
        assert topk_indices(query, key, 3, implementation=implementation).shape == (1, 2, 0, 3)
        assert topk_votes(query, key, 3, implementation=implementation).tolist() == [[0] * 9]


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


BAD = {
    "query must be of float16, bfloat16, float32, float64, found int32": {"query": torch.zeros(2, 4, 1, 32).int()},
    "query must be [B, Hq, Sq, D], found [2, 4, 32]": {"query": torch.zeros(2, 4, 32)},
    "query must be contiguous, found strides (256, 32, 128, 1)": {"query": torch.zeros(2, 2, 4, 32).transpose(1, 2)},
    "key must be of float16, found float32": {"query": torch.zeros(2, 4, 1, 32).half()},
    "key must be [B, Hkv, N, D] with B=2, D=32, found [2, 2, 10, 16]": {"key": torch.zeros(2, 2, 10, 16)},
    "key must be contiguous in its last dimension, found strides (640, 320, 1, 10)": {
        "key": torch.zeros(2, 2, 32, 10).mT
    },
    "4 query heads are no multiple of 3 KV heads": {"key": torch.zeros(2, 3, 10, 32)},
    "k must be at least 1, found 0": {"k": 0},
    "begin must be of int32, found int64": {"begin": ints(0, 0).long()},
    "begin must be [B] with B=2, found [3]": {"begin": ints(0, 0, 0)},
    "begin must be 0 to N=10, found -1": {"begin": ints(0, -1)},
    "end must be 0 to N=10, found 11": {"end": ints(11, 3)},
    "begin must be at most end, found 5 and 4": {"begin": ints(0, 5), "end": ints(0, 4)},
    "begin must be on cpu like query, found meta": {"begin": ints(0, 0).to("meta")},
    "block must be None or a power of two of at least 32 keys, found 100": {"block": 100},
    "block must be None or a power of two of at least 32 keys, found 16": {"block": 16},
    "implementation must be one of triton, reference, found 'cuda'": {"implementation": "cuda"},
    "implementation 'triton' cannot do this: it holds the best k of a row in registers, 32 at most, found k = 33": {
        "k": 33,
        "implementation": "triton",
    },
    "implementation 'triton' cannot do this: Triton kernels take head sizes 16 to 256, found 8": {
        "query": torch.zeros(2, 4, 1, 8),
        "key": torch.zeros(2, 2, 10, 8),
        "implementation": "triton",
    },
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("operation", [topk_indices, topk_votes])
def test_a_bad_call_is_refused(message, operation):
    call = {"query": torch.zeros(2, 4, 1, 32), "key": torch.zeros(2, 2, 10, 32), "k": 3} | BAD[message]
    with pytest.raises(ValueError, match=f"^{operation.__name__}: {re.escape(message)}$"):
        operation(call.pop("query"), call.pop("key"), call.pop("k"), **call)
