"""An index that looks at every position of every document, with the methods that tasks/sources asks."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from longloom.tasks.ngrams.query import Document


class BruteIndex:
    """Documents are lists of tokens."""

    def __init__(self, documents: Sequence[Sequence[int]], deleted: Sequence[int] = (), vocab_size: int = 256) -> None:
        self.documents_ = [list(document) for document in documents]
        self.deleted = np.array(sorted(deleted), dtype=np.int64)
        tokens = sum(map(len, self.documents_))
        self.layout: Any = SimpleNamespace(tokens=tokens, vocab_size=vocab_size, token_dtype="u8")

    def positions(self, query: Sequence[int]) -> np.ndarray:
        tokens = list(query)
        found = [
            (ordinal, place)
            for ordinal, document in enumerate(self.documents_)
            if ordinal not in self.deleted
            for place in range(len(document) - len(tokens) + 1)
            if document[place : place + len(tokens)] == tokens
        ]
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def count(self, query: Sequence[int]) -> int:
        return len(self.positions(query))

    def counts(self, queries: Sequence[Sequence[int]]) -> np.ndarray:
        return np.array([self.count(query) for query in queries], dtype=np.int64)

    def longest_prefix(self, tokens: Sequence[int]) -> int:
        return next(n for n in range(len(tokens), -1, -1) if not n or self.count(tokens[:n]))

    def document(self, ordinal: int) -> Document:
        return Document(ordinal, f"d{ordinal}", "s", np.array(self.documents_[ordinal], dtype=np.int64))
