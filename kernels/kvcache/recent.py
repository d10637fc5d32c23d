"""Sinks and the most recent tokens of a prompt that was read with full attention.

Source: the selection of StreamingLLM (arXiv 2309.17453) as cache compression papers compare with it (SnapKV, arXiv
2404.14469; kvpress): after a full prefill, at original positions. The method itself is the KV policy `streaming`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.evicting import EvictingPolicy
from longloom.kernels.kvcache.prompt import PromptState


@dataclass(frozen=True)
class RecentPolicy(EvictingPolicy):
    """The first tokens of each row, and the latest.

    Where a share of a short prompt is no more than the sinks, they leave one place to the newest token.

    Attributes:
        sink: tokens kept from each row's beginning; the rest of the budget, at least one token, goes to the latest.
    """

    name: ClassVar[str] = "recent"

    sink: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.budget - 1 if isinstance(self.budget, int) else self.sink
        if type(self.sink) is not int or not 0 <= self.sink <= most:
            limit = f", less than budget={self.budget}" if isinstance(self.budget, int) else ""
            raise ValueError(f"KV policy 'recent': sink must be a whole number from 0 on{limit}, found {self.sink!r}")

    def scores(self, prompt: PromptState, rope: Rope) -> Tensor:
        assert prompt.keys is not None
        batch, heads = prompt.keys.shape[:2]
        length = prompt.seen
        slots = torch.arange(length, device=prompt.keys.device)
        places = slots if prompt.start is None else slots - prompt.start[:, None, None]  # [N] or [B, 1, N]
        # The newest first, then the sinks from the first on, then the others from the latest on.
        scores = torch.where((places >= 0) & (places < self.sink), 2 * length - places, slots)
        scores = torch.where(slots == length - 1, 3 * length, scores)
        return scores.float().expand(batch, heads, -1)
