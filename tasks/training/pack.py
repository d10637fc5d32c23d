"""The pool of a context extension: long documents upsampled, everything packed into rows, every token accounted for.

A stage of its own: a dry run ends here, and a training with another learning rate packs nothing again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import AutoConfig

from longloom.kernels.huggingface.load import load_tokenizer
from longloom.storage.parquet import FileWriter, iter_batches, read_table
from longloom.storage.stats import Stats
from longloom.tasks.ngrams.encode import Encoder, TokenizerEncoder
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.accounting import account
from longloom.tasks.training.packing import Rows, open_rows, parting, write_stream
from longloom.tasks.training.stored import window_of
from longloom.tasks.training.upsampling import draw

ROWS_FILE, ACCOUNTING = "rows.bin", "accounting.json"
#: A row a drawn document: where it begins in the stream, with what stands before it.
DOCUMENTS = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("tokens", pa.int64()), ("start", pa.int64()), ("pass", pa.int64())]
)
#: Documents encoded at once; the Rust tokenizer works on them in parallel.
BATCH = 256

Integers = npt.NDArray[np.int64]


def build(
    model: Path,
    corpus: Path,
    out: Path,
    *,
    length: int,
    separator: str,
    text: str,
    long: int | None,
    short_share: float,
    tokens: int | None,
    seed: int,
    progress: Progress = silent,
) -> Stats:
    """Writes `rows.bin` (u32 [rows, length]), `documents.parquet` and `accounting.json`.

    Args:
        model: a model folder, for its tokenizer and window.
        corpus: a corpus artifact.
        out: an empty folder.
        length: of a row: the new window.
        separator: what parts documents (tasks/training/packing.py).
        text: of the separator `text`.
        long: documents of so many tokens or more are upsampled; None: the model's window, as Fu et al.'s 4,096.
        short_share: of the others, taken in a pass over a source (tasks/training/upsampling.py).
        tokens: of the pool, without separators; None: as many as the corpus has.
        seed: of the draws.
        progress: documents read.

    Raises:
        ValueError: a length below 2; an unknown separator, or one that the tokenizer lacks; a pool that fills no row.
    """
    if length < 2:
        raise ValueError(f"length is {length}, expected at least 2 tokens: the first of a row is never predicted")
    tokenizer = load_tokenizer(model)
    encoder = TokenizerEncoder(model)
    around = parting(
        separator, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, text=encoder.encode([text])[0].tolist()
    )
    if long is None:
        long = window_of(AutoConfig.from_pretrained(model))
    ids, sources, lengths = _encode(corpus, encoder, out / "tokens.bin", progress)
    draws = draw(lengths, sources, long=long, short_share=short_share, tokens=tokens, seed=seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    encoded = np.memmap(out / "tokens.bin", dtype="<u4", mode="r")
    starts, stream = write_stream(encoded, offsets, draws.documents, around, out / ROWS_FILE, length=length)
    (out / "tokens.bin").unlink()
    if stream < length:
        longest = int(lengths.max())
        raise ValueError(
            f"corpus: a pool of {stream:,} tokens was drawn (the longest document has {longest:,}), expected at least"
            f" one row of {length:,}; ask for more tokens or a shorter row"
        )
    numbers = account(lengths, sources, draws, starts, stream=stream, length=length, long=long)
    numbers |= {"separator": separator, "text": text if separator == "text" else None, "short_share": short_share}
    (out / ACCOUNTING).write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with FileWriter(out / "documents.parquet", DOCUMENTS) as writer:
        for begin in range(0, len(starts), BATCH):
            part = slice(begin, begin + BATCH)
            columns = {
                "id": [ids[each] for each in draws.documents[part].tolist()],
                "source": [sources[each] for each in draws.documents[part].tolist()],
                "tokens": lengths[draws.documents[part]],
                "start": starts[part],
                "pass": draws.passes[part],
            }
            writer.write_table(pa.table(columns, schema=DOCUMENTS))
    rows = numbers["rows"]
    return Stats(
        counts={"documents": len(starts), "rows": rows["rows"], "length": length, "tokens": rows["tokens"]},
        values={name: numbers[name] for name in ("corpus", "pool", "rows")},
    )


def read_rows(packed: Path) -> tuple[Rows, dict[str, Any]]:
    """The rows of a packed artifact and its accounting."""
    numbers: dict[str, Any] = json.loads((packed / ACCOUNTING).read_text(encoding="utf-8"))
    starts = read_table(packed, "documents", columns=["start"])["start"].to_numpy()
    masked = numbers["separator"] == "mask"
    return open_rows(packed / ROWS_FILE, starts, length=numbers["length"], masked=masked), numbers


def _encode(corpus: Path, encoder: Encoder, path: Path, progress: Progress) -> tuple[list[str], list[str], Integers]:
    """Writes all documents' tokens as u32; their ids, sources and lengths."""
    ids: list[str] = []
    sources: list[str] = []
    lengths: list[int] = []
    with path.open("wb") as file:
        for batch in iter_batches(corpus, "documents", columns=["id", "source", "text"], batch_size=BATCH):
            ids += batch.column("id").to_pylist()
            sources += [source or "" for source in batch.column("source").to_pylist()]
            for tokens in encoder.encode(batch.column("text").to_pylist()):
                file.write(tokens.astype("<u4").tobytes())
                lengths.append(len(tokens))
            progress(len(lengths), None)
    return ids, sources, np.array(lengths, np.int64)
