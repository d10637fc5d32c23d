"""RazorAttention's heads (arXiv 2407.15891) under LongCache's finite scope (arXiv 2407.15176).

Retrieval heads keep everything, and see of it what LongCache chooses by the votes of their own query heads. The others
keep their first and last tokens alone, at positions inside the cache (`streaming`): of the middle, which is most of a
long context, memory holds the retrieval heads' share.

Notable choices: the prompt is read under the same rule, so it may be longer than the model's window, where `razor`
reads it with dense attention. Razor's mean of what was dropped is left out: it averages keys at their true distances,
which a finite scope does not have. Nor is there its N / C for the last tokens of a long prompt: `local` is all that the
other heads keep. Nothing waits for the device but `streaming`, for where the padding ends, while a padded batch's first
tokens come in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longloom.kernels.kvcache.base import LayerState, Rope
from longloom.kernels.kvcache.heads import HeadProfile, check_share, given
from longloom.kernels.kvcache.longcache import LongCachePolicy
from longloom.kernels.kvcache.scoped import ScopedState
from longloom.kernels.kvcache.streaming import StreamingPolicy, StreamingState


@dataclass(eq=False)
class RazorLongCacheState(LayerState):
    """Two caches of one layer, each of its own KV heads.

    Attributes:
        retrieval, others: [heads] int64 on the keys' device, which KV heads are which; None before the first token.
        far: the retrieval heads' tokens, as `longcache` keeps them; None: the layer has no such heads.
        near: the first and last tokens of the others; None likewise.
    """

    retrieval: Tensor | None = None
    others: Tensor | None = None
    far: ScopedState | None = None
    near: StreamingState | None = None

    def bytes(self) -> int:
        return super().bytes() + sum(part.bytes() for part in (self.far, self.near) if part is not None)


@dataclass(frozen=True)
class RazorLongCachePolicy(LongCachePolicy):
    """LongCache for the retrieval heads, sinks and a sliding window of `local` for the others.

    Attributes:
        heads: the model's head profile; needed before the first token.
        induction, echo: shares of the KV heads that are retrieval heads (RazorAttention, section 3.2: 14% and 1%).
    """

    name: ClassVar[str] = "razor+longcache"
    state_type: ClassVar[type[LayerState]] = RazorLongCacheState
    profiled: ClassVar[bool] = True

    heads: HeadProfile | None = None
    induction: float = 0.14
    echo: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("induction", "echo"):
            check_share(self.name, option, getattr(self, option))

    def attend(  # type: ignore[override]
        self,
        state: RazorLongCacheState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        if state.retrieval is None or state.others is None:
            self._divide(state, key)
        assert state.retrieval is not None
        assert state.others is not None
        packed = query.unflatten(1, (key.shape[1], -1))  # [B, Hkv, G, S, D]
        output = torch.empty_like(packed)
        if state.far is not None:
            own = state.retrieval
            asked = packed[:, own].flatten(1, 2)
            far = super().attend(state.far, asked, key[:, own], value[:, own], rope, start=start, scaling=scaling)
            output[:, own] = far.unflatten(1, (len(own), -1))
        if state.near is not None:
            assert self.local is not None
            own = state.others
            asked = packed[:, own].flatten(1, 2)
            streaming = StreamingPolicy(sink=self.sink, window=self.local)
            near = streaming.attend(state.near, asked, key[:, own], value[:, own], rope, start=start, scaling=scaling)
            output[:, own] = near.unflatten(1, (len(own), -1))
        state.seen += key.shape[2]
        return output.flatten(1, 2)

    def _divide(self, state: RazorLongCacheState, key: Tensor) -> None:
        """Tell the layer's heads apart."""
        kv_heads = key.shape[1]
        profile = given(self.name, self.heads)
        chosen = profile.protected(self.name, state.layer, kv_heads, induction=self.induction, echo=self.echo)
        others = [head for head in range(kv_heads) if head not in chosen]
        state.retrieval = torch.tensor(chosen, dtype=torch.int64, device=key.device)
        state.others = torch.tensor(others, dtype=torch.int64, device=key.device)
        if chosen:
            far = super().state_type(state.layer, layers=state.layers)
            assert isinstance(far, ScopedState)
            state.far = far
        if others:
            state.near = StreamingState(state.layer, layers=state.layers)
