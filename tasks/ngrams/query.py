"""Asks an n-gram index: how often, where and in which documents does this stand?

The files are checked first (layout.py), since infini-gram's engine would end the process over a damaged one. Nothing
crosses from one document into the next: a separator stands between them, and no query holds one. Deleted documents
are nowhere counted and nowhere found.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from infini_gram.engine import InfiniGramEngine

from longloom.tasks.ngrams import cooccurrence
from longloom.tasks.ngrams.encode import Encoder, encoder
from longloom.tasks.ngrams.grams import Grams, pack
from longloom.tasks.ngrams.infgram import (
    InfGram,
    InfGrams,
    NextTokens,
    longest,
    next_tokens,
    probabilities,
    probability,
)
from longloom.tasks.ngrams.layout import (
    TOKENIZER_FOLDER,
    Layout,
    plain_path,
    read_deleted,
    read_layout,
    separator,
)
from longloom.tasks.ngrams.postings import Shards
from longloom.tasks.ngrams.sampling import Estimates, draw, estimate
from longloom.tasks.ngrams.shard import open_shard, read_metadata

#: Many n-grams; as an integer array [n, length] they are read without a detour.
Queries = Sequence[Sequence[int]] | np.ndarray


@dataclass(frozen=True)
class Document:
    """A document of the corpus.

    Attributes:
        ordinal: its place in the corpus, from 0.
        id: as the corpus names it.
        source: where it comes from.
        tokens: [n], as the index holds them.
    """

    ordinal: int
    id: str
    source: str
    tokens: np.ndarray


class Index:
    """An open index; safe to use from several threads.

    Made by `open_index`. A query is a text, which is encoded, or tokens.

    Attributes:
        path: its folder.
        layout: token type and sizes.
        deleted: int64, ordinals of deleted documents, sorted.
    """

    def __init__(self, path: Path, layout: Layout, encode: Encoder, deleted: np.ndarray) -> None:
        self.path = path
        self.layout = layout
        self.deleted = deleted
        self._encoder = encode
        shards = [open_shard(path, layout, number) for number in range(len(layout.shards))]
        self._shards = Shards(shards, deleted, layout.token_dtype)
        self._code = self.layout.dtype.char  # of the module `array`
        self._limit = min(layout.vocab_size, separator(layout.token_dtype))  # tokens are below it

    def encode(self, text: str) -> list[int]:
        """The tokens by which a text is looked up.

        Raises:
            ValueError: text without tokens, or with something that the tokenizer's vocabulary cannot express.
        """
        try:
            tokens: list[int] = self._encoder.encode([text])[0].tolist()
        except UnicodeEncodeError:
            raise ValueError(f"{text!r}: holds a lone surrogate, expected text that UTF-8 can hold") from None
        if not tokens:
            raise ValueError(f"{text!r}: has no tokens to look for")
        if self._encoder.unknown is not None and self._encoder.unknown in tokens:
            raise ValueError(
                f"{text!r}: holds something that is not in the tokenizer's vocabulary, so it was not indexed"
            )
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are a part of a character become U+FFFD."""
        return self._encoder.decode(tokens)

    def count(self, query: str | Sequence[int]) -> int:
        """Occurrences in all documents, overlapping ones included.

        In an index of raw bytes a text is counted as a substring. In an index of tokens its *token sequence* is
        counted: an occurrence whose tokens are cut differently (within a longer word, before a space that the
        tokenizer joins to the next word) is not one.

        Raises:
            ValueError: an empty query, or a token that is not in the vocabulary.
        """
        return self._count(self._tokens(query))

    def counts(self, queries: Queries) -> np.ndarray:
        """Occurrences of each of many queries, int64 [n]; a query may come more than once.

        Raises:
            ValueError: as `count`, with the query's number.
        """
        grams = self._pack(queries)
        counts: np.ndarray = self._shards.counts(grams)[grams.numbers]
        return counts

    def positions(self, query: str | Sequence[int]) -> np.ndarray:
        """Where a query stands.

        Returns:
            int64 [occurrences, 2]: document ordinal and offset in its tokens, sorted.
        """
        found = self._shards.occurrences(*self._shards.ranges_of(self._bytes(self._tokens(query))))
        places = np.sort(np.concatenate([places for _, _, places, _ in found]))
        documents, begins, _ = self._shards.extents(places)
        return np.stack([documents, places - begins], axis=1)

    def documents(self, query: str | Sequence[int]) -> np.ndarray:
        """The documents that hold a query: int64, ordinals, sorted, each once."""
        found = self._shards.postings(*self._shards.ranges_of(self._bytes(self._tokens(query))))
        return np.concatenate([np.zeros(0, dtype=np.int64), *(documents for _, documents in found)])

    def document(self, ordinal: int) -> Document:
        """A document by its ordinal.

        Raises:
            ValueError: no such document, or a deleted one.
        """
        if not 0 <= ordinal < self.layout.documents:
            raise ValueError(f"document {ordinal}: is not there, expected 0 to {self.layout.documents - 1}")
        if np.isin(ordinal, self.deleted):
            raise ValueError(f"document {ordinal}: is deleted")
        identifier, source = read_metadata(self.path, *self._shards.locate(ordinal))
        return Document(int(ordinal), identifier, source, self._shards.tokens(ordinal))

    def document_counts(self, queries: Queries) -> np.ndarray:
        """Documents that hold each of many queries, int64 [n]."""
        grams = self._pack(queries)
        counts = np.zeros(grams.distinct, dtype=np.int64)
        for numbers, _ in self._shards.postings(*self._shards.ranges(grams)):
            counts += np.bincount(numbers, minlength=grams.distinct)
        found: np.ndarray = counts[grams.numbers]
        return found

    def cooccurrences(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        within: int | None = None,
        memory_gib: float = 1.0,
    ) -> np.ndarray:
        """Documents that hold both n-grams of each pair, exact; int64 [n], zeros included.

        Args:
            pairs: two queries each; a pair may come more than once.
            within: count documents in which at most so many tokens stand between the two n-grams, in either order;
                between overlapping ones stands nothing. None: anywhere in the document.
            memory_gib: memory that occurrences may take; beyond it they go to disk.

        Raises:
            ValueError: as `counts`; a negative distance.
        """
        grams = self._pack([*(first for first, _ in pairs), *(second for _, second in pairs)])
        return cooccurrence.cooccurrences(self._shards, grams, within=within, memory_gib=memory_gib)

    def estimate_cooccurrences(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        sample: int,
        seed: int = 0,
        within: int | None = None,
        memory_gib: float = 1.0,
    ) -> Estimates:
        """The same from a uniform sample of documents: unbiased estimates with intervals (sampling.py).

        Args:
            pairs: two queries each.
            sample: documents to draw; where there are no more the answer is exact.
            seed: of the sample.
            within: as for `cooccurrences`.
            memory_gib: as for `cooccurrences`.

        Raises:
            ValueError: as `cooccurrences`; less than one document to draw, or none there.
        """
        grams = self._pack([*(first for first, _ in pairs), *(second for _, second in pairs)])
        drawn = draw(self._shards, sample, seed)
        found = cooccurrence.cooccurrences(drawn, grams, within=within, memory_gib=memory_gib)
        return estimate(found, sample=drawn.documents, population=self._shards.documents - len(self.deleted))

    def infgram_probability(self, context: Sequence[int], token: int) -> InfGram:
        """The infinity-gram probability of a token after a context, which may be empty (infgram.py)."""
        [token] = self._tokens([token])
        return probability(self._shards, lambda: self._engine, self._code, self._context(context), token)

    def infgram_probabilities(self, contexts: Sequence[Sequence[int]], tokens: Sequence[int]) -> InfGrams:
        """The infinity-gram probabilities of n tokens, each after a context of its own, many times as fast.

        Args:
            contexts: n of them; one may be empty.
            tokens: [n].

        Raises:
            ValueError: as `counts`; another number of tokens than of contexts.
        """
        if len(contexts) != len(tokens):
            raise ValueError(f"found {len(tokens)} tokens for {len(contexts)} contexts, expected one for each")
        queries = [[*context, token] for context, token in zip(contexts, tokens, strict=True)]
        return probabilities(self._shards, queries, limit=self._limit)

    def infgram_next(self, context: Sequence[int]) -> NextTokens:
        """All tokens that follow the longest suffix of a context that stands in the corpus."""
        return next_tokens(self._shards, self._code, self._context(context))

    def longest_prefix(self, tokens: Sequence[int]) -> int:
        """How many of the tokens, from the first one, stand in one document of the corpus in this order."""
        tokens = self._tokens(tokens)
        return longest(lambda size: self._count(tokens[:size]), len(tokens))

    @cached_property
    def _engine(self) -> Any:
        """infini-gram's, opened when first asked."""
        vocab_size = min(self.layout.vocab_size + 1, separator(self.layout.token_dtype))  # of the tokens' type
        with plain_path(self.path) as link:
            return InfiniGramEngine(
                index_dir=str(link),
                eos_token_id=vocab_size - 1,  # only a name, given to separators in what is not used here
                vocab_size=vocab_size,
                token_dtype=self.layout.token_dtype,
                ds_prefetch_depth=0,  # several times as fast with the files in the page cache
                sa_prefetch_depth=0,
                od_prefetch_depth=0,
            ).engine  # the wrapper checks again what is checked here

    def _context(self, context: Sequence[int]) -> list[int]:
        return self._tokens(context) if len(context) else []

    def _tokens(self, query: str | Sequence[int]) -> list[int]:
        tokens = self.encode(query) if isinstance(query, str) else [operator.index(token) for token in query]
        if not tokens:
            raise ValueError("the query holds no tokens, expected at least one")
        if min(tokens) < 0 or max(tokens) >= self._limit:
            wrong = next(token for token in tokens if not 0 <= token < self._limit)
            raise ValueError(f"token {wrong} is not in the vocabulary, expected 0 to {self._limit - 1}")
        return tokens

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        return array(self._code, tokens).tobytes()

    def _count(self, tokens: Sequence[int]) -> int:
        return self._shards.count(self._bytes(tokens))

    def _pack(self, queries: Queries) -> Grams:
        return pack(queries, dtype=self.layout.dtype, limit=self._limit)


def open_index(path: Path) -> Index:
    """Checks an index and opens it.

    Args:
        path: the folder that `build` wrote.

    Raises:
        FileNotFoundError: no index there, or one of its files is missing.
        ValueError: its files do not belong together: truncated, empty, of another width, of another tokenizer.
    """
    layout = read_layout(path)
    encode = encoder(None if layout.token_dtype == "u8" else path / TOKENIZER_FOLDER)
    if (encode.token_dtype, encode.vocab_size) != (layout.token_dtype, layout.vocab_size):
        raise ValueError(
            f"{path}: holds tokens of {layout.token_dtype} below {layout.vocab_size}, "
            f"its tokenizer gives {encode.token_dtype} below {encode.vocab_size}"
        )
    if layout.tokenizer is not None and layout.tokenizer != encode.digest:
        found = "raw bytes" if encode.digest is None else encode.digest[:12]
        raise ValueError(f"{path}: holds tokens of the tokenizer {layout.tokenizer[:12]}, found {found} beside them")
    return Index(path, layout, encode, read_deleted(path, layout))
