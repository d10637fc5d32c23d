"""Contexts of real code with something to find again in a chosen third of them; the pool and the records share these.

What is to be found stands there exactly once, and right behind words that the answer repeats. A context and its answer
together keep within `room` characters.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from longloom.tasks.corpus.standard_library import wording
from longloom.tasks.corpus.standard_library.haystack import Haystack, Window, is_plain
from longloom.tasks.corpus.standard_library.modules import held_out
from longloom.tasks.corpus.standard_library.syntax import Definition, Facts

THIRDS = 3  # early, in the middle, late

_DRAWS = 300
_LONGEST_PARAGRAPH = 260
_LONGEST_OPENING = 100  # of a paragraph: the header and the line below
_LONGEST_PASSAGE = 240
_HIGHEST_FIRST_NUMBER = 40
_SKIPPED_BY_CODE_SIM = ("`", "#", "//")


@dataclass(frozen=True)
class Lookup:
    """One context and what is to be found in it.

    Attributes:
        context: the code.
        answer: what the assistant says; it stands in the context once (the next line: right after it).
        gold: the part of the answer that was asked for.
    """

    context: str
    answer: str
    gold: str

    @property
    def third(self) -> int:
        """Where in the context the answer begins: 0 early, 1 in the middle, 2 late."""
        return THIRDS * self.context.index(self.answer) // len(self.context)


def constant(
    haystack: Haystack, rng: random.Random, *, name: str, values: Sequence[str], room: int, third: int
) -> Lookup:
    """A line `name = value` among code that has neither the name nor the value.

    The value comes from other code than the name, so that memory of the library cannot answer.

    Args:
        haystack: the code around.
        rng: the source of chance.
        name: the constant's name.
        values: the literals to draw the value from.
        room: the most characters.
        third: where the line is put: 0 early, 1 in the middle, 2 late.

    Raises:
        ValueError: if a bounded number of draws finds no place for it.
    """
    value = rng.choice(values)
    line = wording.CONSTANT.format(name=name, value=value)
    return _hidden(haystack, rng, prefix="", answer=line, gold=value, once=(name, value), room=room, third=third)


def passkey(haystack: Haystack, rng: random.Random, *, name: str, for_held_out: bool, room: int, third: int) -> Lookup:
    """A comment that tells a pass key of five digits; arguments and errors as for `constant`.

    The numbers are split between the two sides by the hash that splits the modules: no number serves both.
    """
    key = str(rng.randint(10_000, 99_999))
    while held_out(key) is not for_held_out:
        key = str(rng.randint(10_000, 99_999))
    sentence = wording.PASSKEY.format(name=name, key=key)
    return _hidden(haystack, rng, prefix="# ", answer=sentence, gold=key, once=(name, key), room=room, third=third)


def plain_definitions(modules: Iterable[Facts]) -> list[Definition]:
    """The definitions that can be a paragraph of `definition`, and the one asked for.

    Their headers have no digits (the metric `retrieval` counts every number of an answer), their names are no
    protocol's (`__init__`) and stand in the header only.
    """
    return [
        found
        for facts in modules
        for found in facts.definitions
        if len(found.name) >= 4
        and not found.name.startswith("__")
        and found.body
        and len(found.header) + len(found.body[0]) <= _LONGEST_OPENING
        and not any(map(str.isdigit, found.header))
        and is_plain("\n".join((found.header, *found.body)))
        and found.name not in "\n".join(found.body)
        and found.header.count(found.name) == 1
    ]


def definition(
    others: Sequence[Definition], rng: random.Random, *, target: Definition, room: int, third: int
) -> Lookup:
    """Numbered paragraphs, one a definition, each with its label behind the first line.

    The numbers follow each other from a random one on, so that the place does not give the number away.

    Args:
        others: what to draw the other paragraphs from.
        rng: the source of chance.
        target: the definition asked for.
        room: the most characters.
        third: where its paragraph begins: 0 early, 1 in the middle, 2 late.

    Raises:
        ValueError: if a bounded number of draws finds no such paragraphs.
    """
    size = room - len(target.header) - _cost([])
    longest = min(_LONGEST_PARAGRAPH, size // 4)  # so that one can begin in the last third
    own = _cut(target, longest)
    for _ in range(_DRAWS):
        left = size - _cost(own)
        paragraphs: list[list[str]] = []
        for other in rng.sample(others, min(len(others), 80)):
            paragraph = _cut(other, longest)
            if _cost(paragraph) <= left and target.name not in "\n".join(paragraph):
                paragraphs.append(paragraph)
                left -= _cost(paragraph)
        rng.shuffle(paragraphs)
        places = _places([_cost(paragraph) for paragraph in paragraphs], _cost(own), third)
        if left > size // 5 or not places:
            continue
        place = rng.choice(places)
        paragraphs.insert(place, own)
        first = rng.randint(1, _HIGHEST_FIRST_NUMBER)
        labels = [wording.LABEL.format(number=first + at) for at in range(len(paragraphs))]
        headers = [f"{paragraph[0]}  # {label}" for paragraph, label in zip(paragraphs, labels, strict=True)]
        bodies = (paragraph[1:] for paragraph in paragraphs)
        context = "\n\n".join("\n".join((header, *body)) for header, body in zip(headers, bodies, strict=True))
        lookup = Lookup(context, answer=headers[place], gold=labels[place])
        if lookup.third == third:
            return lookup
    raise ValueError(
        f"no {size} characters of paragraphs with {target.name!r} in third {third}: found none in {_DRAWS} draws from "
        f"{len(others)} definitions; expected more modules, or another size"
    )


def copying(haystack: Haystack, rng: random.Random, *, room: int, third: int) -> Lookup:
    """A passage of up to six lines between marks, to be repeated with its marks; arguments as for `constant`."""
    opening, closing = wording.MARKS
    longest = min(_LONGEST_PASSAGE, room // 3)
    size = room - longest - 2 * len(f"{opening}\n{closing}\n")
    for smaller in _sizes(size):
        lines = haystack.window(rng, smaller).lines
        places = _places([len(line) + 1 for line in lines], 0, third)
        if not places:
            continue
        first = rng.choice(places)
        last = first + rng.randint(1, 6)
        passage = "\n".join(lines[first:last])
        if passage != passage.strip("\n") or not 16 <= len(passage) <= longest:
            continue
        marked = f"{opening}\n{passage}\n{closing}"
        context = "\n".join([*lines[:first], marked, *lines[last:]])
        lookup = Lookup(context, answer=marked, gold=passage)
        if context.count(passage) == 1 and lookup.third == third:
            return lookup
    raise ValueError(f"no passage to mark in {size} characters of code: found none in {_DRAWS} draws")


def next_line(haystack: Haystack, rng: random.Random, *, room: int) -> Lookup:
    """Code that ends right before a line worth guessing, which is the answer; arguments as for `constant`.

    The line is neither blank nor a comment nor inside a string, and has nothing that the metric `code_sim` skips.
    """
    for size in _sizes(room):
        window = haystack.window(rng, size)
        for at in range(len(window.lines) - 1, 0, -1):
            context = "\n".join(window.lines[:at])
            if len(context) < 0.6 * room:
                break
            if _is_worth_guessing(window, at):
                return Lookup(context, answer=window.lines[at], gold=window.lines[at])
    raise ValueError(f"no line worth guessing after {room} characters of code: found none in {_DRAWS} draws")


def _hidden(
    haystack: Haystack,
    rng: random.Random,
    *,
    prefix: str,
    answer: str,
    gold: str,
    once: tuple[str, ...],
    room: int,
    third: int,
) -> Lookup:
    """Puts a line of its own, indented like the next, before a statement of a window that has none of `once`."""
    line = prefix + answer
    size = room - len(answer) - len(line) - 1
    for smaller in _sizes(size):
        window = haystack.window(rng, smaller)
        text = "\n".join(window.lines)
        if any(word in text for word in once):
            continue
        places = _places([len(found) + 1 for found in window.lines], len(line) + 1, third)
        places = [at for at in places if at < len(window.lines) and window.numbers[at] in window.facts.statements]
        if not places:
            continue
        place = rng.choice(places)
        following = window.lines[place]
        indent = following[: len(following) - len(following.lstrip())]
        context = "\n".join([*window.lines[:place], indent + line, *window.lines[place:]])
        lookup = Lookup(context, answer=answer, gold=gold)
        if len(context) + len(answer) <= room and lookup.third == third:
            return lookup
    raise ValueError(
        f"no place for {line!r} in third {third} of {size} characters of code: found none in {_DRAWS} draws"
    )


def _sizes(size: int) -> Iterator[int]:
    """A size for each draw, from the whole down to two thirds: in short code the statements may fall badly."""
    return (size - size * draw // (3 * _DRAWS) for draw in range(_DRAWS))


def _places(lengths: Sequence[int], inserted: int, third: int) -> list[int]:
    """The pieces before which another may be put so that it begins in a third of the whole; len(lengths): the end."""
    whole = sum(lengths) + inserted
    return [at for at, before in enumerate(accumulate(lengths, initial=0)) if THIRDS * before // whole == third]


def _cut(found: Definition, longest: int) -> list[str]:
    """The header and as much of the body as fits, one line at least."""
    lines = [found.header, found.body[0]]
    for line in found.body[1:]:
        if len("\n".join([*lines, line])) > longest:
            break
        lines.append(line)
    while not lines[-1]:
        lines.pop()
    return lines


def _cost(paragraph: list[str]) -> int:
    """The characters of a paragraph with its label and the blank line behind it."""
    return len("\n".join(paragraph)) + len("  # " + wording.LABEL.format(number=99) + "\n\n")


def _is_worth_guessing(window: Window, at: int) -> bool:
    line = window.lines[at].strip()
    return (
        8 <= len(line) <= 80
        and window.numbers[at] not in window.facts.prose
        and not any(mark in line for mark in _SKIPPED_BY_CODE_SIM)
        and re.search("[A-Za-z]{2}", line) is not None
    )
