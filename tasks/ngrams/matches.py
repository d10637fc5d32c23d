"""The documents that hold a text, each with its first match in context."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from longloom.tasks.ngrams.query import Index

#: Tokens of context on each side of a match: of a tokenizer, or bytes.
CONTEXT = {"u8": 80, "u16": 24, "u32": 24}


@dataclass(frozen=True)
class Match:
    """A document that holds a text.

    Attributes:
        document: its ordinal.
        id: as the corpus names it.
        source: where it comes from.
        occurrences: of the text in it.
        offset: of the first one, in tokens.
        before: what stands before it.
        match: the text, as it stands there.
        after: what stands behind it.
    """

    document: int
    id: str
    source: str
    occurrences: int
    offset: int
    before: str
    match: str
    after: str


def search(index: Index, text: str, *, limit: int) -> dict[str, Any]:
    """Finds a text.

    Args:
        index: an open index.
        text: encoded by its tokenizer; see `Index.count` for what is a match.
        limit: documents to show, the first of the corpus.

    Returns:
        text, occurrences, documents (all that hold it) and matches (fields of `Match`).

    Raises:
        ValueError: a limit below 1, a text that cannot be looked up.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1 document")
    query = index.encode(text)
    positions = index.positions(query)
    ordinals, first, occurrences = np.unique(positions[:, 0], return_index=True, return_counts=True)
    matches = []
    for ordinal, place, held in zip(ordinals[:limit].tolist(), first.tolist(), occurrences.tolist(), strict=False):
        document = index.document(ordinal)
        offset = int(positions[place, 1])
        behind, around = offset + len(query), CONTEXT[index.layout.token_dtype]
        before, match, after = (
            index.decode(part.tolist())
            for part in (
                document.tokens[max(0, offset - around) : offset],
                document.tokens[offset:behind],
                document.tokens[behind : behind + around],
            )
        )
        # The context is cut between tokens, which may be within a character.
        before, after = before.lstrip("\ufffd"), after.rstrip("\ufffd")
        matches.append(Match(ordinal, document.id, document.source, held, offset, before, match, after))
    return {
        "text": text,
        "occurrences": len(positions),
        "documents": len(ordinals),
        "matches": [asdict(match) for match in matches],
    }
