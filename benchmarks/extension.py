"""Context extension in miniature: models of a window of 512 trained for 8 times as much, beside LongCache's none.

    python benchmarks/extension.py          # beside the models of longcache.py, half an hour a seed on a core

For each seed a small Llama is trained in a window of 512 as in benchmarks/longcache.py (the same models, where the
store has them), and never sees a longer sequence. Then `longloom extend` takes it to 4,096: a larger base for its
rotary positions, and a hundred rows of the standard library's training modules with pass keys strewn in, long
documents upsampled. Asked, with held-out modules as text and names of pass keys that no training has:

- needles at five depths, within the window and at 2, 4 and 8 times of it;
- perplexity at every depth of 4,096 tokens;

each of the model as it is, of it with the larger base and no training, of it after the extension, and of it as it is
under LongCache. What was asked is kept in the store, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from longcache import QUESTION, asked
from longcache_results import ASKING, DEPTHS, DIVIDED, share
from machine import machine
from over_seeds import show, spread

from longloom.flows.runtime import prepare, quiet, start_server

WINDOW, LENGTH = 512, 4096
#: Tokens of prompt and answer -> haystacks at each depth.
HAYSTACKS = {480: 4, 1024: 4, 2048: 4, 4096: 4}
TEXTS = 16
#: Documents with pass keys: a fact is told in so many characters of a module, about 300 tokens, and one of so many
#: before it is asked for again.
FACT_EVERY, BACK = 600, 10
#: Characters of a document, about 12,000 tokens: some modules are longer than a tenth of the pool.
PIECE = 24_000
PACK: dict[str, Any] = {"length": LENGTH, "separator": "special", "long": LENGTH, "tokens": 400_000}
EXTEND: dict[str, Any] = {"batch": 4, "learning_rate": 5e-4, "warmup": 0.05, "recompute": False}
#: Name of a way -> which model, under which policy.
BEFORE, BASE_ALONE, AFTER, WITH = "as it is", "larger base, not trained", "extended", "LongCache, not trained"
WAYS = {
    BEFORE: ("start", "full"),
    BASE_ALONE: ("base", "full"),
    AFTER: ("extended", "full"),
    WITH: ("start", ASKING),
}
#: Perplexity asks for every token, so there LongCache searches in every chunk.
READING = {**WAYS, WITH: ("start", DIVIDED)}


def write_corpus(modules: Path, path: Path, seed: int) -> None:
    """The training modules, and each again with pass keys between its lines, told and later asked for again."""
    from longloom.storage.parquet import read_table
    from longloom.tasks.corpus.standard_library import wording

    chance = random.Random(seed)
    names = wording.passkey_names(held_out=False)
    with path.open("w", encoding="utf-8") as file:
        for row in read_table(modules, "documents").to_pylist():
            for number, lines in enumerate(_pieces(row["text"])):
                told: list[str] = []
                text: list[str] = []
                fresh = chance.sample(names, len(names))
                size = 0
                for line in lines:
                    text.append(line)
                    size += len(line)
                    if size > FACT_EVERY and fresh:
                        size = chance.randrange(FACT_EVERY // 2)
                        told.append(wording.PASSKEY.format(name=fresh.pop(), key=chance.randrange(10_000, 100_000)))
                        text.append(f"# {told[-1]}\n")
                        if len(told) > 1:
                            text.append(f"\n\n{chance.choice(told[-BACK:])}\n\n")
                text += [f"\n\n{fact}" for fact in told[-BACK:]]
                name = f"{row['id']}:{number}"
                file.write(json.dumps({"id": name, "source": "modules", "text": "".join(lines)}) + "\n")
                if told:
                    file.write(json.dumps({"id": f"{name}+keys", "source": "keys", "text": "".join(text)}) + "\n")


def _pieces(text: str) -> Iterator[list[str]]:
    """The lines of a text, so many together that none of a pool's documents is most of it."""
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size > PIECE:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def pretrained(root: str, seed: int) -> Any:
    """The model with a window of 512 that benchmarks/longcache.py asks."""
    from longloom.flows.model import pretrain
    from longloom.flows.params import CorpusParams, IndexParams, PretrainParams
    from longloom.storage.store import Store

    given = CorpusParams(), IndexParams(tokenizer="base")
    first = pretrain(*given, PretrainParams(size="short", seed=seed), store=root)
    further = PretrainParams(source=str(Store(root).open(first)), size="short", seed=seed)
    return pretrain(*given, further, store=root)


def extended(root: str, seed: int, start: Path, modules: Path, place: Path) -> tuple[Path, dict[str, Any]]:
    """The model after the flow `extend`, and what the flow's accounting says."""
    from longloom.flows.extend import extend
    from longloom.flows.params import CorpusParams, ModelParams
    from longloom.flows.params_extend import ExtendParams, PackParams
    from longloom.storage.store import Store

    corpus = place / "corpus.jsonl"
    write_corpus(modules, corpus, seed)
    refs = extend(
        CorpusParams(sources=[str(corpus)]),
        ModelParams(source=str(start)),
        PackParams(seed=seed, **PACK),
        ExtendParams(seed=seed, texts=0, **EXTEND),
        store=root,
    )
    model, packed = (Store(root).open(refs[name]) for name in ("model", "packed"))
    numbers: dict[str, Any] = json.loads((packed / "accounting.json").read_text())
    numbers.pop("sources")
    return model, {"accounting": numbers, **json.loads((model / "extension.json").read_text())}


def larger_base(start: Path, out: Path) -> Path:
    """The model with the base of the extension, and no training."""
    from longloom.kernels.huggingface.load import load_tokenizer
    from longloom.tasks.training.extension import load_extended

    if not (out / "model.safetensors").exists():
        model, _ = load_extended(start, length=LENGTH, rope="base", base=None)
        model.save_pretrained(out)
        load_tokenizer(start).save_pretrained(out)
    return out


def needles(models: dict[str, Path], text: Path, place: Path, seed: int) -> dict[str, Any]:
    """Way -> length -> depth -> how many of how many were found."""
    found: dict[str, Any] = {}
    for name, (model, policy) in WAYS.items():
        for length, haystacks in HAYSTACKS.items():
            options = {
                "lengths": [length],
                "depths": DEPTHS,
                "samples": haystacks,
                "style": "code",
                "question": QUESTION,
            }
            out = place / "needle" / f"{model}-{policy}-{length}"
            ask: dict[str, Any] = {"suite": "needle", "tasks": ["single"], "options": options, "max_length": length}
            for row in asked(models[model], text, out, policy, seed=seed, **ask):
                cell = found.setdefault(name, {}).setdefault(str(length), {}).setdefault(f"{row['depth']:g}", [0.0, 0])
                cell[0] += row["score"]
                cell[1] += 1
    return found


def perplexities(models: dict[str, Path], text: Path, place: Path) -> dict[str, Any]:
    """Way -> rows of first, last, predicted and perplexity."""
    from longloom.flows.params_evaluate import parse_policy
    from longloom.tasks.training.positions import build

    found = {}
    for name, (model, policy) in READING.items():
        out = place / "positions" / f"{model}-{policy}"
        if not (out / "positions.parquet").exists():
            out.mkdir(parents=True, exist_ok=True)
            kind, options = parse_policy(policy)
            build(models[model], text, out, length=LENGTH, texts=TEXTS, policy=kind, options=options)
        found[name] = pq.read_table(out / "positions.parquet").to_pylist()
    return found


def one_seed(root: str, seed: int) -> dict[str, Any]:
    """Everything of one training."""
    from longloom.flows.params import STANDARD_LIBRARY
    from longloom.storage.store import Store
    from longloom.tasks.corpus.task import read_corpus

    store = Store(root)
    trained = pretrained(root, seed)
    modules, text = (
        store.open(read_corpus(store, sources=[STANDARD_LIBRARY], held_out=held)) for held in (False, True)
    )
    place = Path(root) / "extension" / trained.digest[:12]
    place.mkdir(parents=True, exist_ok=True)
    start = store.open(trained)
    longer, told = extended(root, seed, start, modules, place)
    models = {"start": start, "base": larger_base(start, place / "larger-base"), "extended": longer}
    answers = place / longer.name[:12]
    result = {"seed": seed, "model": trained.digest, "extension": told}
    return result | {
        "needles": needles(models, text, answers, seed),
        "perplexity": perplexities(models, text, answers),
    }


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, with the least and the most."""
    first = seeds[0]
    return {
        "needles, % found": {
            way: {length: spread([share(seed["needles"][way][length]) for seed in seeds]) for length in lengths}
            for way, lengths in first["needles"].items()
        },
        "perplexity": {
            way: {
                str(row["last"] + 1): spread([seed["perplexity"][way][number]["perplexity"] for seed in seeds])
                for number, row in enumerate(rows)
            }
            for way, rows in first["perplexity"].items()
        },
    }


def claims(table: dict[str, Any]) -> list[dict[str, Any]]:
    """What was asked, the figure found (a mean over the seeds), and whether it holds."""
    found, text = table["needles, % found"], table["perplexity"]
    within, end = found[BEFORE][str(min(HAYSTACKS))]["mean"], str(LENGTH)
    inside = text[BEFORE][str(WINDOW)]["mean"]  # of the window's second half
    asked_of = [
        ("full attention loses the needle at 8 times the window, % found", found[BEFORE][end]["mean"], 0, 10),
        (
            "extended: needles at 8 times the window, % of those within it before",
            _of(found[AFTER][end], within),
            90,
            1e9,
        ),
        ("extended: needles within the old window, % of those before", _of(found[AFTER]["480"], within), 90, 1e9),
        ("LongCache: needles at 8 times the window, % of those within it", _of(found[WITH][end], within), 90, 1e9),
        (
            "extended: perplexity at 8 times the window, % of that within it before",
            _of(text[AFTER][end], inside),
            0,
            100,
        ),
        ("LongCache: perplexity at 8 times the window, % of that within it", _of(text[WITH][end], inside), 0, 103),
        (
            "extended: perplexity within the old window, % of that before",
            _of(text[AFTER][str(WINDOW)], inside),
            0,
            103,
        ),
    ]
    return [
        {"claim": claim, "found": round(figure, 2), "expected": [low, high], "holds": low <= figure <= high}
        for claim, figure, low, high in asked_of
    ]


def _of(cell: dict[str, float], whole: float) -> float:
    return 100 * cell["mean"] / whole


def draw(table: dict[str, Any], path: Path) -> None:
    """Needles by length and perplexity by position, a line a way, bars from the least to the most seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    colours = dict(zip(WAYS, ("#8b939c", "#e69f00", "#0072b2", "#009e73"), strict=True))
    labels = {WITH: "LongCache, not extended"}
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.8), layout="constrained")
    drawn = []
    for axis, (part, label, apart) in zip(
        axes, (("needles, % found", "needles found, %", 1.03), ("perplexity", "perplexity", 1.01)), strict=True
    ):
        for place, (way, cells) in enumerate(table[part].items()):
            places = [int(x) * apart ** (place - (len(table[part]) - 1) / 2) for x in cells]
            means = [cell["mean"] for cell in cells.values()]
            ends = [
                [cell["mean"] - cell["least"] for cell in cells.values()],
                [cell["most"] - cell["mean"] for cell in cells.values()],
            ]
            line = axis.errorbar(places, means, ends, color=colours[way], marker="o", markersize=3, capsize=2)
            line.set_label(labels.get(way, way))
            drawn += [line] if axis is axes[0] else []
        window = axis.axvline(WINDOW, color="#333333", linewidth=1.2, linestyle="--", label=f"window of {WINDOW}")
        axis.set_ylabel(label)
        axis.set_xscale("log", base=2)
        axis.grid(True, axis="y", color="#d0d5da", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xlabel("tokens of prompt and answer")
    axes[0].set_xticks(list(HAYSTACKS), [f"{length:,}" for length in HAYSTACKS])
    axes[1].set_xlabel("position in the context, tokens")
    ends_of = (WINDOW, *list(HAYSTACKS)[1:])
    axes[1].set_xticks(ends_of, [f"{length:,}" for length in ends_of])
    axes[1].set_yscale("log")
    axes[1].set_yticks((5, 10, 20, 40, 60), ("5", "10", "20", "40", "60"))
    axes[1].yaxis.set_minor_locator(NullLocator())
    figure.legend(handles=[*drawn, window], loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    figure.supxlabel("bars: least to most over the trainings; points of one place stand beside each other", fontsize=9)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--store", default=".longloom/longcache", help="where what is made is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=here / "results" / "extension.json")
    parser.add_argument("--picture", type=Path, default=here.parent / "docs" / "images" / "extension.png")
    options = parser.parse_args()
    prepare(options.store)
    quiet()
    start_server()
    seeds = [one_seed(options.store, seed) for seed in options.seeds]
    table = summary(seeds)
    result = {"machine": machine(), "claims": claims(table), "summary": table, "seeds": seeds}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    draw(table, options.picture)
    show(table, result["claims"])


if __name__ == "__main__":
    main()
