"""Sequences that tell facts in text and ask for them again: in one text, or in spans gathered from a long one.

The second kind is what a policy of a finite scope shows a model of a long context: its beginning, spans around the
tokens most like the question's, and its end. A model that has seen text in one piece alone takes the nearest "is" of a
neighbouring span for the fact that was asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: In one text, and among the spans of one scope.
FACTS = (1, 8)
GATHERED = (1, 3)
#: Tokens at a sequence's end in which facts are completed.
COMPLETED = (20, 160)
#: Of a gathered sequence, tokens: of its beginning, of a fact's span, of another, of the text at its end, and of text
#: before a fact.
SINK = 32
SPAN = 32
LIKE = (4, 16)
LOCAL = (130, 240)
BEFORE = (2, 20)

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

        The spans tell the facts, and the rest of them lie around occurrences of the questions' last token: those are
        what a search among keys finds beside the answer.

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
        spans = [self._among(rng, corpus, self._told(*fact)) for fact in facts]
        alike = np.flatnonzero(corpus == questions[0][0][-1])
        alike = alike[(alike >= SPAN) & (alike < len(corpus) - SPAN)]
        while (room := length - end - SINK - local - sum(map(len, spans))) > 0:
            place = int(rng.choice(alike)) if len(alike) else int(rng.integers(SPAN, len(corpus) - SPAN))
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

    def _among(self, rng: np.random.Generator, corpus: npt.NDArray[np.integer], line: list[int]) -> list[int]:
        """A span of text with `line` in it, whole: about SPAN tokens."""
        begin = int(rng.integers(0, len(corpus) - 2 * SPAN))
        text = corpus[begin : begin + 2 * SPAN].tolist()
        before = int(rng.integers(*BEFORE))
        after = max(0, SPAN + int(rng.integers(0, SPAN // 4 + 1)) - before - len(line))
        return [*text[:before], *line, *text[before : before + after]]
