"""Score and top-k: Triton and the reference against a plain loop in float64."""

import re

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.quantise import quantise
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


@pytest.fixture
def small_chunks(monkeypatch):
    """The reference's chunks, tiles of rows and copies, far smaller than usual."""
    for name, value in (("_UNIT", 32), ("_CHUNK", 256), ("_SCORES", 512), ("_COPIED", 1024), ("_FEW", 4)):
        monkeypatch.setattr(f"longloom.kernels.attention.topk_reference.{name}", value)


@pytest.mark.parametrize("tokens", [31, 256, 700])
@pytest.mark.parametrize("steps", [1, 12])
def test_the_reference_merges_chunks(steps, tokens, device, small_chunks):
    for dtype in (torch.float32, torch.float16):
        query = whole_numbers(1, 4, steps, 16, dtype=dtype, device=device)
        key = whole_numbers(1, 2, tokens, 16, dtype=dtype, device=device)
        for block in (None, 32):
            found = topk_indices(query, key, 4, block=block, implementation="reference")
            assert torch.equal(found.cpu(), by_hand(query, key, 4, None, None, block))
            bounds = {"begin": [7], "end": [tokens - 20]}
            bounds = {name: torch.tensor(bound, dtype=torch.int32, device=device) for name, bound in bounds.items()}
            found = topk_indices(query, key, 4, **bounds, block=block, implementation="reference")
            assert torch.equal(found.cpu(), by_hand(query, key, 4, [7], [tokens - 20], block))


@pytest.mark.parametrize("steps", [1, 20])
def test_equal_keys_are_equal_to_the_reference_wherever_they_are(steps, device):
    """In a chunk, in what is left over of it, in the next: the products' shapes differ, their sums must not."""
    tokens = 40_000 if steps == 20 else 9_000
    token = torch.randint(0, 40, (1, 1, tokens, 1))
    key = torch.randn(1, 1, 40, 24).gather(2, token.expand(1, 1, tokens, 24)).to(device)
    query = torch.randn(1, 2, steps, 24, device=device)
    begin = torch.tensor([5], dtype=torch.int32, device=device)
    found = topk_indices(query, key, 30, begin=begin, implementation="reference").flatten(0, 2).cpu()
    for row in found:
        last = (token[0, 0, :, 0] == token[0, 0, row[0], 0]).nonzero()[:, 0].flip(0)
        assert row.tolist() == last[:30].tolist()


def test_the_reference_without_onednn(device, monkeypatch):
    monkeypatch.setattr("longloom.kernels.attention.topk_reference._linear", None)
    query = whole_numbers(1, 4, 5, 16, dtype=torch.float32, device=device)
    key = whole_numbers(1, 2, 330, 16, dtype=torch.float32, device=device)
    found = topk_indices(query, key, 4, implementation="reference")
    assert torch.equal(found.cpu(), by_hand(query, key, 4, None, None))


def in_pieces(key: Tensor, sizes: list[int]) -> list[Tensor]:
    """Copies of the parts of a key or its scales, each in memory of its own, one of them strided."""
    pieces = [piece.clone() for piece in key.split(sizes, dim=2)]
    pieces[0] = torch.cat((pieces[0], pieces[0]), dim=2)[:, :, : sizes[0]]
    return pieces


@pytest.mark.parametrize("sizes", [[64, 64, 75], [1, 130, 0, 33, 39], [0, 203]])
@pytest.mark.parametrize("steps", [1, 5])
@IMPLEMENTATIONS
def test_pieces_are_as_good_as_one(sizes, steps, implementation, device, small_chunks):
    """Whole numbers make many scores equal, across the pieces too."""
    query = whole_numbers(2, 4, steps, 16, dtype=torch.float16, device=device)
    key = whole_numbers(2, 2, 203, 16, dtype=torch.float16, device=device)
    for begin, end in (([0, 66], [203, 66]), ([131, 2], [160, 140])):
        bounds = {"begin": begin, "end": end}
        bounds = {name: torch.tensor(bound, dtype=torch.int32, device=device) for name, bound in bounds.items()}
        pieces = in_pieces(key, sizes)
        found = topk_indices(query, pieces, 5, **bounds, implementation=implementation)
        assert torch.equal(found.cpu(), by_hand(query, key, 5, begin, end))
        votes = topk_votes(query, tuple(pieces), 5, **bounds, implementation=implementation)
        assert torch.equal(votes, topk_votes(query, key, 5, **bounds, implementation=implementation))


@IMPLEMENTATIONS
def test_random_keys_in_pieces(implementation, dtype, device):
    query = torch.randn(1, 4, 3, 64).to(dtype).to(device)
    key = torch.randn(1, 2, 700, 64).to(dtype).to(device)
    whole = topk_indices(query, key, 8, implementation=implementation)
    assert torch.equal(whole, topk_indices(query, in_pieces(key, [256, 444]), 8, implementation=implementation))


@pytest.mark.parametrize("pinned", [True, False])
def test_pieces_on_the_host_come_two_at_a_time(pinned, device):
    if device.type == "cpu":
        pytest.skip("the host's memory is the device's")
    query = whole_numbers(2, 4, 3, 64, dtype=torch.float16, device=device)
    key = whole_numbers(2, 2, 20_000, 64, dtype=torch.float16, device=torch.device("cpu"))
    pieces = [piece.pin_memory() if pinned else piece for piece in in_pieces(key, [3000, 2000, 0, 5000, 10_000])]
    pieces[1] = pieces[1].to(device)
    whole = topk_indices(query, key.to(device), 5)
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    for implementation in ("triton", "reference"):
        assert torch.equal(topk_indices(query, pieces, 5, implementation=implementation), whole)
    codes, scales = quantise(key, torch.int8)
    found = topk_indices(query, in_pieces(codes, [3000, 17_000]), 5, scales=in_pieces(scales, [3000, 17_000]))
    assert torch.equal(found, topk_indices(query, codes.to(device), 5, scales=scales.to(device)))
    assert found.device == query.device
    torch.cuda.reset_peak_memory_stats(device)
    topk_votes(query, pieces, 5)
    largest = pieces[-1].numel() * 2
    assert torch.cuda.max_memory_allocated(device) - held < 2 * largest + (4 << 20)


CODES = pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("sizes", [[203], [70, 133]])
@CODES
@IMPLEMENTATIONS
def test_codes_are_scored_as_they_stand(codes, sizes, steps, implementation, dtype, device, small_chunks):
    """Every code of the type, and scales that are powers of two: exact scores."""
    query = whole_numbers(2, 4, steps, 32, dtype=dtype, device=device)
    if codes == torch.int8:
        key = torch.randint(-127, 128, (2, 2, 203, 32)).to(codes).to(device)
    else:
        numbers = torch.arange(256, dtype=torch.uint8).view(codes)
        numbers = numbers[numbers.float().abs() >= 0.125]  # so that float32 holds every sum, and no NaN
        key = numbers[torch.randint(0, len(numbers), (2, 2, 203, 32))].to(device)
    scales = torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, (2, 2, 203))].to(device)
    begin, end = [3, 0], [203, 150]
    bounds = {"begin": begin, "end": end}
    bounds = {name: torch.tensor(bound, dtype=torch.int32, device=device) for name, bound in bounds.items()}
    keys, weights = (part if len(sizes) == 1 else in_pieces(part, sizes) for part in (key, scales))
    found = topk_indices(query, keys, 4, **bounds, scales=weights, implementation=implementation)
    assert torch.equal(found.cpu(), by_hand(query, key.double() * scales[..., None], 4, begin, end))
    votes = topk_votes(query, keys, 4, **bounds, scales=weights, implementation=implementation)
    assert int(votes.sum()) == int((found >= 0).sum())


@IMPLEMENTATIONS
def test_the_smallest_codes_count(implementation, dtype, device):
    """float8_e4m3fn's numbers without a leading one, and 0 of both signs."""
    codes = torch.tensor([0, 1, 7, 8, 0x80, 0x81], dtype=torch.uint8).view(torch.float8_e4m3fn)
    key = torch.zeros(1, 1, 6, 16).to(torch.float8_e4m3fn)
    key[0, 0, :, 3] = codes
    query, scales = torch.ones(1, 1, 1, 16, dtype=dtype, device=device), torch.full((1, 1, 6), 0.25, device=device)
    found = topk_indices(query, key.to(device), 6, scales=scales, implementation=implementation)
    assert found.tolist() == [[[[3, 2, 1, 4, 0, 5]]]]


@IMPLEMENTATIONS
def test_blocks_of_codes(implementation, device):
    query = whole_numbers(1, 4, 2, 32, dtype=torch.float32, device=device)
    key = torch.randint(-9, 10, (1, 2, 150, 32), device=device).to(torch.int8)
    scales = torch.ones(1, 2, 150, device=device)
    found = topk_indices(query, key, 3, block=32, scales=scales, implementation=implementation)
    assert torch.equal(found.cpu(), by_hand(query, key, 3, None, None, 32))


@CODES
@IMPLEMENTATIONS
def test_codes_of_a_cache_are_not_copied(codes, implementation, device):
    """Scales of a cache with room behind, as a policy keeps them."""
    key = torch.randn(1, 2, 90, 32, device=device)
    held, scales = quantise(key, codes)
    room, weights = (
        torch.cat((held.view(torch.int8),) * 2, dim=2).view(codes),
        torch.cat((scales, scales), 2)[..., None],
    )
    query = torch.randn(1, 4, 1, 32, device=device)
    alone = topk_indices(query, held, 4, scales=scales, implementation=implementation)
    found = topk_indices(query, room[:, :, :90], 4, scales=weights[:, :, :90, 0], implementation=implementation)
    assert torch.equal(found, alone)


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
    "block must be None for keys in 2 pieces, found 32": {"key": [torch.zeros(2, 2, 64, 32)] * 2, "block": 32},
    "key must be a tensor or pieces, found no piece": {"key": []},
    "key[1] must be [B, Hkv, n, D] with B=2, Hkv=2, D=32, found [2, 1, 7, 32]": {
        "key": [torch.zeros(2, 2, 5, 32), torch.zeros(2, 1, 7, 32)]
    },
    "key[1] must be of float32, found float16": {"key": [torch.zeros(2, 2, 5, 32), torch.zeros(2, 2, 7, 32).half()]},
    "key[1] must be of int8, found float32": {
        "key": [torch.zeros(2, 2, 5, 32).to(torch.int8), torch.zeros(2, 2, 7, 32)],
        "scales": [torch.zeros(2, 2, 5), torch.zeros(2, 2, 7)],
    },
    "key[0] must be on cpu like query, found meta": {
        "key": [torch.zeros(2, 2, 5, 32, device="meta"), torch.zeros(2, 2, 5, 32)]
    },
    "scales must be given for codes, found None": {"key": torch.zeros(2, 2, 10, 32).to(torch.int8)},
    "scales must be None but for codes, found scales": {"scales": torch.zeros(2, 2, 10)},
    "scales must be of float32, found float16": {
        "key": torch.zeros(2, 2, 10, 32).to(torch.int8),
        "scales": torch.zeros(2, 2, 10).half(),
    },
    "scales must be [B, Hkv, N] with B=2, Hkv=2, N=10, found [2, 2, 9]": {
        "key": torch.zeros(2, 2, 10, 32).to(torch.int8),
        "scales": torch.zeros(2, 2, 9),
    },
    "scales[1] must be [B, Hkv, n] with B=2, Hkv=2, n=7, found [2, 2, 5]": {
        "key": [torch.zeros(2, 2, 5, 32).to(torch.int8), torch.zeros(2, 2, 7, 32).to(torch.int8)],
        "scales": [torch.zeros(2, 2, 5), torch.zeros(2, 2, 5)],
    },
    "scales must be 2 pieces like key, found 1": {
        "key": [torch.zeros(2, 2, 5, 32).to(torch.int8), torch.zeros(2, 2, 7, 32).to(torch.int8)],
        "scales": torch.zeros(2, 2, 12),
    },
    "end must be 0 to N=12, found 13": {
        "key": [torch.zeros(2, 2, 5, 32), torch.zeros(2, 2, 7, 32)],
        "end": ints(13, 3),
    },
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
def test_a_bad_call_is_refused(message, operation, device):
    call = {"query": torch.zeros(2, 4, 1, 32), "key": torch.zeros(2, 2, 10, 32), "k": 3} | BAD[message]
    if call.get("implementation") == "triton":  # which asks for the device first
        call = {name: part.to(device) if isinstance(part, Tensor) else part for name, part in call.items()}
    with pytest.raises(ValueError, match=f"^{operation.__name__}: {re.escape(message)}$"):
        operation(call.pop("query"), call.pop("key"), call.pop("k"), **call)
