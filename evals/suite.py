"""What a suite is: named tasks, their records, and how an answer is rated. The harness and the scorer need no more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from longloom.evals.protocol import Request

#: One sample's rating, 0 to 1 each, by part of the task's score: {"score": ...}, or several parts that are averaged.
Parts = dict[str, float]


@dataclass(frozen=True)
class Source:
    """What a suite may draw on.

    Attributes:
        data: folder of records or documents; None: the suite's own source (the hub), if it has one.
        tokenizer: of the model under test, for suites that generate prompts of given lengths.
        seed: of whatever the suite draws at random.
        options: the suite's own options.
    """

    data: Path | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


class Suite(ABC):
    """A benchmark: tasks, records, ratings.

    Attributes:
        name: in the registry and in results.
        option_names: options that it takes.
        hub: the data set on the Hugging Face hub that it reads where the source has no data; None: it has none.
        max_length: the protocol's own limit on a prompt's tokens before the chat template, where nobody sets another;
            None: it depends on the model, or there is none.
        full_score: a task's score if every answer is right: 100, or 1 where the official script prints a fraction.
    """

    name: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]] = ()
    hub: ClassVar[str | None] = None
    max_length: ClassVar[int | None] = None
    full_score: ClassVar[float] = 100.0

    def __init__(self, source: Source) -> None:
        """Raises ValueError for an option that the suite does not have."""
        for option in source.options:
            if option not in self.option_names:
                offered = ", ".join(self.option_names) or "none"
                raise ValueError(f"suite {self.name!r} has no option {option!r}; its options: {offered}")
        self.source = source

    @classmethod
    def files_beside(cls, data: Path) -> list[Path]:
        """What it reads beside one file of records: with that file they make out what a result depends on."""
        return []

    @abstractmethod
    def tasks(self) -> list[str]:
        """The tasks that the source has records for (ValueError if it has none)."""

    @abstractmethod
    def metric(self, task: str) -> str:
        """The name of a task's metric (ValueError for an unknown task, with the known ones)."""

    @abstractmethod
    def max_new_tokens(self, task: str) -> int:
        """The most tokens of an answer."""

    @abstractmethod
    def records(self, task: str) -> list[dict[str, Any]]:
        """The task's samples as `make_record` builds them (ValueError for bad data)."""

    @abstractmethod
    def rate(self, task: str, prediction: str, record: Mapping[str, Any]) -> Parts:
        """Rates one answer."""

    def rate_fixed(self, task: str, prediction: str, record: Mapping[str, Any]) -> Parts | None:
        """Rates one answer by the task's mended metric, `<metric>_fixed`; None where the official one needs no mending.

        Whether there is one depends on the task alone, never on the answer.
        """
        return None

    @abstractmethod
    def score(self, task: str, ratings: Sequence[Parts]) -> float:
        """The task's score on the official scale, from the ratings of all its samples."""

    def answer(self, replies: Sequence[str]) -> str:
        """The prediction that is rated, from the replies to a record's requests."""
        return replies[0]


def make_record(requests: Sequence[Request], references: Sequence[str], **fields: Any) -> dict[str, Any]:
    """A sample: what to ask the model, what is right, and what else the rating or the result needs.

    Fields that results know: `length` (whole number; of the context, as the benchmark counts it), `depth` (per cent),
    `group` (what the benchmark itself breaks a task's score down by), `gold` (list of the passages of the context that
    hold the answer, word for word, where the benchmark tells them), `error` (why it cannot be asked, a failed sample;
    null: it can).
    """
    return {"requests": [request.to_dict() for request in requests], "references": list(references), **fields}


def unknown_task(suite: str, task: str, known: Sequence[str]) -> ValueError:
    """The error for a task that a suite does not have."""
    return ValueError(f"suite {suite!r} has no task {task!r}; known: {', '.join(known)}")
