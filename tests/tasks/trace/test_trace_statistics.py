"""Correlations against scipy and against their definitions, with ties and probabilities of zero."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from longloom.tasks.trace.statistics import (
    _codes,
    _rho_of_codes,
    correlate,
    equal_sizes,
    kendall_distance,
    spearman,
)

VALUES = st.one_of(st.integers(-3, 3).map(float), st.just(-math.inf))
SIDES = st.lists(st.tuples(VALUES, VALUES), min_size=3, max_size=25)


@settings(max_examples=40, deadline=None)
@given(SIDES)
def test_with_ties_as_scipy_and_as_defined(sides: list[tuple[float, float]]) -> None:
    corpus, model = (np.array(side) for side in zip(*sides, strict=True))
    found = correlate(corpus, model, np.arange(len(corpus)) // 2)
    if len(set(corpus)) == 1 or len(set(model)) == 1:
        assert found is None
        return
    assert found is not None
    finite = [np.where(np.isinf(side), -99.0, side) for side in (corpus, model)]  # the same order
    expected = stats.spearmanr(*finite)
    assert found.rho == pytest.approx(expected.statistic, abs=1e-12)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)
    assert _rho_of_codes(_codes(corpus), _codes(model)) == pytest.approx(found.rho, abs=1e-12)
    concordant = discordant = tied_x = tied_y = 0
    for (a, b), (c, d) in combinations(zip(*finite, strict=True), 2):
        agree = np.sign(a - c) * np.sign(b - d)
        concordant, discordant = concordant + (agree > 0), discordant + (agree < 0)
        tied_x, tied_y = tied_x + (a == c), tied_y + (b == d)
    pairs = math.comb(len(corpus), 2)
    tau = (concordant - discordant) / math.sqrt((pairs - tied_x) * (pairs - tied_y))
    assert found.tau == pytest.approx(tau, abs=1e-12)
    assert found.distance == pytest.approx((1 - tau) / 2, abs=1e-12)
    if found.low is not None:
        assert found.high is not None
        assert -1 - 1e-12 <= found.low <= found.high <= 1 + 1e-12


def test_kendall_distance() -> None:
    assert [kendall_distance(tau) for tau in (1, 0, -1)] == [0, 0.5, 1]


def test_too_few_points_and_one_record() -> None:
    line = np.arange(5.0)
    assert spearman(line[:2], line[:2]) is None
    found = correlate(line, line, np.zeros(5, np.int64))
    assert found is not None
    assert found.rho == pytest.approx(1)
    assert (found.low, found.high, found.records) == (None, None, 1)


def test_the_interval_resamples_records() -> None:
    """Points of one record say one thing: with each of them a record of its own the interval is narrower."""
    rng = np.random.default_rng(0)
    corpus = np.repeat(rng.normal(size=20), 10)
    model = np.repeat(0.5 * corpus[::10] + rng.normal(size=20), 10) + 1e-6 * rng.normal(size=200)
    whole = correlate(corpus, model, np.repeat(np.arange(20), 10))
    alone = correlate(corpus, model, np.arange(200))
    assert whole is not None
    assert alone is not None
    assert whole.rho == alone.rho
    assert whole.low is not None
    assert whole.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert whole.high - whole.low > 2 * (alone.high - alone.low)
    assert whole.low < whole.rho < whole.high


def test_equal_sizes() -> None:
    rng = np.random.default_rng(1)
    corpus = rng.normal(size=400)
    model = corpus + rng.normal(size=400)
    rho, _ = spearman(corpus, model) or (0.0, 0.0)
    few, many = equal_sizes(corpus, model, points=20), equal_sizes(corpus, model, points=400)
    assert few is not None
    assert many is not None
    assert many[0] == pytest.approx(rho, abs=0.02)
    assert few[0] == pytest.approx(rho, abs=0.06)
    assert few[2] is not None
    assert few[1] is not None
    assert many[1] is not None
    assert many[2] is not None
    assert few[2] - few[1] > 3 * (many[2] - many[1])
    assert equal_sizes(corpus, model, points=20) == few  # seeded
    assert equal_sizes(np.zeros(5), np.arange(5.0), points=5) is None
