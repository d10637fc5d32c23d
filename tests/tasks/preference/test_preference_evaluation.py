"""A reward model that listens does as the context says; one that does not is right in exactly half of reversals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longloom.storage.parquet import read_table
from longloom.tasks.preference.accuracy import accuracy, credit, mean
from longloom.tasks.preference.conditions import (
    NEGATION,
    NONSENSE_CRITERIA,
    contexts_under,
    negated,
    nonsense,
    read_negations,
)
from longloom.tasks.preference.encoding import Asked
from longloom.tasks.preference.evaluation import build
from longloom.tasks.preference.rows import Row, read_rows
from longloom.tasks.preference.scoring import Memory
from longloom.tasks.report.credits import prompt_credits

from .judged import LONG, NEGATIONS, SHORT, Score, comparisons, deaf, listens, reversals

OPTIONS: dict[str, Any] = {"negations": NEGATIONS, "samples": [1, 2], "seed": 0}


def numbers(folder: Path, scorer: Score, pool: Path, **options: Any) -> dict[str, Any]:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    build(scorer, pool, None, out, **OPTIONS | options)
    found: dict[str, Any] = json.loads((out / "preference.json").read_text())
    return found


def values(found: dict[str, Any]) -> dict[str, float]:
    return {name: each["value"] for name, each in found["conditions"].items()}


def test_one_that_listens(tmp_path: Path) -> None:
    found = numbers(tmp_path, Score(listens), reversals(tmp_path, 40))
    assert values(found) == {"nc": 0.5, "ctx": 1.0, "nonsense": 0.5, "negated": 0.0}
    assert found["conditions"]["nc"]["equal"] == 80  # a constant scorer, by the way
    assert found["gain"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["turned"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["negations"] == {"listed": 80, "by_rule": 0}
    assert found["context_free"] == {"best": 40, "of": 80, "balanced": True}
    assert [(row["category"], row["comparisons"]) for row in found["categories"]] == [("length", 40), ("mark", 40)]
    assert all(row["conditions"]["ctx"]["value"] == 1 for row in found["categories"])


def test_comparisons_that_bring_their_negations(tmp_path: Path) -> None:
    pool = reversals(tmp_path, 8)
    ruled = numbers(tmp_path, Score(listens), pool, negations={})
    assert ruled["negations"] == {"listed": 0, "by_rule": 16}
    assert values(ruled)["negated"] == 0.5  # it knows nothing of opposites
    (pool / "negations.json").write_text(json.dumps(NEGATIONS))
    brought = numbers(tmp_path, Score(listens), pool, negations={})
    assert brought["negations"] == {"listed": 16, "by_rule": 0}
    assert values(brought)["negated"] == 0


def test_one_that_does_not_listen_is_right_in_exactly_half(tmp_path: Path) -> None:
    found = numbers(tmp_path, Score(deaf), reversals(tmp_path, 33))
    for each in found["conditions"].values():
        assert (each["value"], each["low"], each["high"], each["equal"]) == (0.5, 0.5, 0.5, 0)
    assert found["turned"]["value"] == 0
    assert found["gain"]["value"] == 0


def test_noise_of_a_device_cannot_break_the_invariant(tmp_path: Path) -> None:
    """A scorer that never says the same twice is asked each question once."""
    noise = np.random.default_rng(0)
    scorer = Score(lambda asked: float(noise.random()))
    found = numbers(tmp_path, scorer, reversals(tmp_path, 33))
    assert values(found)["nc"] == 0.5
    keys = [(str(each.prompt), each.context, each.response) for each in scorer.asked]
    assert len(keys) == len(set(keys))


def test_scores_are_kept(tmp_path: Path) -> None:
    numbers(tmp_path, Score(listens), reversals(tmp_path, 4))
    rows = read_table(tmp_path / "out", "scores").to_pylist()
    assert len(rows) == 4 * 8
    first = [row for row in rows if row["id"].endswith("0/x")]
    assert {row["condition"]: row["context"] for row in first if row["condition"] != "nonsense"} == {
        "nc": None,
        "ctx": SHORT,
        "negated": LONG,
    }
    assert [(row["chosen"], row["rejected"]) for row in first if row["condition"] == "ctx"] == [(-2.0, -16.0)]


def test_credits_by_prompt_average_to_the_accuracy(tmp_path: Path) -> None:
    def found(name: str, *rejected: str) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        folder = tmp_path / name
        folder.mkdir()
        pairs = [{"chosen": "yes" * number, "rejected": no} for number, no in enumerate(rejected, start=1)]
        records = [{"id": f"{n}", "prompt": f"p{min(n, 2)}", "context": SHORT, **pair} for n, pair in enumerate(pairs)]
        told = numbers(folder, Score(listens), comparisons(folder, records))
        return told, prompt_credits(folder / "out" / "scores.parquet")

    told, credits = found("one", "nope", "yes", "nope", "nope, no" * 5, "nope")
    assert {name: np.mean(list(own.values())) for name, own in credits.items()} == pytest.approx(values(told))
    assert [len(own) for own in credits.values()] == [3] * 4
    assert list(credits["ctx"].values()) == pytest.approx([0.6, 0.0, 0.6])  # all of one, none of one, one of three
    _, others = found("two", "nope", "yes", "nope", "nope, no" * 5, "nah")  # other responses
    assert [name in others["ctx"] for name in credits["ctx"]] == [True, True, False]


def test_ties_and_missing_contexts_are_counted(tmp_path: Path) -> None:
    plain = {"chosen": "yes", "rejected": "nope"}
    records = [
        {"id": "0", "prompt": "p", **plain, "context": SHORT},
        {"id": "1", "prompt": "q", **plain},
        {"id": "2", "prompt": "r", **plain, "context": SHORT, "tie": True},
    ]
    found = numbers(tmp_path, Score(listens), comparisons(tmp_path, records))
    assert {name: found[name] for name in ("comparisons", "judged", "ties", "without_context", "too_long")} == {
        "comparisons": 3,
        "judged": 2,
        "ties": 1,
        "without_context": 1,
        "too_long": 0,
    }
    assert [found["conditions"][name]["comparisons"] for name in ("nc", "ctx")] == [2, 1]
    assert found["gain"] == {"value": 0.5, "low": None, "high": None}  # over those with a context alone
    assert found["categories"] == []
    assert found["profiles"] is None


def test_no_contexts_at_all(tmp_path: Path) -> None:
    records = [{"prompt": f"p{number}", "chosen": "aa", "rejected": "b"} for number in range(3)]
    found = numbers(tmp_path, Score(lambda asked: len(asked.response)), comparisons(tmp_path, records))
    assert values(found) == {"nc": 1.0}
    assert found["gain"]["value"] is None


def test_what_is_too_long_in_any_condition_is_left_out_of_all(tmp_path: Path) -> None:
    pool = reversals(tmp_path, 8)

    def fits(asked: Sequence[Asked]) -> list[bool]:
        return [not (each.prompt[0]["content"] == "question 1" and each.context == LONG) for each in asked]

    scorer = Score(listens)
    found = numbers(tmp_path, scorer, pool, fits=fits)
    assert (found["judged"], found["too_long"]) == (14, 2)  # one of them asks for it when it is negated alone
    assert all(each.prompt[0]["content"] != "question 1" for each in scorer.asked)
    assert [found["conditions"][name]["comparisons"] for name in ("nc", "ctx", "negated")] == [14, 14, 14]
    pool = comparisons(tmp_path, [{"prompt": "question 1", "chosen": "a", "rejected": "aa", "context": SHORT}], "one")
    with pytest.raises(ValueError, match="none of 1 can be judged, 0 are ties and 1 longer than the model can read"):
        build(scorer, pool, None, tmp_path / "out", fits=fits, **OPTIONS)


def test_a_reversal_goes_whole(tmp_path: Path) -> None:
    """Of the one order that can be read a deaf scorer would be right more often, or less, than half the time."""

    def fits(asked: Sequence[Asked]) -> list[bool]:
        return [
            not (each.prompt[0]["content"] in ("question 1", "question 4") and each.context == LONG) for each in asked
        ]

    found = numbers(tmp_path, Score(deaf), reversals(tmp_path, 8), fits=fits, negations={})
    assert (found["judged"], found["too_long"]) == (12, 4)
    assert values(found)["nc"] == 0.5
    assert found["context_free"]["balanced"]


def test_a_score_that_is_no_number_names_the_comparison(tmp_path: Path) -> None:
    def broken(asked: Asked) -> float:
        return float("nan") if asked.context == LONG else 0.0

    with pytest.raises(ValueError, match="comparison '0/y': found the score nan"):
        numbers(tmp_path, Score(broken), reversals(tmp_path, 2))


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    pool = reversals(tmp_path, 40)
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build(Score(deaf), pool, None, tmp_path / name, **OPTIONS)
        files.append([(tmp_path / name / file).read_bytes() for file in ("preference.json", "scores.parquet")])
    assert files[0] == files[1]


def row(identifier: str = "0", context: str | None = SHORT) -> Row:
    return Row(identifier, "s", [{"role": "user", "content": "p"}], "a", "b", context, None, False)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (SHORT, (LONG, True)),
        (LONG, (SHORT, True)),  # the list is read in both directions
        ("Do not shout.", ("Shout.", False)),
        ("don't shout", ("Shout", False)),
        ("Be {kind}", (NEGATION.replace("{context}", "Be {kind}"), False)),
        ("Is it honest?", (NEGATION.replace("{context}", "Is it honest?"), False)),
    ],
)
def test_negations(criterion: str, expected: tuple[str, bool]) -> None:
    assert negated(criterion, NEGATIONS) == expected


def test_a_list_of_negations(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    file.write_text(json.dumps(NEGATIONS))
    assert read_negations(file) == NEGATIONS
    for text, message in (
        ("[1]", "found something else, expected a JSON object"),
        ('{"a": 1}', "found something else"),
        ("{", "expected a JSON object"),
        ('{"a": "a"}', "'a' is its own negation"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_negations(file)
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        read_negations(tmp_path / "none.json")


def test_nonsense_is_drawn_for_each_comparison() -> None:
    rows = [row(str(number)) for number in range(200)]
    drawn = [nonsense(each, seed=0) for each in rows]
    assert set(drawn) == set(NONSENSE_CRITERIA)
    assert drawn == [nonsense(each, seed=0) for each in rows]
    assert drawn != [nonsense(each, seed=1) for each in rows]
    places = contexts_under("nonsense", [row(), row(context=None)], listed={}, seed=0)
    assert [place for place, _ in places] == [0]


margins = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=30)


@given(margins)
def test_a_margin_and_its_reverse_share_one_credit(found: list[float]) -> None:
    both = np.array(found)
    assert ((credit(both) + credit(-both)) == 1).all()
    reversal = accuracy(np.concatenate([both, -both]), [*range(len(found))] * 2)
    assert reversal.value == 0.5
    assert (reversal.low, reversal.high) == ((0.5, 0.5) if len(found) > 1 else (None, None))


def test_intervals_are_over_prompts() -> None:
    """Ten copies of a prompt's result tell no more than one: the interval is that of the prompts."""
    once = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    assert mean(np.repeat(once, 10), [place for place in range(6) for _ in range(10)]) == mean(once, range(6))
    value, low, high = mean(np.repeat(once, 10), range(60))
    assert value == pytest.approx(2 / 3)
    assert low is not None
    assert high is not None
    _, wide_low, wide_high = mean(once, range(6))
    assert wide_low is not None
    assert wide_high is not None
    assert high - low < (wide_high - wide_low) / 2
    assert mean(np.array([]), []) == (None, None, None)
    assert mean(np.array([1.0, 0.0]), ["a", "a"]) == (0.5, None, None)


def test_margins_in_many_contexts(tmp_path: Path) -> None:
    rows = read_rows(reversals(tmp_path, 2))
    memory = Memory(Score(listens))
    found = memory.margins(rows, [SHORT, LONG, None])
    assert found.tolist() == [[14.0, -14.0, 0.0], [-14.0, 14.0, 0.0], [12.0, -12.0, 0.0], [-12.0, 12.0, 0.0]]
