"""How much of a text stands in the corpus: windows of words or characters, and what each measure calls contaminated.

- `13-gram`: 13 words; one of them in the corpus is enough (GPT-3, arXiv 2005.14165, appendix C, whose n is 8 to 13
  words by the data set, and 13 in lm-eval).
- `8-gram`: 8 words; 70% of them are (PaLM, arXiv 2204.02311, section 8).
- `50-char`: 50 characters; under 20% of them are clean, 20% to 80% suspicious, more dirty (infini-gram mini, arXiv
  2506.12229; the length is GPT-4's, arXiv 2303.08774, appendix C).

Notable choices: every window counts, where GPT-4 draws three. GPT-3 and GPT-4 compare without case, punctuation or
spaces; an index holds texts as they are, so windows are compared as they are, and a record that was only reprinted in
other words or another layout is not found. A text shorter than a window has none: a yes would stand in any corpus.
A Chinese character or kana is a word of its own. An index of tokens is asked for every token that reaches into a
window: of scripts without spaces these reach beyond it, so what is found stands there, and more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longloom.tasks.retrieval.chunkers import CJK
from longloom.tasks.sources.located import Corpus, Located, locate

CLEAN, SUSPICIOUS, DIRTY = VERDICTS = ("clean", "suspicious", "dirty")

#: Windows that are looked up at once.
_BATCH = 4096

_WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")
_UNSPACED = re.compile(rf"[{CJK}]")


@dataclass(frozen=True)
class Measure:
    """One way to cut a text into overlapping windows.

    Attributes:
        name: in tables.
        size: of a window.
        unit: "words" (what white space parts, a Chinese character or kana) or "characters".
        suspicious, dirty: shares of the windows from which on a text is that; 0: any window is enough.
    """

    name: str
    size: int
    unit: str
    suspicious: float
    dirty: float

    def windows(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of every window, in characters."""
        if self.unit == "characters":
            return [(begin, begin + self.size) for begin in range(len(text) - self.size + 1)]
        words = [match.span() for match in _WORD.finditer(text)]
        last = len(words) - self.size + 1
        return [(words[begin][0], words[begin + self.size - 1][1]) for begin in range(last)]

    def verdict(self, found: int, windows: int) -> str | None:
        """What a text is of whose windows so many were found; None: it has no windows."""
        if not windows:
            return None
        if found and found >= self.dirty * windows:
            return DIRTY
        return SUSPICIOUS if found and found >= self.suspicious * windows else CLEAN


MEASURES = (
    Measure("13-gram", 13, "words", 0.0, 0.0),
    Measure("8-gram", 8, "words", 0.2, 0.7),
    Measure("50-char", 50, "characters", 0.2, 0.8),
)
NAMES = tuple(measure.name for measure in MEASURES)


def measures_for(corpus: Corpus, names: Sequence[str]) -> list[Measure]:
    """The measures that an index can answer, all of MEASURES for one of bytes.

    Args:
        corpus: to be asked.
        names: of those that decide.

    Raises:
        ValueError: an unknown name, or none that this index can answer: tokens do not begin at every character.
    """
    for name in names:
        if name not in NAMES:
            raise ValueError(f"unknown measure {name!r}; known: {', '.join(NAMES)}")
    possible = [measure for measure in MEASURES if measure.unit == "words" or corpus.of_bytes]
    if not {measure.name for measure in possible} & set(names):
        raise ValueError(
            f"{', '.join(names)}: an index of {corpus.index.layout.token_dtype} tokens cannot be asked for characters;"
            " expected one of bytes, or another measure"
        )
    return possible


class Overlap(NamedTuple):
    """Attributes: windows: of some texts. found: of them, those that stand in the corpus. example: the first of those,
    as text and as tokens; None: there is none."""

    windows: int
    found: int
    example: tuple[str, list[int]] | None


def overlap(corpus: Corpus, measure: Measure, texts: Sequence[str]) -> Overlap:
    """Looks up every window of some texts together; none reaches from one text into the next."""
    windows = found = 0
    example = None
    for text in texts:
        located = locate(corpus.encoder, text)
        cut = measure.windows(text)
        windows += len(cut)
        standing = _standing(corpus, located, cut)
        spaced = after_space(corpus, text, cut[0]) if cut and not standing[0] else []
        if spaced:
            standing[0] = corpus.index.counts([spaced])[0] > 0
        found += int(standing.sum())
        if example is None and standing.any():
            number = int(standing.argmax())
            tokens = spaced if spaced and not number else asked_for(corpus, located, cut[number])
            example = text[slice(*cut[number])], tokens
    return Overlap(windows, found, example)


def asked_for(corpus: Corpus, located: Located, window: tuple[int, int]) -> list[int]:
    """The tokens of a window; none if the vocabulary lacks one, which matches nothing."""
    tokens = located.tokens[slice(*located.tokens_over(*window))]
    return [] if corpus.encoder.unknown in tokens else tokens


def after_space(corpus: Corpus, text: str, window: tuple[int, int]) -> list[int]:
    """The tokens of the window that begins a text, as within a line, where a space stands before them.

    Most tokenizers have other tokens there; none for other windows, before a Chinese character or kana, and of an index
    of bytes, which finds both alike.
    """
    begin, end = window
    if begin or corpus.of_bytes or _UNSPACED.match(text):
        return []
    return asked_for(corpus, locate(corpus.encoder, f" {text[:end]}"), (1, end + 1))


def _standing(corpus: Corpus, located: Located, windows: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which windows stand in the corpus, bool [N]."""
    standing = np.zeros(len(windows), dtype=bool)
    for first in range(0, len(windows), _BATCH):
        batch = enumerate(windows[first : first + _BATCH], start=first)
        asked = {number: tokens for number, window in batch if (tokens := asked_for(corpus, located, window))}
        if asked:
            standing[list(asked)] = corpus.index.counts(list(asked.values())) > 0
    return standing
