"""SnapKV (arXiv 2404.14469): what the prompt's last tokens attend to is what the answer will need.

    vote_t  = mean over the window's queries q, and the query heads of a KV head, of softmax(q K^T / sqrt(d))_t
    score_t = max of vote over t - 3 .. t + 3, within what precedes the window

Source: section 4.1, listing 1, which sums over the window (that ranks alike) and has the window within the budget
(`max_capacity_prompt`); section 4.2 for the pooling, of which it says that maximum and mean differ little. Window 32
and the maximum over 7 are the setting of the authors' LongBench runs.

What differs: query heads of one KV head share what they keep, by the mean of their votes before pooling, as in Ada-KV's
code for grouped queries. The authors' code repeats keys and chooses for each query head, which gives up what grouping
saves (FasterDecoding/SnapKV, issues 16 and 22). kvpress pools by the mean over 5, with a window of 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from longloom.kernels.kvcache.base import Rope, positions_of
from longloom.kernels.kvcache.evicting import EvictingPolicy
from longloom.kernels.kvcache.prompt import PromptState

#: Width of the pooling.
POOL = 7


@dataclass(frozen=True)
class SnapKVPolicy(EvictingPolicy):
    """The tokens that the window attends to most, and the window.

    Where a share of a short prompt is less than the window, nobody is left to vote for: the newest tokens are kept.

    Attributes:
        window: the prompt's last tokens, which vote and are kept themselves; part of the budget.
    """

    name: ClassVar[str] = "snapkv"

    window: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.budget if isinstance(self.budget, int) else self.window
        if type(self.window) is not int or not 1 <= self.window <= most:
            limit = f"1 to budget={self.budget}" if isinstance(self.budget, int) else "1"
            raise ValueError(
                f"KV policy {self.name!r}: window must be a whole number from {limit}, found {self.window!r}"
            )

    @property
    def observed(self) -> int:
        return self.window

    def scores(self, prompt: PromptState, rope: Rope) -> Tensor:
        assert prompt.keys is not None
        assert prompt.queries is not None
        keys = prompt.keys[:, :, : prompt.seen]
        batch, kv_heads, length, size = keys.shape
        queries = prompt.queries[:, :, -self.window :]
        voters = queries.shape[2]
        begin = length - voters
        queries = rope.rotate(queries, positions_of(begin, voters, prompt.start, keys.device))
        exact = torch.promote_types(keys.dtype, torch.float32)  # half types would round the scores
        packed = queries.reshape(batch, kv_heads, -1, size).to(exact)  # [B, Hkv, G * W, D]
        logits = (packed @ keys.to(exact).transpose(2, 3)) * prompt.scaling
        slots = torch.arange(length, device=keys.device)
        visible = slots <= slots[begin:, None]  # [W, N]
        if prompt.start is not None:
            visible = (visible & (slots >= prompt.start[:, None, None]))[:, None, None]
        logits = logits.unflatten(2, (-1, voters)).masked_fill(~visible, torch.finfo(exact).min)
        scores: Tensor = logits.softmax(dim=-1).mean(dim=(2, 3))  # [B, Hkv, N]
        if begin:
            scores[..., :begin] = max_pool1d(scores[..., :begin], POOL, stride=1, padding=POOL // 2)
        # The window is above every vote (at most 1), and the newest token above the others.
        scores[..., begin:] = torch.arange(2, 2 + voters, device=keys.device)
        return scores
