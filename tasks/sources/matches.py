"""Where a span stands: its documents, and the text around it in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from longloom.tasks.ngrams.query import Index


class Places(NamedTuple):
    """Every occurrence of a span.

    Attributes:
        tokens: the span.
        occurrences: how often it stands in the corpus.
        documents: ordinals of the documents that hold it, growing [D].
        offsets: of its first occurrence in each, in tokens [D].
    """

    tokens: Sequence[int]
    occurrences: int
    documents: np.ndarray
    offsets: np.ndarray


def places_of(index: Index, tokens: Sequence[int]) -> Places:
    """Looks a span up."""
    positions = index.positions(tokens)
    documents, first = np.unique(positions[:, 0], return_index=True)
    return Places(tokens, len(positions), documents, positions[first, 1])


def snippet(index: Index, ordinal: int, offset: int, length: int, context: int) -> dict[str, Any]:
    """A span in its document.

    Args:
        index: of the corpus.
        ordinal: of the document.
        offset: of the span in it, in tokens.
        length: of the span, in tokens.
        context: tokens to show on either side.

    Returns:
        `document` (its ordinal), `id`, `source`, `offset`, and the texts `before`, `match` and `after`; `cut_before`
        and `cut_after` tell whether the document goes on.
    """
    document = index.document(ordinal)
    begin, end = max(0, offset - context), min(len(document.tokens), offset + length + context)
    tokens = document.tokens[begin:end].tolist()
    # Decoded from one beginning, for some tokenizers drop the space that a text begins with.
    text = index.decode(tokens)
    before = len(index.decode(tokens[: offset - begin]))
    upto = len(index.decode(tokens[: offset - begin + length]))
    return {
        "document": ordinal,
        "id": document.id,
        "source": document.source,
        "offset": offset,
        "before": text[:before],
        "match": text[before:upto],
        "after": text[upto:],
        "cut_before": begin > 0,
        "cut_after": end < len(document.tokens),
    }
