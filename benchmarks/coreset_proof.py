"""Is 5% of the examples as good as all of them? The flow `prove` on the demo's pool and on public instruction data.

    nice python benchmarks/coreset_proof.py --data FOLDER --store FOLDER --json benchmarks/results/coreset_proof.json \
        --picture docs/images/coreset_proof.png

FOLDER of the data has alpagasus/random_9k.json and dolly_3k.json, flan_cot/gsm8k_train.tsv, and LLaMA-Factory's
alpaca_en_demo.json and glaive_toolcall_en_demo.json; a pool is drawn from them by `QUOTAS`, of few
`CHARACTERS`. Both pools fine-tune the repository's base checkpoint of 1.1 M parameters, all weights, with what the
demo's pipeline has for it. A run that was stopped goes on from the store; `--pool` and `--methods` do a part, and what
the file already says of the other pool stays.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from machine import machine

#: File -> the source's name and the examples drawn from it.
QUOTAS = {
    "alpagasus/random_9k.json": ("alpaca", 700),
    "alpagasus/dolly_3k.json": ("dolly", 500),
    "flan_cot/gsm8k_train.tsv": ("gsm8k", 500),
    "LLaMA-Factory/alpaca_en_demo.json": ("alpaca-gpt4", 200),
    "LLaMA-Factory/glaive_toolcall_en_demo.json": ("toolcall", 100),
}
#: Of all turns together, at most. Tool calls come with descriptions of tools.
CHARACTERS = {"toolcall": 1200}
MOST_CHARACTERS = 450
POOL_SEED = 0

METHODS = ["tagcos", "random", "longest", "perplexity", "k-center", "omp"]
FINETUNE = {"epochs": 3, "max_length": 1024}
POOLS: dict[str, dict[str, Any]] = {
    "demo": {"held_out": 0.25, "finetune": FINETUNE},
    "instruct": {"held_out": 0.25, "finetune": FINETUNE},
}

#: In the order of the legend; what a picture says of a pool; how far methods stand apart at one share, as a factor.
METHODS_DRAWN = ("tagcos", "random", "longest", "perplexity", "k-center", "omp")
POOLS_DRAWN = {
    "demo": "the demo's pool: {:,} examples to choose from",
    "instruct": "Alpaca, Dolly, GSM8K, tool calls: {:,} examples to choose from",
}
APART = 1.025


def draw_pool(data: Path, out: Path) -> None:
    """Writes JSON Lines of id, source and messages."""
    from longloom.tasks.corpus.instructions import build

    rng = np.random.default_rng(POOL_SEED)
    with out.open("w", encoding="utf-8") as file, tempfile.TemporaryDirectory() as scratch:
        for name, (source, count) in QUOTAS.items():
            folder = Path(scratch) / source
            folder.mkdir()
            build([str(data / name)], folder, on_bad_record="skip")
            rows = pq.read_table(folder / "instructions.parquet").to_pylist()
            most = CHARACTERS.get(source, MOST_CHARACTERS)
            short = [row for row in rows if sum(len(turn["content"]) for turn in row["messages"]) <= most]
            for place in sorted(rng.permutation(len(short))[:count].tolist()):
                row = {"id": f"{source}-{place}", "source": source, "messages": short[place]["messages"]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def prove(pool: str, data: Path, root: Path, **given: Any) -> dict[str, Any]:
    """Runs the flow and tells what came of it; pages and tables stay in the store."""
    from longloom.flows.runtime import prepare, quiet, start_server

    prepare(root)
    quiet()
    start_server()
    from longloom.flows.params import InstructionsParams, ModelParams
    from longloom.flows.params_prove import ProveParams
    from longloom.flows.prove import prove as flow
    from longloom.storage.runs import list_runs
    from longloom.storage.store import Store
    from longloom.tasks.report.proof_words import verdicts

    sources = ["stdlib"]
    if pool == "instruct":
        sources = [str(root / "instruct.jsonl")]
        draw_pool(data, Path(sources[0]))
    params = ProveParams.model_validate(POOLS[pool] | given)
    started = time.monotonic()
    refs = flow(InstructionsParams(sources=sources), ModelParams(), params, store=str(root))
    seconds = time.monotonic() - started
    store = Store(root)
    stages = list_runs(store)[0].stages
    numbers = json.loads((store.open(refs["proof"]) / "proof.json").read_text(encoding="utf-8"))
    trained = [store.manifest(ref).seconds for label, ref in stages.items() if label.startswith("finetune/")]
    return {
        "pool": {name: stages[name].counts for name in ("instructions", "train", "held-out")},
        "parameters": params.model_dump(),
        "machine": machine(),
        "seconds_of_this_run": round(seconds),
        "seconds_of_all_trainings": round(sum(trained)),
        "page": str(store.open(refs["report"]) / "index.html"),
        "verdicts": verdicts(numbers),
        **numbers,
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Held-out loss against the share trained on, a line a method, bars from the least to the most seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    looks = (("#d55e00", "s", "-"), ("#1a1d21", "o", "--"), ("#0072b2", "^", "-"), ("#009e73", "D", "-"),
             ("#cc79a7", "v", "-"), ("#e69f00", "P", "-"))  # fmt: skip
    styles = dict(zip(METHODS_DRAWN, looks, strict=True))
    figure, axes = plt.subplots(len(found), 1, figsize=(9, 3.6 * len(found)), layout="constrained", squeeze=False)
    for axis, (pool, numbers) in zip(axes.flat, found.items(), strict=True):
        methods = [method for method in METHODS_DRAWN if any(row["method"] == method for row in numbers["rows"])]
        for place, method in enumerate(methods):
            own = [row for row in numbers["rows"] if row["method"] == method]
            colour, marker, dashes = styles[method]
            losses = [row["loss"] for row in own]
            axis.errorbar(
                [row["share"] * APART ** (place - (len(methods) - 1) / 2) for row in own],
                [loss["mean"] for loss in losses],
                [[loss["mean"] - loss["low"] for loss in losses], [loss["high"] - loss["mean"] for loss in losses]],
                color=colour, marker=marker, markersize=5, linestyle=dashes, capsize=3, label=method,
            )  # fmt: skip
        whole, untrained = numbers["all"]["loss"]["mean"], numbers["untrained"]["loss"]["mean"]
        for loss, dashes, name in ((whole, "-", "all (100%)"), (untrained, ":", "untrained")):
            axis.axhline(loss, color="#656d76", linewidth=1.4, linestyle=dashes, zorder=1)
            axis.annotate(
                f"{name}: {loss:.3f}", (1, loss), (6, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=10, color="#444c56", annotation_clip=False,
            )  # fmt: skip
        shares = sorted({row["share"] for row in numbers["rows"]})
        axis.set_xscale("log")
        axis.set_xlim(shares[0] / 1.25, shares[-1] * 1.25)
        axis.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylabel("held-out loss, nats a token")
        axis.set_title(POOLS_DRAWN[pool].format(numbers["pool"]["train"]["examples"]), fontsize=11)
        axis.grid(True, axis="y", alpha=0.4)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("examples trained on, of the pool")
    axes[0, 0].legend(frameon=False, ncols=2, fontsize=10)
    note = "points: means; bars: least to most over the seeds; points of one share stand beside each other"
    figure.supxlabel(note, fontsize=9)
    figure.savefig(path, dpi=150)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="also draw all that the file has, as PNG")
    parser.add_argument("--pool", choices=sorted(POOLS), nargs="+", default=sorted(POOLS))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.store.mkdir(parents=True, exist_ok=True)
    found = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    for pool in arguments.pool:
        result = prove(pool, arguments.data, arguments.store, methods=arguments.methods, seeds=arguments.seeds)
        found[pool] = {"command": shlex.join(["python", *sys.argv]), **result}
        page = found[pool].pop("page")
        print("\n".join([pool, *result["verdicts"], page]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if arguments.picture:
        draw(found, arguments.picture)


if __name__ == "__main__":
    main()
