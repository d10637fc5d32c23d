"""report.md: the short summary that a Prefect artifact shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from longloom.evals.published import SPREAD
from longloom.tasks.report.beside import published_tables
from longloom.tasks.report.beyond_table import beyond_lines, beyond_scale
from longloom.tasks.report.coreset import method_lines
from longloom.tasks.report.formats import NOTHING, compact, decimal, integer, percent, shorten
from longloom.tasks.report.memorization import TASK_GRAM, memorization_lines, models_of
from longloom.tasks.report.preference import best_of_lines, set_lines, verdicts
from longloom.tasks.report.retrieval_table import retrieval_lines
from longloom.tasks.report.summary import summary
from longloom.tasks.report.views import (
    Cell,
    EvaluationTable,
    evaluation_table,
    grid_name,
    grid_scale,
    group_table,
    length_table,
    plain_grids,
)

Numbers = dict[str, Any]

#: Characters of a span that are shown.
SHOWN_SPAN = 60


def markdown(numbers: Numbers) -> str:
    """The summary paragraph and the tables: memorization, explained completions, contamination, preferences, scores,
    retrieval, published scores, coresets by source, needle grids, and those beyond the window.

    Args:
        numbers: report.json.
    """
    paragraph = "".join(f"**{safe(text)}**" if strong else safe(text) for text, strong in summary(numbers))
    blocks = [f"# {safe(numbers['title'])}", paragraph]
    if "memorization" in numbers:
        blocks += _memorization(numbers["memorization"])
    if numbers.get("explained", {}).get("completions"):
        blocks += _completions(numbers["explained"])
    for name, found in numbers.get("contamination", {}).items():
        blocks += _contamination(name, found)
    if "preference" in numbers:
        blocks += _preference(numbers["preference"])
    evaluation = numbers.get("evaluation", {})
    if evaluation:
        blocks += _evaluation(evaluation)
    for comparison in numbers.get("retrieval", []):
        title = f"{safe(comparison['suite'])}, {safe(comparison['model'])}"
        blocks += [f"## Retrieval against long context: {title}", _retrieval(comparison)]
    for beside in published_tables(evaluation) if evaluation else []:
        sources = [
            f"- {safe(models)}: {safe(source)}" + (f"; {safe(note)}" if note else "")
            for models, source, note in beside.sources
        ]
        scaled = " Ours are multiplied by 100." if beside.scaled else ""
        blocks += [f"## Published scores: {safe(beside.table.suites[0].name)}", _score_table(beside.table)]
        blocks += [f"{SPREAD}{scaled}", "\n".join(sources)]
    if numbers.get("coreset", {}).get("sources"):
        blocks += ["## Coresets by source", _sources(numbers["coreset"]), *_selections(numbers["coreset"]["methods"])]
    grids = plain_grids(evaluation.get("grids", []))
    for grid in grids:
        blocks += [f"## Needle: {safe(grid_name(grid, grids))}", _grid(grid, grid_scale(grid, grids)[1])]
    for entry in numbers.get("beyond", []):
        blocks += _beyond(entry)
    return "\n\n".join(filter(None, blocks)) + "\n"


def safe(text: str) -> str:
    """Text that Markdown shows as it is: on one line, no markup of its own, no HTML, no cell borders."""
    line = re.sub(r"\s+", " ", text)
    for character in "\\`*_[]|#~":
        line = line.replace(character, f"\\{character}")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A pipe table; the first `left` columns are aligned left, the others (numbers) right."""
    rules = [":---" if position < left else "---:" for position in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *rows))


def _memorization(study: Numbers) -> list[str]:
    models = models_of(study)
    header = ["task", "set", "n", *(f"{safe(name)} ({compact(size)})" for name, size in models)]
    header += ["ranked", "pairs", "never together", "dropped"]
    rows = []
    for line in memorization_lines(study, TASK_GRAM):
        values = [
            NOTHING if value is None else f"{value.rho} ({value.interval}; {safe(value.p)})" for value in line.values
        ]
        counts = [line.points, line.pairs, line.unseen, line.dropped]
        rows.append([safe(line.task), safe(line.set), str(line.n), *values, *counts])
    note = (
        "Mem: the rank correlation of what the corpus counts and what a model says, over pairs of n-grams of a question"
        " and its answer; in brackets the 95% bootstrap interval over questions, and p over pairs."
    )
    return ["## Memorization", pipe_table(header, rows, left=2), note]


def _completions(explained: Numbers) -> list[str]:
    header = ["prompt from", "place among the documents", "tokens", "rarest span"]
    rows = [
        [
            safe(one["origin"] or one["name"]),
            integer(one["place"]),
            integer(one["tokens"]),
            safe(shorten(one["spans"][0]["text"], SHOWN_SPAN)) if one["spans"] else NOTHING,
        ]
        for one in explained["shown"]
    ]
    note = "Place: of the prompt’s document among those that hold the most of the completion word for word."
    return ["## Completions and their sources", pipe_table(header, rows), note]


def _contamination(name: str, found: Numbers) -> list[str]:
    header = ["record", *found["measures"], "verdict", "document"]
    rows = [
        [
            safe(row["name"] or f"{row['task']} {row['sample']}"),
            *(percent(row["shares"][measure]) for measure in found["measures"]),
            "**flagged**" if row["contaminated"] else row["verdict"] or "too short",
            safe(row["id"] or NOTHING),
        ]
        for row in found["rows"]
    ]
    told = f"{integer(found['contaminated'])} of {integer(found['records'])} records are flagged."
    return [f"## Contamination: {safe(name)}", told, *([pipe_table(header, rows)] if rows else [])]


def _preference(preference: Numbers) -> list[str]:
    blocks = ["## Does the reward model listen?", *(safe(sentence) for sentence in verdicts(preference["sets"]))]
    columns, lines = set_lines(preference["sets"])
    if lines:
        rows = [
            [safe(name), judged, *(f"{cell.text} ({cell.below})" if cell.below else cell.text for cell in cells)]
            for name, judged, _, cells in lines
        ]
        blocks.append(pipe_table(["comparisons", "judged", *columns], rows))
    if preference["best_of"]:
        scores = [[safe(name), prompts, score.text] for name, prompts, score, _ in best_of_lines(preference["best_of"])]
        blocks += ["### Best of several", pipe_table(["subset", "prompts", "score"], scores)]
    return blocks


def _evaluation(evaluation: Numbers) -> list[str]:
    scores = evaluation_table(evaluation["scores"])
    if not scores.suites:
        return []
    note = "In brackets: 95% bootstrap intervals over samples. The best of a row is bold."
    blocks = ["## Evaluation", _score_table(scores), note]
    parts = {"length of the prompt": length_table(evaluation["lengths"]), "group": group_table(evaluation["groups"])}
    for name, table in parts.items():
        if table.suites:
            blocks += [f"### By {name}", _score_table(table)]
    return blocks


def _score_table(table: EvaluationTable) -> str:
    metric = any(row.metric for suite in table.suites for row in suite.rows)
    header = ["suite", table.rows_are, *(["metric"] if metric else []), "samples"]
    header += [safe(" · ".join(column)) for column in table.columns]
    rows: list[list[str]] = []
    for suite in table.suites:
        for row in [*suite.rows, *([suite.mean] if suite.mean else [])]:
            samples = ", ".join(filter(None, [row.samples, *row.notes]))
            names = [safe(suite.name), safe(row.task), *([safe(row.metric)] if metric else [])]
            rows.append([*names, samples, *map(_cell, row.cells)])
    return pipe_table(header, rows, left=3 if metric else 2)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return NOTHING
    text = f"**{cell.score}**" if cell.best else cell.score
    return text + (f" ({cell.interval})" if cell.interval else "") + "".join(f"; {note}" for note in cell.notes)


def _retrieval(comparison: Numbers) -> str:
    header = ["context", "mean score", "to direct", "prompt tokens", "gold recall", "samples"]
    rows = [
        [
            safe(line.name),
            _cell(line.score),
            _cell(line.difference),
            *(line.prompt_tokens, line.gold_recall, line.samples),
        ]
        for line in retrieval_lines(comparison)
    ]
    tasks = ", ".join(safe(task["task"]) for task in comparison["tasks"])
    note = (
        f"Over {tasks}. “To direct”: the paired difference, its 95% interval and the p of a sign-flip test, not"
        " corrected for the number of rows."
    )
    return f"{pipe_table(header, rows)}\n\n{note}"


def _beyond(entry: Numbers) -> list[str]:
    name = f"{safe(entry['suite'])} {safe(entry['task'])}, {safe(entry['model'])}"
    window = integer(entry["window"])
    header = ["KV policy", f"within {window}", *map(integer, entry["lengths"])]
    rows = [[safe(line.policy), *map(_cell, (line.within, *line.at))] for line in beyond_lines(entry)]
    note = f"Mean scores by the length of the context in tokens; the model was trained on windows of {window}."
    blocks = [f"## Beyond the window: {name}", pipe_table(header, rows), note]
    digits = 0 if beyond_scale(entry)[0] == 100 else 2
    for row in entry["rows"]:
        blocks += [f"### {safe(row['policy'])}", _grid(row["grid"], digits, entry["window"])]
    return blocks


def _sources(coreset: Numbers) -> str:
    methods, pool = coreset["methods"], coreset["pool"]
    header = ["source", *(["pool", "share"] if pool else [])]
    for method in methods:
        header += [safe(method), "share"]
    lines = [(safe(row["source"]), row) for row in coreset["sources"]]
    if coreset["other"]:
        lines.append((f"{coreset['other']['sources']} others", coreset["other"]))
    rows = [
        [
            name,
            *([integer(row["pool"]), percent(row["pool"] / pool)] if pool else []),
            *(
                text
                for method, found in methods.items()
                for text in (
                    integer(row["chosen"][method]),
                    percent(row["chosen"][method] / max(1, found["examples"])),
                )
            ),
        ]
        for name, row in lines
    ]
    return pipe_table(header, rows)


def _selections(methods: Numbers) -> list[str]:
    lines = method_lines(methods)
    if not lines:
        return []
    header = ["method", "examples", "weights", "effective", "clusters", "of a cluster", "chosen of one", "filled"]
    rows = [
        [safe(one.method), one.examples, one.weights, one.effective, one.clusters, one.sizes, one.picked, one.filled]
        for one in lines
    ]
    notes = [f"- {safe(line.method)}: {safe('; '.join(line.notes))}" for line in lines if line.notes]
    return ["## What each method did", pipe_table(header, rows), "\n".join(notes)]


def _grid(grid: Numbers, digits: int, window: int | None = None) -> str:
    beyond = [window is not None and length > window for length in grid["lengths"]]
    names = [
        f"{integer(length)}{' (beyond)' if far else ''}" for length, far in zip(grid["lengths"], beyond, strict=True)
    ]
    header = ["depth \\\\ length", *names]
    rows = [
        [f"{depth:g}%", *(decimal(score, digits) for score in scores)]
        for depth, scores in zip(grid["depths"], grid["scores"], strict=True)
    ]
    return pipe_table(header, rows)
