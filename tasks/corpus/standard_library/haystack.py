"""Windows of real code to hide something in: consecutive lines of one module, plain enough to read and to tokenize."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from longloom.tasks.corpus.standard_library import wording
from longloom.tasks.corpus.standard_library.syntax import Facts

_DRAWS = 500
_LEAST_FILLED = 0.9
_LONGEST_LINE = 120
_MOST_DIGITS = 0.05  # tables of numbers cost twice the tokens a character and read as noise
_FOREIGN = (*wording.MARKS, "Paragraph", "pass key", "\t", "\f")  # what the tasks rest on must not stand there already


@dataclass(frozen=True)
class Window:
    """Consecutive lines of a module, runs of blank lines shrunk to one.

    Attributes:
        facts: the module.
        numbers: the lines' numbers in the module, rising.
        lines: the lines.
    """

    facts: Facts
    numbers: tuple[int, ...]
    lines: tuple[str, ...]


class Haystack:
    """Draws windows out of modules.

    Args:
        modules: the modules to draw from, all of one side (training or held out).
    """

    def __init__(self, modules: Sequence[Facts]) -> None:
        self._modules = [facts for facts in modules if facts.starts]

    def window(self, rng: random.Random, size: int) -> Window:
        """Draws a module, a statement to begin with, and as many lines as fit.

        Args:
            rng: the source of chance.
            size: the most characters; the window has at least nine tenths of it.

        Raises:
            ValueError: if a bounded number of draws finds no such window.
        """
        for _ in range(_DRAWS if self._modules else 0):
            facts = rng.choice(self._modules)
            window = _window(facts, rng.choice(facts.starts), size)
            text = "\n".join(window.lines)
            if len(text) >= _LEAST_FILLED * size and is_plain(text):
                return window
        raise ValueError(
            f"the library offers no {size} characters of plain code in a row: found none in {_DRAWS} draws from "
            f"{len(self._modules)} modules; expected more or longer modules, or a smaller size"
        )


def is_plain(text: str) -> bool:
    """Whether text can be haystack: ASCII, no long lines, few digits, none of the words and marks of the tasks."""
    return (
        text.isascii()
        and not any(mark in text for mark in _FOREIGN)
        and max(map(len, text.split("\n"))) <= _LONGEST_LINE
        and sum(map(str.isdigit, text)) <= _MOST_DIGITS * len(text)
    )


def _window(facts: Facts, start: int, size: int) -> Window:
    numbers: list[int] = []
    used = -1  # the last line has no line end
    for number in range(start, len(facts.lines)):
        line = facts.lines[number]
        if not line and numbers and not facts.lines[numbers[-1]]:
            continue
        used += len(line) + 1
        if used > size:
            break
        numbers.append(number)
    while numbers and not facts.lines[numbers[-1]]:
        numbers.pop()
    return Window(facts, tuple(numbers), tuple(facts.lines[number] for number in numbers))
