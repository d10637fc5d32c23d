"""Task-gram pairs: n-grams of an input and of an output that mean the same (arXiv 2407.14985, definition 1).

Notable choices: an n-gram is n words in a row, as the characters from the first to the last stand in the text; a word
is a run of letters, digits and underscores, or one Chinese character or kana, each with the marks and joiners behind it
(a vowel sign, an accent that is a character of its own). A space before an n-gram belongs to it when it is looked up,
since most tokenizers join it to the word; so does the beginning of a text, which would follow a space in running text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np

from longloom.tasks.retrieval.chunkers import CJK

#: Zero-width non-joiner and joiner.
_JOINERS = "\u200c\u200d"
#: Where marks are: the two planes of living scripts, and the variation selectors.
_PLACES = (range(0x20000), range(0xE0100, 0xE01F0))


@cache
def _word() -> re.Pattern[str]:
    """A word. Marks are none of \\w in Python's `re`, which would cut Hindi, and accents that stand alone, mid-word."""
    marks = "".join(chr(code) for code in chain(*_PLACES) if unicodedata.category(chr(code)).startswith("M"))
    behind = f"{marks}{_JOINERS}"
    return re.compile(rf"[{CJK}][{behind}]*|[^\W{CJK}]+(?:[{behind}]+[^\W{CJK}]*)*")


@dataclass(frozen=True)
class Gram:
    """An n-gram where it stands first in its text.

    Attributes:
        text: its characters.
        spaced: whether a space, or nothing at all, stands before it.
        begin, end: in characters of the text.
        word: number of its first word.
    """

    text: str
    spaced: bool
    begin: int
    end: int
    word: int

    @property
    def surface(self) -> str:
        """As it is looked up."""
        return f" {self.text}" if self.spaced else self.text


@dataclass(frozen=True)
class Mined:
    """One pair of a record.

    Attributes:
        x, y: the n-grams of the input and of the output.
        cosine: of their embeddings.
        disjoint: whether it is left when of pairs that share words only the best one is kept.
    """

    x: Gram
    y: Gram
    cosine: float
    disjoint: bool


def ngrams(text: str, n: int, *, lose_last: bool = False) -> list[Gram]:
    """G_n(text): the distinct n-grams of a text, each where it stands first, in order.

    Args:
        text: any.
        n: words of an n-gram.
        lose_last: leave the last one out, as the released `get_all_ngrams` does.
    """
    spans = [match.span() for match in _word().finditer(text)]
    found: dict[str, Gram] = {}
    for word in range(len(spans) - n + 1 - lose_last):
        begin, end = spans[word][0], spans[word + n - 1][1]
        gram = Gram(text[begin:end], begin == 0 or text[begin - 1] == " ", begin, end, word)
        found.setdefault(gram.surface, gram)
    return list(found.values())


def mine(
    xs: Sequence[Gram],
    ys: Sequence[Gram],
    vectors: Mapping[str, np.ndarray],
    *,
    n: int,
    gamma: float,
    floor: float | None,
) -> list[Mined]:
    """The pairs of one record: x from its input, y from its output, never two of the same text.

    With a floor these are the record's part of H_n at gamma = floor, else of A_n.

    Args:
        xs, ys: the n-grams of the input and of the output.
        vectors: text -> unit vector, float32 [d]; the zero vector, for texts without meaning, is like none.
        n: words of an n-gram.
        gamma: pairs above it compete for being `disjoint`.
        floor: pairs of a cosine at or below it are left out; None: none is.
    """
    if not xs or not ys:
        return []
    left = np.stack([vectors[gram.text] for gram in xs])
    right = np.stack([vectors[gram.text] for gram in ys])
    cosines = (left @ right.T).astype(np.float64)  # [X, Y]
    kept = np.ones(cosines.shape, bool) if floor is None else cosines > floor
    places = [(row, column) for row, column in np.argwhere(kept).tolist() if xs[row].text != ys[column].text]
    best: set[tuple[int, int]] = set()
    taken_x: set[int] = set()
    taken_y: set[int] = set()
    for row, column in sorted(places, key=lambda place: (-cosines[place], place)):
        if floor is not None and cosines[row, column] <= gamma:
            break
        words_x = set(range(xs[row].word, xs[row].word + n))
        words_y = set(range(ys[column].word, ys[column].word + n))
        if not words_x & taken_x and not words_y & taken_y:
            best.add((row, column))
            taken_x |= words_x
            taken_y |= words_y
    return [Mined(xs[row], ys[column], cosines[row, column], (row, column) in best) for row, column in places]
