"""A suite whose contexts give way to what was retrieved of them: RAG under the protocol of the benchmark itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from longloom.evals.protocol import Request, encode
from longloom.evals.suite import Parts, Suite
from longloom.tasks.retrieval.gold import occurrences, recall
from longloom.tasks.retrieval.select import Selection, TooLong, check, read_ranked, read_tasks, select


@dataclass(frozen=True)
class Retrieval:
    """Passages that stand in for the contexts.

    Attributes:
        passages: a passages artifact's folder, of the same suite and data.
        k, budget, order: as `tasks.retrieval.select.select` takes them.
        label: in the column `retrieval` of the results.
    """

    passages: Path
    k: int | None
    budget: int | None
    order: str
    label: str


class RetrievedSuite(Suite):
    """Another suite with shorter contexts.

    Args:
        suite: the other one.
        retrieval: what was retrieved.
        tokenizer: of the model, to count a budget's tokens; None: unknown.

    Raises:
        ValueError: a budget without a tokenizer, or settings that `select` does not take.
    """

    def __init__(self, suite: Suite, retrieval: Retrieval, tokenizer: PreTrainedTokenizerBase | None) -> None:
        check(k=retrieval.k, budget=retrieval.budget, order=retrieval.order)
        if retrieval.budget is not None and tokenizer is None:
            raise ValueError(f"a budget of {retrieval.budget} tokens needs the model's tokenizer, and none was named")
        # Of the other suite's class:
        self.name, self.full_score, self.max_length = suite.name, suite.full_score, suite.max_length  # type: ignore[misc]
        self._suite = suite
        self._retrieval = retrieval
        self._tokenizer = tokenizer

    def tasks(self) -> list[str]:
        """Those that ask about their contexts: the others were not searched."""
        return read_tasks(self._retrieval.passages, self.name)

    def metric(self, task: str) -> str:
        return self._suite.metric(task)

    def max_new_tokens(self, task: str) -> int:
        return self._suite.max_new_tokens(task)

    def records(self, task: str) -> list[dict[str, Any]]:
        """Every record with the chosen passages as its context, and `gold_recall` where its gold passages are known.

        One whose best passage is longer than the budget has an `error` and is not asked: one long chunk among thousands
        of samples should not end a sweep.
        """
        options = self._retrieval
        ranked = read_ranked(options.passages, self._suite.name, task)

        @cache
        def count(text: str) -> int:
            return len(encode(self._tokenizer, text, special=False)) if self._tokenizer else 0

        records = []
        errors: dict[int, str] = {}
        for number, record in enumerate(self._suite.records(task)):
            requests = [Request.from_dict(fields) for fields in record["requests"]]
            rows = ranked.get(number, [])
            try:
                chosen = select(rows, k=options.k, budget=options.budget, order=options.order, count=count)
            except TooLong as error:
                chosen = Selection("", (), (), 0)
                errors[number] = str(error)
            replaced = [
                request if request.context is None else request.with_context(chosen.text) for request in requests
            ]
            gold = record.get("gold")
            found = None
            if gold and requests[0].context is not None:
                begin, end = requests[0].context
                found = recall(chosen.spans, occurrences(requests[0].document[begin:end], gold))
            records.append({**record, "requests": [request.to_dict() for request in replaced], "gold_recall": found})
        if errors:  # records of a task have the same fields
            records = [{**record, "error": errors.get(number)} for number, record in enumerate(records)]
        return records

    def rate(self, task: str, prediction: str, record: Mapping[str, Any]) -> Parts:
        return self._suite.rate(task, prediction, record)

    def rate_fixed(self, task: str, prediction: str, record: Mapping[str, Any]) -> Parts | None:
        return self._suite.rate_fixed(task, prediction, record)

    def score(self, task: str, ratings: Sequence[Parts]) -> float:
        return self._suite.score(task, ratings)

    def answer(self, replies: Sequence[str]) -> str:
        return self._suite.answer(replies)
