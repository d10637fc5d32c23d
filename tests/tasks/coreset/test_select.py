"""The coreset artifact: tables, counts per source, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from longloom.tasks.coreset import features as features_stage
from longloom.tasks.coreset.pool import fingerprint
from longloom.tasks.coreset.select import build

OPTIONS = {"method": "tagcos", "share": None, "count": 4, "clusters": 3, "mode": "default", "seed": 0}


@pytest.fixture(scope="module")
def made(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    features_stage.build(toy.model, toy.instructions, toy.warmup, out, dimension=32, seed=0, max_length=40)
    return out


def run(toy, features: Path | None, out: Path, **changes):
    out.mkdir(exist_ok=True)
    return build(toy.instructions, features, out, **(OPTIONS | changes))


def test_tables(toy, made: Path, tmp_path: Path) -> None:
    stats = run(toy, made, tmp_path)
    coreset = pq.read_table(tmp_path / "coreset.parquet")
    everything = pq.read_table(tmp_path / "clusters.parquet")
    assert {field.name: str(field.type) for field in coreset.schema} == {
        "index": "int64",
        "id": "string",
        "source": "string",
        "cluster": "int32",
        "weight": "double",
    }
    assert everything.column("index").to_pylist() == list(range(10))
    assert everything.column("id").to_pylist() == [f"e{i}" for i in range(10)]
    assert everything.column("cluster").to_pylist()[5] == -1  # no assistant, no gradient
    picked = coreset.column("index").to_pylist()
    assert picked == sorted(set(picked))
    assert coreset.drop_columns(["weight"]).equals(everything.take(picked))
    assert sum(coreset.column("weight").to_pylist()) == pytest.approx(4)
    assert stats.counts == {"pool": 10, "examples": 4, "clusters": 3, "without_gradient": 1, "filled": 0}
    sources = stats.values["sources"]
    assert sum(one["picked"] for one in sources.values()) == 4
    assert [one["pool"] for one in sources.values()] == [5, 5]
    assert stats.values["notes"] == []


def test_random_needs_no_features_and_has_no_clusters(toy, tmp_path: Path) -> None:
    stats = run(toy, None, tmp_path, method="random", share=0.3, count=None)
    assert pq.read_table(tmp_path / "clusters.parquet").column("cluster").to_pylist() == [-1] * 10
    coreset = pq.read_table(tmp_path / "coreset.parquet")
    assert (coreset.num_rows, coreset.column("weight").to_pylist()) == (3, [1.0] * 3)
    assert stats.counts == {"pool": 10, "examples": 3}


@pytest.mark.parametrize("method", ["tagcos", "random"])
def test_same_inputs_same_bytes(toy, made: Path, tmp_path: Path, method: str) -> None:
    for name in "ab":
        run(toy, made, tmp_path / name, method=method)
    for name in ("coreset.parquet", "clusters.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_notes_and_a_share_of_nothing(toy, made: Path, tmp_path: Path) -> None:
    stats = run(toy, made, tmp_path, share=0.01, count=None, clusters=50)
    assert stats.counts["examples"] == 1
    first, second = stats.values["notes"]
    assert "rounds to 0" in first
    assert "50 clusters asked for, 8 made" in second  # ten, less one without a gradient, less one repeated
    json.dumps(stats.values, allow_nan=False)


def test_released_mode_uses_the_share(toy, made: Path, tmp_path: Path) -> None:
    stats = run(toy, made, tmp_path, share=0.5, count=None, clusters=1, mode="released")
    assert stats.counts["examples"] == int(0.5 * 9)
    assert pq.read_table(tmp_path / "coreset.parquet").column("weight").to_pylist() == [1.0] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "best"}, "unknown selection method 'best'; known: random, tagcos"),
        ({"mode": "quick"}, "unknown mode 'quick'"),
        ({"clusters": 0}, "clusters: found 0"),
        ({"count": 0}, "count: found 0"),
        ({"count": 11}, "count: found 11, expected 1 to 10"),
        ({"share": -0.5, "count": None}, "share: found -0.5"),
        ({"share": 0.5}, "expected one of them"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_bad_parameters_are_named(toy, made: Path, tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(toy, made, tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_features_are_needed(toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tagcos' needs gradient features, found none"):
        run(toy, None, tmp_path)


def test_features_of_another_pool_are_refused(toy, made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made, tmp_path / "other"))
    record = json.loads((other / "features.json").read_text())
    (other / "features.json").write_text(json.dumps(record | {"pool": fingerprint([f"x{i}" for i in range(10)])}))
    with pytest.raises(ValueError, match="made from other instructions"):
        run(toy, other, tmp_path / "out")


def test_features_that_are_not_finite_are_refused(toy, made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made, tmp_path / "other"))
    rows = np.load(other / "features.npy")
    rows[6, 3] = np.inf
    np.save(other / "features.npy", rows)
    with pytest.raises(ValueError, match="row 6 is not finite"):
        run(toy, other, tmp_path / "out")


def test_the_fingerprint_knows_order_and_boundaries() -> None:
    assert len({fingerprint(ids) for ids in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["", "ab"])}) == 5


def test_listing_the_methods_imports_none_of_them() -> None:
    code = (
        "import sys; from longloom.tasks.coreset import registry; registry.names(); "
        "print([m for m in ('torch', 'sklearn', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
