"""L-Eval's closed-ended tasks as a suite: official records from a folder, one sample a question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from longloom.evals.jsonl import FILLED_TEXT, STRINGS, TEXT, check_fields, read_records, task_files
from longloom.evals.leval.metrics import exam
from longloom.evals.leval.tasks import (
    ANSWER_PREFIX,
    CLOSED,
    DOCUMENT_BEFORE,
    INSTRUCTIONS,
    MAX_NEW_TOKENS,
    OPEN,
    PLAIN,
    QUESTION_AFTER,
    REALITY,
    STORY,
)
from longloom.evals.protocol import Request
from longloom.evals.suite import Parts, Source, Suite, make_record, unknown_task

FIELDS = {"instructions": STRINGS, "outputs": STRINGS, "input": TEXT, "evaluation": FILLED_TEXT}


class LEval(Suite):
    """L-Eval (arXiv 2307.11088), closed-ended.

    Notable choices: the official instruction, a system message where a model knows one, begins the user's turn, for
    chat templates differ in system messages; the document is cut by words as officially.
    """

    name = "leval"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        if source.data is None:
            raise ValueError("suite 'leval' needs data: a folder of the official <task>.jsonl (Closed-ended-tasks)")
        self._data = source.data
        self._files = task_files(source.data)

    def tasks(self) -> list[str]:
        tasks = [task for task in CLOSED if task in self._files]
        if not tasks:
            raise ValueError(f"{self._data}: has records of {', '.join(self._files)}, expected {', '.join(CLOSED)}")
        return tasks

    def metric(self, task: str) -> str:
        self._check(task)
        return "exam"

    def max_new_tokens(self, task: str) -> int:
        self._check(task)
        return MAX_NEW_TOKENS

    def records(self, task: str) -> list[dict[str, Any]]:
        self._check(task)
        if task not in self._files:
            raise ValueError(f"{self._data}: has no {task}.jsonl, only records of {', '.join(self._files)}")
        path = self._files[task]
        records: list[dict[str, Any]] = []
        for number, document in read_records(path):
            where = f"{path}:{number}"
            check_fields(document, FIELDS, where)
            questions, answers = document["instructions"], document["outputs"]
            if len(questions) != len(answers):
                raise ValueError(
                    f"{where}: field 'outputs' has {len(answers)} entries, expected {len(questions)} as 'instructions'"
                )
            if document["evaluation"] != "exam":
                continue
            for question, answer in zip(questions, answers, strict=True):
                requests = _requests(task, document["input"], question)
                records.append(make_record(requests, [answer], position=len(records)))
        if not records:
            raise ValueError(f"{path}: has no records with evaluation 'exam', expected at least one")
        return records

    def answer(self, replies: Sequence[str]) -> str:
        return replies[0] if len(replies) == 1 else f"{replies[0]} [fact: {replies[1]}]"

    def rate(self, task: str, prediction: str, record: Mapping[str, Any]) -> Parts:
        return exam(task, prediction, record["references"][0], position=record["position"])

    def score(self, task: str, ratings: Sequence[Parts]) -> float:
        return official_score(ratings)

    def _check(self, task: str) -> None:
        if task in OPEN:
            raise ValueError(f"L-Eval's open-ended {task!r} cannot be run yet, only scored; known: {', '.join(CLOSED)}")
        if task not in CLOSED:
            raise unknown_task(self.name, task, CLOSED)


def official_score(ratings: Sequence[Parts]) -> float:
    """0-100: each part's mean, rounded to four decimals as the official script does, and the mean of the parts."""
    columns: dict[str, list[float]] = defaultdict(list)
    for parts in ratings:
        for name, value in parts.items():
            columns[name].append(value)
    return fmean(round(100.0 * sum(values) / len(values), 4) for values in columns.values())


def _requests(task: str, document: str, question: str) -> list[Request]:
    cut = "words_left" if task == "codeU" else "words_right"
    instruction = f"{INSTRUCTIONS[task]}\n\n"
    if task in PLAIN:
        return [Request(document, before=instruction, after=f"\n\n{question}", cut=cut)]
    asked = Request(
        document,
        before=instruction + DOCUMENT_BEFORE,
        after=QUESTION_AFTER.format(question=question),
        cut=cut,
        prefix=ANSWER_PREFIX,
    )
    if task != "sci_fi":
        return [asked]
    return [asked, Request(question.replace(STORY, REALITY), cut="never", chat=False, prefix=ANSWER_PREFIX)]
