"""KV policies that keep the best of a prompt's tokens and drop the rest: a policy of this family is its scores.

Kept keys stay rotated to their original positions. All KV heads of a row keep equally many tokens unless the policy
says otherwise (`counts`); tokens of the answer are kept all.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from longloom.kernels.attention.pack import pack
from longloom.kernels.attention.pages import RaggedKV
from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.compressed import CompressedPolicy, tokens_of
from longloom.kernels.kvcache.prompt import PromptState


@dataclass(frozen=True)
class EvictingPolicy(CompressedPolicy):
    """Keep the `budget` tokens of the prompt that `scores` rates highest, of each KV head.

    Attributes:
        budget: tokens kept of the prompt: a whole number of them, or a share of the prompt between 0 and 1.
    """

    budget: int | float

    def __post_init__(self) -> None:
        whole = type(self.budget) is int and self.budget >= 1
        share = type(self.budget) is float and 0 < self.budget < 1
        if not whole and not share:
            raise ValueError(
                f"KV policy {self.name!r}: budget must be a whole number >= 1 or a share between 0 and 1, "
                f"found {self.budget!r}"
            )

    @abstractmethod
    def scores(self, prompt: PromptState, rope: Rope) -> Tensor:
        """How much each token is worth keeping: [B, Hkv, N], of any finite scale; `inf`: keep it whatever the others'.

        Padding may score anything.
        """

    def kept(self, tokens: int) -> int:
        """Tokens of a prompt of so many that a head keeps on average."""
        budget = self.budget if isinstance(self.budget, int) else max(1, int(self.budget * tokens))
        return min(budget, tokens)

    def counts(self, prompt: PromptState, scores: Tensor) -> Tensor:
        """Tokens that each row and KV head keeps: [B, Hkv] int32 on the CPU, of scores that are -inf at padding."""
        kept = torch.tensor([self.kept(tokens) for tokens in tokens_of(prompt)], dtype=torch.int32)
        return kept[:, None].expand(-1, scores.shape[1]).contiguous()

    def compress(self, prompt: PromptState, rope: Rope) -> RaggedKV:
        assert prompt.keys is not None
        assert prompt.values is not None
        length = prompt.seen
        scores = self.scores(prompt, rope)
        if prompt.start is not None:
            slots = torch.arange(length, device=scores.device)
            scores = scores.masked_fill(slots < prompt.start[:, None, None], -torch.inf)
        counts = self.counts(prompt, scores)
        most = int(counts.max()) if counts.numel() else 0
        # Stable, for equal scores are common (pooled ones): the earlier token wins, on every device.
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :most]
        # In order: what a head keeps in front, the rest behind it.
        spare = torch.arange(most, device=best.device) >= counts.to(best.device)[..., None]
        chosen = best.masked_fill(spare, length).sort(dim=-1).values
        return pack(prompt.keys[:, :, :length], prompt.values[:, :, :length], chosen, counts)
