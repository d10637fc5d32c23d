"""What a trace asks of a corpus index, n-grams as its tokens, and the infinity-gram probability of a piece of text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Tokens = tuple[int, ...]

#: Characters before an n-gram that its infinity-gram probability looks at, as in the released code. A match of the
#: corpus that is longer than that tells as much.
CONTEXT = 500
#: Pieces whose probabilities are looked up at once.
_PIECES = 1024
#: Put before what is encoded as it stands in running text, and taken off again: some tokenizers add a space to the
#: beginning of a text.
_ANCHOR = "\n"


class Corpus(Protocol):
    """An open index (`longloom.tasks.ngrams.query.Index`), as far as it is asked here."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...
    def counts(self, queries: Sequence[Sequence[int]]) -> np.ndarray: ...
    def positions(self, query: Sequence[int]) -> np.ndarray: ...
    def documents(self, query: Sequence[int]) -> np.ndarray: ...
    def document(self, ordinal: int) -> Any: ...
    def cooccurrences(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> np.ndarray: ...
    def infgram_probabilities(self, contexts: Sequence[Sequence[int]], tokens: Sequence[int]) -> Any: ...


class InfinityGram(NamedTuple):
    """Attributes: log_p: natural, None where no token has any probability. zero: tokens without. tokens: all."""

    log_p: float | None
    zero: int
    tokens: int


def tokens_of(index: Corpus, surface: str) -> Tokens | None:
    """The tokens of a piece of text as it stands within another one; None if the index could not have them.

    Args:
        index: whose tokens.
        surface: with the space before it, if there is one.
    """
    anchor = _encoded(index, _ANCHOR)  # none: the tokenizer drops white space, and adds none
    whole = _encoded(index, _ANCHOR + surface)
    if anchor and whole and whole[: len(anchor)] == anchor:
        return whole[len(anchor) :]
    return _encoded(index, surface)


def _encoded(index: Corpus, text: str) -> Tokens | None:
    """None: it has no tokens, or not all of it is in the tokenizer's vocabulary."""
    try:
        return tuple(index.encode(text))
    except ValueError:
        return None


def known(found: Iterable[Tokens | None]) -> list[Tokens]:
    """The distinct ones, in order."""
    return [tokens for tokens in dict.fromkeys(found) if tokens]


def occurrences(index: Corpus, queries: Sequence[Tokens]) -> dict[Tokens, int]:
    """C(s, D) of each."""
    return dict(zip(queries, index.counts(queries).tolist(), strict=True)) if queries else {}


def together(index: Corpus, pairs: Sequence[tuple[Tokens, Tokens]]) -> dict[tuple[Tokens, Tokens], int]:
    """C((x, y), D) of each: the documents that hold both."""
    return dict(zip(pairs, index.cooccurrences(pairs).tolist(), strict=True)) if pairs else {}


def infinity_grams(index: Corpus, pieces: Sequence[tuple[str, str]], *, zero_as_one: bool) -> list[InfinityGram | None]:
    """The probability of each piece of text after another one, each token by the longest context that the corpus holds.

    A token of zero probability counts as 1, unless all of them are zero (section 5, equation 5).

    Args:
        index: over the corpus.
        pieces: all that stands before each piece, whose last CONTEXT characters are looked at; and the piece with the
            space before it, if there is one.
        zero_as_one: count zeros as 1 where all are zero too, as the released code does.

    Returns:
        None where the index could not have the piece or what stands before it.
    """
    found: list[InfinityGram | None] = []
    for begin in range(0, len(pieces), _PIECES):
        asked = [_with_context(index, *piece) for piece in pieces[begin : begin + _PIECES]]
        contexts = [[*context, *piece[:place]] for context, piece in asked for place in range(len(piece))]
        tokens = [token for _, piece in asked for token in piece]
        values = iter(index.infgram_probabilities(contexts, tokens).probability.tolist())
        for _, piece in asked:
            logs = [math.log(value) for value in itertools.islice(values, len(piece)) if value > 0]
            told = InfinityGram(math.fsum(logs) if logs or zero_as_one else None, len(piece) - len(logs), len(piece))
            found.append(told if piece else None)
    return found


def _with_context(index: Corpus, before: str, surface: str) -> tuple[Tokens, Tokens]:
    """The tokens of what is looked at before a piece, and of the piece; none if the index could not have them."""
    piece = tokens_of(index, surface)
    context = tokens_of(index, before[-CONTEXT:]) if before else ()
    return ((), ()) if not piece or context is None else (context, piece)
