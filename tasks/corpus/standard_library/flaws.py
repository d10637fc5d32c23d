"""Spoils a pool on purpose: wrong, cut and empty answers, rewordings and repeats, as pools of real data have them.

A method that selects data can show its worth only where the data differ in theirs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from longloom.tasks.corpus.standard_library.wording import HOLLOW, QUESTIONS, questions, user_turn

#: Kind of task -> the share of its originals with a flawed answer.
FLAWED = {
    "next_line": 0.10,
    "docstring": 0.30,
    "signature": 0.20,
    "constant": 0.06,
    "definition": 0.06,
    "passkey": 0.04,
    "copy": 0.08,
}
FLAWS = ("truncated", "wrong", "hollow")  # in equal parts
EXACT_DUPLICATES = 0.10
NEAR_DUPLICATES = 0.08


@dataclass(frozen=True)
class Example:
    """One example of the pool before it is numbered.

    Attributes:
        kind: the kind of task.
        context: what stands above the question.
        name: what is asked about, "" where the question names nothing.
        wording: which of the kind's questions is asked, counted from 0.
        answer: what the assistant says.
        flaw: one of `FLAWS`, or "" for a good answer.
    """

    kind: str
    context: str
    name: str
    wording: int
    answer: str
    flaw: str = ""

    @property
    def user(self) -> str:
        """The user's turn."""
        return user_turn(self.context, questions(self.kind, name=self.name)[self.wording])

    @property
    def characters(self) -> int:
        """The characters of both turns, in the longest wording."""
        longest = max(map(len, questions(self.kind, name=self.name)))
        return len(user_turn(self.context, "")) + longest + len(self.answer)


def spoil(examples: Sequence[Example], rng: random.Random) -> list[Example]:
    """Gives the stated share of one kind's examples a flawed answer, never longer than the good one.

    A truncated answer stops within the first half, a wrong one is another example's, a hollow one says nothing.
    """
    spoiled = list(examples)
    chosen = rng.sample(range(len(examples)), round(FLAWED[examples[0].kind] * len(examples))) if examples else []
    for turn, index in enumerate(chosen):
        good = examples[index].answer
        flaw = FLAWS[turn % len(FLAWS)]
        if flaw == "truncated":
            choices = [good[: max(1, round(rng.uniform(0.15, 0.5) * len(good)))].rstrip()]
        elif flaw == "wrong":
            choices = [other.answer for other in examples]
        else:
            choices = list(HOLLOW)
        choices = [answer for answer in choices if answer and answer != good and len(answer) <= len(good)]
        if choices:
            spoiled[index] = replace(examples[index], answer=rng.choice(choices), flaw=flaw)
    return spoiled


def reword(examples: Sequence[Example], count: int, rng: random.Random) -> list[Example]:
    """Near-duplicates: as many examples, each another's context and answer under another wording of its question."""
    near = []
    for example in rng.sample(examples, count):
        wordings = len(QUESTIONS[example.kind])
        near.append(replace(example, wording=(example.wording + rng.randint(1, wordings - 1)) % wordings))
    return near
