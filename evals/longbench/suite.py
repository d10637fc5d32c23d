"""LongBench as a suite, and `records`: any folder of tasks of one's own in LongBench's format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from longloom.evals.jsonl import task_files
from longloom.evals.longbench.mended import MENDED
from longloom.evals.longbench.metrics import METRICS, Metric, check_answers, first_line
from longloom.evals.longbench.prompts import fill, is_official, packaged_prompt
from longloom.evals.longbench.records import HUB_REPOSITORY, config_file, read_config, read_task
from longloom.evals.longbench.tasks import NEWLINE_STOPS, TASKS, Task
from longloom.evals.matching import dataset_score
from longloom.evals.protocol import Request
from longloom.evals.suite import Parts, Source, Suite, make_record, unknown_task

#: What `records` reads in config/.
_TABLES = ("dataset2prompt", "dataset2maxlen", "dataset2metric", "dataset2chat")


class _LongBenchFormat(Suite):
    """What both suites share: the records, the prompts' place, the metrics, the score."""

    @abstractmethod
    def _task(self, task: str) -> Task: ...

    @abstractmethod
    def _prompt(self, task: str) -> str: ...

    def metric(self, task: str) -> str:
        return self._task(task).metric

    def max_new_tokens(self, task: str) -> int:
        return self._task(task).max_new_tokens

    def records(self, task: str) -> list[dict[str, Any]]:
        protocol = self._task(task)
        template = self._prompt(task)
        records = []
        golds = []
        for where, row in read_task(self.source.data, self._file(task)):
            check_answers(protocol.metric, row["answers"], row["all_classes"], where)
            try:
                prompt, context = fill(template, row)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"{where}: the prompt of task {task!r} cannot be filled ({type(error).__name__}: {error!s:.100}); "
                    f"expected the names of fields in braces: {', '.join(row):.300}"
                ) from None
            request = Request(
                prompt,
                chat=protocol.chat,
                newline_stops=task in NEWLINE_STOPS,
                context=context,
                query=row["input"],
            )
            golds.append(row.get("gold"))
            records.append(make_record([request], row["answers"], **self._fields(row)))
        if None not in golds:  # records of a task have the same fields
            for record, gold in zip(records, golds, strict=True):
                record["gold"] = gold
        return records

    def rate(self, task: str, prediction: str, record: Mapping[str, Any]) -> Parts:
        return self._rate(METRICS[self.metric(task)], task, prediction, record)

    def rate_fixed(self, task: str, prediction: str, record: Mapping[str, Any]) -> Parts | None:
        mended = MENDED.get(self.metric(task))
        return None if mended is None else self._rate(mended, task, prediction, record)

    def score(self, task: str, ratings: Sequence[Parts]) -> float:
        return dataset_score([parts["score"] for parts in ratings])

    def _file(self, task: str) -> str:
        """The name of the task's file of records, without its suffix."""
        return task

    def _fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the rating and the results need of a row."""
        return {"all_classes": row["all_classes"], "length": row["length"]}

    def _rate(self, metric: Metric, task: str, prediction: str, record: Mapping[str, Any]) -> Parts:
        rated = first_line(prediction) if self._task(task).first_line_only else prediction
        return {"score": metric(rated, record["references"], record["all_classes"])}


class LongBench(_LongBenchFormat):
    """LongBench v1 (arXiv 2308.14508), official prompts and protocol, records from a folder or the hub.

    Attributes:
        table: the tasks' protocols.
    """

    name = "longbench"
    hub = HUB_REPOSITORY
    table: ClassVar[Mapping[str, Task]] = TASKS

    def tasks(self) -> list[str]:
        if self.source.data is None:
            return list(self.table)
        present = task_files(self.source.data)
        tasks = [task for task in self.table if self._file(task) in present]
        if not tasks:
            raise ValueError(
                f"{self.source.data} has records of {', '.join(present)}, none of which is a task of the suite "
                f"{self.name!r} ({', '.join(map(self._file, self.table))}); for tasks of your own in LongBench's "
                "format use the suite 'records'"
            )
        return tasks

    def _task(self, task: str) -> Task:
        if task not in self.table:
            raise unknown_task(self.name, task, list(self.table))
        return self.table[task]

    def _prompt(self, task: str) -> str:
        data = self.source.data
        prompts = None if data is None else read_config(data, "dataset2prompt")
        if data is None or prompts is None or task not in prompts:
            return packaged_prompt(task)
        prompt = prompts[task]
        if not isinstance(prompt, str) or not is_official(task, prompt):
            raise ValueError(
                f"{config_file(data, 'dataset2prompt')}: the prompt of {task!r} differs from LongBench's; "
                "expected the official one to the byte, or the suite 'records' for prompts of your own"
            )
        return prompt


class Records(_LongBenchFormat):
    """Tasks of one's own in LongBench's format.

    Beside `<task>.jsonl` (a record may have `gold` too: the passages of its context that hold the answer, a list of
    strings) the folder has in `config/`, each {task: value}: dataset2prompt.json (a template of the
    record's fields), dataset2maxlen.json (tokens of an answer), dataset2metric.json (one of METRICS) and
    dataset2chat.json (whether the chat template is put around the prompt).
    """

    name = "records"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        if source.data is None:
            raise ValueError("suite 'records' needs data: a folder of <task>.jsonl in LongBench's format, with config/")
        self._data: Path = source.data
        self._tasks = list(task_files(self._data))
        self._tables = {name: self._table(name) for name in _TABLES}

    @classmethod
    def files_beside(cls, data: Path) -> list[Path]:
        return [path for name in _TABLES if (path := config_file(data, name)).is_file()]

    def tasks(self) -> list[str]:
        return list(self._tasks)

    def _task(self, task: str) -> Task:
        if task not in self._tasks:
            raise unknown_task(self.name, task, self._tasks)
        metric = self._value("dataset2metric", task, str)
        if metric not in METRICS:
            raise ValueError(
                f"{config_file(self._data, 'dataset2metric')}: {task!r} has the metric {metric!r}; known: "
                f"{', '.join(METRICS)}"
            )
        longest = self._value("dataset2maxlen", task, int)
        if longest < 1:
            raise ValueError(f"{config_file(self._data, 'dataset2maxlen')}: {task!r} is {longest}, expected at least 1")
        return Task(metric, longest, chat=self._value("dataset2chat", task, bool))

    def _prompt(self, task: str) -> str:
        prompt: str = self._value("dataset2prompt", task, str)
        return prompt

    def _table(self, name: str) -> dict[str, Any]:
        table = read_config(self._data, name)
        if table is None:
            raise ValueError(f"{config_file(self._data, name)} does not exist, expected a value for each task")
        return table

    def _value(self, name: str, task: str, kind: type) -> Any:
        value = self._tables[name].get(task)
        if type(value) is not kind:
            raise ValueError(
                f"{config_file(self._data, name)}: {task!r} is {value!r}, expected a value of type {kind.__name__}"
            )
        return value
