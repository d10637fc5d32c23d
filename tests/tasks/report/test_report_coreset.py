"""What the report shows of each selection: its table, its picture, and artifacts that do not tell."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from longloom.tasks.report.build import build
from longloom.tasks.report.coreset import coreset_numbers, map_of, method_lines
from longloom.tasks.report.coreset_plots import cluster_colours, coreset_map
from longloom.tasks.report.figures import INK, NEUTRAL, SERIES

METHODS = ("tagcos", "random")


def numbers_of(fakes) -> dict:
    coresets = {name: fakes.sections[f"coreset/{name}"] for name in METHODS}
    return coreset_numbers(fakes.sections["instructions"], coresets)


def weigh(fakes, weights) -> None:
    path = fakes.sections["coreset/tagcos"] / "coreset.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("weight")
    pq.write_table(table.set_column(place, "weight", [np.asarray(weights, float)]), path)


def test_a_line_a_method(fakes):
    weigh(fakes, [0.5] * 50 + [1.5] * 50)
    numbers = numbers_of(fakes)
    assert numbers["methods"]["tagcos"]["weights"] == pytest.approx(
        {"low": 0.5, "median": 1.0, "high": 1.5, "effective": 100**2 / (50 * 0.25 + 50 * 2.25)}
    )
    tagcos, random = method_lines(numbers["methods"])
    sizes = [row["examples"] for row in numbers["methods"]["tagcos"]["clusters"]]
    assert (tagcos.method, tagcos.examples, tagcos.weights) == ("tagcos", "100", "0.50 · 1.00 · 1.50")
    assert tagcos.effective == "80"
    assert (tagcos.clusters, tagcos.sizes) == (str(len(sizes)), f"{min(sizes)} to {max(sizes)}")
    assert (tagcos.filled, tagcos.without, len(tagcos.notes)) == ("7", "3", 1)
    assert (random.weights, random.effective, random.clusters, random.filled, random.without) == ("1.00", "100", *"–––")


def test_weights_of_nothing_but_zeros_have_no_spread(fakes):
    weigh(fakes, [0.0] * 100)
    assert numbers_of(fakes)["methods"]["tagcos"]["weights"] is None


def test_table_picture_and_notes_are_on_the_page_and_escaped(fakes, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    build(fakes.sections, fakes.manifests, out, title="t")
    page, summary = (out / "index.html").read_text(), (out / "report.md").read_text()
    assert "What each method did" in page
    assert "Gradients of 300 of 1,997 examples drawn at random" in page
    assert "hold 21.0% of it" in page
    assert "60 clusters asked for, 40 made: &lt;script&gt;" in page
    assert page.count("chosen by tagcos") == 1
    assert "chosen by random" not in page
    assert "## What each method did" in summary
    assert "<script>" not in summary
    assert "drawn" not in (out / "report.json").read_text()  # the picture is the page's alone


def test_artifacts_of_an_earlier_version_are_shown_without(fakes, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in METHODS:
        for file in ("coreset.json", "map.parquet"):
            (fakes.sections[f"coreset/{name}"] / file).unlink(missing_ok=True)
    build(fakes.sections, fakes.manifests, out, title="t")
    page = (out / "index.html").read_text()
    assert "What each method did" not in page
    assert "Larger: chosen" not in page
    assert "Clusters of tagcos" in page


def test_what_is_damaged_is_named(fakes):
    folder = fakes.sections["coreset/tagcos"]
    told = json.loads((folder / "coreset.json").read_text())
    (folder / "coreset.json").write_text(json.dumps(told | {"map": None}))
    with pytest.raises(ValueError, match=r"coreset\.json does not tell of map\.parquet"):
        map_of(folder)
    (folder / "coreset.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*coreset\.json"):
        numbers_of(fakes)


def dots(count: int, clusters: int, *, chosen: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    cluster = rng.integers(clusters, size=count) if clusters else np.full(count, -1)
    x, y = rng.normal(size=(2, count))
    return {"x": x, "y": y, "cluster": cluster, "chosen": np.arange(count) < chosen}


def test_every_dot_is_drawn_and_few_paths_do_it():
    svg = coreset_map(dots(400, 3, chosen=30), title="a<b>")
    assert "a&lt;b&gt;" in svg
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg)
    drawn = [len(re.findall("M ", path)) for path, style in paths if "stroke-linecap: round" in style]
    assert sorted(drawn) == sorted([30, 30, *np.bincount(dots(400, 3)["cluster"])])
    assert len(svg) < 85 * 460
    assert INK in svg


@pytest.mark.parametrize("count", [0, 1, 2])
def test_pictures_of_almost_nothing(count):
    for clusters in (0, 2):
        assert "<svg" in coreset_map(dots(count, clusters, chosen=count), title="m")


def test_colours_come_back_on_clusters_far_away():
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x, y = np.repeat(np.cos(angle), 5), np.repeat(np.sin(angle), 5)
    cluster = np.repeat(np.arange(12), 5)
    found = cluster_colours(x, y, cluster)
    assert set(found.values()) == set(SERIES)
    alike = [(a, b) for a in range(12) for b in range(a) if found[a] == found[b]]
    assert min(min(a - b, 12 - a + b) for a, b in alike) > 1
    assert cluster_colours(x, y, np.full(60, -1)) == {-1: NEUTRAL}
