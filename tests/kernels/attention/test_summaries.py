"""Top-k by block summaries, against loops over single keys in float64."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import longloom.kernels.attention.summaries as module
from longloom.kernels.attention.summaries import summarise, topk_votes_by_blocks
from longloom.kernels.attention.topk import topk_votes

D = 6


def cache(
    tokens: int, device: torch.device, *, batch: int = 2, heads: int = 4, steps: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Queries [B, Hq, Sq, D], and keys [B, 2, N, D] as they lie in a cache with room to spare."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, steps, D, generator=generator)
    # Neighbours are alike, as in a text, so that blocks differ.
    walk = torch.randn(batch, 2, tokens + 3, D, generator=generator).cumsum(2) / 3
    return query.to(device), walk.to(device)[:, :, :tokens]


def by_definition(
    query: Tensor, key: Tensor, k: int, size: int, blocks: int, middle: Sequence[tuple[int, int]]
) -> tuple[Tensor, bool]:
    """Votes, and whether no block that was not looked at could hold one of the best k of anything asked."""
    query, key = query.double().cpu(), key.double().cpu()
    votes, sure = torch.zeros(len(query), key.shape[2], dtype=torch.int32), True
    for b, (begin, end) in enumerate(middle):
        for h in range(query.shape[1]):
            keys = key[b, h // (query.shape[1] // key.shape[1])]
            for q in query[b, h]:
                bounds = []
                for first in range(0, len(keys), size):
                    block = keys[first : first + size]
                    if first < end and first + len(block) > begin:
                        bounds.append((float(torch.maximum(q * block.amax(0), q * block.amin(0)).sum()), first))
                bounds.sort(reverse=True)
                slots = sorted(
                    slot for _, first in bounds[:blocks] for slot in range(max(begin, first), min(end, first + size))
                )
                best = sorted(slots, key=lambda slot: (float(keys[slot] @ q), slot), reverse=True)[:k]
                for slot in best:
                    votes[b, slot] += 1
                left = bounds[blocks:]
                sure &= not left or (len(best) == k and float(keys[best[-1]] @ q) > left[0][0] + 1e-4)
    return votes, sure


def ours(query: Tensor, key: Tensor, k: int, size: int, blocks: int, middle: Sequence[tuple[int, int]]) -> Tensor:
    begin, end = (torch.tensor(bound, dtype=torch.int32, device=query.device) for bound in zip(*middle, strict=True))
    table = summarise(key, size)
    return topk_votes_by_blocks(query, [key], table, k, size=size, blocks=blocks, begin=begin, end=end)


@pytest.mark.parametrize(("tokens", "size"), [(1, 4), (4, 4), (5, 4), (39, 8), (40, 8), (7, 32)])
def test_summaries_are_the_extremes_of_their_blocks(tokens: int, size: int, device: torch.device) -> None:
    _, key = cache(tokens, device)
    table = summarise(key, size)
    assert table.shape == (2, 2, -(-tokens // size), 2 * D)
    for number, block in enumerate(key.split(size, dim=2)):
        assert torch.equal(table[:, :, number, :D], block.amax(2))
        assert torch.equal(table[:, :, number, D:], block.amin(2))


def test_no_score_is_above_its_blocks_bound(device: torch.device) -> None:
    query, key = cache(50, device, heads=2, steps=3)
    bounds = module._bounds(query.double(), summarise(key.double(), 8))
    scores = query.double() @ key.double().mT
    highest = torch.stack([part.amax(-1) for part in scores.split(8, dim=-1)], dim=-1)
    assert (highest <= bounds + 1e-12).all()
    assert (highest < bounds - 0.1).any()


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("steps", [1, 3, 11])
@pytest.mark.parametrize(
    ("tokens", "size", "k", "blocks", "middle"),
    [
        (40, 4, 1, 1, [(0, 40), (0, 40)]),
        (43, 4, 3, 3, [(0, 43), (5, 43)]),  # the last block is partial
        (43, 8, 4, 4, [(3, 41), (17, 33)]),
        (43, 8, 2, 5, [(40, 43), (7, 9)]),  # blocks that have nothing to offer are looked into
        (43, 8, 2, 2, [(43, 43), (0, 1)]),  # nothing; fewer than k
        (130, 16, 4, 4, [(2, 129), (31, 64)]),
    ],
)
def test_votes_are_those_of_the_best_blocks(
    tokens: int,
    size: int,
    k: int,
    blocks: int,
    middle: list[tuple[int, int]],
    steps: int,
    heads: int,
    device: torch.device,
) -> None:
    query, key = cache(tokens, device, heads=heads, steps=steps)
    votes = ours(query, key, k, size, blocks, middle)
    assert votes.dtype == torch.int32
    assert torch.equal(votes.cpu(), by_definition(query, key, k, size, blocks, middle)[0])


def test_without_bounds_all_keys_count(device: torch.device) -> None:
    query, key = cache(43, device)
    votes = topk_votes_by_blocks(query, [key], summarise(key, 8), 2, size=8, blocks=3)
    assert torch.equal(votes, ours(query, key, 2, 8, 3, [(0, 43)] * 2))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.sampled_from([2, 4, 8]), blocks=st.integers(2, 20), begin=st.integers(0, 30))
def test_exact_where_no_other_block_can_win(seed: int, size: int, blocks: int, begin: int) -> None:
    query, key = cache(41, torch.device("cpu"), batch=1, heads=2, seed=seed)
    middle = [(begin, 40)]
    _, sure = by_definition(query, key, 2, size, blocks, middle)
    low, high = (torch.tensor(bound, dtype=torch.int32) for bound in zip(*middle, strict=True))
    if sure:
        assert torch.equal(ours(query, key, 2, size, blocks, middle), topk_votes(query, key, 2, begin=low, end=high))


def test_the_sure_case_occurs_with_fewer_blocks_than_there_are_and_so_does_a_miss() -> None:
    found = []
    for seed in range(20):
        query, key = cache(41, torch.device("cpu"), batch=1, heads=2, seed=seed)
        low, high = torch.zeros(1, dtype=torch.int32), torch.full((1,), 41, dtype=torch.int32)
        exact = torch.equal(ours(query, key, 2, 4, 2, [(0, 41)]), topk_votes(query, key, 2, begin=low, end=high))
        found.append((by_definition(query, key, 2, 4, 2, [(0, 41)])[1], exact))
    assert (True, True) in found
    assert (False, False) in found
    assert (True, False) not in found


@pytest.mark.parametrize("blocks", [6, 7, 100])
def test_all_blocks_are_the_exact_top_k(blocks: int, device: torch.device) -> None:
    query, key = cache(43, device, steps=5)
    key[:, :, 10:20] = key[:, :, 20:30]  # ties
    low, high = (torch.tensor(bound, dtype=torch.int32, device=device) for bound in ([3, 12], [43, 40]))
    exact = topk_votes(query, key, 4, begin=low, end=high)
    assert torch.equal(ours(query, key, 4, 8, blocks, [(3, 43), (12, 40)]), exact)


def test_of_equal_scores_the_later_position_wins(device: torch.device) -> None:
    query, key = cache(64, device, batch=1, heads=2)
    key[:] = key[:, :, :1]
    key[:, :, 48:] = -10 * query.sign().mean(2, keepdim=True)  # two blocks that lose
    votes = ours(query, key, 3, 8, 6, [(0, 45)])
    assert votes.nonzero()[:, 1].tolist() == [42, 43, 44]


@pytest.mark.parametrize("cuts", [[1, 42], [16, 16, 11], [10, 30, 2, 1], [43]])
def test_keys_may_come_in_pieces(cuts: list[int], device: torch.device) -> None:
    query, key = cache(43, device, steps=3)
    middle = [(3, 41), (17, 43)]
    begin, end = (torch.tensor(bound, dtype=torch.int32, device=device) for bound in zip(*middle, strict=True))
    table = summarise(key, 8)
    pieces = [piece.cpu() for piece in key.split(cuts, dim=2)]
    votes = topk_votes_by_blocks(query, pieces, table, 4, size=8, blocks=4, begin=begin, end=end)
    assert torch.equal(votes, ours(query, key, 4, 8, 4, middle))


def test_a_single_piece_may_be_in_host_memory(device: torch.device) -> None:
    query, key = cache(43, device, steps=3)
    options = {"k": 3, "size": 4, "blocks": 4}
    expected = topk_votes_by_blocks(query, [key], summarise(key, 4), **options)
    assert torch.equal(topk_votes_by_blocks(query, [key.cpu()], summarise(key, 4), **options), expected)


def test_a_single_piece_elsewhere_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = cache(43, torch.device("cpu"))
    asked = []

    def collected(keys: Sequence[Tensor], slots: Tensor) -> Tensor:
        asked.append((keys, slots.shape))
        return slots.new_empty(*slots.shape, D, dtype=torch.float32)

    monkeypatch.setattr(module, "_collected", collected)
    votes = topk_votes_by_blocks(query.to("meta"), [key], summarise(key, 4).to("meta"), 2, size=4, blocks=3)
    assert votes.shape == (2, 43)
    (((found,), slots),) = asked
    assert found is key
    assert slots == (2, 2, 2, 3, 4)


def test_parts_do_not_matter(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    query, key = cache(200, device, heads=6, steps=9)
    whole = ours(query, key, 4, 8, 5, [(3, 190), (60, 199)])
    for numbers in (1, 4000, 20_000):
        monkeypatch.setattr(module, "_NUMBERS", {device.type: numbers, "cpu": numbers})
        assert torch.equal(ours(query, key, 4, 8, 5, [(3, 190), (60, 199)]), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_are_float32_or_better(dtype: torch.dtype, device: torch.device) -> None:
    query, key = cache(100, device, steps=2)
    query, key = query.to(dtype), key.to(dtype)
    middle = [(4, 96), (20, 100)]
    assert torch.equal(ours(query, key, 4, 8, 4, middle).cpu(), by_definition(query, key, 4, 8, 4, middle)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 3}, "blocks must be at least k=4, found 3"),
        ({"k": 0}, "k must be at least 1, found 0"),
        ({"size": 0}, "size must be at least 1, found 0"),
        (
            {"size": 16},
            "table must be [B, Hkv, N/size, 2D] with B=2, Hkv=2, N/size=3, 2D=12, found [2, 2, 5, 12]",
        ),
        (
            {"begin": torch.tensor([0, 41], dtype=torch.int32)},
            "begin must be 0 to N=40, found 41",
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    query, key = cache(40, torch.device("cpu"))
    options = {"k": 4, "size": 8, "blocks": 4} | change
    with pytest.raises(ValueError, match=f"^{re.escape(f'topk_votes_by_blocks: {message}')}$"):
        topk_votes_by_blocks(query, [key], summarise(key, 8), **options)  # type: ignore[arg-type]
