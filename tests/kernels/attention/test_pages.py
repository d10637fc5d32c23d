"""Ragged pages: growth, copies, and caches built from the host's integers."""

import copy
import re

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.append import append
from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.pages import RaggedKV, side_by_side


def held(cache: RaggedKV) -> list[Tensor]:
    """Keys and values of each row's heads in order of their slots: [2, n, D]."""
    pools = torch.stack((cache.keys, cache.values))
    found = []
    for table, length in zip(cache.table.flatten(0, 1), cache.kv_len.flatten(), strict=True):
        pages = table[: -(-int(length) // cache.page)].long()
        found.append(pools[:, pages].flatten(1, 2)[:, : int(length)])
    return found


def shuffled(device: torch.device) -> RaggedKV:
    """Two rows of two heads on pages in no order, one of them nobody's, one more than needed, one head empty."""
    keys, values = torch.randn(2, 9, 16, 32, device=device)
    table = torch.tensor([[[7, 2, 4], [0, -1, -1]], [[-1, -1, -1], [8, 3, 6]]], dtype=torch.int32, device=device)
    return RaggedKV(keys, values, table, torch.tensor([[40, 16], [0, 17]], dtype=torch.int32, device=device))


def test_growth_keeps_every_slot_and_lays_pages_side_by_side(device):
    cache = shuffled(device)
    before = held(cache)
    cache.grow(20)
    assert all(torch.equal(one, other) for one, other in zip(held(cache), before, strict=True))
    assert torch.equal(cache.host_table, cache.table.cpu())
    pages = (cache.host_table >= 0).sum(dim=-1)
    assert torch.equal(pages * 16 >= cache.host_len + 20, torch.ones(2, 2, dtype=torch.bool))
    assert torch.equal(cache.host_table, side_by_side(pages))
    assert len(cache.keys) == len(cache.values) == int(pages.sum())  # nobody's page is gone
    RaggedKV(cache.keys, cache.values, cache.table, cache.kv_len)  # its checks find nothing


def test_pages_at_hand_are_used_first(device):
    cache = shuffled(device)
    table = torch.tensor([[[7, 2, 4], [0, 1, -1]], [[5, -1, -1], [8, 3, 6]]], dtype=torch.int32, device=device)
    cache = RaggedKV(cache.keys, cache.values, table, cache.kv_len)
    keys = cache.keys
    for tokens in (1, 8, 8):
        cache.grow(tokens)
        assert cache.keys is keys
        assert cache.room == 8  # the first head's
    cache.grow(9)
    assert cache.keys is not keys


@pytest.mark.parametrize("tokens", [1, 3])
def test_growth_is_small_and_seldom(tokens, device):
    key = torch.randn(2, 4, 400, 16, device=device)
    cache = compress(key, key, torch.tensor([[-1, 100, 50, 9]] * 2, dtype=torch.int32), sink=4, page=16)
    pools = 1
    for step in range(1, 241):
        keys, before = cache.keys, len(cache.keys)
        append(cache, key[:, :, :tokens], key[:, :, :tokens])
        if cache.keys is not keys:
            pools += 1
            # A page for the token, a 32nd more, and each head's last page rounded up.
            assert before < len(cache.keys) <= before + before // 32 + 8 * 2
        assert cache.room >= 0
        assert cache.kv_len[0].tolist() == [length + step * tokens for length in (400, 104, 54, 13)]
    assert pools <= 1 + 240 * tokens // 16  # at least a page of tokens apart


def test_heads_at_their_limit_take_no_pages(device):
    key = torch.randn(1, 3, 200, 16, device=device)
    cache = compress(
        key, key, torch.tensor([[100, 60, 300]], dtype=torch.int32), sink=4, page=16, fold=True
    )  # the last one is not full
    append(cache, key[:, :, :150], key[:, :, :150])
    assert cache.kv_len.tolist() == [[104, 64, 304]]
    assert (cache.table >= 0).sum(dim=-1).tolist() == [[7, 4, 19]]
    keys = cache.keys
    for _ in range(3):
        append(cache, key, key)
    assert cache.keys is keys


@pytest.mark.parametrize("shape", [(1, 2), (2, 0), (0, 2)])
def test_growth_from_nothing(shape, device):
    nothing = torch.empty(*shape, 0, 32, device=device)
    cache = compress(nothing, nothing, torch.full(shape, -1, dtype=torch.int32), sink=4)
    assert len(cache.keys) == 0
    new = torch.randn(*shape, 5, 32, device=device)
    append(cache, new, new)
    if new.numel():
        assert torch.equal(torch.stack(held(cache))[:, 0].view_as(new), new)


def test_a_copy_is_independent(device):
    key = torch.randn(1, 2, 60, 16, device=device)
    cache = compress(key, key, torch.tensor([[-1, 20]], dtype=torch.int32), sink=4, page=16, fold=True)
    before, mean = held(cache), cache.mean_key.clone()
    fork, other = copy.deepcopy(cache), copy.deepcopy(cache)
    for _ in range(40):
        append(fork, -key[:, :, :1], -key[:, :, :1])
    append(other, key, key)
    assert fork.kv_len.tolist() == fork.host_len.tolist() == [[100, 24]]
    assert other.kv_len.tolist() == other.host_len.tolist() == [[120, 24]]
    assert cache.kv_len.tolist() == cache.host_len.tolist() == [[60, 24]]
    assert cache.dropped.tolist() == [[0, 36]]
    assert cache.turn.tolist() == [[0, 0]]
    assert torch.equal(cache.mean_key, mean)
    assert all(torch.equal(one, two) for one, two in zip(held(cache), before, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": [[0, 15]]}, "kv_len of a head with a limit must be 0 to 15, found 16"),
        ({"limit": [[0, 2]]}, "limit where it is not 0 must be at least 3, found 2"),
        ({"limit": [[-1, 20]]}, "limit where it is not 0 must be at least 3, found -1"),
        ({"turn": [[0, 18]]}, "turn must be 0 to 17, found 18"),
        ({"turn": [[-1, 0]]}, "turn must be 0 to 1073741823, found -1"),
        ({"turn": None}, "limit and turn must be given together, found None among them"),
        ({"mean_key": None, "mean_value": None, "dropped": None}, "dropped must be given where limit is, found None"),
        ({"sink": -1}, "sink must be at least 0, found -1"),
    ],
)
def test_a_bad_limit_is_refused(change, message):
    good = {
        "table": [[[0, 1], [2, 3]]],
        "kv_len": [[20, 16]],
        "dropped": [[0, 5]],
        "limit": [[0, 20]],
        "turn": [[0, 17]],
    }
    parts = {
        name: value if value is None or isinstance(value, int) else torch.tensor(value, dtype=torch.int32)
        for name, value in (good | {"sink": 2} | change).items()
    }
    tensors = {"mean_key": torch.zeros(1, 2, 32), "mean_value": torch.zeros(1, 2, 32)} | parts
    with pytest.raises(ValueError, match=f"^ragged KV: {re.escape(message)}$"):
        RaggedKV(torch.zeros(4, 16, 32), torch.zeros(4, 16, 32), **tensors)


def test_side_by_side():
    assert side_by_side(torch.tensor([[2, 0], [1, 3]])).tolist() == [
        [[0, 1, -1], [-1, -1, -1]],
        [[2, -1, -1], [3, 4, 5]],
    ]
    assert side_by_side(torch.zeros(1, 1, dtype=torch.int64)).tolist() == [[[-1]]]
