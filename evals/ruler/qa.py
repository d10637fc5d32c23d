"""Questions about one document (qa_1, SQuAD) or several (qa_2, HotpotQA) among many others.

Source: NVIDIA/RULER, `scripts/data/synthetic/qa.py`: sample number i asks the i-th answerable question; to its own
documents come, for SQuAD, the other paragraphs of the same article, then any, and all again where they do not suffice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from longloom.evals.jsonl import TEXT, Field, check_fields
from longloom.evals.protocol import Request
from longloom.evals.ruler.fitting import Fitter, Sample
from longloom.evals.ruler.tasks import DOCUMENT, QA
from longloom.storage.json_text import read_json

#: Task -> the names that its file may have: RULER's, and the data set's own.
FILES = {
    "qa_1": ("squad.json", "dev-v2.0.json"),
    "qa_2": ("hotpotqa.json", "hotpot_dev_distractor_v1.json"),
}


def qa_file(task: str, data: Path) -> Path | None:
    """The file of a task in a folder, if it is there."""
    return next((data / name for name in FILES[task] if (data / name).is_file()), None)


class Question(NamedTuple):
    """Attributes: text; answers; own: its documents; related: documents that come next; gold: passages that answer."""

    text: str
    answers: list[str]
    own: list[str]
    related: list[str]
    gold: list[str]


class Questions(NamedTuple):
    """Attributes: questions; documents: all, sorted, each once."""

    questions: list[Question]
    documents: list[str]


class QuestionAnswering:
    """Makes the samples of a question task.

    Args:
        fitter: the task's.
        path: the file of questions, in the data set's official format.

    Raises:
        ValueError: an unreadable file, or a missing or wrong field (names its place).
    """

    def __init__(self, fitter: Fitter, path: Path) -> None:
        self._fitter = fitter
        self._path = path
        self._all = _READERS[fitter.task](path)

    def sample(self, index: int, rng: random.Random, length: int) -> Sample:
        """A sample (ValueError at an impossible length, or if there are not so many questions)."""
        questions, documents = self._all
        if index >= len(questions):
            raise ValueError(
                f"{self._path}: has {len(questions)} questions with an answer, expected at least {index + 1}"
            )
        question = questions[index]
        drawn, costs = self._fitter.draw(
            _order(question, documents, rng), length, show=lambda text: f"\n\n{DOCUMENT.format(number=100, text=text)}"
        )
        places = [rng.random() for _ in drawn]
        after = QA.after.format(query=question.text)

        def build(count: int) -> Request:
            chosen = [text for _, text in sorted(zip(places[:count], drawn[:count], strict=True))]
            context = "\n\n".join(DOCUMENT.format(number=number, text=text) for number, text in enumerate(chosen, 1))
            return Request(
                context,
                before=QA.before,
                after=after,
                cut="never",
                prefix=QA.prefix,
                context=(0, len(context)),
                query=question.text,
            )

        least = len(question.own)
        request = self._fitter.longest(length, build, costs.__getitem__, least=least, most=max(len(drawn), least))
        return Sample(request, question.answers, question.gold)


def _order(question: Question, documents: list[str], rng: random.Random) -> Iterator[str]:
    """The documents as they are taken: the question's own, the related ones, all others; and so again."""
    known = {*question.own, *question.related}
    related = rng.sample(question.related, len(question.related))
    others = [document for document in documents if document not in known]
    rng.shuffle(others)
    while True:
        yield from question.own
        yield from related
        yield from others


def _squad(path: Path) -> Questions:
    questions = []
    documents = set()
    for number, article in enumerate(_items(read_json(path, expected="SQuAD's questions"), "data", str(path))):
        where = f"{path}: data[{number}]"
        paragraphs = _items(article, "paragraphs", where)
        for place, paragraph in enumerate(paragraphs):
            check_fields(paragraph, {"context": TEXT}, f"{where}.paragraphs[{place}]")
        contexts = list(dict.fromkeys(paragraph["context"] for paragraph in paragraphs))
        documents.update(contexts)
        for place, paragraph in enumerate(paragraphs):
            context = paragraph["context"]
            related = [each for each in contexts if each != context]
            for row, asked in enumerate(_items(paragraph, "qas", f"{where}.paragraphs[{place}]")):
                here = f"{where}.paragraphs[{place}].qas[{row}]"
                check_fields(asked, {"question": TEXT, "is_impossible": _TRUTH}, here)
                if not asked["is_impossible"]:
                    answers = _items(asked, "answers", here)
                    for answer in answers:
                        check_fields(answer, {"text": TEXT}, here)
                    texts = [answer["text"] for answer in answers]
                    questions.append(Question(asked["question"], texts, [context], related, [context]))
    return Questions(questions, sorted(documents))


def _hotpot(path: Path) -> Questions:
    questions = []
    documents = set()
    rows = read_json(path, expected="HotpotQA's questions")
    for number, asked in enumerate(rows if isinstance(rows, list) else []):
        where = f"{path}: [{number}]"
        check_fields(_object(asked, where), _HOTPOT_FIELDS, where)
        sentences = dict(asked["context"])
        own = [f"{title}\n{''.join(texts)}" for title, texts in asked["context"]]
        documents.update(own)
        # Some supporting sentences of the official file do not exist.
        gold = [
            sentences[title][sentence].strip()
            for title, sentence in asked["supporting_facts"]
            if 0 <= sentence < len(sentences.get(title, []))
        ]
        questions.append(Question(asked["question"], [asked["answer"]], list(dict.fromkeys(own)), [], gold))
    if not questions:
        raise ValueError(f"{path}: has no questions, expected a list of objects with question, answer and context")
    return Questions(questions, sorted(documents))


_READERS: dict[str, Callable[[Path], Questions]] = {"qa_1": _squad, "qa_2": _hotpot}


def _is_pairs(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], kind)
        for pair in value
    )


_TRUTH = Field("true or false", lambda value: isinstance(value, bool))
_LIST = Field("a list, not empty", lambda value: isinstance(value, list) and bool(value))
_HOTPOT_FIELDS = {
    "question": TEXT,
    "answer": TEXT,
    "context": Field(
        "a list of [title, [sentence, ...]], not empty",
        lambda value: (
            bool(value)
            and _is_pairs(value, list)
            and all(isinstance(sentence, str) for _, sentences in value for sentence in sentences)
        ),
    ),
    "supporting_facts": Field("a list of [title, number]", lambda value: _is_pairs(value, int)),
}


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: is a JSON {type(value).__name__}, expected an object")
    return value


def _items(record: Any, name: str, where: str) -> list[Any]:
    """A field that is a list of objects."""
    check_fields(_object(record, where), {name: _LIST}, where)
    for number, item in enumerate(record[name]):
        _object(item, f"{where}: {name}[{number}]")
    items: list[Any] = record[name]
    return items
