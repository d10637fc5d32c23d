"""Sequences that tell facts in text and ask for them again: in one text, or in spans gathered from a long one.

The second kind is what a policy of a finite scope shows a model of a long context: its beginning, spans around the
tokens most like the question's, and its end. A model that has seen text in one piece alone takes the nearest "is" of a
neighbouring span for the fact that was asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: In one text, and among the spans of one scope.
FACTS = (1, 8)
GATHERED = (1, 3)
#: Tokens at a sequence's end in which facts are completed.
COMPLETED = (20, 160)
#: Of a gathered sequence, tokens: of its beginning, of a span at most, of one beside the facts', and of the text at its
#: end.
SINK = 32
SPAN = 32
LIKE = (4, 16)
LOCAL = (130, 240)
#: Of a fact's span, tokens before its number and behind it.
BEFORE = (3, 24)
BEHIND = (1, 12)
#: Tokens of the corpus in which a sequence looks for likenesses.
SEARCHED = 2**19

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Facts:
    """Sentences of a name and a number that a sequence can hold.

    Attributes:
        encode: text to ids.
        names: to draw from.
        fact: the sentence, with {name} and {key}.
    """

    encode: Callable[[str], list[int]]
    names: Sequence[str]
    fact: str

    def strewn(self, rng: np.random.Generator, text: Ids, length: int) -> tuple[Ids, Mask]:
        """`text` with facts as comments between its tokens, then facts again, each after a blank line.

        Returns:
            ids [length]; mask [length], true on the text and on the numbers where a fact is told again.
        """
        facts = self._drawn(rng, FACTS)
        lines = [self._told(*fact) for fact in facts]
        room = length - int(rng.integers(COMPLETED[0], COMPLETED[1])) - sum(map(len, lines))
        places = [0, *np.sort(rng.integers(0, max(0, room) + 1, len(facts))).tolist()]
        ids: list[int] = []
        mask: list[bool] = []
        for begin, end, line in zip(places, places[1:], lines, strict=False):
            ids += [*text[begin:end].tolist(), *line]
            mask += [True] * (end - begin) + [False] * len(line)
        rest = text[places[-1] : max(0, room)].tolist()
        ids, mask = ids + rest, mask + [True] * len(rest)
        while len(ids) < length:
            asked, key = self._asked(*facts[int(rng.integers(len(facts)))])
            ids += asked + key
            mask += [False] * len(asked) + [True] * len(key)
        return np.array(ids[:length]), np.array(mask[:length])

    def gathered(self, rng: np.random.Generator, corpus: npt.NDArray[np.integer], length: int) -> tuple[Ids, Mask]:
        """A scope of `length` tokens: a text's beginning, spans of others in any order, its end, and questions.

        The spans tell the facts, and the rest of them lie around what is like a place in a question or its number, as
        those are that a search among keys finds beside the answer, at each of the answer's tokens.

        Args:
            rng: of this sequence.
            corpus: the token stream [N], N > 2 * length.
            length: tokens.

        Returns:
            ids [length]; mask [length], true on the numbers asked for.
        """
        facts = self._drawn(rng, GATHERED)
        questions = [self._asked(*fact) for fact in facts]
        end = sum(len(asked) + len(key) for asked, key in questions)
        local = min(int(rng.integers(*LOCAL)), max(0, length - end - SINK - (len(facts) + 1) * SPAN))
        spans = [self._among(rng, corpus, *fact) for fact in facts]
        likenesses = self._likenesses(rng, corpus, questions)
        while (room := length - end - SINK - local - sum(map(len, spans))) > 0:
            place = next(likenesses)
            # Short ones too: so many more likenesses to tell the answer from as a long context has.
            size = int(rng.integers(LIKE[0], LIKE[1] + 1))
            begin = place - int(rng.integers(size // 4, 3 * size // 4 + 1))
            spans.append(corpus[begin : begin + min(size, room)].tolist())
        start = int(rng.integers(0, len(corpus) - 2 * length))
        ids = corpus[start : start + SINK].tolist()
        ids += [token for place in rng.permutation(len(spans)) for token in spans[place]]
        ids += corpus[start + length : start + length + local].tolist()
        mask = [False] * len(ids)
        for place in rng.permutation(len(questions)):
            asked, key = questions[place]
            ids += asked + key
            mask += [False] * len(asked) + [True] * len(key)
        # Facts that a short sequence has no room for push its beginning out.
        return np.array(ids[-length:]), np.array(mask[-length:])

    def _drawn(self, rng: np.random.Generator, counts: tuple[int, int]) -> list[tuple[str, str]]:
        """Names, each once, with their numbers."""
        count = int(rng.integers(counts[0], counts[1] + 1))
        names = [self.names[place] for place in rng.choice(len(self.names), count, replace=False)]
        return [(name, str(rng.integers(10_000, 100_000))) for name in names]

    def _told(self, name: str, key: str) -> list[int]:
        return self.encode(f"\n# {self.fact.format(name=name, key=key)}\n")

    def _asked(self, name: str, key: str) -> tuple[list[int], list[int]]:
        """The sentence after a blank line: what comes before the number, and the number with what ends it."""
        told = self.encode("\n\n" + self.fact.format(name=name, key=key))
        asked = len(self.encode("\n\n" + self.fact.partition("{key}")[0].format(name=name).rstrip()))
        return told[:asked], told[asked:]

    def _among(self, rng: np.random.Generator, corpus: npt.NDArray[np.integer], name: str, key: str) -> list[int]:
        """A span of text around the number of a fact: what is before it may begin within the sentence."""
        line = self._told(name, key)
        number = len(self.encode("\n# " + self.fact.partition("{key}")[0].format(name=name).rstrip()))
        begin = int(rng.integers(SPAN, len(corpus) - SPAN))
        before = [*corpus[begin - SPAN : begin].tolist(), *line[:number]]
        after = [*line[number:], *corpus[begin : begin + SPAN].tolist()]
        digits = len(self._asked(name, key)[1])
        return [
            *before[-int(rng.integers(BEFORE[0], BEFORE[1] + 1)) :],
            *after[: digits + int(rng.integers(BEHIND[0], BEHIND[1] + 1))],
        ]

    def _likenesses(
        self, rng: np.random.Generator, corpus: npt.NDArray[np.integer], questions: list[tuple[list[int], list[int]]]
    ) -> Iterator[int]:
        """Places of the corpus like one place before or within a number: its token there, half the time two of them.

        One place a sequence, as a search has one token at hand: all that it finds beside the answer is like that.
        """
        size = min(SEARCHED, len(corpus) - 2 * SPAN)
        begin = SPAN + int(rng.integers(0, len(corpus) - 2 * SPAN - size + 1))
        asked, key = questions[int(rng.integers(len(questions)))]
        last = len(asked) + int(rng.integers(len(key)))
        tokens = (*asked, *key)[last - 2 : last]
        alike = [_places(corpus[begin : begin + size], tokens[-count:]) for count in (1, 2)]
        while True:
            yield begin + int(rng.choice(alike[int(rng.integers(2))]))


def _places(searched: npt.NDArray[np.integer], tokens: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Where the last of the tokens stands behind the others; where none does, behind fewer of them; else, anywhere."""
    like = searched == tokens[-1]
    for back, token in enumerate(reversed(tokens[:-1]), start=1):
        like[back:] &= searched[:-back] == token
        like[:back] = False
    if like.any():
        return np.flatnonzero(like)
    return _places(searched, tokens[1:]) if len(tokens) > 1 else np.arange(len(searched))
