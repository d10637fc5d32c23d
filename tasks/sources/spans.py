"""The maximal spans of a text that stand verbatim in the corpus, and how rare their tokens are.

Maximal spans as in OLMoTrace (arXiv 2504.07096, section 3): of all spans that stand in one document, those that no
longer one contains, cut back to whole words. OLMoTrace also ends spans at full stops and line ends; here they go on,
since sources and documentation are matched over many lines. It looks up every suffix of the text; here the next span
is found by bisection from where the last one ended, which asks a few questions a span in place of one a token.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from longloom.tasks.ngrams.layout import separator
from longloom.tasks.ngrams.query import Index
from longloom.tasks.retrieval.chunkers import CJK
from longloom.tasks.sources.located import Located

#: Two characters of one word: a Chinese character or kana is a word of its own.
_WITHIN_WORD = re.compile(rf"[^\W{CJK}]{{2}}")

#: Tokens of a suffix that are looked up at first; doubled as long as all of them stand in the corpus.
_WINDOW = 64

Range = tuple[int, int]


def maximal_spans(index: Index, tokens: Sequence[int], unknown: int | None) -> list[Range]:
    """The maximal spans of tokens that stand in one document, in order; they may overlap.

    Args:
        index: of the corpus.
        tokens: of the text [N].
        unknown: the token that stands for whatever the vocabulary lacks, which matches nothing; None: there is none.

    Returns:
        Begin and end of each, in tokens; begins and ends both grow.
    """
    if unknown is None:
        return list(_spans(index, tokens))
    found: list[Range] = []
    begin = 0
    for end in [*(place for place, token in enumerate(tokens) if token == unknown), len(tokens)]:
        found += [(begin + first, begin + last) for first, last in _spans(index, tokens[begin:end])]
        begin = end + 1
    return found


def _spans(index: Index, tokens: Sequence[int]) -> Iterator[Range]:
    begin = 0
    while begin < len(tokens):
        end = begin + _longest(index, tokens, begin)
        if end > begin:
            yield begin, end
        if end == len(tokens):
            return
        # Whatever stands in the corpus does so without its first token: the leftmost span beyond `end` is bisected for.
        further = range(begin + 1, end + 1)
        begin += 1 + bisect_left(further, True, key=lambda first: index.count(tokens[first : end + 1]) > 0)


def _longest(index: Index, tokens: Sequence[int], begin: int) -> int:
    """Tokens from `begin` on that stand in the corpus."""
    window = _WINDOW
    while True:
        found = int(index.longest_prefix(tokens[begin : begin + window]))
        if found < window or begin + window >= len(tokens):
            return found
        window *= 2


def whole_words(located: Located, spans: Sequence[Range]) -> list[Range]:
    """Spans cut back to where words begin and end, without those that then hold no word or lie within another.

    Args:
        located: the text.
        spans: ranges of its tokens, begins and ends growing.

    Returns:
        Ranges of its characters, without white space around them, begins and ends growing. Of maximal spans of tokens
        these are the maximal spans of words.
    """
    found: list[Range] = []
    for span in spans:
        begin, end = _cut(located, *span)
        if begin >= end or not re.search(r"\w", located.text[begin:end]):
            continue
        while found and begin <= found[-1][0] and found[-1][1] <= end:
            found.pop()
        if not found or end > found[-1][1]:
            found.append((begin, end))
    return found


def _cut(located: Located, first: int, last: int) -> Range:
    """Characters of whole tokens `first` to `last`, from the first beginning of a word to the last end of one."""
    text = located.text
    places = located.places

    def within_word(place: int) -> bool:
        return 0 < place < len(text) and bool(_WITHIN_WORD.match(text, place - 1))

    def within_character(token: int) -> bool:
        return 0 < token < len(places) and places[token][0] < places[token - 1][1]

    while first < last and (within_character(first) or within_word(places[first][0])):
        first += 1
    while first < last and (within_character(last) or within_word(places[last - 1][1])):
        last -= 1
    if first == last:
        return 0, 0
    begin, end = located.characters(first, last)
    piece = text[begin:end]
    return begin + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


class Unigrams:
    """Probabilities of single tokens in the corpus, each looked up once.

    Args:
        index: of the corpus; what was deleted from it does not count.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._total = index.layout.tokens
        if len(index.deleted):
            vocabulary = min(index.layout.vocab_size, separator(index.layout.token_dtype))
            self._total = int(index.counts([[token] for token in range(vocabulary)]).sum())
        self._logs: dict[int, float] = {}

    def log_probability(self, tokens: Sequence[int]) -> float:
        """The natural logarithm of the product of the tokens' probabilities; all of them stand in the corpus.

        OLMoTrace's "span unigram probability": the smaller, the longer and the rarer is the span.
        """
        new = sorted(set(tokens) - self._logs.keys())
        if new:
            counts = self._index.counts([[token] for token in new])
            self._logs |= {
                token: math.log(count / self._total) for token, count in zip(new, counts.tolist(), strict=True)
            }
        return math.fsum(self._logs[token] for token in tokens)
