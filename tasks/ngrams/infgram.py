"""infinity-gram: what follows the longest suffix of a context that stands in the corpus.

    P(token | context) = C(suffix + token) / C(suffix)          Liu et al., COLM 2024 (arXiv 2401.17377), section 2

No smoothing and no back-off beyond that suffix: a token that never follows it has probability 0. What stands at the end
of a document counts as an occurrence that nothing follows. For the empty suffix infini-gram counts all tokens and
separators as occurrences, and so does this.

A probability comes from infini-gram's engine. With deleted documents, of which it knows nothing, it comes from our own
counts. A whole distribution always does: the engine's is exact only without a bound on its work, and then takes many
times as long (tried: 154 ms against 0.7 for a context of 29,372 occurrences). So do the probabilities of a batch, whose
contexts are looked up together.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longloom.tasks.ngrams.grams import flatten, pack_slices
from longloom.tasks.ngrams.layout import TOKEN_TYPES, separator
from longloom.tasks.ngrams.postings import SLICE, Shards
from longloom.tasks.ngrams.shard import OpenShard

#: Tokens of contexts that are looked up at once; about 50 bytes each.
BLOCK = 2**20


@dataclass(frozen=True)
class InfGram:
    """The probability of a token after a context.

    Attributes:
        probability: continued / occurrences; 0 where there are none.
        suffix: tokens of the longest suffix of the context that stands in the corpus; 0 for the empty one.
        occurrences: of that suffix.
        continued: occurrences that the token follows.
    """

    probability: float
    suffix: int
    occurrences: int
    continued: int


@dataclass(frozen=True)
class InfGrams:
    """The probabilities of a batch.

    Attributes:
        probability: float64 [n], and the rest int64 [n]: as in `InfGram`.
    """

    probability: np.ndarray
    suffix: np.ndarray
    occurrences: np.ndarray
    continued: np.ndarray


@dataclass(frozen=True)
class NextTokens:
    """What follows a context.

    Attributes:
        suffix: tokens of the longest suffix of the context that stands in the corpus.
        occurrences: of that suffix.
        tokens: int64 [m], those that follow it, in order.
        counts: int64 [m], how often; the rest of the occurrences end a document.
    """

    suffix: int
    occurrences: int
    tokens: np.ndarray
    counts: np.ndarray


def longest(count: Callable[[int], int], limit: int) -> int:
    """The largest number of tokens, up to `limit`, that `count` still finds; a longer sequence is never more often."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(middle) else (low, middle - 1)
    return low


def probability(shards: Shards, engine: Callable[[], Any], code: str, context: Sequence[int], token: int) -> InfGram:
    """The probability of a token after a context.

    Args:
        shards: of the index.
        engine: opens infini-gram's engine.
        code: of the tokens in the module `array`.
        context: tokens, checked; may be empty.
        token: checked.
    """
    if not len(shards.deleted):
        found = engine().infgram_prob(prompt_ids=list(context), cont_id=token)
        answer = (int(found.suffix_len), int(found.prompt_cnt), int(found.cont_cnt))
    else:
        suffix = _longest_suffix(shards, code, context)
        occurrences = shards.count(array(code, suffix).tobytes()) if suffix else shards.entries()
        answer = (len(suffix), occurrences, shards.count(array(code, [*suffix, token]).tobytes()))
    _, occurrences, continued = answer
    return InfGram(continued / occurrences if occurrences else 0.0, *answer)


def probabilities(shards: Shards, queries: Sequence[Sequence[int]], *, limit: int) -> InfGrams:
    """The probabilities of many tokens, each after a context of its own.

    Args:
        shards: of the index.
        queries: n contexts, each with its token behind it.
        limit: tokens are below it.

    Raises:
        ValueError: a token out of range.
    """
    tokens, lengths = flatten(queries, limit=limit)
    ends = np.cumsum(lengths)
    found = [np.zeros((3, 0), dtype=np.int64)]
    first = 0
    while first < len(lengths):
        done = ends[first] - lengths[first]
        behind = max(first + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
        found.append(_block(shards, tokens, ends[first:behind] - 1, lengths[first:behind] - 1))
        first = behind
    suffix, occurrences, continued = np.concatenate(found, axis=1)
    probability = np.divide(continued, occurrences, out=np.zeros(len(suffix)), where=occurrences > 0)
    return InfGrams(probability, suffix, occurrences, continued)


def _block(shards: Shards, tokens: np.ndarray, ends: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Suffix, occurrences and continued of contexts that end before `ends`; int64 [3, m]."""
    dtype = TOKEN_TYPES[shards.token_dtype]

    def count(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        grams = pack_slices(tokens, starts, sizes, dtype=dtype)
        counts: np.ndarray = shards.counts(grams)[grams.numbers]
        return counts

    found, most = np.zeros_like(limits), limits.copy()  # so many tokens stand there; more than so many do not
    occurrences = np.full(len(limits), shards.entries())
    gallops = np.ones(len(limits), dtype=bool)  # most suffixes are short, and contexts long
    while len(active := np.flatnonzero(found < most)):
        low, high = found[active], most[active]
        sizes = np.where(gallops[active], np.minimum(np.maximum(2 * low, 1), high), (low + high + 1) // 2)
        counts = count(ends[active] - sizes, sizes)
        there = counts > 0
        found[active[there]], occurrences[active[there]] = sizes[there], counts[there]
        most[active[~there]], gallops[active[~there]] = sizes[~there] - 1, False
    return np.stack([found, occurrences, count(ends - found, found + 1)])


def next_tokens(shards: Shards, code: str, context: Sequence[int]) -> NextTokens:
    """All tokens that follow a context; the arguments are those of `probability`."""
    suffix = _longest_suffix(shards, code, context)
    query = array(code, suffix).tobytes()
    parts = [_following(shard, query) for shard in shards.shards]
    if shards.gone is not None:
        tokens, counts = _following(shards.gone, query)
        parts.append((tokens, -counts))
    tokens, inverse = np.unique(np.concatenate([tokens for tokens, _ in parts]), return_inverse=True)
    counts = np.zeros(len(tokens), dtype=np.int64)
    np.add.at(counts, inverse, np.concatenate([counts for _, counts in parts]))
    kept = (counts > 0) & (tokens != separator(shards.token_dtype))
    occurrences = shards.count(query) if suffix else shards.entries()
    return NextTokens(len(suffix), occurrences, tokens[kept], counts[kept])


def _longest_suffix(shards: Shards, code: str, context: Sequence[int]) -> Sequence[int]:
    size = longest(lambda size: shards.count(array(code, context[len(context) - size :]).tobytes()), len(context))
    return context[len(context) - size :]


def _following(shard: OpenShard, query: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The tokens behind a query, separators included, and how often each; int64."""
    first, last = shard.find(query) if query else (0, shard.entries)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(first, last, SLICE):
        places = shard.pointers(np.arange(start, min(start + SLICE, last))) + len(query)
        places = places[places < shard.tokens.nbytes]
        tokens, counts = np.unique(shard.tokens[places // shard.tokens.itemsize], return_counts=True)
        found.append((tokens.astype(np.int64), counts))
    empty = np.zeros(0, dtype=np.int64)
    return (
        np.concatenate([empty, *(tokens for tokens, _ in found)]),
        np.concatenate([empty, *(counts for _, counts in found)]),
    )
