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
from longloom.tasks.coreset import registry
from longloom.tasks.coreset.pool import fingerprint
from longloom.tasks.coreset.select import build
from longloom.tasks.coreset.store import open_features

OPTIONS = {
    "method": "tagcos",
    "share": None,
    "count": 4,
    "clusters": 3,
    "mode": "default",
    "side": "middle",
    "seed": 0,
    "threads": 1,
    "workers": "threads",
    "targets": None,
    "target_features": None,
}


def featurise(toy, instructions: Path, out: Path, **changes) -> Path:
    options = {"dimension": 32, "seed": 0, "max_length": 40, "adam": True, "bias_correction": False} | changes
    features_stage.build(
        toy.model, instructions, toy.warmup, out, device="cpu", threads=1, workers="threads", **options
    )
    return out


@pytest.fixture(scope="module")
def made(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return featurise(toy, toy.instructions, tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def targets(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation examples of two sources, which stand in turn."""
    folder = tmp_path_factory.mktemp("targets")
    table = pq.read_table(toy.instructions / "instructions.parquet").take([0, 1, 4, 3, 2])
    pq.write_table(table, folder / "instructions.parquet")
    return folder


@pytest.fixture(scope="module")
def target_features(toy, targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return featurise(toy, targets, tmp_path_factory.mktemp("target-features"), adam=False)


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
    weights = coreset.column("weight").to_pylist()
    assert sum(weights) == pytest.approx(4)
    assert weights == [round(weight, 9) for weight in weights]  # alike on processors that add up in another order
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


def test_all_that_a_report_needs_is_told(toy, made: Path, tmp_path: Path) -> None:
    stats = run(toy, made, tmp_path, clusters=50)
    told = json.loads((tmp_path / "coreset.json").read_text())
    assert told["method"] == "tagcos"
    assert told["counts"] == {name: stats.counts[name] for name in ("clusters", "without_gradient", "filled")}
    assert told["notes"] == stats.values["notes"] != []
    assert (told["map"]["examples"], told["map"]["drawn"]) == (9, 9)
    dots = pq.read_table(tmp_path / "map.parquet")
    assert dots["index"].to_pylist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    chosen = pq.read_table(tmp_path / "coreset.parquet")["index"].to_pylist()
    assert dots.filter(dots["chosen"])["index"].to_pylist() == chosen
    clusters = pq.read_table(tmp_path / "clusters.parquet")["cluster"]
    assert dots["cluster"].to_pylist() == clusters.take(dots["index"]).to_pylist()


@pytest.mark.parametrize("method", ["longest", "perplexity", "random"])
def test_a_method_that_looks_at_no_features_has_no_picture(toy, made: Path, tmp_path: Path, method: str) -> None:
    run(toy, made, tmp_path, method=method)
    assert not (tmp_path / "map.parquet").exists()
    assert json.loads((tmp_path / "coreset.json").read_text())["map"] is None


def test_longest_counts_characters_of_all_answers(toy, tmp_path: Path) -> None:
    """8 answers "a b c" and "dd", 2 and 3 "fadefade"; 5 and 7 say nothing."""
    stats = run(toy, None, tmp_path, method="longest", count=3)
    assert pq.read_table(tmp_path / "coreset.parquet")["index"].to_pylist() == [2, 3, 6]
    assert stats.counts["without_answer"] == 2
    run(toy, None, tmp_path / "more", method="longest", count=4)
    assert pq.read_table(tmp_path / "more/coreset.parquet")["index"].to_pylist() == [2, 3, 6, 8]


def test_perplexity_is_by_the_losses_of_the_first_checkpoint(toy, made: Path, tmp_path: Path) -> None:
    losses = [row and row[0] for row in pq.read_table(made / "examples.parquet")["loss"].to_pylist()]
    known = sorted((loss, row) for row, loss in enumerate(losses) if loss is not None)
    for side, expected in (("lowest", known[:4]), ("highest", known[-4:])):
        stats = run(toy, made, tmp_path / side, method="perplexity", side=side)
        chosen = pq.read_table(tmp_path / side / "coreset.parquet")["index"].to_pylist()
        assert chosen == sorted(row for _, row in expected)
        assert stats.counts["without_target"] == losses.count(None) > 0


def test_less_scores_against_each_source_of_the_targets(
    toy, made: Path, targets: Path, target_features: Path, tmp_path: Path
) -> None:
    stats = run(toy, made, tmp_path, method="less", targets=targets, target_features=target_features)
    train, valid = open_features(made), open_features(target_features)
    scores = np.full((10, 2), -np.inf)
    for row in set(range(10)) - {5}:
        for number, members in enumerate(([0, 2, 4], [1, 3])):
            scores[row, number] = np.mean(
                [
                    sum(
                        weight * float(train.checkpoint(k, row, row + 1)[0] @ valid.checkpoint(k, one, one + 1)[0])
                        for k, weight in enumerate(train.weights)
                    )
                    for one in members
                ]
            )
    order = np.argsort(-scores.max(axis=1), kind="stable")
    assert pq.read_table(tmp_path / "coreset.parquet")["index"].to_pylist() == sorted(order[:4].tolist())
    assert (stats.counts["targets"], stats.counts["without_gradient"]) == (2, 1)


def test_targets_that_do_not_fit_are_refused(
    toy, made: Path, targets: Path, target_features: Path, tmp_path: Path
) -> None:
    given = {"targets": targets, "target_features": target_features}
    cases = [
        ({"targets": None, "target_features": None}, "'less' needs validation examples .targets., found none"),
        ({"targets": toy.instructions}, "features of targets: made from 5 other examples, expected these 10"),
        ({"targets": toy.instructions, "target_features": made}, "found gradients adjusted as by Adam"),
        (
            {"target_features": featurise(toy, targets, tmp_path / "wide", dimension=33, adam=False)},
            "features of targets: projection is .*33.*, expected .*32",
        ),
        (
            {"target_features": featurise(toy, targets, tmp_path / "seed", seed=1, adam=False)},
            "features of targets: projection is",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            run(toy, made, tmp_path / "out", method="less", **(given | changes))
    for name in ("model", "checkpoints"):
        other = Path(shutil.copytree(target_features, tmp_path / name))
        record = json.loads((other / "features.json").read_text())
        (other / "features.json").write_text(json.dumps(record | {name: record[name] and type(record[name])()}))
        with pytest.raises(ValueError, match=f"features of targets: {name} is"):
            run(toy, made, tmp_path / "out", method="less", targets=targets, target_features=other)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("method", sorted(registry.names()))
def test_same_inputs_same_bytes(
    toy, made: Path, targets: Path, target_features: Path, tmp_path: Path, method: str
) -> None:
    for name, threads in (("a", 1), ("b", 2)):
        given = {"targets": targets, "target_features": target_features, "threads": threads}
        run(toy, made, tmp_path / name, method=method, **given)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        path.name for path in (tmp_path / "b").iterdir()
    )
    for name in (path.name for path in (tmp_path / "a").iterdir()):
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
        (
            {"method": "best"},
            "unknown selection method 'best'; known: k-center, less, longest, omp, perpl",
        ),
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


@pytest.mark.parametrize("method", ["tagcos", "perplexity"])
def test_features_of_another_pool_are_refused(toy, made: Path, tmp_path: Path, method: str) -> None:
    other = Path(shutil.copytree(made, tmp_path / "other"))
    record = json.loads((other / "features.json").read_text())
    (other / "features.json").write_text(json.dumps(record | {"pool": fingerprint([f"x{i}" for i in range(10)])}))
    with pytest.raises(ValueError, match="made from other instructions"):
        run(toy, other, tmp_path / "out", method=method)


def test_features_that_are_not_finite_are_refused(toy, made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made, tmp_path / "other"))
    shard = other / "checkpoint-00001" / "rows-000000.npy"
    rows = np.load(shard)
    rows[6, 3] = np.inf
    np.save(shard, rows)
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
