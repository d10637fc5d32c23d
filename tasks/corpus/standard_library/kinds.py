"""Derives the examples of each kind of task from modules, as many as are asked for; one generator a kind."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from typing import TypeVar

from longloom.tasks.corpus.standard_library import lookups, wording
from longloom.tasks.corpus.standard_library.flaws import Example
from longloom.tasks.corpus.standard_library.haystack import Haystack
from longloom.tasks.corpus.standard_library.syntax import Definition, Facts

#: The least that `characters` of `example_streams` may be.
SMALLEST_CHARACTERS = 600

# Characters of an example: the logarithm is normal, with this median and deviation; the bounds below are the least.
# Look-ups are longer, since a context as long as the evaluation's must not be new to the model.
_MEDIAN = 400
_MEDIAN_OF_LOOKUPS = 600
_DEVIATION = 0.6
_SMALLEST_EXAMPLE = 200
_SMALLEST_LOOKUP = 300
_SMALLEST_SET_OF_PARAGRAPHS = 540
_LONGEST_SUMMARY = 160

T = TypeVar("T")


@dataclass
class _Draw:
    """One kind's chance: its examples' lengths, wordings and names."""

    kind: str
    rng: random.Random
    characters: int

    def room(self, *, name: str = "", least: int = 0) -> int:
        """Characters for context and answer: mostly a few hundred, with a long tail up to the bound."""
        median = _MEDIAN_OF_LOOKUPS if least else _MEDIAN
        drawn = round(self.rng.lognormvariate(math.log(median), _DEVIATION))
        bounded = min(self.characters, max(drawn, least, _SMALLEST_EXAMPLE))
        return bounded - max(len(wording.user_turn("", asked)) for asked in wording.questions(self.kind, name=name))

    def example(self, context: str, answer: str, *, name: str = "") -> Example:
        words = self.rng.randrange(len(wording.QUESTIONS[self.kind]))
        return Example(self.kind, context, name, words, answer)

    def forever(self, names: Sequence[T]) -> Iterator[T]:
        """Yields the names in a random order, again and again."""
        return cycle(self.rng.sample(names, len(names)))


def example_streams(modules: Sequence[Facts], *, seed: int, characters: int) -> dict[str, Iterator[Example]]:
    """Kind of task -> its examples: endless for most, and as many as the modules have for docstring and signature.

    Each kind has its own stream of chance, so that a change of one leaves the others as they were.

    Args:
        modules: what to derive them from.
        seed: of all chance here.
        characters: the most characters of an example, both turns together (a long docstring may exceed it).
    """
    haystack = Haystack(modules)
    documented = [(facts, found) for facts in modules for found in facts.definitions if _is_documented(found)]
    random.Random(f"{seed}/documented").shuffle(documented)
    half = len(documented) // 2  # no definition serves both: the one would tell the other's answer
    paragraphs = lookups.plain_definitions(modules)
    names = list(dict.fromkeys(name for facts in modules for name in facts.names))
    values = list(dict.fromkeys(value for facts in modules for value in facts.literals))

    def draw(kind: str) -> _Draw:
        return _Draw(kind, random.Random(f"{seed}/{kind}"), characters)

    return {
        "next_line": _next_lines(draw("next_line"), haystack),
        "docstring": _docstrings(draw("docstring"), documented[:half]),
        "signature": _signatures(draw("signature"), documented[half:]),
        "constant": _constants(draw("constant"), haystack, names, values),
        "definition": _definitions(draw("definition"), paragraphs),
        "passkey": _passkeys(draw("passkey"), haystack),
        "copy": _copies(draw("copy"), haystack),
    }


def _next_lines(draw: _Draw, haystack: Haystack) -> Iterator[Example]:
    while True:
        lookup = lookups.next_line(haystack, draw.rng, room=draw.room())
        yield draw.example(lookup.context, lookup.answer)


def _is_documented(found: Definition) -> bool:
    """Whether there is a docstring that can be shown between three quotes, with a first line that can be asked for."""
    docstring = found.docstring
    return docstring.isascii() and '"""' not in docstring and 0 < len(_summary(found)) <= _LONGEST_SUMMARY


def _summary(found: Definition) -> str:
    return found.docstring.strip().split("\n")[0].rstrip()


def _docstrings(draw: _Draw, documented: Sequence[tuple[Facts, Definition]]) -> Iterator[Example]:
    for facts, found in documented:
        above = [f"# {facts.module}", *([found.owner] if found.owner else [])]
        header = f"    {found.header}" if found.owner else found.header
        yield draw.example("\n".join([*above, header]), _summary(found))


def _signatures(draw: _Draw, documented: Sequence[tuple[Facts, Definition]]) -> Iterator[Example]:
    for facts, found in documented:
        lines = found.docstring.strip().split("\n")
        room = draw.room() - len(facts.module) - len(found.header) - 20
        while len(lines) > 1 and len("\n".join(lines)) > room:
            lines.pop()
        docstring = "\n".join(lines).rstrip()
        yield draw.example(f'# {facts.module}\n"""{docstring}"""', found.header)


def _constants(draw: _Draw, haystack: Haystack, names: Sequence[str], values: Sequence[str]) -> Iterator[Example]:
    for turn, name in enumerate(draw.forever(names if values else [])):
        third = turn % lookups.THIRDS
        lookup = lookups.constant(
            haystack, draw.rng, name=name, values=values, room=draw.room(name=name, least=_SMALLEST_LOOKUP), third=third
        )
        yield draw.example(lookup.context, lookup.answer, name=name)


def _definitions(draw: _Draw, paragraphs: Sequence[Definition]) -> Iterator[Example]:
    for turn, target in enumerate(draw.forever(paragraphs)):
        third = turn % lookups.THIRDS
        room = draw.room(name=target.name, least=_SMALLEST_SET_OF_PARAGRAPHS)
        lookup = lookups.definition(paragraphs, draw.rng, target=target, room=room, third=third)
        yield draw.example(lookup.context, lookup.answer, name=target.name)


def _passkeys(draw: _Draw, haystack: Haystack) -> Iterator[Example]:
    for turn, name in enumerate(draw.forever(wording.passkey_names(held_out=False))):
        room = draw.room(name=name, least=_SMALLEST_LOOKUP)
        third = turn % lookups.THIRDS
        lookup = lookups.passkey(haystack, draw.rng, name=name, for_held_out=False, room=room, third=third)
        yield draw.example(lookup.context, lookup.answer, name=name)


def _copies(draw: _Draw, haystack: Haystack) -> Iterator[Example]:
    for turn in count():
        room = draw.room(least=_SMALLEST_LOOKUP)
        lookup = lookups.copying(haystack, draw.rng, room=room, third=turn % lookups.THIRDS)
        yield draw.example(lookup.context, lookup.answer)
