"""The paragraph that opens a report: the headline numbers of whatever sections are there."""

from __future__ import annotations

from typing import Any

from longloom.tasks.report.beyond_table import beyond_scale
from longloom.tasks.report.formats import cache_name, compact, decimal, in_bytes, integer, percent, words
from longloom.tasks.report.memorization import TASK_GRAM
from longloom.tasks.report.metrics import score_digits, unit_of
from longloom.tasks.report.order import rank
from longloom.tasks.report.proof_words import verdicts
from longloom.tasks.report.views import suite_means

Numbers = dict[str, Any]
#: A piece of text and whether it is a number to be set in bold.
Span = tuple[str, bool]


def summary(numbers: Numbers) -> list[Span]:
    """The opening paragraph as spans, so that the page and Markdown can each mark the numbers in their own way."""
    sentences = [
        _data(numbers),
        _model(numbers.get("model", {})),
        _memorization(numbers.get("memorization")),
        _explained(numbers.get("explained")),
        *(_contamination(name, found) for name, found in numbers.get("contamination", {}).items()),
        _coresets(numbers.get("coreset")),
        _proof(numbers.get("proof")),
        _extension(numbers.get("extension")),
        _finetuning(numbers.get("finetune", {})),
        *_evaluation(numbers.get("evaluation", {}).get("scores", [])),
        *map(_beyond, numbers.get("beyond", [])),
    ]
    spans: list[Span] = []
    for sentence in filter(None, sentences):
        spans += [(" ", False), *sentence] if spans else sentence
    return spans


def _data(numbers: Numbers) -> list[Span]:
    corpus, index = numbers.get("corpus"), numbers.get("index")
    if corpus:
        spans = [("The corpus holds ", False), (integer(corpus["documents"]), True), (" documents (", False)]
        spans += [(in_bytes(corpus["bytes"]), True)]
        if index:
            spans += [(", ", False), (compact(index["tokens"]), True), (" tokens in the index", False)]
        return [*spans, (").", False)]
    if index:
        return [("The index holds ", False), (compact(index["tokens"]), True), (" tokens.", False)]
    return []


def _model(model: Numbers) -> list[Span]:
    training, copying = model.get("training"), model.get("copy_accuracy")
    spans: list[Span] = []
    if training and training["final_loss"] is not None:
        spans += [("ends at a loss of ", False), (decimal(training["final_loss"], 3), True), (" after ", False)]
        spans += [(compact(training["tokens"]), True), (" tokens", False)]
    if copying:
        length = 64 if any(row["length"] == 64 for row in copying) else max(row["length"] for row in copying)
        worst = min(row["accuracy"] for row in copying if row["length"] == length)
        spans += [(f"{' and ' if spans else ''}copies {length} random tokens with ", False), (percent(worst), True)]
        several = len({row["gap"] for row in copying if row["length"] == length}) > 1
        spans += [(" accuracy at the worst gap" if several else " accuracy", False)]
    return [("The base model ", False), *spans, (".", False)] if spans else []


def _memorization(study: Numbers | None) -> list[Span]:
    """The largest model's Mem of every task, on the last set: the held-out one, where there is one."""
    rows = [row for row in study["rows"] if row["measure"] == TASK_GRAM and row["rho"] is not None] if study else []
    if not rows:
        return []
    name, _ = max(((row["model"], row["parameters"]) for row in rows), key=lambda model: model[1])
    last, n = rows[-1]["set"], min(row["n"] for row in rows)
    own = [row for row in rows if (row["model"], row["set"], row["n"]) == (name, last, n)]
    parts = [[(decimal(row["rho"], 3), True), (f" ({row['task']})", False)] for row in own]
    start = (
        f"On {last} questions the answers of {name} follow the counts in the corpus with a rank correlation (Mem) of "
    )
    return [(start, False), *_joined(parts), (".", False)]


def _explained(found: Numbers | None) -> list[Span]:
    if not found or not found["completions"]:
        return []
    spans = [("Of ", False), (integer(found["completions"]), True), (" completions ", False)]
    return [*spans, (integer(found["among"]), True), (" are traced to the document of their prompt.", False)]


def _contamination(name: str, found: Numbers) -> list[Span]:
    spans = [("Of ", False), (integer(found["records"]), True), (f" evaluation records ({name}) ", False)]
    return [
        *spans,
        (integer(found["contaminated"]), True),
        (f" stand{'s' if found['contaminated'] == 1 else ''} in the corpus.", False),
    ]


def _coresets(coreset: Numbers | None) -> list[Span]:
    if not coreset:
        return []
    pool = coreset["pool"]
    if not coreset["methods"]:
        return [("The instruction pool holds ", False), (integer(pool), True), (" examples.", False)]
    by_size: dict[int, list[str]] = {}
    for method, found in coreset["methods"].items():
        by_size.setdefault(found["examples"], []).append(method)
    parts: list[list[Span]] = []
    for size, methods in by_size.items():
        verb = " each chose " if len(methods) > 1 else " chose "
        parts.append([(words(methods) + verb, False), (integer(size), True)])
        if pool:
            parts[-1] += [(" (", False), (percent(size / pool), True), (")", False)]
    spans = [("Of ", False), (integer(pool), True), (" instruction examples, ", False)] if pool else []
    return [*spans, *_joined(parts), (".", False)]


def _proof(numbers: Numbers | None) -> list[Span]:
    """The first verdict, as it stands in the section."""
    return [(verdicts(numbers)[0], False)] if numbers else []


def _extension(extension: Numbers | None) -> list[Span]:
    if not extension or not extension["training"]:
        return []
    training, measured = extension["training"], extension["perplexity"]
    window, length = integer(training["window"]), integer(extension["accounting"]["length"])
    spans = [(f"The window grew from {window} to ", False), (length, True), (" tokens", False)]
    spans += [(" on ", False), (compact(training["plan"]["tokens"]), True), (" tokens of training", False)]
    if {"before", "after"} <= measured.keys():
        ends = [decimal(measured[name][-1]["perplexity"], 2) for name in ("before", "after")]
        spans += [(f"; held-out perplexity at its end went from {ends[0]} to ", False), (ends[1], True)]
    return [*spans, (".", False)]


def _finetuning(runs: Numbers) -> list[Span]:
    parts = [
        [(decimal(run["final_loss"], 3), True), (f" ({name})", False)]
        for name, run in runs.items()
        if run["final_loss"] is not None
    ]
    return [("Fine-tuning ends at a loss of ", False), *_joined(parts), (".", False)] if parts else []


def _evaluation(scores: list[Numbers]) -> list[list[Span]]:
    """One sentence a suite: every model's mean under the first policy (full attention, where it was run)."""
    sentences: list[list[Span]] = []
    for suite in sorted({row["suite"] for row in scores}):
        means = suite_means(scores, suite)
        if not means:
            continue
        policy = min((policy for _, policy in means), key=rank)
        tasks = {(row["task"], row["metric"]) for row in scores if row["suite"] == suite}
        digits = score_digits(row["score"] for row in scores if row["suite"] == suite)
        models = sorted((model for model, other in means if other == policy), key=rank)
        parts = [
            [(f"{model}{'' if position else ' scores'} ", False), (decimal(means[model, policy], digits), True)]
            for position, model in enumerate(models)
        ]
        what = f"mean of {len(tasks)} tasks" if len(tasks) > 1 else next(iter(tasks))[0]
        _, metric = unit_of(suite, next(iter(tasks))[1])
        about = ", ".join(filter(None, (what, metric, cache_name(policy))))
        sentences.append([(f"On {suite} ({about}), ", False), *_joined(parts), (".", False)])
    return sentences


def _beyond(entry: Numbers) -> list[Span]:
    """Every policy's score at the largest length."""
    scores = [(row["policy"], row["at"][-1]["score"]) for row in entry["rows"] if row["at"][-1]]
    _, digits = beyond_scale(entry)
    parts = [[(decimal(score, digits), True), (f" under {policy}", False)] for policy, score in scores]
    length, window = integer(entry["lengths"][-1]), integer(entry["window"])
    head = f"With a window of {window} tokens, {entry['model']} scores at {length} on {entry['suite']} {entry['task']} "
    return [(head, False), *_joined(parts), (".", False)]


def _joined(parts: list[list[Span]]) -> list[Span]:
    spans: list[Span] = []
    for position, part in enumerate(parts):
        if position:
            spans.append((" and " if position == len(parts) - 1 else ", ", False))
        spans += part
    return spans
