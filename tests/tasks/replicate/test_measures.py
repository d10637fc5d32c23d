"""Each measure on made-up artifacts whose figures can be told by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from longloom.tasks.replicate.measures import MEASURES, Evidence, Missing

from .conftest import Artifacts


def measured(artifacts: Artifacts, name: str) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in MEASURES[name](Evidence(artifacts.folders)))


def correlations(rows: Mapping[tuple[str, str, int], float | None]) -> list[dict[str, Any]]:
    """(task, model, parameters) -> rho, among rows of another set, measure and rule."""
    found = []
    for (task, model, parameters), rho in rows.items():
        kept = {"set": "held-out", "measure": "task-gram", "rule": "all", "rho": rho}
        row = {"task": task, "model": model, "parameters": parameters}
        others = ({"set": "corpus"}, {"measure": "infinity-gram"}, {"rule": "seen"})
        found += [row | kept, *(row | kept | other | {"rho": 9.0} for other in others)]
    return found


def test_memorization(artifacts: Artifacts) -> None:
    for seed, rho in enumerate((0.3, 0.1)):
        rows = {
            ("knowledge", "tiny", 10): rho - 0.2, ("knowledge", "base", 100): rho,
            ("translation", "tiny", 10): 0.7, ("translation", "base", 100): 0.25,
        }  # fmt: skip
        artifacts.table(f"trace/{seed}", "memorization", correlations(rows))
    assert measured(artifacts, "ngrams-knowledge") == (0.3, 0.1)
    assert measured(artifacts, "ngrams-tasks") == (0.05, -0.15)
    assert measured(artifacts, "ngrams-size") == (0.2, 0.2)


@pytest.mark.parametrize("name", ["ngrams-tasks", "ngrams-size"])
def test_without_a_correlation_on_facts_there_is_none_to_compare(artifacts: Artifacts, name: str) -> None:
    rows = {("knowledge", "tiny", 10): -0.2, ("knowledge", "base", 100): 0.04, ("translation", "base", 100): -0.3}
    artifacts.table("trace/0", "memorization", correlations(rows))
    with pytest.raises(Missing, match=r"on facts there is no correlation \(0\.040\)"):
        measured(artifacts, name)


@pytest.mark.parametrize("name", ["ngrams-knowledge", "ngrams-tasks", "ngrams-size"])
@pytest.mark.parametrize("rows", [{}, {("knowledge", "tiny", 10): None, ("knowledge", "base", 100): None}])
def test_too_few_points_have_no_correlation(
    artifacts: Artifacts, name: str, rows: dict[tuple[str, str, int], float | None]
) -> None:
    artifacts.table("trace/0", "memorization", correlations({("translation", "base", 100): 0.2, **rows}))
    with pytest.raises(Missing, match="its correlation is not defined: too few points"):
        measured(artifacts, name)


def test_coresets(artifacts: Artifacts) -> None:
    losses = {
        ("untrained", None): 3.0, ("all", 0): 1.0, ("all", 1): 2.0,
        ("tagcos", 0): 1.5, ("tagcos", 1): 2.5, ("random", 0): 1.8, ("random", 1): 2.4,
    }  # fmt: skip
    rows = [
        {"method": method, "seed": seed, "average": average, "loss": loss if average == "sources" else 9.0}
        for (method, seed), loss in losses.items()
        for average in ("source", "sources", "tokens")
    ]
    artifacts.table("proof", "proof", rows[::-1])
    assert measured(artifacts, "tagcos-random") == (0.3, -0.1)
    assert measured(artifacts, "tagcos-full") == (75.0, 50.0)


def test_a_training_that_makes_it_worse_is_no_way_to_go(artifacts: Artifacts) -> None:
    losses = {("untrained", None): 2.0, ("all", 0): 1.0, ("all", 1): 2.1, ("tagcos", 0): 1.5, ("tagcos", 1): 2.3}
    rows = [
        {"method": method, "seed": seed, "average": "sources", "loss": loss} for (method, seed), loss in losses.items()
    ]
    artifacts.table("proof", "proof", rows)
    with pytest.raises(Missing, match="everything does not lower"):
        measured(artifacts, "tagcos-full")


def test_mini_sequences(artifacts: Artifacts) -> None:
    longest = {"plain": 100, "checkpointing": 300, "mini-sequences": 1800}
    errors = [{"loss": 0.0, "gradient": 1e-7}, {"loss": 0.0, "gradient": 0.0}]
    artifacts.write("memory", "memory", {"longest": longest, "errors": errors})
    assert measured(artifacts, "minisequence-plain") == (18.0,)
    assert measured(artifacts, "minisequence-checkpointing") == (6.0,)
    first, exact = measured(artifacts, "minisequence-exact")
    assert first == -7.0
    assert exact == pytest.approx(-15.65, abs=0.01)  # no less than float64 can tell


def test_extension_is_judged_by_the_old_window(artifacts: Artifacts) -> None:
    artifacts.answers("extension/before/full/0", {1000: [1, 1, 1, 0], 2000: [0, 0, 0, 0]})
    artifacts.answers("extension/after/full/0", {1000: [1, 1, 1, 1], 2000: [1, 1, 0, 1]}, window=2048)
    assert measured(artifacts, "chatqa2-needle") == (100.0,)
    artifacts.positions("extension/positions/limited/0", {511: 9.0, 1023: 8.5, 2047: 8.0})
    artifacts.positions("extension/positions/after/0", {511: 9.0, 1023: 8.5, 2047: 10.0})
    assert measured(artifacts, "chatqa2-extension") == (25.0,)  # of the same tokens, the last ones


def test_without_samples_beyond_the_old_window_there_is_no_extension(artifacts: Artifacts) -> None:
    for role in ("before", "after"):
        artifacts.answers(f"extension/{role}/full/0", {1000: [1, 1, 1, 0]})
    with pytest.raises(Missing, match="no sample is longer than the window before extension"):
        measured(artifacts, "chatqa2-needle")


def test_retrieval_compares_the_most_chunks_by_number(artifacts: Artifacts) -> None:
    for role, hits in {"whole": [1, 1, 0, 0], "k=2": [1, 0, 0, 0], "k=10": [1, 1, 1, 0]}.items():
        artifacts.answers(f"rag/{role}/0", {500: hits})
    assert measured(artifacts, "chatqa2-chunks") == (50.0,)
    assert measured(artifacts, "chatqa2-rag") == (25.0,)


def test_razor(artifacts: Artifacts) -> None:
    for role, hits, kept in (
        ("full", [1, 1, 1, 1, 0], 1000),
        ("razor", [1, 1, 1, 0, 0], 280),
        ("uncompensated", [1, 0, 0, 0, 0], 270),
        ("random-heads", [0, 0, 0, 0, 0], 280),
    ):
        artifacts.answers(f"needle/{role}/0", {1000: hits}, kv_bytes=kept)
    assert measured(artifacts, "razor-cache") == (72.0,)
    assert measured(artifacts, "razor-quality") == (20.0,)
    assert measured(artifacts, "razor-heads") == (60.0,)
    assert measured(artifacts, "razor-mean") == (66.666667,)
    artifacts.answers("needle/razor/1", {1000: [0, 0, 0, 0, 0]})
    artifacts.answers("needle/uncompensated/1", {1000: [0, 0, 0, 0, 0]})
    assert measured(artifacts, "razor-mean") == (66.666667, 0.0)  # nothing was lost
    artifacts.answers("needle/scope/0", {1000: [1, 1, 1, 1, 1]})
    assert measured(artifacts, "longcache-scope") == (-20.0,)


def test_beyond_the_window(artifacts: Artifacts) -> None:
    artifacts.answers("needle/full/0", {1000: [1, 0]})
    for role, far in {"full": [0, 0], "longcache": [1, 0], "asking": [1, 1], "streaming": [0, 0]}.items():
        artifacts.answers(f"beyond/{role}/0", {1000: [1, 0], 2000: far, 4000: far})
    assert measured(artifacts, "longcache-beyond") == (100.0,)
    assert measured(artifacts, "longcache-asking") == (200.0,)
    assert measured(artifacts, "longcache-streaming") == (50.0,)
    artifacts.positions("positions/streaming/0", {991: 11.0, 1239: 10.0})
    artifacts.positions("positions/longcache/0", {991: 11.0, 1239: 10.5})
    assert measured(artifacts, "longcache-perplexity") == (5.0,)


@pytest.mark.parametrize(
    "name",
    [
        *("chatqa2-needle", "razor-quality", "razor-heads", "razor-mean"),
        *("longcache-scope", "longcache-beyond", "longcache-asking", "longcache-streaming"),
    ],
)
def test_who_finds_nothing_within_the_window_has_nothing_to_lose(artifacts: Artifacts, name: str) -> None:
    nothing = {1000: [0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 2000: [0]}
    for role in ("full", "razor", "uncompensated", "random-heads", "scope"):
        artifacts.answers(f"needle/{role}/0", nothing)
    for role in ("full", "longcache", "asking", "streaming"):
        artifacts.answers(f"beyond/{role}/0", nothing)
    for role in ("before", "after"):
        artifacts.answers(f"extension/{role}/full/0", nothing)
    with pytest.raises(Missing, match=r"finds 10\.0% of the needles|finds 9\.1% of the needles"):
        measured(artifacts, name)


@pytest.mark.parametrize("name", ["chatqa2-chunks", "chatqa2-rag"])
def test_answers_that_are_hardly_ever_right_are_not_compared(artifacts: Artifacts, name: str) -> None:
    for role in ("whole", "k=1", "k=4"):
        artifacts.answers(f"rag/{role}/0", {500: [0] * 19 + [1]})
    with pytest.raises(Missing, match="less than 10% is answered right"):
        measured(artifacts, name)


def preference(points: dict[int, float], *, context: float = 0.9) -> dict[str, Any]:
    conditions = {"nc": 0.5, "ctx": context, "nonsense": 0.47, "negated": 0.1}
    curve = [{"k": k, "inferred": value} for k, value in points.items()]
    found = {name: {"value": value} for name, value in conditions.items()}
    return {"conditions": found, "profiles": {"nc": 0.5, "points": curve} if curve else None}


def test_preferences(artifacts: Artifacts) -> None:
    artifacts.write("preference/0", "preference", preference({1: 0.55, 2: 0.6, 8: 0.75}))
    margins = {"nc": (1, -1, 2, 0), "nonsense": (-0.5, -2, 1, 1), "ctx": (1, 1, 1, 1)}
    rows = [
        {"id": str(number), "condition": condition, "chosen": 3.0 + margin, "rejected": 3.0}
        for condition, own in margins.items()
        for number, margin in enumerate(own)
    ]
    artifacts.table("preference/0", "scores", rows[::-1])
    assert measured(artifacts, "preferences-context") == (40.0,)
    assert measured(artifacts, "preferences-nonsense") == (25.0,)  # one of four is turned around
    assert measured(artifacts, "preferences-negated") == (10.0,)
    assert measured(artifacts, "preferences-profile") == (10.0,)
    assert measured(artifacts, "preferences-samples") == (15.0,)


@pytest.mark.parametrize("name", ["preferences-nonsense", "preferences-negated"])
def test_who_does_not_listen_is_not_misled(artifacts: Artifacts, name: str) -> None:
    artifacts.write("preference/0", "preference", preference({}, context=0.54))
    with pytest.raises(Missing, match="uses the right context by less than 5 points"):
        measured(artifacts, name)


@pytest.mark.parametrize("points", [{}, {1: 0.5}, {1: 0.5, 8: 0.6}])
def test_profiles_that_cannot_be_inferred_from_two_samples(artifacts: Artifacts, points: dict[int, float]) -> None:
    artifacts.write("preference/0", "preference", preference(points))
    with pytest.raises(Missing):
        measured(artifacts, "preferences-profile")


def test_profiles_from_two_samples_alone_tell_nothing_of_more(artifacts: Artifacts) -> None:
    artifacts.write("preference/0", "preference", preference({1: 0.6, 2: 0.7}))
    assert measured(artifacts, "preferences-profile") == (20.0,)
    with pytest.raises(Missing, match="more than 2 samples"):
        measured(artifacts, "preferences-samples")


@pytest.mark.parametrize("name", MEASURES)
def test_what_did_not_run_has_no_value(artifacts: Artifacts, name: str) -> None:
    with pytest.raises(Missing):
        measured(artifacts, name)
