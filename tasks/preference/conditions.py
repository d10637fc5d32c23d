"""What stands in the context's place when a reward model is asked whether it listens (arXiv 2407.14916, section 5).

No context (NC), the data's own (CTX), a nonsense criterion (accuracy should fall to that without one) and the negated
criterion (it should reverse). How the paper words the last two is not known here: what follows is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from longloom.storage.json_text import read_json
from longloom.tasks.preference.rows import Row

NC, CTX, NONSENSE, NEGATED = "nc", "ctx", "nonsense", "negated"

#: A comparisons artifact may bring a list of criteria and their negations, as the one of the standard library does.
LIST = "negations.json"
#: Criteria that speak of nothing in any response.
NONSENSE_CRITERIA = (
    "Prefer the response that was written on a Tuesday.",
    "Prefer the response whose author owns a bicycle.",
    "Prefer the response that the tide brought in.",
    "Prefer the response that weighs less than a feather.",
    "Prefer the response that a quiet number would have sung.",
    "Prefer the response that was still blue yesterday.",
    "Spoon umbrella seventeen, unless the window.",
    "Of the two, the one that north is.",
)

#: How a criterion is negated that no list tells of; it works on commands, questions and names of qualities alike.
NEGATION = "The opposite of this criterion: {context}"
_FORBIDDING = ("do not ", "don't ", "don\u2019t ")


def negated(criterion: str, listed: Mapping[str, str]) -> tuple[str, bool]:
    """A criterion that asks for the contrary, and whether the list has it.

    Args:
        criterion: in words.
        listed: criterion -> its contrary; read in both directions.

    Returns:
        The list's contrary; without one, of a command that forbids the command itself; else the words of `NEGATION`.
    """
    backwards = {contrary: known for known, contrary in listed.items()}
    found = listed.get(criterion) or backwards.get(criterion)
    if found is not None:
        return found, True
    for beginning in _FORBIDDING:
        if criterion.lower().startswith(beginning) and len(criterion) > len(beginning):
            rest = criterion[len(beginning) :]
            return rest[0].upper() + rest[1:], False
    return NEGATION.replace("{context}", criterion), False


def read_negations(path: Path) -> dict[str, str]:
    """The list of a file, a JSON object of criterion -> contrary.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else, or a criterion that is its own contrary.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected JSON of criteria and their negations")
    found = read_json(path, expected="a JSON object of criteria and their negations")
    if not isinstance(found, dict) or not all(isinstance(value, str) and value.strip() for value in found.values()):
        raise ValueError(f"{path}: found something else, expected a JSON object of criteria and their negations")
    for criterion, contrary in found.items():
        if criterion == contrary:
            raise ValueError(f"{path}: the criterion {criterion!r} is its own negation, expected another text")
    return found


def nonsense(row: Row, *, seed: int) -> str:
    """A comparison's nonsense criterion, drawn by its id, so that the two orders of a pair get different ones."""
    digest = hashlib.sha256(f"{seed}/{row.id}".encode()).digest()
    return NONSENSE_CRITERIA[int.from_bytes(digest[:8], "little") % len(NONSENSE_CRITERIA)]


def contexts_under(
    condition: str, rows: Sequence[Row], *, listed: Mapping[str, str], seed: int
) -> list[tuple[int, str | None]]:
    """Which comparisons a condition can judge, by their place, and the context of each.

    Without a context of their own comparisons are asked without one alone.
    """
    own = [(place, row.context) for place, row in enumerate(rows) if row.context is not None]
    if condition == NC:
        return [(place, None) for place in range(len(rows))]
    if condition == CTX:
        return [*own]
    if condition == NONSENSE:
        return [(place, nonsense(rows[place], seed=seed)) for place, _ in own]
    assert condition == NEGATED
    return [(place, negated(context, listed)[0]) for place, context in own]
