"""A text as an index's tokens, each with its place in the text; and an open index with the encoder that makes them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from longloom.tasks.ngrams.encode import Encoder, encoder
from longloom.tasks.ngrams.layout import TOKENIZER_FOLDER
from longloom.tasks.ngrams.query import Index, open_index


@dataclass(frozen=True)
class Corpus:
    """Attributes: index: open. encoder: what its texts were encoded by."""

    index: Index
    encoder: Encoder

    @property
    def of_bytes(self) -> bool:
        """Whether the tokens are bytes of UTF-8, so that any piece of text can be looked up."""
        return self.index.layout.token_dtype == "u8"


def open_corpus(folder: Path) -> Corpus:
    """Opens an index; errors as of `open_index`."""
    index = open_index(folder)
    return Corpus(index, encoder(None if index.layout.token_dtype == "u8" else folder / TOKENIZER_FOLDER))


@dataclass(frozen=True)
class Located:
    """A text and its tokens.

    Attributes:
        text: the text.
        tokens: its tokens [N].
        places: of each token, the first character and the one past its last [N].
    """

    text: str
    tokens: list[int]
    places: list[tuple[int, int]]

    @cached_property
    def _solid(self) -> tuple[list[int], list[int]]:
        """Begins and ends without the white space that tokens have around their words: ` the` begins at `t`."""
        begins, ends = [], []
        for begin, end in self.places:
            piece = self.text[begin:end]
            blank = not piece.strip()
            begins.append(begin if blank else begin + len(piece) - len(piece.lstrip()))
            ends.append(end if blank else end - len(piece) + len(piece.rstrip()))
        return begins, ends

    def tokens_within(self, begin: int, end: int) -> tuple[int, int]:
        """The range of tokens that lie wholly within characters `begin` to `end`, white space around them apart."""
        begins, ends = self._solid
        return bisect_left(begins, begin), bisect_right(ends, end)

    def tokens_over(self, begin: int, end: int) -> tuple[int, int]:
        """The range of tokens of which a part lies within characters `begin` to `end`, white space around them apart.

        That of `tokens_within` where no token reaches beyond, as between words that white space parts.
        """
        begins, ends = self._solid
        first = bisect_right(ends, begin)
        return first, max(first, bisect_left(begins, end))

    def characters(self, begin: int, end: int) -> tuple[int, int]:
        """The range of characters of tokens `begin` to `end`, at least one."""
        return self.places[begin][0], self.places[end - 1][1]


def locate(encoder: Encoder, text: str) -> Located:
    """Encodes a text.

    Raises:
        ValueError: a text that UTF-8 cannot hold.
    """
    try:
        return Located(text, *encoder.locate(text))
    except UnicodeEncodeError:
        raise ValueError(f"{text[:40]!r}: holds a lone surrogate, expected text that UTF-8 can hold") from None
