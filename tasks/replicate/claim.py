"""What a claim of a paper is made of, and how its verdict follows from a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "partly", "does not"]

#: Of the long benchmark runs.
MACHINE = "2 cores of an AMD EPYC, torch 2.13.0, no GPU"
#: Whence a figure is known that no abstract has: our own specifications of the methods; no table was at hand.
NOTES = "from notes on the paper"


@dataclass(frozen=True)
class Rule:
    """When a claim holds.

    Attributes:
        direction: what the measure should be.
        holds: bound on the mean over the runs.
        every: bound on each run, where the claim is to hold.
        partly: bound on the mean below which the claim does not even hold partly.
    """

    direction: Literal["at least", "at most"]
    holds: float
    every: float
    partly: float

    def verdict(self, values: tuple[float, ...]) -> Verdict:
        """What follows from the runs' values, one at least."""
        mean = sum(values) / len(values)
        if self._met(mean, self.holds) and all(self._met(value, self.every) for value in values):
            return "holds"
        return "partly" if self._met(mean, self.partly) else "does not"

    def _met(self, value: float, bound: float) -> bool:
        return value >= bound if self.direction == "at least" else value <= bound

    def words(self, unit: str) -> str:
        """The rule as a reader reads it."""
        every = "" if self.every == self.holds else f", every run {self.direction} {_number(self.every)}"
        if self.every == self.holds:
            every = ", and so every run"
        return (
            f"holds: mean {self.direction} {_number(self.holds)}{unit}{every};"
            f" partly: mean {self.direction} {_number(self.partly)}{unit}"
        )


def least(holds: float, every: float, partly: float) -> Rule:
    """A rule of a measure that should be at least something."""
    return Rule("at least", holds, every, partly)


def most(holds: float, every: float, partly: float) -> Rule:
    """A rule of a measure that should be at most something."""
    return Rule("at most", holds, every, partly)


@dataclass(frozen=True)
class Earlier:
    """A measure of a long benchmark run, kept with the repository.

    Attributes:
        values: of the runs.
        file: in benchmarks/results.
        command, machine, date: of the run.
    """

    values: tuple[float, ...]
    file: str
    command: str
    machine: str
    date: str


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        name: of the claim, and of its measure in `measures.MEASURES`, unless it was measured earlier.
        paper: its short name, a key of PAPERS.
        claim: in our words.
        figure: the paper's.
        place: of the figure in the paper, or where it is known from.
        measure: what is measured here.
        unit: of the measure, as it is written behind a number.
        digits: behind the point.
        rule: of the verdict.
        section: of the report that shows it.
        earlier: of a long benchmark run; None: the flow measures it.
    """

    name: str
    paper: str
    claim: str
    figure: str
    place: str
    measure: str
    unit: str
    digits: int
    rule: Rule
    section: str
    earlier: Earlier | None = None


def _number(value: float) -> str:
    return f"{value:g}"
