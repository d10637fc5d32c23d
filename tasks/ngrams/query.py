"""Asks an n-gram index: how often does this text occur?

The files are checked first (layout.py), since infini-gram's engine would end the process over a damaged one.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infini_gram.engine import InfiniGramEngine

from longloom.tasks.ngrams.encode import Encoder, encoder
from longloom.tasks.ngrams.layout import TOKENIZER_FOLDER, Layout, plain_path, read_layout, separator


class Index:
    """An open index; safe to use from several threads.

    Made by `open_index`.

    Attributes:
        path: its folder.
        layout: token type and sizes.
    """

    def __init__(self, path: Path, layout: Layout, encode: Encoder, engine: InfiniGramEngine) -> None:
        self.path = path
        self.layout = layout
        self._encoder = encode
        self._engine = engine

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

    def count(self, query: str | Sequence[int]) -> int:
        """Occurrences in all documents, overlapping ones included; none crosses from one document into the next.

        In an index of raw bytes a text is counted as a substring. In an index of tokens its *token sequence* is
        counted: an occurrence whose tokens are cut differently (within a longer word, before a space that the
        tokenizer joins to the next word) is not one.

        Args:
            query: a text, or tokens.

        Raises:
            ValueError: an empty query, or a token that is not in the vocabulary.
        """
        tokens = self.encode(query) if isinstance(query, str) else [operator.index(token) for token in query]
        if not tokens:
            raise ValueError("the query holds no tokens, expected at least one")
        limit = min(self.layout.vocab_size, separator(self.layout.token_dtype))
        for token in tokens:
            if not 0 <= token < limit:
                raise ValueError(f"token {token} is not in the vocabulary, expected 0 to {limit - 1}")
        answer: dict[str, Any] = dict(self._engine.count(input_ids=tokens))
        if "error" in answer:
            raise ValueError(f"the engine refused the query: {answer['error']}")
        assert not answer["approx"], answer
        return int(answer["count"])


def open_index(path: Path) -> Index:
    """Checks an index and opens it.

    Args:
        path: the folder that `build` wrote.

    Raises:
        FileNotFoundError: no index there, or one of its files is missing.
        ValueError: its files do not belong together: truncated, empty, of another width.
    """
    layout = read_layout(path)
    encode = encoder(None if layout.token_dtype == "u8" else path / TOKENIZER_FOLDER)
    if (encode.token_dtype, encode.vocab_size) != (layout.token_dtype, layout.vocab_size):
        raise ValueError(
            f"{path}: holds tokens of {layout.token_dtype} below {layout.vocab_size}, "
            f"its tokenizer gives {encode.token_dtype} below {encode.vocab_size}"
        )
    vocab_size = min(layout.vocab_size + 1, separator(layout.token_dtype))  # the engine's type of it is the tokens'
    with plain_path(path) as link:
        engine = InfiniGramEngine(
            index_dir=str(link),
            eos_token_id=vocab_size - 1,  # only a name, given to separators in what `count` does not use
            vocab_size=vocab_size,
            token_dtype=layout.token_dtype,
            ds_prefetch_depth=0,  # 30 us a count instead of 130-160 with the files in the page cache
            sa_prefetch_depth=0,
            od_prefetch_depth=0,
        )
    return Index(path, layout, encode, engine)
