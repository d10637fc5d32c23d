"""InfLLM (arXiv 2402.04617): the middle of the cache in blocks, each found by a few keys that speak for it.

Section 3.2, as the authors' code reads it (github.com/thunlp/InfLLM, inf_llm/attention/context_manager.py): once a
block has left the local tokens, each query head picks the keys of it that its local queries paid most to,

    r_m = 1 / l sum_{j=1..l} q_{m+j} . k_m ,    l = `local`,

and what they have in common, their mean, is all that a search reads of the block. A chunk's queries, or a step's, want
the blocks with the highest sums of q . representatives over queries and query heads, and see these blocks whole.

Notable choices: r_m is the equation's, of un-rotated vectors, so that running sums of queries are enough; the authors'
code takes softmax weights of rotated ones, and rotates the queries of a search by l - 1. As in theirs blocks are
counted from the end of the sinks, and tokens that have left the local ones but fill no block yet stay visible. Unlike
theirs the scope stands at contiguous positions, as in all of this family: InfLLM puts whatever is not local at one
distance, l. Where the authors move blocks to the host, `host` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from longloom.kernels.kvcache.base import Alibi, LayerState, Rope, reserve
from longloom.kernels.kvcache.scoped import ScopedPolicy, ScopedState

#: Tokens of blocks that the default takes at most: as many as longcache's spans.
MOST_CHOSEN = 8192


@dataclass(eq=False)
class InfLLMState(ScopedState):
    """All tokens of one layer, what the latest were paid, and what speaks for each block.

    Attributes:
        paid: [B, Hq, n] float32: l * r_m so far of the last n slots, those that may not be in a block yet.
        means: [B, Hq, C, D] float32: of block n of the row, counted from its sinks' end, the mean of the keys that the
            query head chose; without meaning where the row has no such block.
    """

    paid: Tensor | None = None
    means: Tensor | None = None


@dataclass(frozen=True)
class InfLLMPolicy(ScopedPolicy):
    """A finite scope, chosen block by block.

    Attributes:
        blocks: of the middle that are seen at most; None: what the model's window leaves, 8,192 tokens at most. Theirs
            for Llama-3-8B (config/llama-3-inf-llm.yaml): 16, beside 128 sinks and 4,096 local tokens.
        block: tokens of each (theirs: 128).
        representatives: keys that a query head chooses of each (theirs: 4).
    """

    name: ClassVar[str] = "infllm"
    state_type: ClassVar[type[LayerState]] = InfLLMState

    blocks: int | None = None
    block: int = 128
    representatives: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None:
            self._check("blocks", self.blocks, 0)
        self._check("block", self.block, 1)
        self._check("representatives", self.representatives, 1)
        if self.representatives > self.block:
            raise ValueError(
                f"KV policy {self.name!r}: representatives must be at most block={self.block}, "
                f"found {self.representatives}"
            )

    @property
    def most_chosen(self) -> int:
        """With the tokens that wait for their block to fill."""
        assert self.blocks is not None
        return self.blocks * self.block + self.block - 1 if self.blocks else 0

    @property
    def recent(self) -> int:
        """The local tokens, and those of all blocks that a chunk may complete."""
        assert self.local is not None
        assert self.chunk is not None
        return self.local + self.chunk + 2 * self.block

    def fitted(self, rope: Rope | Alibi) -> Self:
        """With the defaults of the model's window.

        Raises:
            ValueError: the scope is larger than the window, or depends on one that is not known or too small for it.
        """
        assert isinstance(rope, Rope)
        fitted = super().fitted(rope)
        window, local, blocks = rope.window, fitted.local, self.blocks
        assert local is not None
        if blocks is None:
            if window is None:
                raise ValueError(f"KV policy {self.name!r} needs the option 'blocks': the model's window is not known")
            left, rest = window - fitted.sink - local, fitted.block - 1
            blocks = min((left - rest) // fitted.block, max(1, (MOST_CHOSEN - rest) // fitted.block))
            if blocks < 1:
                raise ValueError(
                    f"KV policy {self.name!r}: the model's window of {window} has no room for a block of "
                    f"{fitted.block} tokens, and less than one more that fills, beside sink {fitted.sink} and local "
                    f"{local}"
                )
        fitted = replace(fitted, blocks=blocks)
        size = fitted.scope_size
        if window is not None and size > window:
            raise ValueError(
                f"KV policy {self.name!r}: a scope of {size} tokens (sink {fitted.sink} + {blocks} blocks of "
                f"{fitted.block}, less than one more that fills + local {local}) is larger than the model's "
                f"window of {window}"
            )
        return fitted

    def choose(self, state: InfLLMState, query: Tensor, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        assert self.blocks is not None
        assert self.local is not None
        assert state.means is not None
        whole = (end - begin) // self.block  # [B], more than `blocks` in every row that has to choose
        most = (state.seen - self.local - self.sink) // self.block  # of any row
        wanted = query.float().sum(dim=2)  # [B, Hq, D]
        relevance = (state.means[:, :, :most] @ wanted[..., None])[..., 0].sum(dim=1)  # [B, n]
        number = torch.arange(most, device=query.device)
        relevance = relevance.masked_fill(number >= whole[:, None], -torch.inf)
        best = relevance.topk(self.blocks, dim=1).indices.sort(dim=1).values.int()
        inside = torch.arange(self.block, dtype=torch.int32, device=query.device)
        chosen = (best[..., None] * self.block + inside).flatten(1)  # from begin on
        filling = (whole * self.block)[:, None] + inside[:-1]
        slots = torch.cat((chosen, filling), dim=1) + begin[:, None]
        count = chosen.shape[1] + (end - begin) % self.block
        count = count.where(end > begin, 0).int()
        place = torch.arange(slots.shape[1], device=query.device)
        return slots.where(place < count[:, None], -1), count

    def _attend_chunk(
        self, state: ScopedState, query: Tensor, rope: Rope, start: Tensor | None, scaling: float
    ) -> Tensor:
        assert isinstance(state, InfLLMState)
        if self.blocks:
            self._pay(state, query)
            self._form(state, query.shape[2], start)
        return super()._attend_chunk(state, query, rope, start, scaling)

    def _pay(self, state: InfLLMState, query: Tensor) -> None:
        """Add what the newest queries pay to the `local` tokens before each of them."""
        assert self.local is not None
        batch, heads, new, _ = query.shape
        before = query.new_zeros(batch, heads, 0, dtype=torch.float32) if state.paid is None else state.paid
        state.paid = pad(before[..., new - self.recent :], (0, new))
        keys = state.tokens.last(min(state.seen, self.local + new)).float()  # [B, Hkv, n, D]
        sums = query.float().unflatten(1, (keys.shape[1], -1)).cumsum(dim=3)  # [B, Hkv, G, S, D]
        total = sums[:, :, :, -1:]
        paid = (total @ keys[:, :, None].mT)[..., 0, :]  # [B, Hkv, G, n]
        # The newest tokens are paid by the queries behind them alone, the oldest by those within `local` of them.
        paid[..., -new:] = ((total - sums) * keys[:, :, None, -new:]).sum(dim=-1)
        leaving = max(0, keys.shape[2] - self.local)
        if leaving:
            paid[..., :leaving] = (sums[:, :, :, new - leaving :] * keys[:, :, None, :leaving]).sum(dim=-1)
        state.paid[..., -keys.shape[2] :] += paid.flatten(1, 2)

    def _form(self, state: InfLLMState, new: int, start: Tensor | None) -> None:
        """Choose the representatives of the blocks that the newest tokens may have pushed out of the local ones.

        These are the last so many of each row, whether they are new or not: who is what only the device knows.
        """
        assert self.local is not None
        assert state.paid is not None
        most = (state.seen - self.local - self.sink) // self.block
        if most < 1:
            return
        fresh = -(-new // self.block)
        keys = state.tokens.last(state.paid.shape[2])
        batch, kv_heads, _, size = keys.shape
        first = torch.zeros(batch, dtype=torch.int64, device=keys.device) if start is None else start
        whole = (state.seen - self.local - self.sink - first).clamp(min=0) // self.block  # [B]
        number = whole[:, None] - fresh + torch.arange(fresh, device=keys.device)  # [B, fresh], negative: no block
        slots = (first + self.sink)[:, None] + number * self.block
        place = slots[..., None] + torch.arange(self.block, device=keys.device) - (state.seen - keys.shape[2])
        place = place.clamp(0, keys.shape[2] - 1)[:, None].expand(-1, state.paid.shape[1], -1, -1)
        paid = state.paid.gather(2, place.flatten(2)).view(place.shape)  # [B, Hq, fresh, block]
        best = place.gather(3, paid.topk(self.representatives, dim=3).indices)
        index = best.view(batch, kv_heads, -1, 1).expand(-1, -1, -1, size)
        means = keys.gather(2, index).view(*best.shape, size).float().mean(dim=3)  # [B, Hq, fresh, D]
        state.means = reserve(state.means, most + fresh, means)
        # What is no block goes behind the last of all rows, where the places of those to come are.
        index = (number % state.means.shape[2])[:, None, :, None].expand_as(means)
        state.means.scatter_(2, index, means)
