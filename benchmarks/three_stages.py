"""ChatQA 2's comparisons in miniature: three stages of tuning, all in one, no long stage; retrieval, long context.

    nice python benchmarks/three_stages.py --store .longloom/stages

The repository's base checkpoint is extended once from a window of 1,024 to 2,048 tokens. Each seed tunes it in three
stages (short ones of 512 tokens, the third with documents of up to 1,900), and the same examples all in one; `no-long`
is a third stage as long without the long documents. All answer questions about facts in the held-out modules' code, in
contexts of four lengths; the model of three stages also with what BM25 retrieves of them, chunk sizes by k. A run that
was stopped goes on from the store.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from machine import machine
from over_seeds import show, spread

from longloom.flows.runtime import prepare, quiet, start_server

WINDOW = 2048
#: Tokens of a context: within what the short stages show, and beyond.
LENGTHS = (250, 600, 1200, 1800)
#: What the short stages show of a context, at most: their examples' length without the prompt around it.
SHORT = 330
RECORDS = 60
DATA_SEED = 1000

EXTEND: dict[str, Any] = {"learning_rate": 4e-4, "batch": 4, "steps": 100, "recompute": False, "texts": 0}
TUNE: dict[str, Any] = {
    "instruct": {"examples": 1200},
    "conversation": {"examples": 2400},
    "long": {"examples": 800, "max_length": WINDOW},
    "synthesis": {"examples": 800, "least": 300, "most": 1850},
    "compare": ["no-long", "all-in-one"],
}
ARMS = {
    "untuned": "extended",
    "two stages": "tune/conversation",
    "no long stage": "tune/no-long",
    "all in one": "tune/all-in-one",
    "three stages": "tune/long",
}
SIZES = (15, 30, 60)  # words
K = (1, 2, 4, 8)
#: Words that the claims retrieve, as so many chunks of each size: below the least context's 143. With 8 x 60 most
#: contexts are whole again.
RETRIEVED = 120


def records(folder: Path) -> Path:
    """Questions about facts in long held-out code, in LongBench's format with ChatQA's prompt: a task a length."""
    from longloom.evals.chatrag.prompt import INSTRUCTIONS, SYSTEM
    from longloom.tasks.corpus.standard_library import dialogues
    from longloom.tasks.corpus.standard_library.modules import build_documents
    from longloom.tasks.training import synthesis
    from longloom.tasks.training.task import BASE

    places = {name: folder / name for name in ("documents", "dialogues", "records")}
    if (places["records"] / "config").is_dir():
        return places["records"]
    for place in (places["documents"], places["dialogues"], places["records"] / "config"):
        place.mkdir(parents=True)
    build_documents(places["documents"], held_out=True)
    dialogues.build(places["dialogues"], examples=4 * RECORDS, characters=300, held_out=True, seed=DATA_SEED)
    rows = [row for row in _rows(places["dialogues"]) if len(row["messages"]) == 1][:RECORDS]
    for length in LENGTHS:
        long = folder / f"long-{length}"
        long.mkdir()
        options = {"examples": 4 * RECORDS, "least": length - length // 10, "most": length, "seed": DATA_SEED}
        synthesis.build(places["dialogues"], places["documents"], BASE, long, **options)
        made = {row["id"].partition("@")[0]: row for row in _rows(long)}
        with (places["records"] / f"facts_{length}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                row = made[row["id"]]
                gold = row["answer"].rpartition(" ")[2].rstrip(".") if row["source"] == "passkey" else None
                file.write(
                    json.dumps(
                        {
                            "input": row["messages"][0]["content"],
                            "context": row["context"],
                            "answers": [gold or row["answer"].partition(" = ")[2]],
                            "gold": [row["answer"]],
                            "length": len(row["context"].split()),
                            "dataset": f"facts_{length}",
                            "language": "en",
                            "all_classes": None,
                            "_id": row["id"],
                        }
                    )
                    + "\n"
                )
    asked = f"{INSTRUCTIONS['full'].text}{{input}}"
    told = {
        "prompt": f"{SYSTEM}\n\n{{context}}\n\nUser: {asked}\n\nAssistant:",
        "maxlen": 32,
        "metric": "string_match",
        "chat": False,
    }
    for name, value in told.items():
        table = {f"facts_{length}": value for length in LENGTHS}
        (places["records"] / "config" / f"dataset2{name}.json").write_text(json.dumps(table, indent=1) + "\n")
    return places["records"]


def _rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "conversations.parquet").to_pylist()
    return found


def one_seed(root: str, seed: int, data: Path) -> dict[str, Any]:
    """Trains and measures."""
    from longloom.flows.evaluate import evaluate
    from longloom.flows.extend import extend
    from longloom.flows.params import ModelParams
    from longloom.flows.params_evaluate import EvaluateParams, RetrievalParams
    from longloom.flows.params_extend import ExtendParams, PackParams
    from longloom.flows.params_tune import TuneParams
    from longloom.flows.rag import rag
    from longloom.flows.tune import tune
    from longloom.storage.store import Store

    store = Store(root)
    started = time.monotonic()
    extend(
        pack=PackParams(length=WINDOW, tokens=1_000_000, separator="special"),
        extend=ExtendParams.model_validate(EXTEND),
        store=root,
    )
    refs = tune(
        model=ModelParams(source="run:latest:extended"),
        tune=TuneParams.model_validate(TUNE | {"seed": seed}),
        store=root,
    )
    trained = {
        name: pq.read_table(store.open(refs[name]) / "blend.parquet").to_pylist() for name in refs if name != "report"
    }
    found: dict[str, dict[str, float]] = {}
    for arm, label in ARMS.items():
        model = ModelParams(source=f"run:latest:{label}")
        (ref,) = evaluate(model, EvaluateParams(suite="records", data=str(data)), store=root).values()
        found[arm] = _scores(store, ref)
    asked = EvaluateParams(suite="records", data=str(data), tasks=[f"facts_{length}" for length in LENGTHS[2:]])
    how = RetrievalParams(sizes=list(SIZES), k=list(K), orders=["document", "rank"])
    retrieved = rag(ModelParams(source=f"run:latest:{ARMS['three stages']}"), asked, how, store=root)
    return {
        "seed": seed,
        "seconds_of_this_run": round(time.monotonic() - started),
        "trained": trained,
        "by length": found,
        "retrieval": {name: _scores(store, ref) for name, ref in retrieved.items()},
    }


def _scores(store: Any, ref: Any) -> dict[str, float]:
    """Length -> score, 0 to 100."""
    rows = pq.read_table(store.open(ref) / "scores.parquet").to_pylist()
    scores = {row["task"].rpartition("_")[2]: row["score"] for row in rows}
    return {length: scores[length] for length in sorted(scores, key=int)}


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Every score over the seeds."""
    return {
        part: {
            name: {length: spread([seed[part][name][length] for seed in seeds]) for length in scores}
            for name, scores in seeds[0][part].items()
        }
        for part in ("by length", "retrieval")
    }


def claims(seeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """ChatQA 2's findings, the figure here (points, a mean over the seeds with its range), and whether it holds here.

    A difference holds if it has the claimed sign in every seed.
    """

    def mean(scores: dict[str, float], lengths: list[int]) -> float:
        return statistics.fmean(scores[str(length)] for length in lengths)

    short, long = [n for n in LENGTHS if n <= SHORT], [n for n in LENGTHS if n > SHORT]
    asked: list[tuple[str, list[float]]] = []
    for other in ("all in one", "no long stage", "two stages", "untuned"):
        for name, lengths in (("short", short), ("long", long)):
            differences = [
                mean(seed["by length"]["three stages"], lengths) - mean(seed["by length"][other], lengths)
                for seed in seeds
            ]
            asked.append((f"three stages above {other} on {name} contexts, points", differences))
    for length in LENGTHS[2:]:
        full = [seed["retrieval"]["full"][str(length)] for seed in seeds]
        for size in SIZES:
            at = {
                (k, order): [
                    seed["retrieval"][f"full/bm25:words={size},k={k},order={order}"][str(length)] for seed in seeds
                ]
                for k in K
                for order in ("document", "rank")
                if (k, order) != (1, "rank")
            }
            k = RETRIEVED // size
            most, least = at[k, "document"], at[K[0], "document"]
            asked += [
                (
                    f"more chunks help: k={k} above k={K[0]}, {size} words, {length} tokens",
                    [a - b for a, b in zip(most, least, strict=True)],
                ),
                (
                    f"retrieval of {k} x {size} words at or above direct long context, {length} tokens",
                    [a - b for a, b in zip(most, full, strict=True)],
                ),
                (
                    f"document order above rank order, k={k}, {size} words, {length} tokens",
                    [a - b for a, b in zip(most, at[k, "rank"], strict=True)],
                ),
            ]
    return [
        {
            "claim": claim,
            "found": spread(differences),
            "holds": min(differences) > 0 or ("at or above" in claim and min(differences) >= 0),
        }
        for claim, differences in asked
    ]


def draw(table: dict[str, Any], path: Path) -> None:
    """Scores by length of each way to tune, and of retrieval by k beside the whole context."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lowest = 45
    figure, axes = plt.subplot_mosaic(
        [["ways", "ways"], list(LENGTHS[2:])], figsize=(9, 7.4), layout="constrained", height_ratios=(5, 6)
    )
    ways = axes["ways"]
    colours = iter(("#8b939c", "#e69f00", "#d55e00", "#0072b2"))
    for name, scores in table["by length"].items():
        if name == "untuned":  # answers nothing
            continue
        _line(ways, [int(length) for length in scores], list(scores.values()), name, next(colours), "o")
    ways.axvline(
        SHORT, color="black", linewidth=1.2, linestyle=":", label=f"longest context of the short stages: {SHORT}"
    )
    ways.set_xlabel("tokens of the context")
    ways.set_title("ways to tune", fontsize=11)
    for length in LENGTHS[2:]:
        axis = axes[length]
        for size, colour, marker in zip(SIZES, ("#cc79a7", "#009e73", "#7a4fb5"), ("s", "^", "D"), strict=True):
            cells = [table["retrieval"][f"full/bm25:words={size},k={k},order=document"][str(length)] for k in K]
            _line(axis, list(K), cells, f"chunks of {size} words", colour, marker)
        whole = table["retrieval"]["full"][str(length)]
        axis.axhspan(whole["least"], whole["most"], color="black", alpha=0.13, linewidth=0)
        axis.axhline(whole["mean"], color="black", label="whole context")
        axis.set_xscale("log", base=2)
        axis.set_xticks(K, [str(k) for k in K])
        axis.set_xlabel("chunks retrieved, in document order")
        axis.set_title(f"retrieval, three stages, contexts of {length:,} tokens", fontsize=11)
    for axis in axes.values():
        axis.set_ylim(lowest, 100)
        axis.set_ylabel(f"right, % (axis from {lowest})")
        axis.legend(fontsize=9, loc=(0.14, 0.03) if axis is ways else "lower right")
        axis.grid(alpha=0.3)
    figure.supxlabel("points: means; shaded: least to most over the trainings", fontsize=9)
    figure.savefig(path, dpi=150)


def _line(axis: Any, x: list[int], cells: list[dict[str, float]], name: str, colour: str, marker: str) -> None:
    axis.plot(x, [cell["mean"] for cell in cells], color=colour, marker=marker, markersize=5, label=name)
    ends = [cell["least"] for cell in cells], [cell["most"] for cell in cells]
    axis.fill_between(x, *ends, color=colour, alpha=0.13, linewidth=0)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--store", default=".longloom/stages", help="where what is made is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=here / "results" / "three_stages.json")
    parser.add_argument("--picture", type=Path, default=here.parent / "docs" / "images" / "three_stages.png")
    options = parser.parse_args()
    prepare(options.store)
    quiet()
    start_server()
    data = records(Path(options.store) / "three-stages")
    seeds = [one_seed(options.store, seed, data) for seed in options.seeds]
    table = summary(seeds)
    parameters = {"window": WINDOW, "extend": EXTEND, "tune": TUNE, "records": RECORDS}
    result = {
        "machine": machine(),
        "parameters": parameters,
        "claims": claims(seeds),
        "summary": table,
        "seeds": seeds,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(table, options.picture)
    show(table, result["claims"])


if __name__ == "__main__":
    main()
