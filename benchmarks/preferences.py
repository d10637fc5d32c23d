"""Does a small reward model read the criterion? The flows `preference` and `preference-evaluation` on the demo's pairs.

    nice python benchmarks/preferences.py --data FOLDER --store FOLDER --json benchmarks/results/preferences.json \
        --plot docs/images/preferences.png

Each seed makes its own pairs from the standard library, trains the repository's base checkpoint of 1.1 M parameters on
those of the training modules, and judges it by held-out modules, by held-out wordings besides, and by held-out criteria
besides: without a context (NC), with it (CTX), with a nonsense and with the negated one. FOLDER of the data has
prometheus-eval's hhh_alignment_eval.json (HHH with rubrics), asked with and without the rubric. A run that was stopped
goes on from the store.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from machine import machine

from longloom.flows.runtime import prepare, quiet, start_server

HHH = "hhh_alignment_eval.json"
SIDES = ("modules", "wordings", "criteria", "hhh_alignment_eval")
CONDITIONS = ("nc", "ctx", "nonsense", "negated")
NAMES = {
    "modules": "new modules",
    "wordings": "new modules,\nnew wordings",
    "criteria": "new modules,\nnew criteria",
    "hhh_alignment_eval": "HHH with rubrics",
}


def one_seed(seed: int, data: Path, store: str, comparisons: dict[str, Any], reward: dict[str, Any]) -> dict[str, Any]:
    """Accuracies by set and condition, and how the training went."""
    from longloom.flows.params import ModelParams
    from longloom.flows.params_preference import ComparisonsParams, RewardParams
    from longloom.flows.params_preference_evaluation import PreferenceEvaluationParams
    from longloom.flows.preference import preference
    from longloom.flows.preference_evaluation import preference_evaluation
    from longloom.storage.runs import list_runs
    from longloom.storage.store import Store

    trained = preference(
        ComparisonsParams(**comparisons, seed=seed), ModelParams(), RewardParams(**reward, seed=seed), store=store
    )
    place = Store(store)
    model = f"run:{list_runs(place)[0].id}:reward-model"
    found: dict[str, Any] = {}
    for on in ([], [str(data / HHH)]):
        judged = preference_evaluation(
            PreferenceEvaluationParams(model=model, on=on, sampled=0, seed=seed), store=store
        )
        for label, ref in judged.items():
            if label.startswith("preference/"):
                told = json.loads((place.open(ref) / "preference.json").read_text(encoding="utf-8"))
                found[label.partition("/")[2]] = {
                    name: told[name] for name in ("conditions", "gain", "turned", "judged", "too_long", "categories")
                }
    manifest = place.manifest(trained["reward-model"])
    return {"seed": seed, "training": manifest.counts | manifest.values, "seconds": manifest.seconds, "sets": found}


def summary(seeds: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean, least and most over the seeds, by set and condition."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for side in seeds[0]["sets"]:
        for condition in CONDITIONS:
            values = [
                one["sets"][side]["conditions"][condition]["value"]
                for one in seeds
                if condition in one["sets"][side]["conditions"]
            ]
            if values:
                spread = {"mean": statistics.fmean(values), "least": min(values), "most": max(values)}
                found.setdefault(side, {})[condition] = spread
    return found


def plot(told: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Bars a set, one a condition, with the spread over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(CONDITIONS, ("#8b939c", "#0072b2", "#e69f00", "#d55e00"), strict=True))
    labels = {"nc": "NC (no context)", "ctx": "CTX (the criterion)", "nonsense": "nonsense", "negated": "negated"}
    sides = [side for side in SIDES if side in told]
    figure, axes = plt.subplots(figsize=(8, 3.7), layout="constrained")
    for number, condition in enumerate(CONDITIONS):
        for place, side in enumerate(sides):
            if condition not in told[side]:
                continue
            one = {name: 100 * value for name, value in told[side][condition].items()}
            error = [[one["mean"] - one["least"]], [one["most"] - one["mean"]]]
            axes.bar(
                place + (number - 1.5) * 0.2,
                one["mean"],
                0.19,
                yerr=error,
                color=colours[condition],
                ecolor="#333333",
                label=labels[condition] if place == 0 else None,
            )
    axes.axhline(50, color="#333333", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(sides)), [NAMES[side] for side in sides])
    axes.set_xlabel("dotted: chance; lines: least to most over the trainings", fontsize=9)
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.15))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, metadata={"Software": None})


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="reversal pairs to train on; the flow's own number by default")
    parser.add_argument("--held-out-rows", type=int, help="of each held-out set, likewise")
    parser.add_argument("--epochs", type=int, help="passes, likewise")
    parser.add_argument("--learning-rate", type=float, help="likewise")
    parser.add_argument("--batch", type=int, help="likewise")
    arguments = parser.parse_args()
    if not (arguments.data / HHH).is_file():
        parser.error(f"--data {arguments.data}: found no {HHH}, expected the folder that has it")
    arguments.store.mkdir(parents=True, exist_ok=True)
    prepare(arguments.store)
    quiet()
    start_server()
    comparisons, reward = (
        {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
        for names in (("rows", "held_out_rows"), ("epochs", "learning_rate", "batch"))
    )
    seeds = []
    for seed in range(arguments.seeds):
        seeds.append(one_seed(seed, arguments.data, str(arguments.store), comparisons, reward))
        told = summary(seeds)
        for side, found in told.items():
            print(seed, side, {name: round(100 * one["mean"], 1) for name, one in found.items()}, flush=True)
        result = {
            "command": "python benchmarks/preferences.py --data DATA",
            "machine": machine(),
            "parameters": comparisons | reward,
            "summary": told,
            "seeds": seeds,
        }
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if arguments.plot:
            plot(told, arguments.plot)


if __name__ == "__main__":
    main()
