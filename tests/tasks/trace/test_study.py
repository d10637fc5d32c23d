"""A whole study of a trained model and an untrained one: a corpus whose facts are more and less frequent."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoTokenizer

from longloom.kernels.huggingface.load import load_model
from longloom.storage.parquet import read_table
from longloom.storage.stats import Stats
from longloom.tasks.trace import influence, novelty, pairs, scores, statistics
from longloom.tasks.trace.embedding import embedder
from longloom.tasks.trace.names import INPUT_EMBEDDINGS
from longloom.tasks.trace.points import Pairs, model_logs, ranked
from longloom.tasks.trace.records import load
from longloom.tasks.trace.sensitivity import STEPS
from longloom.tasks.trace.study import JSON, TABLES, Sources, build

from .conftest import Brute

#: An animal's colours in how many documents.
COLOURS = {
    "fox": {"red": 16, "grey": 4, "white": 1, "pink": 0},
    "frog": {"green": 8, "red": 2, "grey": 1, "blue": 0},
    "whale": {"blue": 12, "grey": 3, "pink": 1, "green": 0},
}
TEXTS = [
    f"the {animal} is {colour}"
    for animal, colours in COLOURS.items()
    for colour, times in colours.items()
    for _ in range(times)
]
ROWS = [(f"the {animal} is", colour) for animal, colours in COLOURS.items() for colour in colours]


def meaning(texts: Sequence[str]) -> np.ndarray:
    """Animals and colours are near each other, all else is at right angles to them."""
    colours = {colour for found in COLOURS.values() for colour in found}
    return np.array([[1, 0] if text in colours | COLOURS.keys() else [0, 1] for text in texts], np.float32)


@pytest.fixture(scope="module")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after some passes over TEXTS."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(model_folder, folder, dirs_exist_ok=True)
    model, _ = load_model(model_folder, device="cpu", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(model_folder, pad_token="<|end|>")
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with torch.enable_grad():
        for _ in range(50):
            optimizer.zero_grad()
            model(**batch, labels=labels).loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def sources(make_records: Callable[..., Path], model_folder: Path, trained: Path, tmp_path: Path) -> Callable[..., Any]:
    """Builds the parts of a study; returns them with the models' sizes."""

    def make(mode: str = "paper") -> tuple[Sources, dict[str, int]]:
        corpus = Brute(TEXTS)
        found = Sources()
        made = iter(range(100))

        def folder() -> Path:
            path = tmp_path / f"{mode}-{next(made)}"
            path.mkdir()
            return path

        found.records["animals"] = make_records(ROWS, f"animals-{mode}")
        records = found.records["animals"]
        for name, embed in (("meaning", meaning), ("other", embedder(INPUT_EMBEDDINGS, model_folder))):
            place = folder()
            pairs.build(records, corpus, embed, place, n=1, gamma=0.5, mode=mode, least=1)
            found.pairs["animals", 1, name] = place
        sizes = {}
        for size, (name, model) in enumerate((("untrained", model_folder), ("trained", trained)), start=1):
            place = folder()
            scores.build(model, records, place, batch=4, new_tokens=2, device="cpu", dtype=None)
            found.scores["animals", name] = place
            sizes[name] = size * 1000
            novel = folder()
            novelty.build(records, place, corpus, meaning, novel, n=1, gamma=0.5)
            found.novelty["animals", 1, name] = novel
            if mode == "paper":
                traced = folder()
                arguments = (model, [model], records, found.pairs["animals", 1, "meaning"], corpus, traced)
                influence.build(*arguments, gamma=0.5, count=2, documents=2, seed=0, device="cpu")
                found.influence["animals", 1, name] = traced
        return found, sizes

    return make


def study(sources: Sources, sizes: dict[str, int], out: Path, mode: str = "paper") -> tuple[Stats, dict[str, Any]]:
    out.mkdir()
    stats = build(
        sources, out, parameters=sizes, gammas={1: 0.5}, embeddings=["meaning", "other"], mode=mode
    )  # fmt: skip
    return stats, json.loads((out / JSON).read_text())


def test_a_study(sources: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    found, sizes = sources()
    stats_, told = study(found, sizes, tmp_path / "one")
    study(found, sizes, tmp_path / "two")
    for name in (*(f"{table}.parquet" for table in TABLES), JSON):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for table in TABLES:
        assert read_table(tmp_path / "one", table).to_pylist() == told[table]
        assert told[table]
    figures = {"memorization.png", "performance.png", "novelty.png", "influence.png", "sensitivity.png"}
    assert set(stats_.volatile) == figures == {path.name for path in (tmp_path / "one").glob("*.png")}

    # What was learned follows the corpus; what was not does not.
    rows = {(row["model"], row["measure"], row["rule"]): row for row in told["memorization"]}
    trained, untrained = (rows[model, "task-gram", "all"] for model in ("trained", "untrained"))
    assert trained["rho"] > 0.5
    assert trained["p"] < 0.05
    assert untrained["rho"] < trained["rho"] - 0.2
    assert trained["distance"] < untrained["distance"]
    assert trained["low"] < trained["rho"] < trained["high"]
    assert rows["trained", "infinity-gram", "all"]["points"] == 12
    assert rows["trained", "task-gram", "seen"]["points"] < trained["points"]
    assert rows["trained", "task-gram", "disjoint"]["points"] == trained["points"]  # a pair a record

    # By hand: a pair (animal, colour) a record, each with its logarithm.
    [lost] = told["dropped"]
    mined = read_table(found.pairs["animals", 1, "meaning"], "pairs").to_pylist()
    assert len(mined) == lost["pairs"] == 12
    assert {name: lost[name] for name in ("zero", "rare", "unknown")} == {"zero": 0, "rare": 0, "unknown": 0}
    assert lost["unseen"] == sum(colours[c] == 0 for colours in COLOURS.values() for c in colours)
    assert lost["share_dropped"] == 0
    table = Pairs.read(found.pairs["animals", 1, "meaning"])
    logs = model_logs(
        table, load(found.records["animals"]), scores.read_tokens(found.scores["animals", "trained"]), "paper"
    )
    for row, pair in enumerate(mined):
        animal = ROWS[pair["record"]][0].split()[1]
        assert pair["x"] == f" {animal}"
        times, total = COLOURS[animal][pair["y"].strip()], sum(COLOURS[animal].values())
        assert pair["log_p"] == pytest.approx(math.log(times / total) if times else -math.inf)
        assert table.log_p[row] == pair["log_p"]
        if times:
            assert (pair["log_infinity"], pair["infinity_zero"]) == (pytest.approx(math.log(times / total)), 0)
        else:  # by the paper's rule what was never seen after "is" may get more than what was
            assert pair["infinity_zero"] > 0
    order = [0 if math.isinf(value) else math.exp(value) for value in table.log_p]
    assert trained["rho"] == pytest.approx(stats.spearmanr(order, logs).statistic)

    # The last bin is that of the most frequent; the trained model answers with those.
    bins = [row for row in told["performance"] if row["model"] == "trained"]
    assert sum(row["records"] for row in bins) == len(ROWS)
    assert [row["low"] for row in bins] == sorted(row["low"] for row in bins)
    assert bins[-1]["exact"] > bins[0]["exact"]
    assert all(row["low"] == 0 or row["high"] == 10 * row["low"] - 1 for row in bins)

    novel = {row["model"]: row for row in told["novelty"]}
    assert novel["trained"]["novel"] < novel["untrained"]["novel"] + novel["untrained"]["unknown"]
    assert novel["trained"]["generations"] == len(ROWS)
    steps = [row for row in told["sensitivity"] if row["model"] == "trained"]
    assert [row["gamma"] for row in steps if row["embedding"] == "meaning"] == pytest.approx(
        [0.5 + step for step in STEPS]
    )
    assert {row["embedding"] for row in steps} == {"meaning", "other"}
    middle = next(row for row in steps if row["embedding"] == "meaning" and row["gamma"] == 0.5)
    assert (middle["rho"], middle["points"]) == (trained["rho"], trained["points"])
    for row in told["influence"]:
        assert row["difference"] == pytest.approx(row["pair"] - row["output"])
        assert (row["pairs"], row["checkpoints"]) == (2, 1)


def test_released_has_tables_of_its_own(
    sources: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last word of every text is lost, and so no pair is left over but those of the words before."""
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    monkeypatch.setitem(globals(), "ROWS", [(f"{x} and", f"{y} now") for x, y in ROWS])
    told = study(*sources("released"), tmp_path / "released", "released")[1]
    [lost] = told["dropped"]
    assert lost["pairs"] == 3 * len(ROWS)  # "the", the animal and "is"; without gamma
    assert lost["zero"] == len(ROWS)  # " the": it stands at the beginning of documents alone, without a space
    assert lost["share_dropped"] == (lost["zero"] + lost["unseen"]) / lost["pairs"]
    assert {row["rule"] for row in told["memorization"]} == {"all"}
    colours = [colour for found in COLOURS.values() for colour in found]
    [row] = [row for row in told["memorization"] if (row["model"], row["measure"]) == ("trained", "task-gram")]
    assert row["points"] == len(colours)  # a point an output n-gram: each colour stands somewhere
    assert told["sensitivity"] == []
    assert told["influence"] == []


def table_of(**columns: Any) -> Pairs:
    size = len(columns["record"])
    full = {
        "task": ["t"] * size,
        "begin": [0] * size,
        "end": [3] * size,
        "cosine": [1.0] * size,
        "disjoint": [True] * size,
        "together": [1] * size,
        "log_infinity": [math.nan] * size,
        **columns,
    }
    return Pairs(**{name: np.array(values) for name, values in full.items()})


def test_points_of_both_modes() -> None:
    """Paper: a point a pair, zeros ranked. Released: a point an output n-gram, the mean of the logs, zeros gone."""
    mined = table_of(
        record=[0, 0, 0, 1, 1],
        y=[" a", " a", " a", " b", " b"],
        status=["kept", "kept", "unseen", "kept", "zero"],
        log_p=[-1.0, -3.0, -math.inf, -4.0, math.nan],
    )
    logs = np.array([-5.0, -5.0, -5.0, -6.0, -6.0])
    every = np.ones(5, bool)
    corpus, model, records = ranked(mined, logs, every, measure="task-gram", rule="all", mode="paper")
    assert corpus.tolist() == [-1.0, -3.0, -math.inf, -4.0]
    assert model.tolist() == [-5.0, -5.0, -5.0, -6.0]
    assert records.tolist() == [0, 0, 0, 1]
    assert len(ranked(mined, logs, every, measure="task-gram", rule="seen", mode="paper")[0]) == 3
    corpus, model, records = ranked(mined, logs, every, measure="task-gram", rule="all", mode="released")
    assert (corpus.tolist(), model.tolist(), records.tolist()) == ([-2.0, -4.0], [-5.0, -6.0], [0, 1])
    assert len(ranked(mined, logs, ~every, measure="task-gram", rule="all", mode="released")[0]) == 0
    logs[3] = np.nan
    assert len(ranked(mined, logs, every, measure="task-gram", rule="all", mode="paper")[0]) == 3


def test_released_scores_from_the_first_match_to_the_end(
    model_folder: Path, make_records: Callable[..., Path], tmp_path: Path
) -> None:
    records = make_records([("is a fox red", "a fox it is")])
    (tmp_path / "scores").mkdir()
    scores.build(model_folder, records, tmp_path / "scores", batch=1, new_tokens=0, device="cpu", dtype=None)
    read = scores.read_tokens(tmp_path / "scores")
    mined = table_of(record=[0], y=[" a fox"], begin=[0], end=[5], status=["kept"], log_p=[0.0])
    text = "is a fox red a fox it is"
    paper, released = (model_logs(mined, load(records), read, mode)[0] for mode in ("paper", "released"))
    assert paper == read[0].log_probability(text.rindex("a fox"), text.rindex("a fox") + 5)
    assert released == read[0].log_probability(text.index("a fox"), len(text))
    assert released < paper
