"""LongCache / ReAttention (arXiv 2407.15176): a top-k over the whole cache decides what the attention sees.

Before the attention of every layer, at every chunk of a prompt and every token of an answer, each query head takes the
`k` keys with the highest q . k, without positions, scale or softmax, of the whole middle of the cache. The most voted
`spans` of them, each with its neighbours, stand between the first and the last tokens. Nothing is trained and nothing
is evicted.

Exact where the authors' code is not: every key competes (theirs: one a block of 128 when a prompt is read; `block`),
query heads meet their own KV head, rows of a batch choose for themselves, and `local` is what it says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from longloom.kernels.attention.spans import vote_spans
from longloom.kernels.attention.topk import topk_votes
from longloom.kernels.kvcache.base import Alibi, Rope
from longloom.kernels.kvcache.scoped import ScopedPolicy, ScopedState

#: The most that the default takes: the paper's for models of 128K.
MOST_SPANS = 256


@dataclass(frozen=True)
class LongCachePolicy(ScopedPolicy):
    """A finite scope, chosen by votes of the newest queries.

    Attributes:
        spans: of the middle that are seen at most (the paper's k'); None: what the model's window leaves, 256 at most.
        span: tokens of each, an even number.
        k: keys that each query head votes for with each query.
        block: None: exact. A power of two from 32: the authors' approximate rule, where of each block of so many keys
            only the best competes.
    """

    name: ClassVar[str] = "longcache"

    spans: int | None = None
    span: int = 32
    k: int = 4
    block: int | None = None

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

    @property
    def most_chosen(self) -> int:
        assert self.spans is not None
        return self.spans * self.span

    def fitted(self, rope: Rope | Alibi) -> Self:
        """With the defaults of the model's window.

        Raises:
            ValueError: the scope is larger than the window, or depends on one that is not known.
        """
        assert isinstance(rope, Rope)
        fitted = super().fitted(rope)
        assert fitted.local is not None
        window, spans = rope.window, self.spans
        if spans is None:
            if window is None:
                raise ValueError(f"KV policy {self.name!r} needs the option 'spans': the model's window is not known")
            spans = min(max(0, window - fitted.sink - fitted.local) // fitted.span, MOST_SPANS)
        size = fitted.sink + spans * fitted.span + fitted.local
        if window is not None and size > window:
            raise ValueError(
                f"KV policy {self.name!r}: a scope of {size} tokens (sink {fitted.sink} + {spans} spans of "
                f"{fitted.span} + local {fitted.local}) is larger than the model's window of {window}"
            )
        return replace(fitted, spans=spans)

    def choose(self, state: ScopedState, query: Tensor, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        assert self.spans is not None
        (keys,) = state.tokens.pieces()
        votes = topk_votes(query, keys, self.k, begin=begin, end=end, block=self.block)
        return vote_spans(votes, self.spans, self.span, begin=begin, end=end)
