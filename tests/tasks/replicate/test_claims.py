"""The claims as data: their rules, and that what was measured earlier is what the results in the repository say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from longloom.flows.params_replicate import PAPERS as ASKED
from longloom.tasks.replicate.claim import Claim, Rule
from longloom.tasks.replicate.claims import CLAIMS, PAPERS
from longloom.tasks.replicate.measures import MEASURES

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "benchmarks" / "results"
EARLIER = [claim for claim in CLAIMS if claim.earlier]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((10.0, 12.0), "holds"),
        ((10.0,), "holds"),  # on the bound
        ((30.0, 7.9), "partly"),  # one run is below its own bound
        ((9.9, 9.9), "partly"),
        ((4.0, 6.0), "partly"),
        ((4.9, 4.9), "does not"),
        ((-20.0, 20.0), "does not"),
    ],
)
def test_the_verdict_follows_from_mean_and_runs(values: tuple[float, ...], verdict: str) -> None:
    assert Rule("at least", holds=10, every=8, partly=5).verdict(values) == verdict
    mirrored = tuple(-value for value in values)
    assert Rule("at most", holds=-10, every=-8, partly=-5).verdict(mirrored) == verdict


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_a_rule_asks_for_more_where_it_is_to_hold(claim: Claim) -> None:
    rule = claim.rule
    sign = 1 if rule.direction == "at least" else -1
    assert sign * rule.holds >= sign * rule.every
    assert sign * rule.holds > sign * rule.partly
    assert rule.verdict((rule.holds,)) == "holds"
    assert rule.verdict((rule.partly,)) == "partly"
    assert rule.verdict((rule.partly - sign * 1e-3,)) == "does not"


def test_every_paper_has_claims_and_each_is_measured_once() -> None:
    assert tuple(PAPERS) == ASKED
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    assert {claim.name for claim in CLAIMS if claim.earlier is None} == set(MEASURES)
    order = list(dict.fromkeys(claim.paper for claim in CLAIMS))
    assert order == list(PAPERS)
    for paper in PAPERS:
        measured = [claim for claim in CLAIMS if claim.paper == paper and claim.earlier is None]
        assert 2 <= len(measured) <= 5, paper


def test_sections_stand_in_the_report() -> None:
    templates = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tasks" / "report").glob("*.html"))
    known = set(re.findall(r'<section id="([\w-]+)"', templates))
    assert {claim.section for claim in CLAIMS if claim.earlier is None} <= known


def share_of_needles(cells: dict[str, list[float]]) -> float:
    return sum(hits for hits, _ in cells.values()) / sum(asked for _, asked in cells.values())


def throughput(results: dict[str, Any]) -> list[float]:
    _, median, _ = results["model"]["at_equal_length"]["2048"]["speed_over_plain"]
    return [median]


def extended(results: dict[str, Any]) -> list[float]:
    needles = [seed["needles"] for seed in results["seeds"]]
    return [
        100 * share_of_needles(each["extended"]["4096"]) / share_of_needles(each["as it is"]["480"]) for each in needles
    ]


def asking(results: dict[str, Any]) -> list[float]:
    needles = [seed["needles"] for seed in results["seeds"]]
    (policy,) = [name for name in needles[0] if "asking" in name]
    return [100 * share_of_needles(each[policy]["131072"]) / share_of_needles(each["full"]["480"]) for each in needles]


def negated(results: dict[str, Any]) -> list[float]:
    return [100 * seed["sets"]["modules"]["conditions"]["negated"]["value"] for seed in results["seeds"]]


def stages(results: dict[str, Any]) -> list[float]:
    scores = [[seed["by length"][way].values() for way in ("three stages", "all in one")] for seed in results["seeds"]]
    return [(sum(three) - sum(one)) / len(one) for three, one in scores]


def retrieved(than: Callable[[dict[str, Any], int, str], float], results: dict[str, Any]) -> list[float]:
    """Of 120 words, a mean over sizes of chunks and lengths of contexts."""
    cells = [(size, length) for size in (15, 30, 60) for length in ("1200", "1800")]
    return [
        sum(chunks(seed, size, 120 // size, length) - than(seed, size, length) for size, length in cells) / len(cells)
        for seed in results["seeds"]
    ]


def chunks(seed: dict[str, Any], size: int, k: int, length: str) -> float:
    found: float = seed["retrieval"][f"full/bm25:words={size},k={k},order=document"][length]
    return found


def whole(seed: dict[str, Any], size: int, length: str) -> float:
    found: float = seed["retrieval"]["full"][length]
    return found


FIGURES = {
    "chatqa2-chunks-tuned": partial(retrieved, lambda seed, size, length: chunks(seed, size, 1, length)),
    "chatqa2-rag-tuned": partial(retrieved, whole),
    "chatqa2-stages": stages,
    "preferences-negated-6000": negated,
    "minisequence-throughput": throughput,
    "chatqa2-needle-8x": extended,
    "longcache-asking-256x": asking,
}


@pytest.mark.parametrize("claim", EARLIER, ids=lambda claim: claim.name)
def test_what_was_measured_earlier_is_what_the_results_say(claim: Claim) -> None:
    assert claim.earlier
    results = json.loads((RESULTS / claim.earlier.file).read_text(encoding="utf-8"))
    figures = FIGURES[claim.name](results)
    assert [round(value, 3) for value in claim.earlier.values] == pytest.approx(figures, abs=0.051)
    assert (ROOT / claim.earlier.command.split()[1]).is_file()
