"""Whether reward models listen, for the report: accuracies by condition and set, in words and as the table's lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longloom.tasks.report.credits import prompt_credits
from longloom.tasks.report.formats import NOTHING, decimal, integer, percent
from longloom.tasks.report.read import read_json

Numbers = dict[str, Any]

#: Condition -> its name on the page, in the order of display; `inferred` is the two-step model's.
NAMES = {"nc": "no context", "ctx": "its context", "nonsense": "nonsense", "negated": "negated", "inferred": "inferred"}
#: Categories in the table on the page; the artifact has all.
CATEGORIES = 40


@dataclass(frozen=True)
class Cell:
    """An accuracy in a table, with its interval below."""

    text: str
    below: str = ""


def preference_numbers(
    evaluations: Mapping[str, Path], judges: Mapping[str, Path], best_of: Path | None
) -> Numbers | None:
    """What the artifacts say: `sets`, name -> preference.json; `judges`, name -> judge.json; `best_of`.

    A set has `credits` besides, of `credits.prompt_credits`.

    Returns:
        None where there is none of them.
    """
    if not (evaluations or judges or best_of):
        return None
    return {
        "sets": {
            name: {**read_json(folder / "preference.json"), "credits": prompt_credits(folder / "scores.parquet")}
            for name, folder in evaluations.items()
        },
        "judges": {name: read_json(folder / "judge.json") for name, folder in judges.items()},
        "best_of": None if best_of is None else read_json(best_of / "best_of.json"),
    }


def conditions_of(found: Numbers) -> dict[str, Numbers]:
    """The accuracies of a set by condition, that of the two-step model by its expected utility among them."""
    own: dict[str, Numbers] = dict(found["conditions"])
    if found["two_step"] is not None:
        own["inferred"] = found["two_step"]["expected_utility"]
    return {name: own[name] for name in NAMES if name in own}


def verdicts(sets: Mapping[str, Numbers]) -> list[str]:
    """Sentences on each set, which follow from the numbers, whichever way they turned out."""
    return [_verdict(name, found) for name, found in sets.items()]


def _verdict(name: str, found: Numbers) -> str:
    own = found["conditions"]
    start = f"On {name} the better response is found in {percent(own['nc']['value'])} without a context"
    if "ctx" not in own:
        return f"{start}; no comparison has one."
    parts = [f"{start} and in {_ranged(own['ctx'])} with its own."]
    gain = found["gain"]
    if gain["low"] is None:
        listens = "Of one prompt nothing can be told."
    elif gain["low"] > 0:
        listens = "It listens: the gain is beyond its interval."
    elif gain["high"] < 0:
        listens = "The context misleads it: the loss is beyond its interval."
    else:
        listens = "That it listens cannot be told: the interval of the gain holds 0."
    parts.append(listens)
    parts.append(
        f"A nonsense criterion brings {_ranged(own['nonsense'])}, the negated one {_ranged(own['negated'])}; the"
        f" negation turns {percent(found['turned']['value'])} of the preferences around."
    )
    if found["context_free"]["balanced"]:
        parts.append("Every comparison is there in both orders, so who does not look at the context is right in 50.0%.")
    return " ".join(parts)


def _ranged(found: Numbers) -> str:
    if found["low"] is None:
        return percent(found["value"])
    return f"{percent(found['value'])} ({percent(found['low'])} to {percent(found['high'])})"


def cell(found: Numbers | None) -> Cell:
    """An accuracy with its interval; a dash where there is none."""
    if found is None or found["value"] is None:
        return Cell(NOTHING)
    below = "" if found["low"] is None else f"{percent(found['low'])} to {percent(found['high'])}"
    return Cell(percent(found["value"]), below)


def set_lines(sets: Mapping[str, Numbers]) -> tuple[list[str], list[tuple[str, str, str, list[Cell]]]]:
    """The names of the conditions, and of each set its name, comparisons, what is left out, and its accuracies."""
    columns = [name for name in NAMES if any(name in conditions_of(found) for found in sets.values())]
    lines = []
    for name, found in sets.items():
        own = conditions_of(found)
        lines.append(
            (name, integer(found["judged"]), _left_out(found), [cell(own.get(condition)) for condition in columns])
        )
    return [NAMES[column] for column in columns], lines


def _left_out(found: Numbers) -> str:
    parts = [("ties", "ties"), ("too_long", "too long"), ("without_context", "without context")]
    return ", ".join(f"{integer(found[name])} {words}" for name, words in parts if found[name])


def category_lines(found: Numbers) -> tuple[list[str], list[tuple[str, str, list[Cell]]], int]:
    """The names of the conditions, the largest categories with their accuracies, and how many more there are."""
    rows = found["categories"]
    columns = [name for name in NAMES if any(name in row["conditions"] for row in rows)]
    lines = [
        (
            row["category"],
            integer(row["comparisons"]),
            [cell(row["conditions"].get(condition)) for condition in columns],
        )
        for row in rows[:CATEGORIES]
    ]
    return [NAMES[column] for column in columns], lines, max(0, len(rows) - CATEGORIES)


def step_lines(sets: Mapping[str, Numbers]) -> list[tuple[str, list[str]]]:
    """Of each set with a two-step model: accuracies of both aggregations, the error, and its two terms."""
    lines = []
    for name, found in sets.items():
        steps = found["two_step"]
        if steps is None:
            continue
        split = steps["decomposition"]
        lines.append(
            (
                name,
                [
                    integer(steps["comparisons"]),
                    integer(steps["candidates"]),
                    percent(steps["expected_utility"]["value"]),
                    percent(steps["borda"]["value"]),
                    *(decimal(split[term], 3) for term in ("total", "prediction", "inference")),
                    decimal(split["prediction"] + split["inference"], 3),
                    integer(split["violations"]),
                ],
            )
        )
    return lines


def profile_lines(found: Numbers) -> list[tuple[str, list[str]]]:
    """Of each number of samples: the accuracies, and how often the own profile is the likeliest."""
    return [
        (integer(point["k"]), [percent(point[name]) for name in ("inferred", "weighted", "recovered")])
        for point in found["points"]
    ]


def judge_lines(judges: Mapping[str, Numbers]) -> list[tuple[str, str, list[str]]]:
    """Of each set and condition: accuracy, in each order, disagreements of the two, and what is no verdict."""
    lines = []
    for name, found in judges.items():
        for condition, own in found["conditions"].items():
            accuracy = cell(own)
            lines.append(
                (
                    name,
                    NAMES[condition],
                    [
                        integer(own["comparisons"]),
                        " ".join(filter(None, (accuracy.text, accuracy.below and f"({accuracy.below})"))),
                        percent(own["as_a"]),
                        percent(own["as_b"]),
                        percent(own["disagreements"] / own["judged_twice"]) if own["judged_twice"] else NOTHING,
                        integer(own["unread"]),
                        integer(own["failed"]),
                    ],
                )
            )
    return lines


def best_of_lines(found: Numbers) -> list[tuple[str, str, Cell, str]]:
    """Of each subset: its prompts, its score, and that of chance; the mean of all last."""
    rows = [
        (row["subset"], integer(row["prompts"]), cell({**row, "value": row["score"]}), percent(row["chance"]))
        for row in found["subsets"]
    ]
    return [*rows, ("mean of subsets", integer(found["prompts"]), Cell(percent(found["score"])), NOTHING)]


def tie_terms(found: Numbers) -> Sequence[tuple[str, str]]:
    """The terms of the score of ties by their names on the page; () without ties."""
    terms = found["ties"]
    if terms is None:
        return ()
    names = {
        "tied": "all right ones first, of several",
        "ref": "all right ones first, of one",
        "preferred": "wider gap than spread",
        "preferred_hard": "also than the gap beside it",
        "margin": "tie-breaking margin",
    }
    return [
        (words, decimal(terms[name], 3) if name == "margin" else percent(terms[name])) for name, words in names.items()
    ]
