"""The evaluation sets of a trace: records of input and output, from JSON Lines or from an evaluation of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from longloom.evals.jsonl import FILLED_TEXT, TEXT, check_fields, read_records, task_files
from longloom.storage.parquet import FileWriter, read_table
from longloom.storage.stats import Stats

#: One row a record; `prompt` is all that a model reads before `output`.
RECORDS = pa.schema([(name, pa.string()) for name in ("task", "id", "input", "prompt", "output")])
#: Stands for the input in a prompt's template.
SLOT = "{input}"


@dataclass(frozen=True)
class Record:
    """One example of a task.

    Attributes:
        task: what it belongs to.
        id: its name within the file.
        input: x.
        prompt: the text u + x that a model reads before y.
        output: y, the right answer.
    """

    task: str
    id: str
    input: str
    prompt: str
    output: str


def check_template(template: str) -> None:
    """Raises ValueError for a template without `{input}`."""
    if SLOT not in template:
        raise ValueError(f"prompt {template!r:.200}: does not say where the input goes, expected {SLOT} in it")


def build(
    data: Path,
    out: Path,
    *,
    evaluation: Mapping[str, Any] | None,
    evaluated: Path | None,
    tokenizer: Path | None,
    template: str,
    limit: int | None,
) -> Stats:
    """Writes `records.parquet`.

    Args:
        data: a JSON Lines file or a folder of such, a task each, with `input` and `output` and, if they want, `task`
            and `id`; with `evaluation`, the folder of that artifact.
        out: an empty folder.
        evaluation: the parameters of an evaluation of ours, whose samples are the records; None: `data` is JSON Lines.
        evaluated: the records that it read; None: the hub's, or the suite makes them itself.
        tokenizer: of the evaluated model, for suites that make prompts of given lengths.
        template: what a model reads before the output, with `{input}` in it; of JSON Lines alone.
        limit: at most so many records a task, the first ones; None: all.

    Returns:
        Counts of tasks and records.

    Raises:
        ValueError: a bad record, none at all, a template without `{input}`, an evaluation that is none of a suite.
    """
    check_template(template)
    found = _of_lines(data, template) if evaluation is None else _of_evaluation(data, evaluation, evaluated, tokenizer)
    kept: list[Record] = []
    seen: dict[str, int] = {}
    for record in found:
        seen[record.task] = seen.get(record.task, 0) + 1
        if limit is None or seen[record.task] <= limit:
            kept.append(record)
    if not kept:
        raise ValueError(f"{data}: holds no records, expected at least one with input and output")
    with FileWriter(out / "records.parquet", RECORDS) as writer:
        writer.write([asdict(record) for record in kept])
    return Stats(counts={"tasks": len(seen), "records": len(kept)})


def load(folder: Path) -> list[Record]:
    """The records that `build` wrote, in order."""
    return [Record(**row) for row in read_table(folder, "records", RECORDS.names).to_pylist()]


def _of_lines(data: Path, template: str) -> Iterator[Record]:
    if not data.exists():
        raise FileNotFoundError(f"{data}: no such file or folder, expected JSON Lines with input and output")
    for name, path in task_files(data).items():
        for number, row in read_records(path):
            check_fields(row, {"input": FILLED_TEXT, "output": FILLED_TEXT}, f"{path}:{number}")
            for field in row.keys() & {"task", "id"}:
                check_fields(row, {field: TEXT}, f"{path}:{number}")
            prompt = template.replace(SLOT, row["input"])
            yield Record(row.get("task", name), row.get("id", str(number)), row["input"], prompt, row["output"])


def _of_evaluation(
    folder: Path, parameters: Mapping[str, Any], evaluated: Path | None, tokenizer: Path | None
) -> Iterator[Record]:
    """The samples of `samples.parquet` with the suite's prompts, which that table does not hold, and first references.

    A sample's prompt is the whole one, uncut and without chat template.
    """
    from longloom.evals.protocol import Request
    from longloom.evals.registry import open_suite
    from longloom.evals.suite import Source

    source = Source(
        data=evaluated,
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
        seed=parameters["seed"],
        options=parameters["suite_options"],
    )
    suite = open_suite(parameters["suite"], source)
    samples = read_table(folder, "samples", ["task", "sample", "references"]).to_pylist()
    asked: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        task, number = sample["task"], sample["sample"]
        if task not in asked:
            asked[task] = suite.records(task)
        rows = asked[task]
        if number >= len(rows) or rows[number]["references"] != sample["references"]:
            raise ValueError(
                f"evaluation of {parameters['suite']}: sample {number} of task {task} is not what the suite's records"
                " hold now, expected the records that were evaluated"
            )
        request = Request.from_dict(rows[number]["requests"][0])
        prompt = request.prompt + request.prefix
        joined = prompt if prompt[-1:].isspace() else prompt + " "
        if sample["references"] and sample["references"][0].strip():
            yield Record(task, str(number), request.prompt, joined, sample["references"][0])


def _tokenizer(folder: Path) -> Any:
    from longloom.kernels.huggingface.load import load_tokenizer

    return load_tokenizer(folder)
