"""Best of n, in the manner of RewardBench 2 (arXiv 2506.01937): is the best-scored of several responses a correct one?

Its record has an id, a prompt, lists of chosen and rejected responses and a subset; most subsets have one correct
response and three others. `Ties` has prompts with many equally correct responses (ids `tied:N`), each beside a prompt
with one (`ref:N`): whether all correct ones score above all others, and lie closer together than to these. The scoring
is that of allenai/reward-bench at a0096928, rewardbench/utils.py (`reroll_and_score_dataset`, `process_single_model`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.corpus.files import find_files
from longloom.tasks.corpus.messages import Message, text_of
from longloom.tasks.corpus.record_files import records_of
from longloom.tasks.corpus.records import BadRecords, FaultError, Record, describe, record_id
from longloom.tasks.preference.accuracy import mean
from longloom.tasks.preference.encoding import Asked
from longloom.tasks.preference.pairs import FORMATS
from longloom.tasks.preference.scorer import Scorer
from longloom.tasks.preference.scoring import Fits
from longloom.tasks.progress import Progress, silent

Floats = NDArray[np.float64]

NUMBERS, SCORES = "best_of.json", "scores"
TIES = "ties"
COLUMNS = ("id", "prompt", "chosen", "rejected", "subset", "context")
#: A row a response.
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "subset")),
        ("response", pa.int64()),
        ("correct", pa.bool_()),
        ("score", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Choice:
    """A prompt with several responses.

    Attributes:
        id, subset: of the record; without a subset `all`.
        prompt: one turn of the user's.
        context: None as a rule; RewardBench 2 has none.
        responses: the correct ones first.
        correct: how many of them are.
    """

    id: str
    subset: str
    prompt: list[Message]
    context: str | None
    responses: list[str]
    correct: int


@dataclass(frozen=True)
class Ties:
    """The terms of the score of a subset of ties, 0 to 1 but for the last, -1 to 1.

    Attributes:
        ref, tied: accuracy: all correct responses above all others; on prompts with one and with several of them.
        preferred: the gap between correct and other responses is wider than the spread of the correct ones.
        preferred_hard: likewise with the smaller of its own gap and that of the prompt beside it.
        margin: tanh of that gap over the spread, less 1: the term that breaks ties.
        score: 0.3 tied + 0.3 ref + 0.2 preferred + 0.2 preferred_hard + 0.01 margin.
    """

    ref: float
    tied: float
    preferred: float
    preferred_hard: float
    margin: float
    score: float


def build(
    scorer: Scorer,
    sources: list[str],
    out: Path,
    *,
    on_bad_record: str,
    fits: Fits | None = None,
    progress: Progress = silent,
) -> Stats:
    """Writes `best_of.json` and `scores.parquet`.

    Args:
        scorer: the reward model.
        sources: JSON or Parquet files, folders, `hub:allenai/reward-bench-2?split=test`.
        out: an empty folder.
        on_bad_record: `stop` at the first bad record, or `skip` and count them.
        fits: which questions the scorer can read; a prompt one of whose responses it cannot is left out and counted.
        progress: of the scorer.

    Returns:
        Counts of prompts, responses, skipped records and prompts too long; values: the score by subset and the mean.

    Raises:
        ValueError: a bad record, an id that occurs twice in a subset, nothing to judge, a score that is not finite.
    """
    bad = BadRecords(on_bad_record)
    found = find_files(sources, FORMATS)
    every = list(_choices(records_of(found, COLUMNS, bad), bad))
    choices = _readable(every, fits)
    if not choices:
        raise ValueError(
            f"{', '.join(sources)}: found no prompt with responses that can be judged ({bad.skipped} bad records,"
            f" {len(every)} longer than the model can read), expected some"
        )
    asked = [Asked(each.prompt, each.context, response) for each in choices for response in each.responses]
    flat = np.asarray(scorer(asked, progress=progress), dtype=np.float64)
    if not np.isfinite(flat).all():
        raise ValueError(
            f"{', '.join(sources)}: found a score that is not finite, expected numbers; is the model sound?"
        )
    scores = np.split(flat, np.cumsum([len(each.responses) for each in choices])[:-1])
    with FileWriter(out / f"{SCORES}.parquet", SCHEMA) as writer:
        writer.write([row for each, own in zip(choices, scores, strict=True) for row in _rows(each, own)])
    numbers = {
        "prompts": len(choices),
        "responses": len(asked),
        "too_long": len(every) - len(choices),
        **best_of_numbers(choices, scores),
    }
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
    (out / NUMBERS).write_text(text + "\n", encoding="utf-8")
    return Stats(
        counts={name: numbers[name] for name in ("prompts", "responses", "too_long")} | {"skipped": bad.skipped},
        values={
            "score": numbers["score"],
            "subsets": {row["subset"]: row["score"] for row in numbers["subsets"]},
            "skipped_examples": bad.examples,
        },
    )


def best_of_numbers(choices: Sequence[Choice], scores: Sequence[Floats]) -> dict[str, Any]:
    """What is to be said of the scores.

    Args:
        choices: the prompts.
        scores: of each prompt's responses, [K].

    Returns:
        subsets: by name, each with its prompts, score, 95% interval over prompts (None of ties) and chance (None of
        ties); ties: `Ties` or None; score: the mean over subsets, each alike, as RewardBench 2 ranks by.
    """
    names = sorted({each.subset for each in choices})
    found: dict[str, Any] = {"subsets": [], "ties": None}
    for name in names:
        own = [place for place, each in enumerate(choices) if each.subset == name]
        row: dict[str, Any] = {"subset": name, "prompts": len(own)}
        if name.lower() == TIES:
            terms = ties([choices[place] for place in own], [scores[place] for place in own])
            found["ties"] = asdict(terms)
            row |= {"score": terms.score, "low": None, "high": None, "chance": None}
        else:
            credits = np.array([best(scores[place], choices[place].correct) for place in own])
            chance = [choices[place].correct / len(choices[place].responses) for place in own]
            score, low, high = mean(credits, own)
            row |= {"score": score, "low": low, "high": high, "chance": float(np.mean(chance))}
        found["subsets"].append(row)
    found["score"] = float(np.mean([row["score"] for row in found["subsets"]]))
    return found


def best(scores: Floats, correct: int) -> float:
    """The share of correct responses among those with the highest score: 1/4 where four are equal."""
    highest = scores == scores.max()
    return float(highest[:correct].sum() / highest.sum())


def ties(choices: Sequence[Choice], scores: Sequence[Floats]) -> Ties:
    """The score of a subset of ties; terms about pairs of prompts are over those of which both are there, or 0."""
    kinds: dict[str, dict[str, tuple[float, float]]] = {"ref": {}, "tied": {}}
    for each, own in zip(choices, scores, strict=True):
        kind, _, number = each.id.partition(":")
        right, wrong = own[: each.correct], own[each.correct :]
        kinds[kind][number] = float(right.max() - right.min()), float(right.min() - wrong.max())
    ref, tied = kinds["ref"], kinds["tied"]
    both = [number for number in tied if number in ref]
    spread = np.array([tied[number][0] for number in both])
    gap = np.array([tied[number][1] for number in both])
    hard = np.minimum(gap, [ref[number][1] for number in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        margins = np.nan_to_num(np.tanh(hard / spread - 1), nan=0.0)
    right_ref, right_tied = _share([value for _, value in ref.values()]), _share([value for _, value in tied.values()])
    preferred, preferred_hard = _share(gap - spread), _share(hard - spread)
    margin = float(margins.mean()) if both else 0.0
    score = 0.3 * right_tied + 0.3 * right_ref + 0.2 * preferred + 0.2 * preferred_hard + 0.01 * margin
    return Ties(right_ref, right_tied, preferred, preferred_hard, margin, score)


def _share(values: Sequence[float] | Floats) -> float:
    """Of numbers above 0; 0 of none."""
    return float(np.mean(np.asarray(values) > 0)) if len(values) else 0.0


def _rows(each: Choice, scores: Floats) -> list[dict[str, object]]:
    return [
        {
            "id": each.id,
            "subset": each.subset,
            "response": place,
            "correct": place < each.correct,
            "score": float(score),
        }
        for place, score in enumerate(scores)
    ]


def _readable(choices: Sequence[Choice], fits: Fits | None) -> list[Choice]:
    if fits is None:
        return [*choices]
    asked = [
        (place, Asked(each.prompt, each.context, response))
        for place, each in enumerate(choices)
        for response in each.responses
    ]
    read = fits([question for _, question in asked])
    too_long = {place for (place, _), fit in zip(asked, read, strict=True) if not fit}
    return [each for place, each in enumerate(choices) if place not in too_long]


def _choices(records: Iterator[Record], bad: BadRecords) -> Iterator[Choice]:
    met: set[tuple[str, str]] = set()
    for record in records:
        try:
            choice = to_choice(record.value, _id(record))
            if (choice.subset, choice.id) in met:
                raise FaultError(f"found the id {choice.id!r} of the subset {choice.subset!r} again, expected it once")
        except FaultError as fault:
            bad.report(record.place, str(fault), name=record.name)
            continue
        met.add((choice.subset, choice.id))
        yield choice


def _id(record: Record) -> str:
    found = record_id(record, "id")
    if found is None:
        raise FaultError(f"found {describe(record.value['id'])} in the field 'id', expected a string or integer")
    return found


def to_choice(value: dict[str, object], identifier: str) -> Choice:
    """One record of RewardBench 2's form.

    Raises:
        FaultError: a field that is not what it should be; of a subset of ties an id that says neither `ref:` nor
            `tied:`, or a number of correct responses that does not go with it.
    """
    prompt = text_of(value.get("prompt"), "prompt")
    if not prompt.strip():
        raise FaultError("found an empty string in the field 'prompt', expected text")
    chosen, rejected = (_texts(value.get(name), name) for name in ("chosen", "rejected"))
    subset = value.get("subset")
    name = text_of(subset, "subset").strip() if subset is not None else ""
    if name.lower() == TIES:
        kind, _, number = identifier.partition(":")
        if kind not in ("ref", "tied") or not number:
            raise FaultError(f"found the id {identifier!r} in the subset {name!r}, expected ref:NUMBER or tied:NUMBER")
        if (len(chosen) == 1) != (kind == "ref"):
            raise FaultError(
                f"found {len(chosen)} correct responses under the id {identifier!r}, expected one of ref: and more of"
                " tied:"
            )
    context = value.get("context")
    return Choice(
        identifier,
        name or "all",
        [{"role": "user", "content": prompt}],
        None if context is None else text_of(context, "context"),
        [*chosen, *rejected],
        len(chosen),
    )


def _texts(value: object, field: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise FaultError(f"found {describe(value)} in the field {field!r}, expected a list of responses")
    return [text_of(each, field) for each in value]
