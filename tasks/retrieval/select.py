"""Chooses among a sample's ranked chunks, by number or by tokens, and makes one text of them: what a model reads.

In document order (OP-RAG, arXiv 2409.01666) neighbouring chunks run on as in the context, so that all chunks of a
context give the context itself; others, and all in rank order, are parted by an empty line, as ChatQA parts them
(arXiv 2401.10225).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longloom.storage.parquet import iter_batches
from longloom.tasks.retrieval.chunkers import Span

ORDERS = ("document", "rank")
SEPARATOR = "\n\n"

_COLUMNS = ("suite", "task", "sample", "rank", "chunk", "begin", "end", "text")


class TooLong(ValueError):
    """A budget that not even the best chunk fits into: this sample can have no passages, others may."""


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        text: the chosen chunks as one text.
        chunks: their numbers, in the order of the text.
        spans: their places in the context, likewise; `gold.recall` takes them.
        tokens: of the text.
    """

    text: str
    chunks: tuple[int, ...]
    spans: tuple[Span, ...]
    tokens: int


def check(*, k: int | None, budget: int | None, order: str) -> None:
    """Raises ValueError unless exactly one of `k` and `budget` is given, at least 1, and the order is known."""
    if (k is None) == (budget is None):
        raise ValueError(f"passages: found k={k} and budget={budget}, expected one of them")
    for name, value in (("k", k), ("budget", budget)):
        if value is not None and value < 1:
            raise ValueError(f"passages: {name} is {value}, expected at least 1")
    if order not in ORDERS:
        raise ValueError(f"unknown order of passages {order!r}; known: {', '.join(ORDERS)}")


def select(
    rows: Sequence[Mapping[str, Any]], *, k: int | None, budget: int | None, order: str, count: Callable[[str], int]
) -> Selection:
    """The best chunks of one sample as one text.

    Args:
        rows: of the sample in passages.parquet (rank, chunk, begin, end, text); may be none for an empty context.
        k: the number of chunks; all of them if there are fewer.
        budget: in place of k: as many of the best chunks as make a text of at most so many tokens. The first one that
            does not fit ends it.
        order: "rank", best first; "document", as in the context.
        count: tokens of a text.

    Raises:
        ValueError: as `check`.
        TooLong: as it says.
    """
    check(k=k, budget=budget, order=order)
    ranked = sorted(rows, key=lambda row: int(row["rank"]))
    if budget is None:
        assert k is not None
        return _selection(ranked[:k], order, count)
    limit = budget
    most = _most(lambda number: _selection(ranked[:number], order, count).tokens <= limit, len(ranked))
    if ranked and most == 0:
        tokens = _selection(ranked[:1], order, count).tokens
        raise TooLong(f"passages: the best chunk has {tokens} tokens, expected no more than the budget of {budget}")
    return _selection(ranked[:most], order, count)


def read_tasks(passages: Path, suite: str) -> list[str]:
    """The tasks of a suite that a passages artifact ranks, in order."""
    found: dict[str, None] = {}
    for batch in iter_batches(passages, "passages", columns=("suite", "task"), batch_size=1024):
        pairs = zip(batch.column("suite").to_pylist(), batch.column("task").to_pylist(), strict=True)
        found |= dict.fromkeys(task for name, task in pairs if name == suite)
    return list(found)


def read_ranked(passages: Path, suite: str, task: str) -> dict[int, list[dict[str, Any]]]:
    """Sample -> its rows for `select`, best first, of one task in a passages artifact.

    A sample that has no chunks (an empty context) is not among them.

    Raises:
        ValueError: the artifact has nothing of the task.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    known: dict[str, None] = {}
    for batch in iter_batches(passages, "passages", columns=_COLUMNS, batch_size=1024):
        names = list(zip(batch.column("suite").to_pylist(), batch.column("task").to_pylist(), strict=True))
        known |= dict.fromkeys(f"{one}/{other}" for one, other in names)
        if (suite, task) in names:
            for row in batch.to_pylist():
                if (row["suite"], row["task"]) == (suite, task):
                    found.setdefault(row["sample"], []).append(row)
    if not found:
        raise ValueError(f"the passages hold none of task '{suite}/{task}', only of {', '.join(known) or 'no task'}")
    return found


def _selection(ranked: Sequence[Mapping[str, Any]], order: str, count: Callable[[str], int]) -> Selection:
    chosen = sorted(ranked, key=lambda row: int(row["begin"])) if order == "document" else list(ranked)
    pieces: list[str] = []
    end = None  # of the piece before, where the next chunk may run on
    for row in chosen:
        if order == "document" and row["begin"] == end:
            pieces[-1] += row["text"]
        else:
            pieces.append(row["text"])
        end = row["end"]
    text = _join(pieces)
    return Selection(
        text,
        tuple(int(row["chunk"]) for row in chosen),
        tuple((int(row["begin"]), int(row["end"])) for row in chosen),
        count(text),
    )


def _join(pieces: Sequence[str]) -> str:
    """With one empty line at every seam, whatever white space stands there; none is touched at the two ends."""
    if len(pieces) < 2:
        return "".join(pieces)
    first, *middle, last = pieces
    return SEPARATOR.join([first.rstrip(), *(piece.strip() for piece in middle), last.lstrip()])


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, where all smaller ones do; asks for no more than twice as much."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
