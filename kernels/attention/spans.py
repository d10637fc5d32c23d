"""Votes to spans: the most voted keys, each with its neighbours, as sorted positions without duplicates.

Position i becomes i - span/2 .. i + span/2 - 1, cut to begin .. end - 1 (LongCache / ReAttention, arXiv 2407.15176). As
all spans are equally long, their ends are sorted when their middles are: span i adds what lies behind the end of span
i - 1, and a running sum of these lengths says where. Nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longloom.kernels.attention.topk import check_middle
from longloom.kernels.checks import Arguments
from longloom.kernels.dispatch import choose, triton_refusal

#: Most spans of the Triton kernel, which sorts a row's in one program.
TRITON_SPANS = 1024


def vote_spans(
    votes: Tensor,
    most: int,
    span: int,
    *,
    begin: Tensor | None = None,
    end: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The positions in the spans around the keys with the most votes.

    Args:
        votes: [B, N] int32, as of `topk_votes`. Only keys with votes count; of equally many the later are kept.
        most: how many keys are kept at most.
        span: positions around each, an even number.
        begin, end: [B] int32 or None: only begin[b] .. end[b] - 1 count and are selected; None: 0, N. On a GPU their
            values are not checked but cut to 0 .. N.
        implementation: "triton" or "reference"; None: the fastest that can.

    Returns:
        Positions [B, most * span] int32, ascending, -1 behind the last; how many they are [B] int32.

    Raises:
        ValueError: shapes, types or devices that do not fit, a value out of range, or an implementation that cannot do
            this.
    """
    check = Arguments("vote_spans")
    check.tensor("votes", votes, "B N", torch.int32)
    check.require(most >= 1, "most", "at least 1", most)
    check.require(span >= 2 and span % 2 == 0, "span", "an even number of at least 2", span)
    check_middle(check, begin, end)
    refusal = triton_refusal(votes, asked=implementation == "triton")
    if refusal is None and most > TRITON_SPANS:
        refusal = f"it sorts a row's spans in one program, {TRITON_SPANS} at most, found most = {most}"
    if choose("vote_spans", {"triton": refusal, "reference": None}, implementation) == "triton":
        from longloom.kernels.attention.triton.spans import vote_spans as run
    else:
        run = reference
    return run(votes, most, span, begin, end)


def reference(votes: Tensor, most: int, span: int, begin: Tensor | None, end: Tensor | None) -> tuple[Tensor, Tensor]:
    """All rows at once, but on a CPU the few keys with votes are picked out row by row before they are compared."""
    tokens = votes.shape[1]
    voted = _most_voted_by_row if votes.device.type == "cpu" else most_voted
    middles = voted(votes, most, begin, end).sort(dim=1).values
    low, high = _bounds(votes, begin, end)
    ends = (middles + span // 2).minimum(high)
    starts = (middles - span // 2).maximum(torch.cat([low, ends[:, :-1]], dim=1)).maximum(low)
    lengths = (ends - starts).where(middles < tokens, 0)
    behind = lengths.cumsum(dim=1)
    slots = torch.arange(most * span, device=votes.device).expand(len(votes), -1)
    which = torch.searchsorted(behind, slots.contiguous(), right=True).clamp_(max=most - 1)
    positions = (starts - behind + lengths).gather(1, which) + slots
    return positions.where(slots < behind[:, -1:], -1).to(torch.int32), behind[:, -1].to(torch.int32)


def most_voted(votes: Tensor, most: int, begin: Tensor | None, end: Tensor | None) -> Tensor:
    """Positions [B, most] int64 of the most voted keys, in any order; N where there are fewer.

    Votes and positions are one number, so none is like another and the later of equally many votes is the greater.
    """
    tokens = votes.shape[1]
    place = torch.arange(tokens, device=votes.device)
    low, high = _bounds(votes, begin, end)
    counts = (votes > 0) & (place >= low) & (place < high)
    best = (votes.long() << 32 | place).where(counts, -1).topk(min(most, tokens), sorted=False).values
    positions = (best & 0xFFFFFFFF).where(best >= 0, tokens)
    return torch.nn.functional.pad(positions, (0, most - positions.shape[1]), value=tokens)


def _most_voted_by_row(votes: Tensor, most: int, begin: Tensor | None, end: Tensor | None) -> Tensor:
    """`most_voted` by a number of steps that the values decide, which only a host may wait for."""
    tokens = votes.shape[1]
    middles = torch.full((len(votes), most), tokens)
    for b, (low, high) in enumerate(torch.cat(_bounds(votes, begin, end), dim=1).tolist()):
        row = votes[b, low:high]
        place = (row > 0).nonzero()[:, 0]
        if len(place) > most:
            place = (row[place].long() << 32 | place).topk(most, sorted=False).values & 0xFFFFFFFF
        middles[b, : len(place)] = place + low
    return middles


def _bounds(votes: Tensor, begin: Tensor | None, end: Tensor | None) -> tuple[Tensor, Tensor]:
    """begin and end as [B, 1] int64 within 0 .. N."""
    tokens = votes.shape[1]
    low = votes.new_zeros(len(votes), 1, dtype=torch.int64) if begin is None else begin[:, None].long()
    high = votes.new_full((len(votes), 1), tokens, dtype=torch.int64) if end is None else end[:, None].long()
    return low.clamp(0, tokens), high.clamp(0, tokens)
