"""Prompts ranked by how often their n-grams stand in the corpus, with rewrites by a model behind an endpoint.

prompts.parquet   one row a prompt, the most frequent first

The last experiment of arXiv 2407.14985: prompts of frequent n-grams lean on what a model has memorised, prompts of rare
ones on what it generalises to. As in its released code, n is 3, a prompt's score is the mean over its n-grams of words,
those that never occur included, and a model rewrites the prompt step by step, told the scores so far. Differences: the
score counts occurrences (the released code counts documents; both are in the table), n-grams keep their case and
punctuation, and the last one is not lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from longloom.evals.endpoint import Endpoint, Question
from longloom.evals.jsonl import read_lines
from longloom.evals.ledger import Ledger
from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.sources.located import Corpus, locate, open_corpus
from longloom.tasks.sources.measures import Measure, after_space, asked_for

LEDGER = "rewrites.jsonl"
#: Tokens of a rewrite.
_MAX_NEW_TOKENS = 512

#: `origin` is "prompt", "candidate", or the direction in which a model rewrote it, in `round`, from 1. `unseen` counts
#: n-grams that the corpus does not hold. The means are null for a prompt of fewer than n words, which comes last.
PROMPTS = pa.schema(
    [
        ("rank", pa.int64()),
        ("prompt", pa.string()),
        ("origin", pa.string()),
        ("round", pa.int64()),
        ("ngrams", pa.int64()),
        ("unseen", pa.int64()),
        ("mean_count", pa.float64()),
        ("mean_documents", pa.float64()),
    ]
)

Row = dict[str, Any]

#: What a model is asked for, in either direction.
DIRECTIONS = {"frequent": "higher", "rare": "lower"}
_TASK = """You improve the instruction that a language model is given for a task. You get the current instruction, its \
score, and the earlier ones with theirs. The score is the mean number of times that the instruction's {n}-word phrases \
occur in the corpus that the model was trained on. Write one new instruction for the same task, as clear as the \
current one, with a {better} score. Answer with the instruction alone."""


class Score(NamedTuple):
    """Of one prompt, as PROMPTS has it."""

    ngrams: int
    unseen: int
    mean_count: float | None
    mean_documents: float | None


def build(
    index: Path,
    candidates: Path | None,
    out: Path,
    *,
    prompt: str | None,
    n: int,
    rounds: int,
    client: Endpoint | None,
    progress: Progress = silent,
) -> Stats:
    """Writes `prompts.parquet`.

    Args:
        index: folder of an n-gram index.
        candidates: a file of prompts, one a line; None: there are none.
        out: empty, or with what a killed run left.
        prompt: the one to begin with; None: there is none.
        n: words of an n-gram.
        rounds: rewrites that a model is asked for, in each direction.
        client: of that model; None: nothing is rewritten.
        progress: told of rewrites done and in all.

    Returns:
        Counts of prompts, of those too short to be ranked, and of failed rewrites; the most frequent prompt and the
        rarest.

    Raises:
        FileNotFoundError, ValueError: no index, a file that cannot be read, a server that cannot be reached, or no
            prompt of n words.
    """
    corpus = open_corpus(index)
    rows: dict[str, Row] = {}

    def rate(text: str, origin: str, number: int | None = None) -> Score:
        found = score(corpus, text, n)
        rows.setdefault(text, {"prompt": text, "origin": origin, "round": number, **found._asdict()})
        return found

    if prompt is not None:
        rate(prompt, "prompt")
    if candidates is not None:
        for _, line in read_lines(candidates):
            rate(line.strip(), "candidate")
    failed: list[str] = []
    if client is not None:
        assert prompt is not None, "a model needs a prompt to begin with"
        ledger = Ledger(out / LEDGER, {"url": client.base_url, "model": client.model})
        for step, direction in enumerate(DIRECTIONS):
            history = [(prompt, score(corpus, prompt, n).mean_count)]
            for number in range(1, rounds + 1):
                progress(step * rounds + number - 1, len(DIRECTIONS) * rounds)
                rewrite = _rewrite(client, ledger, _messages(history, n, direction))
                if rewrite.error is not None:
                    failed.append(rewrite.error)
                    break  # the next one would build on it
                history.append((rewrite.text, rate(rewrite.text, direction, number).mean_count))
        if not failed:
            ledger.remove()
        elif len(failed) == len(DIRECTIONS) and len(rows) == 1:
            raise ValueError(f"no rewrite succeeded, the first failed with: {failed[0]}")
    ranked = sorted(
        rows.values(), key=lambda row: -1.0 if row["mean_count"] is None else row["mean_count"], reverse=True
    )
    long_enough = [row["prompt"] for row in ranked if row["mean_count"] is not None]
    if not long_enough:
        raise ValueError(f"none of {len(ranked)} prompts has {n} words, expected at least one")
    with FileWriter(out / "prompts.parquet", PROMPTS) as writer:
        writer.write([{"rank": rank, **row} for rank, row in enumerate(ranked, start=1)])
    return Stats(
        counts={"prompts": len(ranked), "too_short": len(ranked) - len(long_enough), "failed": len(failed)},
        values={"most_frequent": long_enough[0], "rarest": long_enough[-1], "errors": failed},
        volatile=(LEDGER,) if failed else (),
    )


def score(corpus: Corpus, prompt: str, n: int) -> Score:
    """The counts of a prompt's n-grams of words, in the corpus as they stand in the prompt; of its first one after a
    space, too."""
    located = locate(corpus.encoder, prompt)
    windows = Measure("", n, "words", 0, 0).windows(prompt)
    if not windows:
        return Score(0, 0, None, None)
    asked = [asked_for(corpus, located, window) for window in windows]
    known = [tokens for tokens in asked if tokens]
    spaced = after_space(corpus, prompt, windows[0])
    known += [spaced] if spaced else []
    counts = corpus.index.counts(known) if known else np.zeros(0, dtype=np.int64)
    seen, documents = int((counts > 0).sum()), int(corpus.index.document_counts(known).sum()) if known else 0
    if spaced and counts[-1] and asked[0] and counts[0]:  # the first one stands in the corpus in both ways
        seen -= 1
        documents -= int(corpus.index.cooccurrences([(asked[0], spaced)])[0])
    return Score(
        ngrams=len(windows),
        unseen=len(windows) - seen,
        mean_count=int(counts.sum()) / len(windows),
        mean_documents=documents / len(windows),
    )


def _messages(history: Sequence[tuple[str, float | None]], n: int, direction: str) -> list[dict[str, str]]:
    *earlier, current = [f"{text}\nscore: {'unknown' if value is None else f'{value:.2f}'}" for text, value in history]
    told = [*(f"Earlier instruction {number}: {one}" for number, one in enumerate(earlier, start=1))]
    said = "\n\n".join([*told, f"Current instruction: {current}", "New instruction:"])
    task = _TASK.format(n=n, better=DIRECTIONS[direction])
    return [{"role": "system", "content": task}, {"role": "user", "content": said}]


class _Rewrite(NamedTuple):
    text: str
    error: str | None


def _rewrite(client: Endpoint, ledger: Ledger, messages: list[dict[str, str]]) -> _Rewrite:
    """The answer to a chat, which is kept, as one line."""
    key = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
    kept = ledger.get(key)
    if kept is None:
        [reply] = client.ask([Question(messages, _MAX_NEW_TOKENS)])
        text = " ".join(reply.text.split()).strip("\"'")
        error = reply.error or (None if text else "the answer is blank")
        if error is not None:
            return _Rewrite("", error)
        kept = {"key": key, "text": text}
        ledger.add([kept])
    return _Rewrite(str(kept["text"]), None)
