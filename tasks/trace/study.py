"""The study itself: memorization by set, task, n and model, what was dropped, performance, novelty, influence, plots.

One artifact of small tables over the artifacts of pairs, scores, novelty and influence; nothing is looked up here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longloom.storage.parquet import FileWriter, read_table
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.report.intervals import mean_interval, paired
from longloom.tasks.trace import plots
from longloom.tasks.trace.bins import bins
from longloom.tasks.trace.influence import OUTPUT, PAIR
from longloom.tasks.trace.points import MEASURES, RULES, TASK_GRAM, Flags, Pairs, losses, model_logs, ranked
from longloom.tasks.trace.records import Record, load
from longloom.tasks.trace.scores import read_generations, read_tokens
from longloom.tasks.trace.sensitivity import by_gamma
from longloom.tasks.trace.statistics import Correlation, Floats, correlate, equal_sizes

Row = dict[str, Any]

_WHERE = (("set", pa.string()), ("task", pa.string()), ("n", pa.int64()))
_MODEL = (("model", pa.string()), ("parameters", pa.int64()))


def _numbers(*names: str) -> tuple[tuple[str, pa.DataType], ...]:
    return tuple((name, pa.float64()) for name in names)


def _counts(*names: str) -> tuple[tuple[str, pa.DataType], ...]:
    return tuple((name, pa.int64()) for name in names)


#: The tables. `memorization`: rho with its p-value and interval; `equal_*` is rho at the points of the smallest task;
#: `unscored` pairs are those that a model's window did not hold. `dropped`: pairs above gamma by status, and the share
#: of them that is not ranked. Null stands where something is not defined.
TABLES: dict[str, pa.Schema] = {
    "memorization": pa.schema(
        [
            *(*_WHERE, *_MODEL, ("measure", pa.string()), ("rule", pa.string()), *_counts("points", "records")),
            *_numbers("rho", "p", "low", "high", "tau", "distance"),
            *(*_counts("equal_points"), *_numbers("equal_rho", "equal_low", "equal_high"), *_counts("unscored")),
        ]
    ),
    "dropped": pa.schema(
        [*_WHERE, *_counts("pairs", "kept", "unseen", "zero", "rare", "unknown"), *_numbers("share_dropped")]
    ),
    "performance": pa.schema(
        [*_WHERE, *_MODEL, *_counts("low", "high", "records"), *_numbers("f1", "f1_low", "f1_high", "exact")]
    ),
    "novelty": pa.schema([*_WHERE, *_MODEL, *_counts("generations", "pairs", "novel", "unknown"), *_numbers("share")]),
    "influence": pa.schema(
        [
            *(*_WHERE, *_MODEL, *_counts("pairs", "checkpoints")),
            *_numbers("pair", "pair_low", "pair_high", "output", "output_low", "output_high", "difference", "p"),
        ]
    ),
    "sensitivity": pa.schema(
        [*_WHERE, *_MODEL, ("embedding", pa.string()), *_numbers("gamma"), *_counts("points"), *_numbers("rho", "p")]
    ),
}
JSON = "trace.json"


@dataclass(frozen=True)
class Sources:
    """The folders of a study's inputs.

    Attributes:
        records: set -> records.
        pairs: (set, n, embedding) -> pairs; the first embedding is the study's, the others are compared with it.
        scores: (set, model) -> scores.
        novelty, influence: (set, n, model) -> theirs.
    """

    records: dict[str, Path] = field(default_factory=dict)
    pairs: dict[tuple[str, int, str], Path] = field(default_factory=dict)
    scores: dict[tuple[str, str], Path] = field(default_factory=dict)
    novelty: dict[tuple[str, int, str], Path] = field(default_factory=dict)
    influence: dict[tuple[str, int, str], Path] = field(default_factory=dict)


def build(
    sources: Sources,
    out: Path,
    *,
    parameters: Mapping[str, int],
    gammas: Mapping[int, float],
    embeddings: Sequence[str],
    mode: str,
    progress: Progress = silent,
) -> Stats:
    """Writes a Parquet file a table, `trace.json` with all of them, and the figures (volatile: matplotlib's).

    Args:
        sources: what was mined, looked up and scored.
        out: an empty folder.
        parameters: model -> its number of parameters.
        gammas: n -> gamma.
        embeddings: the study's first.
        mode: paper or released.
        progress: called with sets and n done and in all.

    Returns:
        Counts of rows by table; the memorization rows of rule `all` as a finding.
    """
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    asked = [(name, n) for name in sources.records for n in gammas]
    for done, (name, n) in enumerate(asked, start=1):
        for table, rows in _part(sources, name, n, parameters, gammas[n], embeddings, mode).items():
            tables[table] += rows
        progress(done, len(asked))
    for table, schema in TABLES.items():
        with FileWriter(out / f"{table}.parquet", schema) as writer:
            writer.write(tables[table])
    settings = {"mode": mode, "gammas": {str(n): gamma for n, gamma in gammas.items()}, "embeddings": list(embeddings)}
    text = json.dumps({**settings, **tables}, indent=1, ensure_ascii=False, allow_nan=False)
    (out / JSON).write_text(text + "\n", encoding="utf-8")
    drawn = plots.draw(tables, out)
    main = [row for row in tables["memorization"] if row["rule"] == RULES[0]]
    shown = ("set", "task", "n", "model", "parameters", "measure", "points", "rho", "p", "low", "high", "distance")
    return Stats(
        counts={f"{table}_rows": len(rows) for table, rows in tables.items()},
        values={
            "memorization": [{column: row[column] for column in shown} for row in main],
            "dropped": tables["dropped"],
            **settings,
        },
        volatile=tuple(drawn),
    )


def _part(
    sources: Sources,
    name: str,
    n: int,
    parameters: Mapping[str, int],
    gamma: float,
    embeddings: Sequence[str],
    mode: str,
) -> dict[str, list[Row]]:
    """The rows of one set and n."""
    records = load(sources.records[name])
    mined = {embedding: Pairs.read(sources.pairs[name, n, embedding]) for embedding in embeddings}
    main = mined[embeddings[0]]
    above = main.above(gamma if mode == "paper" else None)
    tasks = list(dict.fromkeys(record.task for record in records))
    found: dict[str, list[Row]] = {table: [] for table in TABLES}
    for task in tasks:
        lost = losses(main, above & (main.task == task))
        unranked = lost["pairs"] - lost["kept"] - (lost["unseen"] if mode == "paper" else 0)
        share = unranked / lost["pairs"] if lost["pairs"] else None
        found["dropped"].append({"set": name, "task": task, "n": n, **lost, "share_dropped": share})
    for model, size in parameters.items():
        scores = read_tokens(sources.scores[name, model])
        logs = {embedding: model_logs(pairs, records, scores, mode) for embedding, pairs in mined.items()}
        head = {"set": name, "n": n, "model": model, "parameters": size}
        found["memorization"] += _memorization(main, logs[embeddings[0]], above, tasks, mode, head)
        for task in tasks:
            place = {**head, "task": task}
            found["performance"] += _performance(sources, name, model, main, above, records, place)
            if mode == "paper":  # gamma is nothing to the other one
                chosen = {embedding: pairs.task == task for embedding, pairs in mined.items()}
                found["sensitivity"] += [{**place, **row} for row in by_gamma(mined, logs, chosen, gamma)]
            if (name, n, model) in sources.novelty:
                generations = read_generations(sources.scores[name, model])
                written = [row for row in generations if records[row["record"]].task == task]
                found["novelty"].append(place | _novelty(sources.novelty[name, n, model], task, len(written)))
            if (name, n, model) in sources.influence:
                found["influence"] += [place | row for row in _influence(sources.influence[name, n, model], task)]
    return found


def _memorization(pairs: Pairs, logs: Floats, above: Flags, tasks: Sequence[str], mode: str, head: Row) -> list[Row]:
    """A row a task, measure and rule, those of equal sizes over the tasks that have enough points."""
    rows = []
    for measure in MEASURES:
        for rule in RULES if mode == "paper" else RULES[:1]:
            if measure != TASK_GRAM and rule == "seen":
                continue
            sides = {
                task: ranked(pairs, logs, above & (pairs.task == task), measure=measure, rule=rule, mode=mode)
                for task in tasks
            }
            results = {task: correlate(*side) for task, side in sides.items()}
            least = min((result.points for result in results.values() if result), default=0)
            for task, side in sides.items():
                result = results[task]
                equal = None if result is None else equal_sizes(side[0], side[1], points=least)
                unscored = int((np.isnan(logs) & above & (pairs.task == task)).sum())
                rows.append(
                    {
                        **head,
                        "task": task,
                        "measure": measure,
                        "rule": rule,
                        **_correlation(result, len(side[0]), len(np.unique(side[2]))),
                        "equal_points": None if equal is None else least,
                        **dict(zip(("equal_rho", "equal_low", "equal_high"), equal or (None,) * 3, strict=True)),
                        "unscored": unscored,
                    }
                )
    return rows


def _correlation(result: Correlation | None, points: int, records: int) -> Row:
    empty = dict.fromkeys(Correlation.__dataclass_fields__) | {"points": points, "records": records}
    return empty if result is None else asdict(result)


def _performance(
    sources: Sources, name: str, model: str, pairs: Pairs, above: Flags, records: Sequence[Record], place: Row
) -> list[Row]:
    generations = read_generations(sources.scores[name, model])
    wanted = [number for number, record in enumerate(records) if record.task == place["task"]]
    return [place | row for row in bins(pairs, above, generations, wanted)]


def _novelty(folder: Path, task: str, generations: int) -> Row:
    counts = [
        row["together"]
        for row in read_table(folder, "novelty", ["task", "together"]).to_pylist()
        if row["task"] == task
    ]
    novel, unknown = counts.count(0), counts.count(None)
    known = len(counts) - unknown
    row = {"generations": generations, "pairs": len(counts), "novel": novel, "unknown": unknown}
    return row | {"share": novel / known if known else None}


def _influence(folder: Path, task: str) -> list[Row]:
    """A pair's influence is the mean over documents of the sum over checkpoints; the row is the mean over pairs."""
    table = [row for row in read_table(folder, "influence").to_pylist() if row["task"] == task]
    if not table:
        return []
    sums: dict[tuple[int, str, str], dict[str, dict[int, float]]] = {}
    for row in table:
        documents = sums.setdefault((row["record"], row["x"], row["y"]), {}).setdefault(row["group"], {})
        documents[row["document"]] = documents.get(row["document"], 0.0) + row["product"]
    both = [groups for groups in sums.values() if len(groups) == 2]
    if not both:
        return []
    means = {group: np.array([np.mean(list(groups[group].values())) for groups in both]) for group in (PAIR, OUTPUT)}
    found: Row = {"pairs": len(both), "checkpoints": len({row["checkpoint"] for row in table})}
    for group, values in means.items():
        low, high = mean_interval(values) or (None, None)
        found |= {group: float(values.mean()), f"{group}_low": low, f"{group}_high": high}
    test = paired(means[OUTPUT], means[PAIR])
    difference = None if test is None else test.difference
    return [found | {"difference": difference, "p": None if test is None else test.p}]
