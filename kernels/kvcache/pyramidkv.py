"""PyramidKV (arXiv 2406.02069): SnapKV's choice of tokens, with more of them in the first layers than in the last.

Of m layers with K tokens a layer beside the window, layer l keeps (the paper's budget allocation)

    k_l = k_0 - (k_0 - k_{m-1}) * l / (m - 1),   k_{m-1} = K / beta,   k_0 = 2 K - k_{m-1}

tokens beside the window, so all layers together keep m * K. As in the authors' code, a prompt with fewer than k_0 such
tokens has them all in the first layer, and a last layer that makes up for it: k_{m-1} = 2 K - k_0.

What differs: layers are rounded to the nearest whole number, l and m - 1 - l in opposite ways, so that the sum is
exactly m * K and each layer within 1/2 of its formula; the authors' code rounds the step down, which keeps up to
m (m - 1) / 2 tokens more, and makes no pyramid of a prompt of fewer than 2 K tokens. kvpress counts the window within
k_l, and makes none where k_{m-1} is less than the window. The scores are `snapkv`'s, with all that is said there (the
authors' LongBench runs: window 8, maximum over 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longloom.kernels.kvcache.compressed import tokens_of
from longloom.kernels.kvcache.prompt import PromptState
from longloom.kernels.kvcache.snapkv import SnapKVPolicy


@dataclass(frozen=True)
class PyramidKVPolicy(SnapKVPolicy):
    """SnapKV with budgets that fall from layer to layer; `budget` is their mean over those without sliding windows.

    Attributes:
        beta: how many times less than the mean the last layer keeps beside the window, at least 1 (SnapKV). The
            authors' default is 20.
    """

    name: ClassVar[str] = "pyramidkv"

    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.beta, bool) or not isinstance(self.beta, int | float) or not self.beta >= 1:
            raise ValueError(f"KV policy 'pyramidkv': beta must be a number >= 1, found {self.beta!r}")

    def counts(self, prompt: PromptState, scores: Tensor) -> Tensor:
        if not prompt.layer < prompt.layers:
            raise ValueError(
                f"KV policy 'pyramidkv' needs the number of the model's layers, found {prompt.layers} "
                f"at layer {prompt.layer}"
            )
        # Layers with sliding windows keep no budget, so they are no steps of the pyramid either.
        rank = prompt.layer - sum(layer < prompt.layer for layer in prompt.sliding)
        layers = prompt.layers - len(prompt.sliding)
        kept = [self._kept(tokens, rank, layers) for tokens in tokens_of(prompt)]
        return torch.tensor(kept, dtype=torch.int32)[:, None].repeat(1, scores.shape[1])

    def _kept(self, tokens: int, layer: int, layers: int) -> int:
        """Tokens of a prompt of so many that each head of the layer keeps, of layers without a sliding window."""
        mean = self.kept(tokens)
        beside = max(0, mean - self.window)
        slope = min(beside - beside / self.beta, tokens - mean)  # k_0 - K
        # Python rounds halves to even numbers, alike on both sides of the middle.
        return mean + (round(slope * (layers - 1 - 2 * layer) / (layers - 1)) if layers > 1 else 0)
