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
    """Attributes: sink: tokens kept from each row's beginning; the rest of the budget goes to the latest ones."""

    name: ClassVar[str] = "recent"

    sink: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.budget if isinstance(self.budget, int) else self.sink
        if type(self.sink) is not int or not 0 <= self.sink <= most:
            raise ValueError(
                f"KV policy 'recent': sink must be a whole number from 0 to budget={self.budget}, found {self.sink!r}"
            )

    def scores(self, prompt: PromptState, rope: Rope) -> Tensor:
        assert prompt.keys is not None
        batch, heads = prompt.keys.shape[:2]
        slots = torch.arange(prompt.seen, device=prompt.keys.device)
        begin = 0 if prompt.start is None else prompt.start[:, None, None]
        scores = slots.float().expand(batch, heads, -1)
        return scores.masked_fill((slots >= begin) & (slots < begin + self.sink), torch.inf)
