"""The task-gram pairs of an evaluation set and a corpus, mined and looked up (arXiv 2407.14985, definition 2).

    P_{n,D}(y | x) = C((x, y), D) / C(x, D)

The pair's count is of documents that hold both n-grams, the single count is of occurrences, as the paper counts. Mode
`released` does as the authors' code: the last n-gram of every text is lost, gamma is not applied, and the pair's count
is the smaller one of the two single counts. Every mined pair has a row; `status` says why one has no probability.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.trace.embedding import Embed
from longloom.tasks.trace.lookups import (
    Corpus,
    Tokens,
    infinity_grams,
    known,
    occurrences,
    together,
    tokens_of,
)
from longloom.tasks.trace.mining import Gram, Mined, mine, ngrams
from longloom.tasks.trace.records import Record, load

MODES = ("paper", "released")

#: What becomes of a pair. `unknown`: the index's tokenizer does not know it. `zero`: C(x, D) is 0, so that there is no
#: probability. `rare`: C(x, D) is below the smallest count that was asked for. `unseen`: C((x, y), D) is 0 and with it
#: the probability. Only `kept` and, in mode `paper`, `unseen` pairs are ranked.
KEPT, UNSEEN, ZERO, RARE, UNKNOWN = STATUSES = ("kept", "unseen", "zero", "rare", "unknown")

#: One row a pair of a record. `x` and `y` are as they were looked up, with the space before them if there was one;
#: `begin`, `end`: of the output n-gram without it, in characters of the output. `log_p` is natural,
#: minus infinity for unseen pairs, null where there is none. `log_infinity` is of the output n-gram after prompt and
#: output before it, `infinity_zero` of its `infinity_tokens` have no probability.
PAIRS = pa.schema(
    [
        *(("task", pa.string()), ("record", pa.int64())),
        *(("x", pa.string()), ("y", pa.string()), ("begin", pa.int64()), ("end", pa.int64())),
        *(("cosine", pa.float64()), ("disjoint", pa.bool_()), ("status", pa.string())),
        *(("together", pa.int64()), ("x_count", pa.int64()), ("y_count", pa.int64()), ("log_p", pa.float64())),
        *(("log_infinity", pa.float64()), ("infinity_zero", pa.int64()), ("infinity_tokens", pa.int64())),
    ]
)

#: How far below gamma pairs are kept for the sensitivity to it, which looks as far above.
MARGIN = 0.1
#: N-grams that are embedded at once, of one record or several; vectors that are held for later records; and pairs that
#: are looked up at once.
_BATCH, _HELD, _LOOKED_UP = 4096, 32_768, 100_000

#: A pair of a record, which has a number.
_Place = tuple[int, Record, Mined]


def build(
    records: Path,
    index: Corpus,
    embed: Embed,
    out: Path,
    *,
    n: int,
    gamma: float,
    mode: str,
    least: int,
    progress: Progress = silent,
) -> Stats:
    """Writes `pairs.parquet`.

    Args:
        records: from `records.build`.
        index: over the corpus.
        embed: of n-grams.
        out: an empty folder.
        n: words of an n-gram.
        gamma: the least cosine, exclusive; pairs down to MARGIN below it are kept too, for the sensitivity.
        mode: one of MODES.
        least: the smallest C(x, D) of a pair that is not `rare`.
        progress: called with records done and in all.

    Returns:
        Counts of records, of pairs above gamma, of distinct ones (|H_n|), and of each status above gamma.

    Raises:
        ValueError: an unknown mode, a number out of range, or no text with n words.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: unknown, expected {' or '.join(MODES)}")
    if n < 1 or not -1 <= gamma <= 1 or least < 1:
        raise ValueError(f"n is {n}, gamma {gamma}, the least count {least}; expected n >= 1, -1 to 1, and >= 1")
    examples = load(records)
    counted: Counter[str] = Counter()
    distinct: set[tuple[str, str]] = set()
    if not any(all(_grams(record, n, mode)) for record in examples):
        raise ValueError(f"records: none of {len(examples)} has {n} words in its input and in its output")
    floor = gamma - MARGIN if mode == "paper" else None
    waiting: list[_Place] = []
    with FileWriter(out / "pairs.parquet", PAIRS) as writer:
        for number, (record, mined) in enumerate(_mined(examples, embed, n=n, gamma=gamma, floor=floor, mode=mode), 1):
            waiting += [(number - 1, record, pair) for pair in mined]
            if len(waiting) < _LOOKED_UP and number < len(examples):
                continue
            rows = list(_rows(index, waiting, mode, least))
            writer.write(rows)
            above = [row for row in rows if mode == "released" or row["cosine"] > gamma]
            counted.update(row["status"] for row in above)
            distinct |= {(row["x"].strip(), row["y"].strip()) for row in above}
            waiting = []
            progress(number, len(examples))
    counts = {"records": len(examples), "pairs": counted.total(), "distinct": len(distinct)}
    return Stats(counts=counts | {status: counted[status] for status in STATUSES})


def _grams(record: Record, n: int, mode: str) -> tuple[list[Gram], list[Gram]]:
    lose_last = mode == "released"
    return ngrams(record.input, n, lose_last=lose_last), ngrams(record.output, n, lose_last=lose_last)


def _mined(
    examples: Sequence[Record], embed: Embed, *, n: int, gamma: float, floor: float | None, mode: str
) -> Iterator[tuple[Record, list[Mined]]]:
    """Each record with its pairs; no more vectors are in memory than of a block of records and those that are held."""
    vectors = _Vectors(embed)
    block: list[tuple[Record, list[Gram], list[Gram]]] = []
    texts: set[str] = set()
    for number, record in enumerate(examples, start=1):
        xs, ys = _grams(record, n, mode)
        block.append((record, xs, ys))
        if xs and ys:
            texts.update(gram.text for gram in (*xs, *ys))
        if len(texts) < _BATCH and number < len(examples):
            continue
        found = vectors.of(texts)
        for one, left, right in block:
            yield one, mine(left, right, found, n=n, gamma=gamma, floor=floor)
        block, texts = [], set()


class _Vectors:
    """The vectors of n-grams. Those looked at last are held, since records of one task share theirs."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._held: dict[str, np.ndarray] = {}

    def of(self, texts: set[str]) -> dict[str, np.ndarray]:
        """Text -> unit vector."""
        found = {text: self._held.pop(text) for text in sorted(texts) if text in self._held}
        new = sorted(texts - found.keys())
        for begin in range(0, len(new), _BATCH):
            batch = new[begin : begin + _BATCH]
            # Copies: a row that is held would hold its whole batch.
            found.update((text, row.copy()) for text, row in zip(batch, self._embed(batch), strict=True))
        self._held |= found
        for text in list(islice(self._held, max(0, len(self._held) - _HELD))):
            del self._held[text]
        return found


def _rows(index: Corpus, places: Sequence[_Place], mode: str, least: int) -> Iterator[dict[str, Any]]:
    """The rows of some pairs, looked up in one batch."""
    surfaces = {gram.surface: None for _, _, pair in places for gram in (pair.x, pair.y)}
    tokens = {surface: tokens_of(index, surface) for surface in surfaces}
    singles = occurrences(index, known(tokens.values()))
    looked_up = [(tokens[pair.x.surface], tokens[pair.y.surface]) for _, _, pair in places]
    both = dict.fromkeys((x, y) for x, y in looked_up if x and y)
    documents = (
        together(index, list(both)) if mode == "paper" else {(x, y): min(singles[x], singles[y]) for x, y in both}
    )
    pieces = {(number, pair.y.begin): (_before(record, pair.y), pair.y.surface) for number, record, pair in places}
    probabilities = infinity_grams(index, list(pieces.values()), zero_as_one=mode == "released")
    infinity = dict(zip(pieces, probabilities, strict=True))
    for (number, record, pair), (x, y) in zip(places, looked_up, strict=True):
        x_count, y_count = singles.get(x or (), 0), singles.get(y or (), 0)
        count = documents[x, y] if x and y else 0
        status = _status(x, y, x_count, count, least)
        found = infinity[number, pair.y.begin]
        yield {
            "task": record.task,
            "record": number,
            "x": pair.x.surface,
            "y": pair.y.surface,
            "begin": pair.y.begin,
            "end": pair.y.end,
            "cosine": pair.cosine,
            "disjoint": pair.disjoint,
            "status": status,
            "together": count,
            "x_count": x_count,
            "y_count": y_count,
            "log_p": math.log(count / x_count) if status == KEPT else -math.inf if status == UNSEEN else None,
            "log_infinity": None if found is None else found.log_p,
            "infinity_zero": None if found is None else found.zero,
            "infinity_tokens": None if found is None else found.tokens,
        }


def _before(record: Record, gram: Gram) -> str:
    """What a model reads before an n-gram of the output, without the space that belongs to the n-gram."""
    text = record.prompt + record.output[: gram.begin]
    return text.removesuffix(" ") if gram.spaced else text


def _status(x: Tokens | None, y: Tokens | None, x_count: int, count: int, least: int) -> str:
    if not x or not y:
        return UNKNOWN
    if x_count == 0:
        return ZERO
    if x_count < least:
        return RARE
    return KEPT if count else UNSEEN
