"""KV policies that read a prompt with full attention and then decode from a cache that is truly smaller.

A policy of this family fills one method, `compress`: the prompt's keys and values in, a ragged cache out, in which each
row and KV head has a length of its own. Tokens of the answer, and of later turns, are appended to it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from longloom.kernels.attention.append import append
from longloom.kernels.attention.decode import decode
from longloom.kernels.attention.pages import RaggedKV
from longloom.kernels.kvcache.base import Alibi, LayerState, Rope, SharedPrefillPolicy, positions_of
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState

#: Tokens of a later turn that are decoded at once: the kernel's partial results take memory for each of them.
_STEP = 512


@dataclass(eq=False)
class CompressedState(LayerState):
    """First a prompt, then what is kept of it with the answer behind.

    Attributes:
        prompt: while the prompt comes in.
        cache: afterwards. Keys are rotated to their positions.
    """

    prompt: PromptState | None = None
    cache: RaggedKV | None = None

    def bytes(self) -> int:
        if self.cache is not None:
            return self.cache.bytes()
        return 0 if self.prompt is None else self.prompt.bytes()


@dataclass(frozen=True)
class CompressedPolicy(SharedPrefillPolicy[CompressedState]):
    """Dense attention for the prompt, a compressed cache for the answer."""

    state_type: ClassVar[type[LayerState]] = CompressedState

    @abstractmethod
    def compress(self, prompt: PromptState, rope: Any) -> RaggedKV:
        """What to decode with.

        Args:
            prompt: keys (rotated) and values [B, Hkv, capacity, D], of which the first `seen` slots are in use, and the
                last queries (un-rotated). It is not changed.
            rope: the model's rotary embedding, or its `Alibi`; with that, what is kept must be each row's last tokens.
        """

    def keep(self, prompt: PromptState, rope: Rope | Alibi) -> CompressedState:
        return CompressedState(prompt.layer, prompt.seen, layers=prompt.layers, cache=self.compress(prompt, rope))

    def attend(
        self,
        state: CompressedState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope | Alibi,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        length = key.shape[2]
        if state.cache is None and (state.prompt is None or length > 1):
            # Called piece by piece, without being told where the prompt ends: it ends before the first single token. A
            # caller that cuts prompts must leave no single token over (transformers' `prefill_chunk_size` may).
            state.prompt = state.prompt or PromptState(state.layer, layers=state.layers, sliding=state.sliding)
            whole = PromptPolicy(observed=self.observed)
            output = whole.attend(state.prompt, query, key, value, rope, start=start, scaling=scaling)
            state.seen = state.prompt.seen
            return output
        if state.cache is None:
            assert state.prompt is not None
            check_ended(self.name, state.seen, start)
            state.cache, state.prompt = self.compress(state.prompt, rope), None
        positions = positions_of(state.seen, length, start, key.device)
        query, key = rope.rotate(query, positions), rope.rotate(key, positions)
        slopes = rope.slopes_on(query.device)
        state.seen += length
        # A cache that folds takes one token at a time, since each may move another into the mean.
        pieces = 1 if state.cache.limit is not None else _STEP
        outputs = []
        for begin in range(0, length, pieces):
            some = slice(begin, begin + pieces)
            append(state.cache, key[:, :, some].contiguous(), value[:, :, some].contiguous())
            outputs.append(decode(query[:, :, some].contiguous(), state.cache, scale=scaling, alibi=slopes)[0])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def check_ended(name: str, seen: int, start: Tensor | None) -> None:
    """Refuse (ValueError) a row that is padding still after prompts have ended: it would be taken for tokens."""
    if start is not None and bool((start > seen).any()):
        raise ValueError(
            f"KV policy {name!r}: prompts end before the first token that is fed alone, here after {seen}, found a row "
            "that is padding beyond that: feed more tokens at once"
        )


def tokens_of(prompt: PromptState) -> list[int]:
    """Tokens of each row of a prompt, without its padding; waits for the device where there is any."""
    assert prompt.keys is not None
    padding = [0] * len(prompt.keys) if prompt.start is None else prompt.start.tolist()
    return [prompt.seen - left for left in padding]
