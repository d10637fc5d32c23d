"""Needles beyond the model's window: recounted numbers, what is left out, the page, Markdown, and runs with lengths."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from longloom.tasks.longcontext.tables import write
from longloom.tasks.report.beyond import beyond_window
from longloom.tasks.report.beyond_table import beyond_lines
from longloom.tasks.report.build import build
from longloom.tasks.report.evaluation import read_evaluations
from longloom.tasks.report.intervals import mean_interval
from longloom.tasks.report.order import rank
from longloom.tasks.report.plots import needle_grid
from longloom.tasks.report.summary import summary
from longloom.tasks.report.sweep import sweeps
from longloom.tasks.report.sweep_plots import line_styles, sweep_curves

WINDOW = 1024
STREAMING = "streaming:sink=32,window=512"
#: Policy -> score within the window, at 2,000 and at 4,000.
LEVELS = {"longcache": (1.0, 0.9, 0.8), "full": (1.0, 0.0, 0.0), STREAMING: (0.8, 0.3, 0.2)}
LENGTHS, DEPTHS, SAMPLES = (500, 1000, 2000, 4000), (0.0, 50.0, 100.0), 4


def write_needles(folder: Path, policy: str, *, lengths=LENGTHS, window: int | None = WINDOW, retrieval=None) -> Path:
    """An evaluation's tables; a sample is right by chance, of the level of its length."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(policy))
    head = {"suite": "needle", "task": "single", "metric": "string_match", "policy": policy, "retrieval": retrieval}
    samples = []
    for number, (length, depth, _) in enumerate(itertools.product(lengths, DEPTHS, range(SAMPLES))):
        level = LEVELS[policy][sum(length > end for end in (1024, 2000))]
        placed = {"sample": number, "length": length, "depth": depth, "prompt_tokens": length - 33}
        plain = {"truncated": False, "failed": False, "prediction": "7", "references": [str(number)]}
        samples.append({**head, **placed, **plain, "score": float(rng.random() < level)})
    score = round(100 * float(np.mean([row["score"] for row in samples])), 2)
    counted = {"samples": len(samples), "failed": 0, "truncated": 0, "window": window}
    beyond = None if window is None else sum(row["prompt_tokens"] > window for row in samples)
    spent = {
        "seconds": 3.0 * len(samples),
        "prompt_tokens": 5,
        "new_tokens": 1,
        "kv_bytes": 2_228_224,
        "decode_steps": 9,
    }
    write(
        folder,
        samples,
        [{**head, "score": score, "full_score": 100.0, **counted, "beyond": beyond}],
        [{**head, **spent}],
    )
    return folder


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Path]:
    """What a pipeline leaves: the grid within the window, and beside it the one that goes beyond."""
    found = {}
    for policy in LEVELS:
        label = f"all/needle/{policy}"
        found[f"evaluation/{label}"] = write_needles(tmp_path / "within" / policy[:4], policy, lengths=(500, 1000))
        found[f"long/{label}"] = write_needles(tmp_path / "long" / policy[:4], policy)
    return found


def report(sections: dict[str, Path], out: Path) -> tuple[str, str, dict]:
    out.mkdir()
    build(sections, {}, out, title="t")
    page, markdown, numbers = ((out / f"{name}").read_text() for name in ("index.html", "report.md", "report.json"))
    return page, markdown, json.loads(numbers)


def test_numbers_are_those_of_a_recount(sections):
    found = read_evaluations({label: folder for label, folder in sections.items() if label.startswith("long/")})
    (entry,) = beyond_window(found.measured)
    assert {name: entry[name] for name in ("suite", "task", "model", "window", "lengths")} == {
        "suite": "needle",
        "task": "single",
        "model": "all",
        "window": WINDOW,
        "lengths": [2000, 4000],
    }
    assert [row["policy"] for row in entry["rows"]] == ["full", "longcache", STREAMING]
    for row in entry["rows"]:
        (own,) = (one for one in found.measured if one.row["policy"] == row["policy"])
        parts = [row["within"], *row["at"]]
        for part, lengths in zip(parts, ([500, 1000], [2000], [4000]), strict=True):
            scores = np.array([100 * one["score"] for one in own.samples if one["length"] in lengths])
            assert (part["samples"], part["score"]) == (len(scores), pytest.approx(scores.mean()))
            assert (part["low"], part["high"]) == mean_interval(scores)
        assert row["grid"]["lengths"] == list(LENGTHS)
        assert row["grid"]["depths"] == list(DEPTHS)
        cell = [one["score"] for one in own.samples if (one["length"], one["depth"]) == (2000, 50.0)]
        assert row["grid"]["scores"][1][2] == pytest.approx(100 * np.mean(cell))


def test_what_does_not_go_beyond_is_left_out(tmp_path):
    cases = {
        "within": write_needles(tmp_path / "a", "full", lengths=(500, 1024)),
        "unknown": write_needles(tmp_path / "b", "full", window=None),
        "retrieved": write_needles(tmp_path / "c", "full", retrieval="bm25:words=20,k=1"),
    }
    for name, folder in cases.items():
        label = f"evaluation/base/needle/full{'/bm25:words=20,k=1' if name == 'retrieved' else ''}"
        assert beyond_window(read_evaluations({label: folder}).measured) == [], name


def test_lengths_and_policies_need_not_be_the_same(tmp_path):
    folders = {
        "evaluation/base/needle/full": write_needles(tmp_path / "a", "full", lengths=(2000,)),
        "evaluation/base/needle/longcache": write_needles(tmp_path / "b", "longcache", lengths=(1000, 4000)),
    }
    (entry,) = beyond_window(read_evaluations(folders).measured)
    full, longcache = entry["rows"]
    assert entry["lengths"] == [2000, 4000]
    assert (full["within"], full["at"][1], longcache["at"][0]) == (None, None, None)
    lines = beyond_lines(entry)
    assert [lines[0].within, lines[0].at[1], lines[1].at[0]] == [None, None, None]
    assert (lines[0].at[0].score, lines[0].size, lines[0].seconds) == ("0.0", "–", "–")
    assert "needle single 0.0 under full" not in "".join(text for text, _ in summary({"beyond": [entry]}))
    assert "<path" in needle_grid(full["grid"], title="full", top=100, digits=0, window=WINDOW)  # no place for a line


def test_the_page_and_its_numbers(sections, tmp_path):
    page, markdown, numbers = report(sections, tmp_path / "out")
    section = page[page.index('<section id="beyond">') :].partition("</section>")[0]
    assert 'href="#beyond"' in page
    assert section.count("<svg") == 3
    assert section.count(">window 1,024</text>") == 3  # where the line stands
    assert "2.23 MB" in section
    assert "3.0 s" in section
    for row in numbers["beyond"][0]["rows"]:
        for part in (row["within"], *row["at"]):
            text = f"{part['score']:.1f}</span>\n<small>{part['low']:.1f}–{part['high']:.1f}</small>"
            assert text in section
            assert f"{part['score']:.1f} ({part['low']:.1f}–{part['high']:.1f})" in markdown
    assert "seconds" not in json.dumps(numbers)
    # The grid within the window is what the evaluation holds, and the one beyond is in no table of it.
    assert {row["samples"] for row in numbers["evaluation"]["scores"]} == {2 * len(DEPTHS) * SAMPLES}
    needle = page[page.index('<section id="needle">') :].partition("</section>")[0]
    assert needle.count("<svg") == 3
    assert "window 1,024" not in needle
    assert "## Beyond the window: needle single, all" in markdown
    assert "| depth \\\\ length | 500 | 1,000 | 2,000 (beyond) | 4,000 (beyond) |" in markdown
    (at,) = (row["at"][1]["score"] for row in numbers["beyond"][0]["rows"] if row["policy"] == "longcache")
    assert (
        f"With a window of 1,024 tokens, all scores at 4,000 on needle single **0.0** under full, **{at:.1f}** under"
        in (markdown.replace("\n", " "))
    )


def test_a_grid_of_any_evaluation_that_goes_beyond_is_shown_there_alone(tmp_path):
    folder = write_needles(tmp_path / "a", "longcache")
    page, markdown, numbers = report({"evaluation/base/needle/longcache": folder}, tmp_path / "out")
    assert (page.count('id="needle"'), page.count('id="beyond"')) == (0, 1)
    assert len(numbers["evaluation"]["grids"]) == len(numbers["beyond"]) == 1
    assert "## Needle:" not in markdown
    assert "24 beyond the window" in " ".join(page.split())


@pytest.fixture
def compared(tmp_path, make_evaluation):
    """One suite cut to the window under full attention, and whole under several KV policies."""
    levels = {"full": 0.5, "full@8192": 0.1, f"{STREAMING.replace(':', '@8192:')}": 0.3, "longcache@8192": 0.6}
    found = {}
    for number, (policy, level) in enumerate(levels.items()):
        label = f"evaluation/base/longbench/{policy}"
        found[label] = tmp_path / f"compared-{number}"
        found[label].mkdir()
        spent = {"kv_bytes": 30_000, "kv_bytes_mean": 20_000.0, "decode_seconds": 2.0}
        rng = np.random.default_rng(number)
        make_evaluation(found[label], "longbench", {"qasper": "qa_f1"}, policy, rng, level=level, cost=spent)
    return found


def test_evaluations_with_another_length_stand_side_by_side(compared, tmp_path):
    page, markdown, numbers = report(compared, tmp_path / "out")
    header = next(line for line in markdown.splitlines() if line.startswith("| suite | task | metric"))
    names = ["full", "full@8192", "longcache@8192", "streaming@8192:sink=32,window=512"]
    assert [name.strip() for name in header.split("|")[5:-1]] == [f"base · {name}" for name in names]
    assert len({json.dumps(row["sample_scores"]) for row in numbers["evaluation"]["scores"]}) == 4
    cost = page[page.index('<section id="cost">') :].partition("</section>")[0]
    for name in names:
        assert f'<td class="text">{name}</td>' in cost
    assert sorted(["streaming", "full@8192", "full", "base"], key=rank) == ["base", "full", "full@8192", "streaming"]


def test_full_attention_is_the_yardstick_whatever_its_length(compared):
    found = read_evaluations(compared)
    (sweep,) = sweeps(found.measured, found.costs)
    assert sweep["yardstick"] == "full"
    del compared["evaluation/base/longbench/full"]
    found = read_evaluations(compared)
    (sweep,) = sweeps(found.measured, found.costs)
    assert sweep["yardstick"] == "full@8192"
    assert [row["bytes_share"] for row in sweep["rows"]] == [1.0, 1.0, 1.0]
    svg = sweep_curves(sweep, line_styles([sweep]))
    assert "longcache@8192" in svg
    assert "stroke-dasharray" in svg  # the yardstick stands across
    del compared["evaluation/base/longbench/full@8192"]
    found = read_evaluations(compared)
    assert sweeps(found.measured, found.costs)[0]["yardstick"] is None
