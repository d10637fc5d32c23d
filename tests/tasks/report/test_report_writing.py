"""How numbers, names and figures are written."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longloom.tasks.report import formats, plots
from longloom.tasks.report.figures import NEUTRAL, SERIES, colours, spread
from longloom.tasks.report.markdown import safe


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (formats.integer, 1234567, "1,234,567"),
        (formats.integer, None, "–"),
        (formats.compact, 9999, "9,999"),
        (formats.compact, 10_000, "10.0 k"),
        (formats.compact, 999_499, "999 k"),
        (formats.compact, 999_500, "1.00 M"),
        (formats.compact, 1_234_567, "1.23 M"),
        (formats.tick, 1_500_000, "1.5 M"),
        (formats.tick, 0, "0"),
        (formats.tick, 20_000, "20 k"),
        (formats.byte_tick, 1_500_000, "1.5 MB"),
        (formats.byte_tick, 200, "200 B"),
        (formats.in_bytes, 512, "512 B"),
        (formats.in_bytes, 30_011_223, "30.0 MB"),
        (formats.duration, 0.034, "0.03 s"),
        (formats.duration, 59.94, "59.9 s"),
        (formats.duration, 59.96, "1 min 0 s"),
        (formats.duration, 75.4, "1 min 15 s"),
        (formats.duration, 3725, "1 h 2 min"),
        (formats.milliseconds, 0.000123, "0.123 ms"),
        (formats.milliseconds, 0.0009996, "1.00 ms"),
        (formats.milliseconds, 0.04125, "41.2 ms"),
        (formats.milliseconds, 1.2345, "1,234 ms"),
        (formats.milliseconds, None, "–"),
        (formats.percent, 0.0523, "5.2%"),
        (formats.short_digest, "sha256:0123456789abcdef", "0123456789ab"),
        (formats.short_digest, None, "–"),
        (formats.plain, True, "true"),
        (formats.plain, None, "none"),
        (formats.plain, 0.1 + 0.2, "0.3"),
        (formats.plain, ["a", 2], "a, 2"),
        (formats.words, ["a", "b", "c"], "a, b and c"),
    ],
)
def test_formats(write, value, text):
    assert write(value) == text


@pytest.mark.parametrize(
    ("name", "left"),
    [("a:k=1,b=2", "a:b=2"), ("a:b=2,k=0.5", "a:b=2"), ("a:k=1", "a"), ("a", "a"), ("a:", "a"), ("a:kk=1", "a:kk=1")],
)
def test_a_name_without_settings(name, left):
    assert formats.without(name, ("k",)) == left


def test_decimals():
    assert formats.decimal(-1.25, 1) == "−1.2"
    assert formats.decimal(-0.0004, 2) == "0.00"
    assert formats.decimal(None, 2) == "–"
    assert [formats.signed(value, 1) for value in (1.25, -1.25, 0.04, None)] == ["+1.2", "−1.2", "0.0", "–"]


@settings(deadline=None)
@given(st.text(), st.integers(4, 40))
def test_shortened_names_are_one_printable_line(text, limit):
    short = formats.shorten(text, limit)
    assert len(short) <= limit
    assert short.isprintable()


def test_flat():
    assert formats.flat({"a": {"b": {"c": 1}, "d": {}}, "e": None}) == {"a.b.c": 1, "a.d": {}, "e": None}


@settings(deadline=None)
@given(st.text())
def test_safe_markdown_has_no_cell_border_and_no_element(text):
    line = safe(text)
    assert "\n" not in line
    assert not re.search(r"(?<!\\)(\\\\)*\|", line)
    assert "<" not in line


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=2, max_size=6))
def test_labels_are_spread(positions):
    moved = spread(positions, 1.0)
    order = sorted(range(len(positions)), key=lambda item: positions[item])
    gaps = [moved[above] - moved[below] for below, above in pairwise(order)]
    assert min(gaps) > 0.9


def test_colours_are_one_a_name():
    found = colours(["base", "tagcos", "random", "all", "tagcos"])
    assert found == {"base": NEUTRAL, "tagcos": SERIES[0], "random": SERIES[1], "all": SERIES[2]}


def curve(values):
    return {"final_loss": values[-1], "curve": {"tokens": [1e3 * n for n in range(1, len(values) + 1)], "loss": values}}


def test_figures_are_the_same_each_time_and_follow_the_theme():
    runs = {"a<b>": curve([3.0, 2.0, 1.0]), "$x$": curve([3.0, 2.5, 1.1])}
    first, second = (plots.loss_curves(runs, colours(list(runs))) for _ in range(2))
    assert first == second
    assert "a&lt;b&gt;" in first
    assert "$x$" in first  # no mathematics
    assert "var(--series-1, #0072b2)" in first
    assert re.findall(r"(?:fill|stroke): #(?!ffffff)", first) == []
    assert not re.search(r"<metadata|<\?xml|<!DOCTYPE|xmlns", first)


def test_names_in_other_scripts_are_drawn_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = plots.source_bars([{"source": "語料庫", "bytes": 10}], None)
    assert "語料庫" in svg


def test_plots_of_extremes():
    assert plots.loss_curves({"a": curve([1.0]) | {"curve": {"tokens": [], "loss": []}}}, {"a": NEUTRAL}) == ""
    assert "<path" in plots.loss_curves({"a": curve([1.0])}, {"a": NEUTRAL})
    assert "<path" in plots.source_bars([{"source": "", "bytes": 0}], {"sources": 3, "bytes": 0})
    large = plots.head_map([[0.5] * 64] * 48, title="induction")
    assert ">0.50<" not in large  # no room for values
    empty = {"depths": [0.0, 1.0], "lengths": [128], "scores": [[None], [1.0]]}
    assert "–" in plots.needle_grid(empty, title="t", top=1.0, digits=2)
    methods = {"m": {"examples": 0}}
    assert "<path" in plots.source_shares([{"source": "s", "pool": 0, "chosen": {"m": 0}}], methods, 0, {"m": NEUTRAL})
