"""A backend without a model: answers from a function, such as the record's own references. For tests and dry runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from longloom.evals.ledger import Ledger
from longloom.evals.protocol import Failure
from longloom.evals.suite_lm import Job, Row, SuiteLM


class StubLM(SuiteLM):
    """Answers every request with what a function makes of it; an exception of its is a failed sample.

    Args:
        answer: the function: `gold`, a `fixed` text, or one's own.
        tokenizer: cuts the prompts, which the function then gets as `job.ids`; None: nothing is cut.
        window, max_length, suite_length, ledger, progress: as `SuiteLM` takes them.
    """

    def __init__(
        self,
        answer: Callable[[Job], str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        window: int | None = None,
        max_length: int | None = None,
        suite_length: int | None = None,
        ledger: Ledger | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> None:
        super().__init__(
            tokenizer,
            window=window,
            ends=(),
            batch_size=1,
            max_length=max_length,
            suite_length=suite_length,
            ledger=ledger,
            progress=progress,
        )
        self._function = answer

    def _answer(self, batch: Sequence[Job]) -> list[Row | Failure]:
        (job,) = batch
        row = self._kept(job)
        if row is None:
            try:
                row = job.row(self._function(job))
            except Exception as error:
                return [Failure(f"{type(error).__name__}: {error}".splitlines()[0])]
            self._keep([row])
        return [row]


def gold(job: Job) -> str:
    """The first reference of the request's record."""
    return str(job.instance.doc["references"][0])


def fixed(text: str) -> Callable[[Job], str]:
    """The same text for every request."""
    return lambda job: text
