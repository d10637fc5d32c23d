"""Where the samples come from: ChatRAG-Bench's JSON files (a folder, one of them, or the hub), or INSCIT's own file.

Sources: nvidia/ChatRAG-Bench on the hub (`messages`, `ctxs`, `answers`; ConvFinQA's `exe_answer`); ellenmellon/INSCIT,
`data/dev.json` and `test.json` (arXiv 2207.00746). INSCIT's own file has no retrieved passages, so the context is its
gold evidence, as of a perfect retriever, and then the evidence of the turns before, the latest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longloom.evals.chatrag.metrics import NO_ANSWER
from longloom.evals.chatrag.prompt import Passage
from longloom.evals.chatrag.tasks import TASKS, protocol_of
from longloom.evals.hub import fetch
from longloom.evals.jsonl import STRINGS, TEXT, Field, check_fields
from longloom.storage.json_text import read_json

HUB_REPOSITORY = "nvidia/ChatRAG-Bench"

_NATIVE_TASK = "inscit"


@dataclass(frozen=True)
class Gold:
    """What is right.

    Attributes:
        answers: the references; ConvFinQA: the formula, then its value as `str` of the number.
        question: the last message, where the metric looks at it (ConvFinQA); else empty.
    """

    answers: list[str]
    question: str = ""


@dataclass(frozen=True)
class Sample:
    """One question of a dialogue.

    Attributes:
        messages: `role` and `content`, oldest first; the last one is the question.
        passages: of the context, the best first.
        gold: what is right.
        evidence: texts that hold the answer, where the data tells them.
    """

    messages: list[dict[str, str]]
    passages: list[Passage]
    gold: Gold
    evidence: list[str]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ("user", "assistant") and TEXT.fits(value.get("content"))


def _is_passage(value: Any) -> bool:
    return isinstance(value, dict) and TEXT.fits(value.get("title")) and TEXT.fits(value.get("text"))


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_message, value)) and value[-1]["role"] == "user"


def _is_value(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _is_evidence(value: Any) -> bool:
    """A list of INSCIT's passages."""
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and TEXT.fits(item.get("passage_text"))
        and isinstance(item.get("passage_titles"), list)
        and all(map(TEXT.fits, item["passage_titles"]))
        for item in value
    )


def _is_label(value: Any) -> bool:
    return isinstance(value, dict) and TEXT.fits(value.get("response")) and _is_evidence(value.get("evidence"))


MESSAGES = Field("messages with a role (user or assistant) and content, the last one the user's", _is_dialogue)
PASSAGES = Field(
    "a list of passages with a title and a text", lambda value: isinstance(value, list) and all(map(_is_passage, value))
)
VALUE = Field("a number or a string", _is_value)
TURNS = Field("a list of turns", lambda value: isinstance(value, list))
CONTEXT = Field(
    "the dialogue so far, an odd number of strings", lambda value: STRINGS.fits(value) and len(value) % 2 == 1
)
PREVIOUS = Field(
    "a list of passages of each turn before", lambda value: isinstance(value, list) and all(map(_is_evidence, value))
)
LABELS = Field(
    "a list of labels with a response and its evidence, at least one",
    lambda value: isinstance(value, list) and bool(value) and all(map(_is_label, value)),
)


def tasks_in(data: Path) -> list[str]:
    """The tasks that a folder, or one file, has records of.

    Raises:
        ValueError: it has none.
    """
    if data.is_file():
        task = _task_of(data)
        if task is None and isinstance(_content(data), dict):
            task = _NATIVE_TASK
        if task is not None:
            return [task]
    found = [task for task, protocol in TASKS.items() if (data / protocol.file).is_file()]
    if not found:
        files = ", ".join(protocol.file for protocol in TASKS.values())
        raise ValueError(
            f"{data}: is no folder with any of {files}, none of these files, and not INSCIT's own dev.json"
        )
    return found


def locate(data: Path | None, task: str) -> Path:
    """The file of a task's records.

    Args:
        data: a folder, or the file itself; None: the hub (HF_HUB_OFFLINE=1: its local cache).
        task: the task's name.

    Raises:
        ValueError: an unknown task, no such file, or the file of another task.
    """
    protocol = protocol_of(task)
    if data is None:
        return fetch(HUB_REPOSITORY, f"data/{protocol.file}")
    if data.is_dir():
        path = data / protocol.file
        if not path.is_file():
            raise ValueError(f"{data}: has no {protocol.file}, expected the records of {task}")
        return path
    found = _task_of(data)
    if found not in (None, task):
        raise ValueError(f"{data}: has the records of {found}, expected those of {task}")
    return data


def read_samples(path: Path, task: str) -> list[Sample]:
    """The samples of a task's file, checked.

    Raises:
        ValueError: no JSON, another task's records, a missing or wrong field (file, record, field), or no records.
    """
    content = _content(path)
    if isinstance(content, dict):
        if task != _NATIVE_TASK:
            raise ValueError(f"{path}: holds a JSON object, expected a list of the records of {task}")
        samples = [sample for name, dialogue in content.items() for sample in _native(f"{path}, {name}", dialogue)]
    elif isinstance(content, list):
        samples = [_sample(task, record, f"{path}, record {number}") for number, record in enumerate(content, start=1)]
    else:
        raise ValueError(f"{path}: holds a JSON {type(content).__name__}, expected a list of records")
    if not samples:
        raise ValueError(f"{path}: has no records, expected at least one")
    return samples


def gold_of(task: str, record: Mapping[str, Any], where: str) -> Gold:
    """What is right by a record of the data set.

    Raises:
        ValueError: a missing or wrong field.
    """
    given = (
        record if "answers" in record or "answer" not in record else {**record, "answers": _listed(record["answer"])}
    )
    check_fields(given, {"answers": STRINGS}, where)
    answers: list[str] = given["answers"]
    if TASKS[task].metric == "exact_match":
        check_fields(record, {"exe_answer": VALUE, "messages": MESSAGES}, where)
        return Gold([answers[0], str(record["exe_answer"])], record["messages"][-1]["content"])
    if task == "inscit":
        answers = [answer for answer in answers if answer != NO_ANSWER]  # added to the real ones for other uses
        if not answers:
            raise ValueError(f"{where}: field 'answers' has nothing but {NO_ANSWER!r}, expected an answer beside it")
    return Gold(answers)


def read_text(path: Path) -> str:
    """A text file, its line ends made "\\n".

    Raises:
        ValueError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from None


def _content(path: Path) -> Any:
    return read_json(path, expected="one list of records")


def _task_of(path: Path) -> str | None:
    """The task whose file has this name, in a folder of the set's name; None: the name tells nothing."""
    name = "/".join(path.parts[-2:])
    return next((task for task, protocol in TASKS.items() if protocol.file == name), None)


def _listed(answer: Any) -> Any:
    """A field `answer`, which older files have, as a list."""
    return answer if isinstance(answer, list) else [str(answer)]


def _sample(task: str, record: Any, where: str) -> Sample:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: is a JSON {type(record).__name__}, expected an object")
    gold = gold_of(task, record, where)
    check_fields(record, {"messages": MESSAGES, "ctxs": PASSAGES}, where)
    passages = [Passage(passage["title"], passage["text"]) for passage in record["ctxs"]]
    return Sample(record["messages"], passages, gold, _told_evidence(record.get("ground_truth_ctx")))


def _told_evidence(told: Any) -> list[str]:
    """Gold passages: some sets have one {"ctx": text} or a list of them, the others none."""
    entries = told if isinstance(told, list) else [told]
    return [entry["ctx"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("ctx"), str)]


def _native(where: str, dialogue: Any) -> Iterator[Sample]:
    """One sample a turn of a dialogue in INSCIT's own format."""
    if not isinstance(dialogue, dict):
        raise ValueError(f"{where}: is a JSON {type(dialogue).__name__}, expected a dialogue of INSCIT")
    check_fields(dialogue, {"turns": TURNS}, where)
    for number, turn in enumerate(dialogue["turns"], start=1):
        at = f"{where}, turn {number}"
        if not isinstance(turn, dict):
            raise ValueError(f"{at}: is a JSON {type(turn).__name__}, expected an object")
        check_fields(turn, {"context": CONTEXT, "prevEvidence": PREVIOUS, "labels": LABELS}, at)
        said, labels = turn["context"], turn["labels"]
        messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)]
        evidence = _passages([label["evidence"] for label in labels])
        passages = _passages([*(label["evidence"] for label in labels), *reversed(turn["prevEvidence"])])
        gold = Gold([label["response"] for label in labels])
        yield Sample(messages, passages, gold, [passage.text for passage in evidence])


def _passages(lists: Sequence[Sequence[Mapping[str, Any]]]) -> list[Passage]:
    """INSCIT's passages without repeats; the title is that of the article and of its sections."""
    found = (Passage(" - ".join(item["passage_titles"]), item["passage_text"]) for items in lists for item in items)
    return list(dict.fromkeys(found))
