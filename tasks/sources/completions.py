"""Greedy continuations of pieces of the corpus by a model: texts whose source is known, to be explained by the index.

samples.parquet   one row a completion: the document that the prompt comes from, the prompt, what the model wrote

The table has an evaluation's columns too, so that `explain` reads it as one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longloom.kernels.huggingface.greedy import greedy
from longloom.kernels.huggingface.load import load_model, window_of
from longloom.storage.parquet import FileWriter, files_of
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent

SUITE, POLICY = "completion", "greedy"

#: `task` is the document's id; `sample` counts the completions.
SAMPLES = pa.schema(
    [
        *((name, pa.string()) for name in ("suite", "task", "policy")),
        ("sample", pa.int64()),
        *((name, pa.string()) for name in ("source", "prompt", "prediction")),
        *((name, pa.int64()) for name in ("prompt_tokens", "new_tokens")),
    ]
)


def build(
    model: Path,
    corpus: Path,
    out: Path,
    *,
    count: int,
    prompt_tokens: int,
    new_tokens: int,
    seed: int,
    device: str | None,
    progress: Progress = silent,
) -> Stats:
    """Writes `samples.parquet`.

    Args:
        model: a model's folder with its tokenizer.
        corpus: a corpus artifact.
        out: an empty folder.
        count: completions at most, each of another document.
        prompt_tokens: of a prompt, at most; fewer where the document or the model's window has no room for them.
        new_tokens: that the model writes, at most.
        seed: of the draw of documents and places; nothing about the documents' content decides.
        device: as `load_model` takes it.
        progress: told the completions made.

    Returns:
        Counts of completions.

    Raises:
        ValueError: a window without room, or no document that is long enough.
    """
    network, tokenizer = load_model(model, device=device)
    window = window_of(network.config)
    room = prompt_tokens if window is None else min(prompt_tokens, window - new_tokens)
    if room < 1:
        raise ValueError(f"new_tokens is {new_tokens}, expected less than the model's window of {window}")
    rng = random.Random(f"{seed}/completions")
    rows: list[dict[str, Any]] = []
    for name, source, text in _documents(corpus, rng):
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) < 2 * new_tokens:  # hardly anything to go on from
            continue
        size = min(room, len(ids) - new_tokens)
        begin = rng.randrange(len(ids) - size - new_tokens + 1)
        prompt = ids[begin : begin + size]
        new = greedy(network, prompt, new_tokens=new_tokens, pad_token_id=tokenizer.pad_token_id)
        rows.append(
            {
                "suite": SUITE,
                "task": name,
                "policy": POLICY,
                "sample": len(rows),
                "source": source,
                "prompt": tokenizer.decode(prompt),
                "prediction": tokenizer.decode(new, skip_special_tokens=True),
                "prompt_tokens": size,
                "new_tokens": len(new),
            }
        )
        progress(len(rows), count)
        if len(rows) == count:
            break
    if not rows:
        raise ValueError(f"corpus: found no document of at least {2 * new_tokens} tokens to continue, expected one")
    with FileWriter(out / "samples.parquet", SAMPLES) as writer:
        writer.write(rows)
    return Stats(counts={"completions": len(rows)})


def _documents(corpus: Path, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Id, source and text of the documents in a random order, read one row group at a time."""
    files = files_of(corpus, "documents")
    places = []
    for file in files:
        metadata = pq.ParquetFile(file).metadata
        for group in range(metadata.num_row_groups):
            places += [(file, group, row) for row in range(metadata.row_group(group).num_rows)]
    for file, group, row in rng.sample(places, len(places)):
        with pq.ParquetFile(file) as opened:
            table = opened.read_row_group(group, columns=["id", "source", "text"])
        found = table.slice(row, 1).to_pylist()[0]
        yield found["id"], found["source"], found["text"]
