"""The reward-scores stage: `scores.parquet`, a row a response of the files that a user has.

A record has a prompt, with it `response` or a list of `responses`, and perhaps a context; or it is one of the formats
of comparisons (formats.py), whose responses are scored in their own context.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.corpus.files import find_files
from longloom.tasks.corpus.messages import Message, text_of
from longloom.tasks.corpus.record_files import records_of
from longloom.tasks.corpus.records import BadRecords, FaultError, Record, describe, record_id
from longloom.tasks.preference.encoding import Asked
from longloom.tasks.preference.formats import COLUMNS, asked_turns, to_comparisons
from longloom.tasks.preference.pairs import FORMATS
from longloom.tasks.preference.scorer import RewardScorer, load_scorer
from longloom.tasks.preference.training import ON_TOO_LONG
from longloom.tasks.progress import Progress, silent

NAME = "scores"
#: response: its number within the record, from 0; of a comparison 0 is the chosen one. score: null where the text is
#: too long. best: the highest score of its record, the first of equal ones; null where a score is.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("response", pa.int64()),
        ("context", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.int64()),
        ("score", pa.float64()),
        ("best", pa.bool_()),
    ]
)


class Response(NamedTuple):
    """One response.

    Attributes:
        id: of its record, or of the comparison in it.
        number: within that, from 0.
        asked: what is scored.
    """

    id: str
    number: int
    asked: Asked


def build(
    model: Path,
    sources: list[str],
    out: Path,
    *,
    on_bad_record: str,
    on_too_long: str,
    progress: Progress = silent,
) -> Stats:
    """Scores every response, in the order of the sources.

    Args:
        model: a reward model's folder.
        sources: JSON (an array, or one object a line) or Parquet files, folders of them, `hub:` data sets.
        out: an empty folder.
        on_bad_record: `stop` at the first bad record, or `skip` and count them.
        on_too_long: `stop` at a response that is longer with its prompt than the model can read, or `skip`: its score
            is null, and they are counted.
        progress: tokens read, and in all.

    Returns:
        Counts of records (of RPR's its two comparisons), responses, those too long and bad records; values: mean and
        standard deviation of the scores.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a bad record, a response too long, no response at all, no reward model.
    """
    if on_too_long not in ON_TOO_LONG:
        raise ValueError(f"on_too_long {on_too_long!r}: unknown, expected one of {', '.join(ON_TOO_LONG)}")
    bad = BadRecords(on_bad_record)
    responses = list(
        _responses(records_of(find_files(sources, FORMATS), (*COLUMNS, "response", "responses"), bad), bad)
    )
    if not responses:
        first = f" ({bad.skipped} bad records were skipped, the first: {bad.examples[0]})" if bad.skipped else ""
        raise ValueError(f"{', '.join(sources)}: no responses found{first}")
    scorer = load_scorer(model)
    lengths, scores = _scored(scorer, responses, on_too_long, progress)
    rows = [
        {
            "id": each.id,
            "response": each.number,
            "context": each.asked.context,
            "text": each.asked.response,
            "tokens": length,
            "score": None if np.isnan(score) else score,
        }
        for each, length, score in zip(responses, lengths, scores.tolist(), strict=True)
    ]
    firsts = [row for row, each in enumerate(responses) if each.number == 0]
    for begin, end in pairwise([*firsts, len(rows)]):
        mark_best(rows[begin:end])
    with FileWriter(out / f"{NAME}.parquet", SCHEMA) as writer:
        writer.write(rows)
    known = scores[~np.isnan(scores)]
    return Stats(
        counts={
            "records": len(firsts),
            "responses": len(rows),
            "too_long": len(rows) - len(known),
            "skipped": bad.skipped,
        },
        values={
            "mean": float(known.mean()) if len(known) else None,
            "std": float(known.std()) if len(known) else None,
            "skipped_examples": bad.examples,
        },
    )


def mark_best(rows: list[dict[str, object]]) -> None:
    """Sets `best` of the responses of one record; null in all where one has no score."""
    scores = [row["score"] for row in rows]
    whole = None not in scores
    top = int(np.argmax(np.array(scores, np.float64))) if whole else -1
    for number, row in enumerate(rows):
        row["best"] = number == top if whole else None


def _scored(
    scorer: RewardScorer, responses: list[Response], on_too_long: str, progress: Progress
) -> tuple[list[int], np.ndarray]:
    """Tokens of each with its prompt, and float64 [n] scores, NaN where it is too long."""
    texts = scorer.encode([each.asked for each in responses])
    most = scorer.reading.max_length
    fits = np.array([len(ids) <= most for ids in texts])
    if on_too_long == "stop" and not fits.all():
        row = int(np.argmin(fits))
        raise ValueError(
            f"record {responses[row].id!r}: response {responses[row].number} has {len(texts[row])} tokens with its"
            f" prompt, expected at most {most}, the reward model's; on_too_long='skip' goes on without it"
        )
    scores = np.full(len(texts), np.nan)
    scores[fits] = scorer.score([ids for ids, fit in zip(texts, fits, strict=True) if fit], progress=progress)
    return [len(ids) for ids in texts], scores


def _responses(records: Iterator[Record], bad: BadRecords) -> Iterator[Response]:
    for record in records:
        try:
            identifier = record_id(record, "id")
            if identifier is None:
                raise FaultError(
                    f"found {describe(record.value['id'])} in the field 'id', expected a string or integer"
                )
            found = list(_of(record.value, identifier))
        except FaultError as fault:
            bad.report(record.place, str(fault), name=record.name)
            continue
        yield from found


def _of(value: dict[str, object], identifier: str) -> Iterator[Response]:
    if value.get("response") is None and value.get("responses") is None:
        for each in to_comparisons(value, contexts="criteria")[1]:
            name = f"{identifier}/{each.side}" if each.side else identifier
            for number, response in enumerate((each.chosen, each.rejected)):
                yield Response(name, number, Asked(each.prompt, each.context, response))
        return
    given = [value["response"]] if value.get("responses") is None else value["responses"]
    if not isinstance(given, list) or not given:
        raise FaultError(f"found {describe(given)} in the field 'responses', expected a list of texts")
    prompt: list[Message] = asked_turns(value.get("prompt"))
    if prompt[-1]["role"] == "assistant":
        raise FaultError("found a prompt without a turn that asks for a response, expected one at its end")
    context = value.get("context")
    for number, response in enumerate(given):
        text = text_of(response, "responses")
        if not text.strip():
            raise FaultError(f"found an empty response, number {number}, expected text")
        yield Response(identifier, number, Asked(prompt, text_of(context, "context") if context else None, text))
