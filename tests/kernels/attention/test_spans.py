"""Votes to spans: Triton and the reference against a plain loop."""

import re

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.spans import vote_spans

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "triton"])


def by_hand(votes: list[int], most: int, span: int, begin: int, end: int) -> list[int]:
    """One row: the positions."""
    ranked = sorted(((votes[i], i) for i in range(begin, end) if votes[i] > 0), reverse=True)
    spans = [range(max(begin, i - span // 2), min(end, i + span // 2)) for _, i in ranked[:most]]
    return sorted({position for places in spans for position in places})


def check(votes: Tensor, most: int, span: int, begin: list[int] | None, end: list[int] | None, implementation: str):
    bounds = {
        name: torch.tensor(bound, dtype=torch.int32, device=votes.device)
        for name, bound in (("begin", begin), ("end", end))
        if bound is not None
    }
    positions, count = vote_spans(votes, most, span, **bounds, implementation=implementation)
    assert positions.dtype == count.dtype == torch.int32
    assert positions.shape == (len(votes), most * span)
    for b, row in enumerate(votes.tolist()):
        low, high = begin[b] if begin else 0, end[b] if end else len(row)
        expected = by_hand(row, most, span, low, high)
        assert int(count[b]) == len(expected)
        assert positions[b].tolist() == expected + [-1] * (most * span - len(expected))


@pytest.mark.parametrize("share", [0.03, 0.3, 1.0])
@pytest.mark.parametrize(("most", "span"), [(1, 2), (5, 32), (13, 6), (60, 2)])
@pytest.mark.parametrize("tokens", [1, 101, 256])
@IMPLEMENTATIONS
def test_equals_the_loop(share, most, span, tokens, implementation, device):
    votes = torch.randint(1, 4, (3, tokens)) * (torch.rand(3, tokens) < share)
    votes = votes.int().to(device)
    check(votes, most, span, None, None, implementation)
    check(votes, most, span, [0, tokens // 3, tokens], [tokens, tokens - 1, tokens], implementation)


@pytest.mark.parametrize(
    ("voted", "expected"),
    [
        ([0], [0, 1]),  # cut at the beginning
        ([19], [17, 18, 19]),  # cut at the end
        ([0, 19], [0, 1, 17, 18, 19]),
        ([9, 10], [7, 8, 9, 10, 11]),  # overlap
        ([4, 8], [2, 3, 4, 5, 6, 7, 8, 9]),  # touch
        ([1, 0, 2], [0, 1, 2, 3]),
        ([], []),
    ],
)
@IMPLEMENTATIONS
def test_spans_are_cut_and_joined(voted, expected, implementation, device):
    votes = torch.zeros(1, 20, dtype=torch.int32, device=device)
    votes[0, voted] = 1
    positions, count = vote_spans(votes, 4, 4, implementation=implementation)
    assert count.tolist() == [len(expected)]
    assert positions[0].tolist() == expected + [-1] * (16 - len(expected))


@IMPLEMENTATIONS
def test_of_equally_many_votes_the_later_are_kept(implementation, device):
    votes = torch.ones(1, 50, dtype=torch.int32, device=device)
    votes[0, 7] = 2
    positions, _ = vote_spans(votes, 3, 2, implementation=implementation)
    assert positions.tolist() == [[6, 7, 47, 48, 49, -1]]


@IMPLEMENTATIONS
def test_votes_without_and_outside_do_not_count(implementation, device):
    votes = torch.tensor([[9, -3, 0, 1, 0, 0, 9]], dtype=torch.int32, device=device)
    check(votes, 4, 2, [1], [6], implementation)
    assert vote_spans(votes, 4, 2, implementation=implementation)[0][0, :5].tolist() == [0, 2, 3, 5, 6]


@IMPLEMENTATIONS
def test_spans_enough_select_everything(implementation, device):
    votes = torch.ones(2, 60, dtype=torch.int32, device=device)
    positions, count = vote_spans(votes, 60, 8, implementation=implementation)
    assert count.tolist() == [60, 60]
    assert positions[:, :60].tolist() == [list(range(60))] * 2


@IMPLEMENTATIONS
def test_most_spans_and_many_votes(implementation, device):
    votes = torch.randint(0, 2**31 - 1, (1, 3000), dtype=torch.int32, device=device)
    check(votes, 1024, 4, [11], [2990], implementation)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
@IMPLEMENTATIONS
def test_nothing_gives_nothing(shape, implementation, device):
    votes = torch.zeros(shape, dtype=torch.int32, device=device)
    positions, count = vote_spans(votes, 3, 2, implementation=implementation)
    assert positions.tolist() == [[-1] * 6] * shape[0]
    assert count.tolist() == [0] * shape[0]


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


BAD = {
    "votes must be of int32, found int64": {"votes": torch.zeros(2, 10, dtype=torch.int64)},
    "votes must be [B, N], found [10]": {"votes": torch.zeros(10, dtype=torch.int32)},
    "votes must be contiguous, found strides (1, 2)": {"votes": torch.zeros(10, 2, dtype=torch.int32).T},
    "most must be at least 1, found 0": {"most": 0},
    "span must be an even number of at least 2, found 0": {"span": 0},
    "span must be an even number of at least 2, found 7": {"span": 7},
    "begin must be of int32, found float32": {"begin": torch.zeros(2)},
    "end must be [B] with B=2, found [1]": {"end": ints(3)},
    "begin must be 0 to N=10, found 11": {"begin": ints(11, 0)},
    "end must be 0 to N=10, found -1": {"end": ints(5, -1)},
    "begin must be at most end, found 6 and 2": {"begin": ints(0, 6), "end": ints(2, 2)},
    "implementation must be one of triton, reference, found 'cuda'": {"implementation": "cuda"},
    "implementation 'triton' cannot do this: it sorts a row's spans in one program, 1024 at most, found most = 1025": {
        "most": 1025,
        "implementation": "triton",
    },
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_call_is_refused(message, device):
    call = {"votes": torch.zeros(2, 10, dtype=torch.int32), "most": 3, "span": 4} | BAD[message]
    call = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in call.items()}
    with pytest.raises(ValueError, match=f"^vote_spans: {re.escape(message)}$"):
        vote_spans(call.pop("votes"), call.pop("most"), call.pop("span"), **call)
