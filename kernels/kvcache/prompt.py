"""A prompt under full attention, as what several KV policies start from: those that only choose what of it to keep.

One such prefill serves all of them, and a policy run alone takes the same way, so its answers are the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longloom.kernels.kvcache.base import Alibi, LayerState, Rope, positions_of
from longloom.kernels.kvcache.full import FullPolicy, FullState
from longloom.kernels.kvcache.received import received


@dataclass(eq=False)
class PromptState(FullState):
    """Keys and values of the whole prompt, its last queries, and the attention that its tokens received.

    Attributes:
        queries: [B, Hq, W, D] un-rotated, of the last W <= `observed` tokens; None where none are asked for.
        sums: [B, Hkv, N] float32, see `received`, over all queries of the prompt; None where they are not asked for.
        start: [B] left padding, or None.
        scaling: factor on the scores.
    """

    queries: Tensor | None = None
    sums: Tensor | None = None
    start: Tensor | None = None
    scaling: float = 1.0


@dataclass(frozen=True)
class PromptPolicy(FullPolicy):
    """Full attention that remembers the last queries, or sums up what it paid to each token.

    Attributes:
        observed: how many queries.
        summed: whether to sum.
    """

    name: ClassVar[str] = "prompt"
    state_type: ClassVar[type[LayerState]] = PromptState

    observed: int = 0
    summed: bool = False

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
        assert isinstance(state, PromptState)
        begin = state.seen
        output = super().attend(state, query, key, value, rope, start=start, scaling=scaling)
        state.start, state.scaling = start, scaling
        if self.observed:
            recent = query if state.queries is None else torch.cat((state.queries, query), dim=2)
            state.queries = recent[:, :, -self.observed :].clone()  # not a view, which would hold the whole chunk
        if self.summed:
            assert state.keys is not None
            turned = rope.rotate(query, positions_of(begin, query.shape[2], start, query.device))
            sums = received(turned, state.keys[:, :, : state.seen], start, scaling)
            if state.sums is not None:
                sums[:, :, :begin] += state.sums
            state.sums = sums
        return output
