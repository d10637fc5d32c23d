"""The report as a whole: what is written, that it is the same each time, whole without some sections, and safe."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.tasks.report.build import build

TITLE = "A <script>run</script>"


class Page(HTMLParser):
    """Elements, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)

    @property
    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]


def report(fakes, out: Path):
    out.mkdir()
    stats = build(fakes.sections, fakes.manifests, out, title=TITLE)
    return stats, Page((out / "index.html").read_text()), json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_fakes):
    """One report of everything, for the tests that only look: (fakes, folder)."""
    root = tmp_path_factory.mktemp("whole")
    fakes = make_fakes(root / "artifacts")
    return fakes, root / "out", report(fakes, root / "out")


def test_everything_is_shown(whole):
    fakes, _, (stats, page, numbers) = whole
    assert stats.volatile == ("index.html",)
    assert stats.counts == {"sections": len(fakes.sections), "scores": 32, "samples": 8 * (3 * 50 + 80)}
    sections = {"pipeline", "corpus", "model", "coreset", "finetune", "evaluation", "needle", "cost", "answers"}
    assert sections | {"manifests"} <= set(page.ids)
    # sources, training, its schedule, induction, echo, shares, map, clusters, fine-tuning, its schedules, and grids of
    # 4 models x 2 policies
    assert page.tags.count("svg") == 10 + 8
    assert "kv" not in page.ids  # artifacts of an earlier version do not tell
    assert set(numbers) == {
        *("format", "title", "corpus", "index", "model", "coreset", "finetune", "evaluation", "manifests")
    }
    text = " ".join(page.text)
    for score in numbers["evaluation"]["scores"]:
        assert f"{score['score']:.1f}" in text
        assert f"{score['low']:.1f}–{score['high']:.1f}" in text
    for label, manifest in fakes.manifests.items():
        assert label in text
        assert manifest["digest"] in text


def test_evaluations_of_today_are_shown(rag_fakes, tmp_path):
    _, page, numbers = report(rag_fakes, tmp_path / "out")
    assert {"evaluation", "kv", "retrieval", "published", "cost", "answers"} <= set(page.ids)
    # scores against prompt tokens, and against the KV cache for the one suite with two policies
    assert page.tags.count("svg") == 2
    text = " ".join("".join(page.text).split())
    for part in numbers["evaluation"]["lengths"]:
        assert part["samples"] > 0
    for words in ("gold recall", "4K–8K", "≥ 128K", "medium", "fixed 59.3", "average of 13 tasks, 4,096 tokens"):
        assert words in text
    assert "Harnesses differ by 0.5 in the average and by 3 in a task" in text
    assert "seconds" not in (tmp_path / "out" / "report.json").read_text()
    evaluation = text[text.index("Scores by model and KV policy") : text.index("Retrieval against long context The")]
    assert "bm25" not in evaluation  # retrieval has a table of its own
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert markdown.count("\n| bm25:words=100,k=") == 6
    for heading in ("By length of the prompt", "By group", "Retrieval against long context", "Published scores: ruler"):
        assert f"# {heading}" in markdown


def test_speeds_are_on_the_page_alone(fakes, tmp_path):
    _, before, _ = report(fakes, tmp_path / "before")
    for label, rate in (("model", 1234.0), ("finetune/all", 5678.0)):
        columns = {"seconds": [2.0], "tokens_per_second": [rate], "memory_bytes": [3_000_000_000]}
        pq.write_table(pa.table(columns), fakes.sections[label] / "speed.parquet")
    _, after, _ = report(fakes, tmp_path / "after")
    text = " ".join(after.text)
    for words in ("1,234", "5,678", "3.00 GB"):
        assert words in text
    assert "tokens a second" not in " ".join(before.text)
    for name in ("report.json", "report.md"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_equal_inputs_give_equal_bytes(fakes, tmp_path):
    report(fakes, tmp_path / "first")
    fakes.sections = dict(reversed(fakes.sections.items()))
    for manifest in fakes.manifests.values():  # what differs between two runs of the same thing
        manifest |= {
            "seconds": 99.9,
            "created": "2030-05-05T00:00:00+00:00",
            "code": "f" * 40,
            "values": {"speed": 3.5},
        }
    for folder in fakes.sections.values():
        if (folder / "cost.parquet").exists():
            table = pq.read_table(folder / "cost.parquet")
            slower = pa.array([1e3] * table.num_rows)
            pq.write_table(table.set_column(3, "seconds", slower), folder / "cost.parquet")
    report(fakes, tmp_path / "second")
    for name in ("report.json", "report.md"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_no_place_or_time_in_what_is_deterministic(whole):
    _, out, _ = whole
    for name in ("report.json", "report.md"):
        text = (out / name).read_text()
        assert str(out.parent) not in text
        assert "seconds" not in text
        assert "2026-01-01" not in text


def test_data_stays_text(whole):
    _, out, (_, page, _) = whole
    assert page.tags.count("script") == 1  # the page's own, which is the only one that its policy lets run
    html = (out / "index.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'\"" in html
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    text = "".join(page.text)
    assert TITLE in text
    # as a source, as a prediction and as a parameter
    assert text.count("<script>alert('x')</script> & $a$ | **b**") >= 3
    markdown = (out / "report.md").read_text()
    assert "<script" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| &lt;script")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 8  # source, pool, share, two methods with shares: 7 cells


def test_page_fetches_nothing(whole):
    _, out, (_, page, _) = whole
    links = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert links
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    html = (out / "index.html").read_text()
    assert not re.search(r"https?://|@import|@font-face", html)
    assert re.findall(r"url\((?!#)", html) == []
    assert {"iframe", "object", "embed", "img"}.isdisjoint(page.tags)
    assert not [name for tag, name, _ in page.attributes if tag == "script"]
    assert "default-src 'none'" in html


def test_ids_are_unique_and_links_lead_somewhere(whole):
    _, out, (_, page, _) = whole
    assert len(page.ids) == len(set(page.ids))
    inner = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href") and value[0] == "#"}
    html = (out / "index.html").read_text()
    assert inner | set(re.findall(r"url\(#([\w-]+)\)", html)) <= set(page.ids)


@pytest.mark.parametrize("stage", ["corpus", "index", "model", "instructions", "coreset", "finetune", "evaluation"])
@pytest.mark.parametrize("alone", [False, True])
def test_missing_sections_are_left_out(fakes, tmp_path, stage, alone):
    spared = ("evaluation/random", "evaluation/all")  # two models show as much as four
    for label in list(fakes.sections):
        if label.startswith(spared) or (label.split("/")[0] == stage) != alone:
            del fakes.sections[label], fakes.manifests[label]
    _, page, numbers = report(fakes, tmp_path / "out")
    part = {"instructions": "coreset"}.get(stage, stage)
    if alone:
        assert set(numbers) == {"format", "title", "manifests", part}
        assert part == "index" or part in page.ids
    elif stage not in ("instructions", "coreset"):  # either of these two fills the section
        assert part not in numbers
        assert stage in ("corpus", "index") or stage not in page.ids


def test_nothing_at_all_is_a_page_too(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    build({}, {}, out, title="Empty")
    assert (out / "report.md").read_text() == "# Empty\n"
    assert "<h1>Empty</h1>" in (out / "index.html").read_text()


@pytest.mark.parametrize("name", ["training.parquet", "probes.json", "cost.parquet"])
def test_optional_files_may_be_absent(fakes, tmp_path, name):
    for label in [label for label in fakes.sections if label.startswith(("evaluation/random", "evaluation/all"))]:
        del fakes.sections[label]
    for folder in fakes.sections.values():
        (folder / name).unlink(missing_ok=True)
    _, page, _ = report(fakes, tmp_path / "out")
    assert ("cost" in page.ids) == (name != "cost.parquet")
    assert ("finetune" in page.ids) == (name != "training.parquet")
    assert "evaluation" in page.ids


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("corpus", "documents-00001.parquet"),
        ("index", "index.json"),
        ("model", "training.parquet"),
        ("model", "probes.json"),
        ("instructions", "instructions.parquet"),
        ("coreset/tagcos", "clusters.parquet"),
        ("finetune/all", "training.parquet"),
        ("evaluation/base/longbench/full", "scores.parquet"),
        ("evaluation/all/needle/streaming", "samples.parquet"),
        ("evaluation/base/longbench/full", "cost.parquet"),
    ],
)
@pytest.mark.parametrize("damage", [b"not what it was", b"", b"\xff\xfe\x00"])
def test_unreadable_file_is_named(fakes, tmp_path, label, name, damage):
    path = fakes.sections[label] / name
    path.write_bytes(damage)
    with pytest.raises(ValueError, match="cannot read") as caught:
        report(fakes, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_file_is_named(fakes, tmp_path):
    path = fakes.sections["corpus"] / "documents-00000.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        report(fakes, tmp_path / "out")


def test_missing_and_foreign_columns_are_named(fakes, tmp_path):
    path = fakes.sections["finetune/all"] / "training.parquet"
    pq.write_table(pa.table({"step": [1], "tokens": [2]}), path)
    with pytest.raises(ValueError, match=r"has the columns step, tokens; expected also loss"):
        report(fakes, tmp_path / "one")
    pq.write_table(pa.table({"step": [1], "tokens": [2], "loss": ["high"]}), path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        report(fakes, tmp_path / "two")


def test_required_files_and_folders_are_named(fakes, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for label, expected in {
        "corpus": "documents-*.parquet",
        "evaluation/base/longbench/full": "scores.parquet",
    }.items():
        with pytest.raises(ValueError, match=re.escape(expected)):
            build(fakes.sections | {label: empty}, {}, tmp_path, title="t")
    with pytest.raises(ValueError, match=r"section index should be the folder .*nowhere, which is not there"):
        build({"index": tmp_path / "nowhere"}, {}, tmp_path, title="t")


def test_bad_probes_are_named(fakes, tmp_path):
    path = fakes.sections["model"] / "probes.json"
    for content in ("[]", '{"induction": [0.5]}', '{"copy_accuracy": [{"length": 64}]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            build(fakes.sections, {}, tmp_path, title="t")


def test_progress_reaches_its_end(fakes, tmp_path):
    seen = []
    build(
        {"corpus": fakes.sections["corpus"]},
        {},
        tmp_path,
        title="t",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (2, 2)
    assert seen == sorted(seen)
