"""LongCache / ReAttention (arXiv 2407.15176): a top-k over the whole cache decides what the attention sees.

Before the attention of every layer, at every chunk of a prompt and every token of an answer, each query head takes the
`k` keys with the highest q . k, without positions, scale or softmax, of the whole middle of the cache. The most voted
`spans` of them, each with its neighbours, stand between the first and the last tokens. Nothing is trained and nothing
is evicted.

Exact where the authors' code is not: every key competes (theirs: one a block of 128 when a prompt is read; `block`),
query heads meet their own KV head, rows of a batch choose for themselves, and `local` is what it says. And where the
scope has room for all tokens none is left out (theirs selects as soon as there are more than sink + local).

A search in every chunk of a prompt reads all keys each time, and the prompt's own keys are made in scopes of spans.
With `asking` only a prompt's last tokens search; the text before is read among its neighbours, in linear time (the
authors' code can select when decoding alone).

Three options make a step cheaper and are no longer exact, each at a cost in quality: a copy of the keys in 8 bits is
searched (`scoring`), or summaries of blocks of keys say which blocks are (`summary`), or the steps of an answer choose
anew only now and then (`reuse`). They are not of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from longloom.kernels.attention.spans import vote_spans
from longloom.kernels.attention.topk import topk_votes
from longloom.kernels.kvcache.base import Alibi, LayerState, Rope
from longloom.kernels.kvcache.held_scope import HeldScope
from longloom.kernels.kvcache.key_blocks import KeyBlocks
from longloom.kernels.kvcache.key_codes import KeyCodes
from longloom.kernels.kvcache.scoped import ScopedPolicy, ScopedState

#: The most tokens that the default chooses: the paper's 256 spans of 32 for models of 128K.
MOST_CHOSEN = 8192

#: What the numbers of a scoring copy are.
SCORING = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(eq=False)
class LongCacheState(ScopedState):
    """All tokens of one layer, and what the options add.

    Attributes:
        codes: the keys in 8 bits (`scoring`).
        blocks: summaries of the keys (`summary`).
        held: the scope of the last selection and the tokens since (`reuse`).
    """

    codes: KeyCodes | None = None
    blocks: KeyBlocks | None = None
    held: HeldScope | None = None

    def bytes(self) -> int:
        parts = [part for part in (self.codes, self.blocks, self.held) if part is not None]
        return super().bytes() + sum(tensor.untyped_storage().nbytes() for part in parts for tensor in part.tensors())


@dataclass(frozen=True)
class LongCachePolicy(ScopedPolicy):
    """A finite scope, chosen by votes of the newest queries.

    Attributes:
        spans: of the middle that are seen at most (the paper's k'); None: what the model's window leaves, 8,192
            tokens at most.
        span: tokens of each, an even number.
        k: keys that each query head votes for with each query.
        block: None: exact. A power of two from 32: the authors' approximate rule, where of each block of so many keys
            only the best competes; here for an answer's tokens too, which theirs searches exactly.
        scoring: "exact"; "int8" or "fp8" (float8_e4m3fn): the votes are those of a copy of the keys with one code a
            number and one scale a key, which is all that is searched. Queries are not rounded.
        summary: 0, or a power of two: of every block of so many keys, counted from the batch's first slot, the extremes
            are kept, and each query head and query votes among the keys of its `blocks` most promising blocks alone
            (`kernels.attention.summaries`).
        blocks: of `summary`, at least `k`.
        asking: 0: every call searches. Else only calls with at most so many tokens do: a prompt's end, which `generate`
            feeds apart, and the tokens of an answer. A longer call is text: beyond the scope it sees the first and
            last tokens alone.
        reuse: steps of an answer (calls with one token) from one selection to the next, at least 1. In between what was
            chosen stays, and `local` grows by the tokens that come, so that nothing is lost sight of; the scope is
            larger by up to reuse - 1 tokens. Without spans there is nothing to reuse.
    """

    name: ClassVar[str] = "longcache"
    state_type: ClassVar[type[LayerState]] = LongCacheState

    spans: int | None = None
    span: int = 32
    k: int = 4
    block: int | None = None
    scoring: str = "exact"
    summary: int = 0
    blocks: int = 8
    reuse: int = 1
    asking: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spans is not None:
            self._check("spans", self.spans, 0)
        self._check("k", self.k, 1)
        self._check("span", self.span, 2)
        if self.span % 2:
            raise ValueError(f"KV policy {self.name!r}: span must be an even number, found {self.span}")
        if self.block is not None:
            self._check("block", self.block, 32)
            if self.block & (self.block - 1):
                raise ValueError(f"KV policy {self.name!r}: block must be a power of two, found {self.block}")
        if self.scoring != "exact" and self.scoring not in SCORING:
            known = ", ".join(["exact", *SCORING])
            raise ValueError(f"KV policy {self.name!r}: scoring must be one of {known}, found {self.scoring!r}")
        self._check("summary", self.summary, 0)
        if self.summary == 1 or self.summary & (self.summary - 1):
            raise ValueError(f"KV policy {self.name!r}: summary must be 0 or a power of two, found {self.summary}")
        self._check("blocks", self.blocks, 1)
        if self.summary and self.blocks < self.k:
            raise ValueError(f"KV policy {self.name!r}: blocks must be at least k={self.k}, found {self.blocks}")
        self._check("reuse", self.reuse, 1)
        self._check("asking", self.asking, 0)
        if self.block is not None and self.host:
            raise ValueError(
                f"KV policy {self.name!r}: block={self.block} needs the keys side by side, but with host=1 they are "
                "in pages"
            )
        chosen = [f"summary={self.summary}"] if self.summary else []
        chosen += [f"scoring={self.scoring}"] if self.scoring != "exact" else []
        chosen += [f"block={self.block}"] if self.block is not None else []
        if len(chosen) > 1:
            raise ValueError(
                f"KV policy {self.name!r}: block, scoring and summary are three ways to search the keys, found "
                f"{' and '.join(chosen)}"
            )

    @property
    def most_chosen(self) -> int:
        assert self.spans is not None
        return self.spans * self.span

    @property
    def apart(self) -> int:
        return self.asking

    @property
    def joint_from(self) -> int | None:
        """Where the scope is full; with `reuse` an answer's first token opens a scope that is held from there on."""
        return 0 if self.most_reused else super().joint_from

    def check_chunks(self, size: int) -> None:
        # A chunk of the text that is as short as what asks would search.
        if self.asking >= size:
            raise ValueError(
                f"KV policy {self.name!r}: asking must be less than {size}, the tokens of a chunk in which prompts are "
                f"read, found {self.asking}"
            )

    def reads(self, tokens: int) -> bool:
        return 0 < self.asking < tokens

    @property
    def most_reused(self) -> int:
        """Tokens that come from one selection to the next at most, of a policy that is `fitted`."""
        return self.reuse - 1 if self.spans else 0

    def fitted(self, rope: Rope | Alibi) -> Self:
        """With the defaults of the model's window.

        Raises:
            ValueError: the scope is larger than the window, or depends on one that is not known or too small for it.
        """
        assert isinstance(rope, Rope)
        fitted = super().fitted(rope)
        assert fitted.local is not None
        window, spans = rope.window, self.spans
        reused = f" + {self.reuse - 1} of reuse={self.reuse}" if self.reuse > 1 else ""
        if spans is None:
            if window is None:
                raise ValueError(f"KV policy {self.name!r} needs the option 'spans': the model's window is not known")
            left = window - fitted.sink - fitted.local - (self.reuse - 1)
            spans = min(left // fitted.span, max(1, MOST_CHOSEN // fitted.span))
            if spans < 1:
                raise ValueError(
                    f"KV policy {self.name!r}: the model's window of {window} has no room for a span of {fitted.span} "
                    f"tokens beside sink {fitted.sink} and local {fitted.local}{reused}"
                )
        fitted = replace(fitted, spans=spans)
        assert fitted.local is not None
        size = fitted.scope_size + fitted.most_reused
        if window is not None and size > window:
            raise ValueError(
                f"KV policy {self.name!r}: a scope of {size} tokens (sink {fitted.sink} + {spans} spans of "
                f"{fitted.span} + local {fitted.local}{reused if spans else ''}) is larger than the model's window of "
                f"{window}"
            )
        return fitted

    def attend(
        self,
        state: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        if key.shape[2] > 1 or not self.most_reused:
            state.held = None  # a new turn of a conversation ends the reuse
            return super().attend(state, query, key, value, rope, start=start, scaling=scaling)
        state.reading = self.reads(1)  # not what it was in the call before, which may have been text
        query = query.contiguous()
        self._take_in(state, key, value)
        if state.held is None:
            state.held = HeldScope()
        if state.held.full:
            positions, count = self._lay_out(state, query, start)
            state.held.fill(state.tokens, positions, count, rope, spare=self.most_reused)
        else:
            state.held.append(key, value, rope, start)
        attended: Tensor = state.held.attend(query, rope, start, scaling)
        return attended

    def _take_in(self, state: Any, key: Tensor, value: Tensor) -> None:
        super()._take_in(state, key, value)
        if self.scoring != "exact" and self.most_chosen:
            state.codes = state.codes or KeyCodes(SCORING[self.scoring])
            state.codes.append(key)
        if self.summary and self.most_chosen:
            state.blocks = state.blocks or KeyBlocks(self.summary)
            state.blocks.append(key)

    def choose(self, state: Any, query: Tensor, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        assert self.spans is not None
        votes = self._votes(state, query, begin, end)
        return vote_spans(votes, self.spans, self.span, begin=begin, end=end)

    def _votes(self, state: Any, query: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        """The votes of every slot [B, N] int32, N at least `end`."""
        votes: Tensor
        if self.scoring != "exact":
            votes = state.codes.votes(query, self.k, begin, end)
        elif self.summary:
            votes = state.blocks.votes(query, state.tokens.pieces(), self.k, self.blocks, begin, end)
        else:
            votes = topk_votes(query, state.tokens.pieces(), self.k, begin=begin, end=end, block=self.block)
        return votes
