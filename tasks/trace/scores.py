"""One model on one evaluation set: the probability of every token of prompt and output, and what it writes itself.

Nothing here depends on a corpus, on n or on gamma: each model is asked once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longloom.evals.longbench.metrics import qa_f1
from longloom.evals.matching import normalize_answer
from longloom.kernels.huggingface.greedy import greedy
from longloom.kernels.huggingface.load import load_model, window_of
from longloom.storage.parquet import FileWriter, read_table
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.trace.probabilities import TokenScores, score_texts
from longloom.tasks.trace.records import Record, load

#: One row a token; `begin` and `end` in characters of prompt and output together, `log_p` natural, null where nothing
#: stands before.
TOKENS = pa.schema(
    [("record", pa.int64()), ("begin", pa.int64()), ("end", pa.int64()), ("log_p", pa.float64()), ("cut", pa.bool_())]
)
#: One row a record: the greedy answer, F1 and exact match against the output as `rated` says.
GENERATIONS = pa.schema([("record", pa.int64()), ("text", pa.string()), ("f1", pa.float64()), ("exact", pa.float64())])

_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?\.?")


def build(
    model: Path | str,
    records: Path,
    out: Path,
    *,
    batch: int,
    new_tokens: int,
    device: str | None,
    dtype: str | None,
    progress: Progress = silent,
) -> Stats:
    """Writes `tokens.parquet` and `generations.parquet`.

    Args:
        model: a folder, or a name on the hub.
        records: from `records.build`.
        out: an empty folder.
        batch: texts at once.
        new_tokens: the most tokens of a generation; 0: none is made, the table has no rows.
        device, dtype: as `load_model` takes them.
        progress: called with records done and in all.

    Returns:
        Counts of records, tokens and records cut to the window; the model's number of parameters.

    Raises:
        ValueError: a model that cannot be loaded, a generation that leaves no room for a prompt.
    """
    network, tokenizer = load_model(model, device=device, dtype=dtype)
    window = window_of(network.config)
    if window is not None and new_tokens >= window:
        raise ValueError(f"new_tokens is {new_tokens}, expected less than the model's window of {window}")
    examples = load(records)
    texts = [record.prompt + record.output for record in examples]
    total = len(examples) * (2 if new_tokens else 1)
    scored = score_texts(network, tokenizer, texts, batch=batch, progress=lambda done, of: progress(done, total))
    with FileWriter(out / "tokens.parquet", TOKENS) as writer:
        for number, row in enumerate(scored):
            writer.write_table(_table(number, row))
    with FileWriter(out / "generations.parquet", GENERATIONS) as writer:
        for number, record in enumerate(examples if new_tokens else ()):
            text = _generate(network, tokenizer, record, new_tokens=new_tokens, window=window)
            writer.write([{"record": number, "text": text, **rated(text, record.output)}])
            progress(len(examples) + number + 1, total)
    return Stats(
        counts={
            "records": len(examples),
            "tokens": sum(len(row.logs) for row in scored),
            "cut": sum(row.cut for row in scored),
        },
        values={"parameters": sum(parameter.numel() for parameter in network.parameters())},
    )


def read_tokens(folder: Path) -> list[TokenScores]:
    """The scores that `build` wrote, one a record."""
    table = read_table(folder, "tokens", TOKENS.names)
    record, begins, ends = (table.column(name).to_numpy() for name in ("record", "begin", "end"))
    logs = table.column("log_p").to_numpy()
    cut = table.column("cut").to_numpy()
    edges = np.searchsorted(record, np.arange(record[-1] + 2))
    return [
        TokenScores(begins[low:high], ends[low:high], logs[low:high], bool(cut[low])) for low, high in pairwise(edges)
    ]


def read_generations(folder: Path) -> list[dict[str, Any]]:
    """The generations that `build` wrote, one a record, or none."""
    rows: list[dict[str, Any]] = read_table(folder, "generations", GENERATIONS.names).to_pylist()
    return rows


def _table(record: int, scores: TokenScores) -> pa.Table:
    size = len(scores.logs)
    return pa.table(
        [
            pa.array(np.full(size, record, np.int64)),
            pa.array(scores.begins),
            pa.array(scores.ends),
            pa.array(scores.logs, from_pandas=True),  # NaN is null
            pa.array(np.full(size, scores.cut)),
        ],
        schema=TOKENS,
    )


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    *,
    new_tokens: int,
    window: int | None,
) -> str:
    """The greedy answer; one line of it where the output is one line. The prompt's space at its end is the answer's."""
    ids: Sequence[int] = tokenizer(record.prompt.rstrip(" "), verbose=False)["input_ids"]
    if window is not None:
        ids = ids[-(window - new_tokens) :]
    new = greedy(model, ids, new_tokens=new_tokens, pad_token_id=tokenizer.pad_token_id)
    text = str(tokenizer.decode(new, skip_special_tokens=True)).strip(" ")
    lines = text.lstrip("\n").split("\n")
    return text if "\n" in record.output.strip() else lines[0]


def rated(text: str, output: str) -> dict[str, float]:
    """`f1` and `exact` of an answer: SQuAD's, unless its normalization would delete what the output says.

    Without punctuation -5 is 5 and 1.5 is 15; without articles "A" is nothing. An output that is a number is compared
    as a number, one of which nothing is left as it stands, white space around it apart; then both figures are 0 or 1.
    """
    number = _number(output)
    if number is not None:
        same = _number(text) == number
    elif not normalize_answer(output):
        same = text.strip() == output.strip()
    else:
        return {"f1": qa_f1(text, output), "exact": float(normalize_answer(text) == normalize_answer(output))}
    return {"f1": float(same), "exact": float(same)}


def _number(text: str) -> Decimal | None:
    """A text that is one number, with commas between thousands or without; the full stop of a sentence may follow."""
    plain = text.strip().replace("\N{MINUS SIGN}", "-")
    return Decimal(plain.replace(",", "").removesuffix(".")) if _NUMBER.fullmatch(plain) else None
