"""SnapKV (arXiv 2404.14469): what the prompt's last tokens attend to is what the answer will need.

Notable choices: query heads of one KV head share what they keep, by the mean of their scores (the authors' code repeats
keys and chooses for each query head); that mean is then pooled over neighbours (maximum over 7, the setting of the
authors' LongBench runs), so that passages are kept and not single tokens.
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
    """Attributes: window: the prompt's last tokens, which vote and are kept themselves; part of the budget."""

    name: ClassVar[str] = "snapkv"

    window: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.budget if isinstance(self.budget, int) else self.window
        if type(self.window) is not int or not 1 <= self.window <= most:
            raise ValueError(
                f"KV policy 'snapkv': window must be a whole number from 1 to budget={self.budget}, "
                f"found {self.window!r}"
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
        packed = queries.reshape(batch, kv_heads, -1, size)  # [B, Hkv, G * W, D]
        logits = (packed @ keys.transpose(2, 3)).float() * prompt.scaling
        slots = torch.arange(length, device=keys.device)
        visible = slots <= slots[begin:, None]  # [W, N]
        if prompt.start is not None:
            visible = (visible & (slots >= prompt.start[:, None, None]))[:, None, None]
        logits = logits.unflatten(2, (-1, voters)).masked_fill(~visible, torch.finfo(torch.float32).min)
        weights = logits.softmax(dim=-1).mean(dim=(2, 3))  # [B, Hkv, N]
        scores = torch.full_like(weights, torch.inf)
        if begin:
            scores[..., :begin] = max_pool1d(weights[..., :begin], POOL, stride=1, padding=POOL // 2)
        return scores
