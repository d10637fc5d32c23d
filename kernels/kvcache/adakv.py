"""Ada-KV (arXiv 2407.11550): the KV heads of a layer compete for its budget, so that scattered attention gets more.

Ada-SnapKV: of H heads that keep B tokens on average, by SnapKV's scores,

    f_i = how many of the H * B best scores of all heads together are of head i      (the paper's algorithm 1)
    B_i = (1 - safeguard) * f_i + safeguard * B                                      (algorithm 2)

and head i keeps its B_i best tokens. Every head's window scores highest, so it is kept and takes no part. The paper's
alpha is 1 - safeguard; the authors' code calls the safeguard `floor_alpha`, and its scripts set 0.2.

What differs: B_i is rounded to whole tokens by largest remainders, so that the sum is exactly H * B (the authors' code
rounds each by itself), and a head is a KV head. Their options of sparing the first layers and of weighting heads, off
by default, are left out. kvpress keeps the safeguard * B best tokens of each head and lets the heads compete for the
rest, which gives the same for a safeguard of 0 or 1 alone; and it masks what it drops, while here a head holds pages
of its own.

Memory is in whole pages of 64 tokens, so a layer holds up to 63 tokens a head above its budget. To know the heads'
budgets the host waits for the device, once a layer and prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from longloom.kernels.kvcache.compressed import tokens_of
from longloom.kernels.kvcache.prompt import PromptState
from longloom.kernels.kvcache.snapkv import SnapKVPolicy


@dataclass(frozen=True)
class AdaKVPolicy(SnapKVPolicy):
    """SnapKV with a budget of its own for each KV head; `budget` is the mean over a layer's heads.

    Attributes:
        safeguard: share of its even budget that a head keeps whatever the scores, 0 to 1 (1: SnapKV).
    """

    name: ClassVar[str] = "adakv"

    safeguard: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.safeguard
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"KV policy 'adakv': safeguard must be a share from 0 to 1, found {share!r}")

    def counts(self, prompt: PromptState, scores: Tensor) -> Tensor:
        rows, heads, length = scores.shape
        # Stable: of equal scores the earlier head's, and of a head's the earlier token's, come first.
        order = scores.flatten(1).sort(dim=-1, descending=True, stable=True).indices
        totals = torch.tensor([heads * self.kept(tokens) for tokens in tokens_of(prompt)], device=scores.device)
        best = torch.arange(heads * length, device=scores.device) < totals[:, None]
        wins = totals.new_zeros(rows, heads).scatter_add_(1, order // length, best.long())
        safeguard = Fraction(self.safeguard).limit_denominator(1_000_000)
        return torch.tensor([_budgets(row, safeguard) for row in wins.tolist()], dtype=torch.int32)


def _budgets(wins: Sequence[int], safeguard: Fraction) -> list[int]:
    """The heads' budgets, whose sum is the wins' sum; a remainder goes to the first of those that are nearest."""
    total = sum(wins)
    exact = [(1 - safeguard) * count + safeguard * Fraction(total, len(wins)) for count in wins]
    budgets = [int(budget) for budget in exact]
    nearest = sorted(range(len(wins)), key=lambda head: budgets[head] - exact[head])
    for head in nearest[: total - sum(budgets)]:
        budgets[head] += 1
    return budgets
