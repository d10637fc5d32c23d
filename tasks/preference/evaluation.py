"""Whether a reward model listens: its accuracy without a context, with the right, a nonsense and a negated one, by
category, with profiles inferred from samples, and as the second of two steps behind an inferred context.

arXiv 2407.14916, sections 5 and 6. The paper's CTX* is the oracle's context on general sets: here CTX, the data's own,
beside `inferred`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.preference.accuracy import accuracy, credit, mean
from longloom.tasks.preference.conditions import (
    CTX,
    LIST,
    NC,
    NEGATED,
    NONSENSE,
    contexts_under,
    negated,
    read_negations,
)
from longloom.tasks.preference.inference import read_contexts
from longloom.tasks.preference.profiles import curve, profiles_of, read_profiles
from longloom.tasks.preference.reversals import context_free_best
from longloom.tasks.preference.rows import Row, contexts_of, read_rows
from longloom.tasks.preference.scorer import Scorer
from longloom.tasks.preference.scoring import Fits, Memory
from longloom.tasks.preference.two_step import two_step
from longloom.tasks.progress import Progress, silent

NUMBERS, SCORES = "preference.json", "scores"
CONDITIONS = (NC, CTX, NONSENSE, NEGATED)
#: A row a comparison and condition; `prompt` and `responses` are digests of what was compared.
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "source", "category", "prompt", "responses", "condition", "context")),
        *((name, pa.float64()) for name in ("chosen", "rejected")),
    ]
)

Floats = NDArray[np.float64]


def build(
    scorer: Scorer,
    comparisons: Path,
    contexts: Path | None,
    out: Path,
    *,
    negations: Mapping[str, str],
    samples: Sequence[int],
    seed: int,
    fits: Fits | None = None,
    progress: Progress = silent,
) -> Stats:
    """Writes `preference.json` and `scores.parquet`.

    Args:
        scorer: the reward model.
        comparisons: to be judged; ties are left out and counted, those without a context are asked without one alone.
        contexts: a contexts artifact of the same comparisons, for the two-step model; None: none is told of.
        out: an empty folder.
        negations: criterion -> its contrary (see `conditions.negated`), besides those of the comparisons' own list.
        samples: for the profiles, from how many of its comparisons each is inferred.
        seed: of nonsense and of the profiles' samples.
        fits: which questions the scorer can read; a comparison of which it cannot read one is left out and counted,
            and so are the others of the same two responses. None: all.
        progress: of the scorer.

    Returns:
        Counts of comparisons, ties, those without context and too long; values: accuracy by condition.

    Raises:
        ValueError: nothing to judge; contexts of other comparisons; a score that is not finite.
    """
    listed = {**(read_negations(comparisons / LIST) if (comparisons / LIST).exists() else {}), **negations}
    every = read_rows(comparisons)
    strict = [row for row in every if not row.tie]
    memory = Memory(scorer, fits, progress=progress)
    rows = memory.readable(strict, _asked_in(strict, listed, seed))
    if not rows:
        raise ValueError(
            f"comparisons: none of {len(every)} can be judged, {len(every) - len(strict)} are ties and {len(strict)}"
            " longer than the model can read, or of the same responses as one that is; expected some"
        )
    asked = {name: contexts_under(name, rows, listed=listed, seed=seed) for name in CONDITIONS}
    margins: dict[str, Floats] = {}
    with FileWriter(out / f"{SCORES}.parquet", SCHEMA) as writer:
        for name, places in asked.items():
            own = [rows[place] for place, _ in places]
            chosen, rejected = memory.ask(own, [context for _, context in places])
            margins[name] = chosen - rejected
            writer.write(_score_rows(name, places, rows, chosen, rejected))
    numbers = _described(every, strict, rows) | _conditions(rows, asked, margins, listed)
    numbers["categories"] = _categories(rows, asked, margins)
    numbers["profiles"] = _profiles(rows, memory, read_profiles(comparisons), samples=samples, seed=seed)
    numbers["two_step"] = None if contexts is None else _two_step(rows, strict, memory, contexts)
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
    (out / NUMBERS).write_text(text + "\n", encoding="utf-8")
    return Stats(
        counts={name: numbers[name] for name in ("comparisons", "judged", "ties", "without_context", "too_long")},
        values={"accuracy": {name: found["value"] for name, found in numbers["conditions"].items()}},
    )


def _asked_in(rows: Sequence[Row], negations: Mapping[str, str], seed: int) -> list[list[str | None]]:
    """The contexts in which each comparison is asked, over all conditions."""
    found: list[list[str | None]] = [[] for _ in rows]
    for name in CONDITIONS:
        for place, context in contexts_under(name, rows, listed=negations, seed=seed):
            found[place].append(context)
    return found


def _score_rows(
    condition: str, places: Sequence[tuple[int, str | None]], rows: Sequence[Row], chosen: Floats, rejected: Floats
) -> list[dict[str, object]]:
    return [
        {
            "id": rows[place].id,
            "source": rows[place].source,
            "category": rows[place].category,
            "prompt": _digest(rows[place].asked),
            "responses": _digest(rows[place].chosen, rows[place].rejected),
            "condition": condition,
            "context": context,
            "chosen": float(better),
            "rejected": float(worse),
        }
        for (place, context), better, worse in zip(places, chosen, rejected, strict=True)
    ]


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _described(every: Sequence[Row], strict: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    best, of = context_free_best((row.asked, row.chosen, row.rejected) for row in rows)
    return {
        "comparisons": len(every),
        "ties": len(every) - len(strict),
        "too_long": len(strict) - len(rows),
        "judged": len(rows),
        "without_context": sum(row.context is None for row in rows),
        "contexts": len(contexts_of(rows)),
        "prompts": len({row.asked for row in rows}),
        "context_free": {"best": best, "of": of, "balanced": of == 2 * best},
    }


def _conditions(
    rows: Sequence[Row],
    asked: Mapping[str, Sequence[tuple[int, str | None]]],
    margins: Mapping[str, Floats],
    negations: Mapping[str, str],
) -> dict[str, Any]:
    """Accuracy by condition, how much the context brings, and how often its negation turns a preference around."""
    clusters = {name: [rows[place].asked for place, _ in places] for name, places in asked.items()}
    own = [place for place, _ in asked[CTX]]
    gain = credit(margins[CTX]) - credit(margins[NC][own])
    turned = np.sign(margins[CTX]) * np.sign(margins[NEGATED]) < 0
    listed = sum(negated(context, negations)[1] for _, context in asked[CTX] if context is not None)
    return {
        "conditions": {name: asdict(accuracy(margins[name], clusters[name])) for name in asked if len(margins[name])},
        "gain": dict(zip(("value", "low", "high"), mean(gain, clusters[CTX]), strict=True)),
        "turned": dict(zip(("value", "low", "high"), mean(turned.astype(np.float64), clusters[CTX]), strict=True)),
        "negations": {"listed": listed, "by_rule": len(own) - listed},
    }


def _categories(
    rows: Sequence[Row], asked: Mapping[str, Sequence[tuple[int, str | None]]], margins: Mapping[str, Floats]
) -> list[dict[str, Any]]:
    """Accuracy of each category by condition, the largest first; [] where the data has none."""
    sizes = Counter(row.category for row in rows if row.category is not None)
    found = []
    for category in sorted(sizes, key=lambda name: (-sizes[name], name)):
        of: dict[str, Any] = {}
        for name, places in asked.items():
            at = [number for number, (place, _) in enumerate(places) if rows[place].category == category]
            if at:
                of[name] = asdict(accuracy(margins[name][at], [rows[places[number][0]].asked for number in at]))
        found.append({"category": category, "comparisons": sizes[category], "conditions": of})
    return found


def _profiles(
    rows: Sequence[Row], memory: Memory, named: Mapping[str, str], *, samples: Sequence[int], seed: int
) -> dict[str, Any] | None:
    """Accuracies with profiles inferred from samples; None where too few profiles have samples enough."""
    _, profiles = profiles_of(rows, samples, named)
    own = [rows[place] for places in profiles.values() for place in places]
    own = memory.readable(own, [list(profiles)] * len(own))
    ks, profiles = profiles_of(own, samples, named)
    if not profiles:
        return None
    groups = [[own[place] for place in places] for places in profiles.values()]
    margins = [memory.margins(group, list(profiles)) for group in groups]
    without = [memory.margins(group, [None])[:, 0] for group in groups]
    return {
        "profiles": len(profiles),
        "comparisons": sum(map(len, groups)),
        "nc": float(np.mean([credit(found).mean() for found in without])),
        "ctx": float(np.mean([credit(found[:, place]).mean() for place, found in enumerate(margins)])),
        "points": [asdict(point) for point in curve(margins, ks, seed=seed)],
    }


def _two_step(rows: Sequence[Row], strict: Sequence[Row], memory: Memory, contexts: Path) -> dict[str, Any]:
    names, inferred = read_contexts(contexts)
    strange = inferred.keys() - {row.id for row in strict}
    if strange:
        raise ValueError(f"contexts: found {min(strange)!r}, which is none of the comparisons; expected the same ones")
    own = [row for row in rows if row.id in inferred]
    own = memory.readable(own, [names] * len(own))
    if not own:
        raise ValueError("contexts: the model can read none of the sampled comparisons, expected some")
    margins = memory.margins(own, names)
    better, worse = memory.ask(own, [row.context for row in own])
    return two_step(own, margins, better - worse, np.stack([inferred[row.id] for row in own]))
