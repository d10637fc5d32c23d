"""The replication by command, as small as it can be: every paper's part on a model and data of one's own, and again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from longloom.flows.params_replicate import PAPERS, ReplicateParams
from longloom.storage.runs import list_runs
from longloom.storage.store import Store
from longloom.tasks.replicate import memory
from longloom.tasks.replicate.claims import CLAIMS

from .command import Run

pytestmark = pytest.mark.usefixtures("harness")

SMALL: dict[str, Any] = {
    "seeds": 1,
    "coreset": {"clusters": 2, "dimension": 16, "checkpoints": 1, "warmup-share": 0.2, "warmup-epochs": 1, "batch": 4},
    "finetune": {"epochs": 1, "batch": 4, "max-length": 64},
    "needle": {
        "within": 300, "beyond": [600], "depths": [50], "samples": 1, "samples-beyond": 1,
        "razor": "razor:induction=0.5,echo=0,window=28,compression=1000", "scope": "longcache:sink=4,local=64,spans=2",
        "longcache": "longcache:local=128,spans=4", "streaming": "streaming:sink=4,window=252",
    },
    "records": 1,
    "characters": [600],
    "chunks": [1, 2],
    "pack": {"length": 1024, "tokens": 3000},
    "extend": {"texts": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pool.jsonl, 60 examples of two sources; comparisons.jsonl, 40 reversal pairs."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "pool.jsonl").open("w") as file:
        for i in range(60):
            turns = [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"alpha {i % 3}"}]
            file.write(json.dumps({"source": f"kind {i % 2}", "messages": turns}) + "\n")
    with (folder / "comparisons.jsonl").open("w") as file:
        for i in range(40):
            pair = {"response_a": f"alpha {i % 3}", "response_b": "beta gamma delta"}
            criteria = {"criteria_x": "short", "criteria_y": "long"}
            file.write(json.dumps({"id": i, "prompt": f"say {i}"} | pair | criteria) + "\n")
    return folder


def options(values: dict[str, Any], prefix: str = "--") -> list[str]:
    found: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += options(value, f"{prefix}{name}.")
        else:
            found += [prefix + name, *map(str, value if isinstance(value, list) else [value])]
    return found


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SHAPE", memory.SHAPE | {"num_hidden_layers": 2, "vocab_size": 1024})
    for name, value in (("LIMIT", 2**21), ("TILE", 2**17), ("FIRST", (8, 16)), ("WITHIN", 0.3), ("LENGTHS", (90,))):
        monkeypatch.setattr(memory, name, value)


def call(run: Run, inputs: Path, data: Path, *more: str) -> Any:
    where = {
        "model.source": inputs / "model",
        "corpus.sources": inputs / "corpus",
        "held-out.sources": inputs / "corpus",
        "instructions.sources": data / "pool.jsonl",
        "comparisons.sources": data / "comparisons.jsonl",
        "comparisons.held-out": 0.25,
    }
    return run("replicate", *options(where | SMALL), *more)


@pytest.mark.usefixtures("small_memory")
def test_all_papers_on_data_of_ones_own(run: Run, inputs: Path, data: Path, store: Store, tmp_path: Path) -> None:
    done = call(run, inputs, data, "--out", str(tmp_path / "results"))
    assert done.code == 0, done.err
    assert f"Of {len(CLAIMS)} claims of 7 papers" in done.out
    numbers = json.loads((tmp_path / "results" / "replicate.json").read_text())
    rows = {row["name"]: row for row in numbers["rows"]}
    did_not_run = {name for name, row in rows.items() if row["note"] == "its part did not run"}
    assert did_not_run == {claim.name for claim in CLAIMS if claim.paper == "ngrams"}  # asked of the standard library
    assert rows["razor-quality"]["note"].startswith("full attention finds 0.0% of the needles")
    assert all((row["verdict"] == "not measured") == bool(row["note"]) for row in rows.values())
    stages = list_runs(store)[0].stages
    digests = {ref.digest for ref in stages.values()}
    measured = [row for row in numbers["rows"] if row["values"] and not row["earlier"]]
    assert all(len(row["values"]) == 1 and set(row["artifacts"].values()) <= digests for row in measured)
    assert all(row["artifacts"] for row in measured)

    folder = store.open(stages["replicate"])
    page = (folder / "index.html").read_text()
    report = (store.open(stages["report"]) / "index.html").read_text()
    links = re.findall(r'href="(\.\./[^"]+)"', page)
    assert len(links) > len(measured)
    for link in links:
        place, _, section = link.partition("#")
        assert (folder / place).is_file(), link
        assert f'<section id="{section}"' in report or not section, link

    again = call(run, inputs, data, "--json")
    assert again.code == 0, again.err
    assert "\n+ " not in f"\n{again.err}"
    assert json.loads(again.out)["replicate"] == stages["replicate"].model_dump()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--papers", "razor", "razor"], "papers: found razor, razor, expected each paper once"),
        (["--chunks", "4", "2"], "chunks are [4, 2], expected rising numbers"),
        (["--needle.razor", "razor:window"], "needle.razor: KV policy 'razor:window'"),
        (["--needle.scope", "longcash"], "unknown KV policy 'longcash'"),
        (["--coreset.share", "0.1"], "coreset.share: found 0.1, expected none"),
    ],
)
def test_bad_parameters_are_told_before_anything_is_built(
    run: Run, store: Store, arguments: list[str], line: str
) -> None:
    done = run("replicate", *arguments)
    assert done.code == 2, done.err
    assert line in done.err.strip().splitlines()[-1]
    assert not (store.root / "artifacts").exists()


def test_papers_come_in_the_pipeline_s_order() -> None:
    assert ReplicateParams(papers=["preferences", "ngrams"]).papers == ["ngrams", "preferences"]
    assert tuple(ReplicateParams().papers) == PAPERS
