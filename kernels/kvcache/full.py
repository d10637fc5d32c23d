"""Full attention: keep every token. The yardstick of the other KV policies, and equal to the model's own attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longloom.kernels.attention.prefill import prefill
from longloom.kernels.kvcache.base import Alibi, LayerState, Rope, SharedPrefillPolicy, positions_of, reserve


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
    encodings: ClassVar[tuple[type, ...]] = (Rope, Alibi)

    def keep(self, prompt: FullState, rope: Rope | Alibi) -> FullState:
        """Everything: the prompt's own tensors, which nobody else may need from now on."""
        return FullState(prompt.layer, prompt.seen, prompt.layers, prompt.keys, prompt.values)

    def attend(
        self,
        state: FullState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope | Alibi,
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

        slopes = rope.slopes_on(query.device)
        if length > 1:
            return _rows(query, keys, values, start, scaling, slopes)
        # All query heads of a KV head read the same keys: as rows of one product, twice as fast as enable_gqa.
        packed = query.reshape(key.shape[0], key.shape[1], -1, key.shape[3])  # [B, Hkv, G, D]
        mask = None if start is None else _visible(end, start, key.device)
        if slopes is not None:
            biases = slopes.view(packed.shape[1:3])[..., None] * torch.arange(1 - end, 1, device=key.device)
            biases = biases.to(key.dtype)[None]  # [1, Hkv, G, N]; torch takes them in the dtype of the keys alone
            mask = biases if mask is None else biases.masked_fill(~mask, -torch.inf)
        return scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=scaling).reshape(query.shape)


def _rows(
    query: Tensor, keys: Tensor, values: Tensor, start: Tensor | None, scaling: float, slopes: Tensor | None
) -> Tensor:
    """Causal attention of the last S slots, each row by itself and without its padding, where the output is 0.

    Rows do not meet, so a row's output does not depend on the batch that it is in.
    """
    new, end = query.shape[2], keys.shape[2]
    begin = end - new
    output = torch.empty_like(query)
    for row, padding in enumerate([0] * len(query) if start is None else start.tolist()):
        first = max(begin, padding)  # slot of the row's first query
        output[row, :, : first - begin] = 0
        if first == end:
            continue
        output[row, :, first - begin :] = prefill(
            query[row, :, first - begin :].transpose(0, 1),
            keys[row, :, padding:].transpose(0, 1),
            values[row, :, padding:].transpose(0, 1),
            torch.tensor([0, end - first], dtype=torch.int32),
            torch.tensor([0, end - padding], dtype=torch.int32),
            scale=scaling,
            alibi=slopes,
        ).transpose(0, 1)
    return output


def _visible(end: int, start: Tensor, device: torch.device) -> Tensor:
    """Which slots 0..end-1 the last one's query sees: bool [B, 1, 1, N]."""
    slots = torch.arange(end, device=device)
    # Padding sees itself: a query that sees nothing is NaN in some implementations of the product.
    return ((slots >= start[:, None]) | (slots == end - 1))[:, None, None]
