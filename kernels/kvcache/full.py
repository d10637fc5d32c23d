"""Full attention: keep every token. The yardstick of the other KV policies, and equal to the model's own attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longloom.kernels.kvcache.base import LayerState, Rope, SharedPrefillPolicy, positions_of, reserve


@dataclass(eq=False)
class FullState(LayerState):
    """Keys (rotated to their positions) and values [B, Hkv, capacity, D]; the first `seen` slots are in use."""

    keys: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class FullPolicy(SharedPrefillPolicy[FullState]):
    """Keep everything, attend to everything."""

    name: ClassVar[str] = "full"
    state_type: ClassVar[type[LayerState]] = FullState

    def keep(self, prompt: FullState, rope: Rope) -> FullState:
        """Everything: the prompt's own tensors, which nobody else may need from now on."""
        return FullState(prompt.layer, prompt.seen, prompt.keys, prompt.values)

    def attend(
        self,
        state: FullState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        begin, length = state.seen, key.shape[2]
        end = begin + length
        positions = positions_of(begin, length, start, key.device)
        query = rope.rotate(query, positions)
        state.keys = reserve(state.keys, end, key)
        state.values = reserve(state.values, end, value)
        state.keys[:, :, begin:end] = rope.rotate(key, positions)
        state.values[:, :, begin:end] = value
        state.seen = end
        keys, values = state.keys[:, :, :end], state.values[:, :, :end]

        if length == 1:
            # All query heads of a KV head read the same keys: as rows of one product, twice as fast as enable_gqa.
            packed = query.reshape(key.shape[0], key.shape[1], -1, key.shape[3])  # [B, Hkv, G, D]
            mask = None if start is None else _visible(begin, end, start, key.device)
            return scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=scaling).reshape(
                query.shape
            )
        first = begin == 0 and start is None
        return scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=None if first else _visible(begin, end, start, key.device),
            is_causal=first,
            scale=scaling,
            enable_gqa=True,
        )


def _visible(begin: int, end: int, start: Tensor | None, device: torch.device) -> Tensor:
    """Which slots 0..end-1 the queries of slots begin..end-1 see: bool [S, N], or [B, 1, S, N] where padded."""
    slots = torch.arange(end, device=device)
    queries = slots[begin:, None]
    visible = slots <= queries
    if start is None:
        return visible
    # Padding sees itself: a query that sees nothing is NaN in some implementations of the product.
    return ((visible & (slots >= start[:, None, None])) | (slots == queries))[:, None]
