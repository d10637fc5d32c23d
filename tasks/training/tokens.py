"""A corpus as one stream of token ids on disk: end-of-document, document, end-of-document, document, ..."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from longloom.storage.parquet import iter_batches
from longloom.tasks.ngrams.encode import Encoder

#: Documents encoded at once; the Rust tokenizer works on them in parallel.
BATCH = 256


def write_tokens(corpus: Path, encoder: Encoder, path: Path, *, end: int) -> npt.NDArray[np.uint32]:
    """Encodes a corpus artifact into a file of little-endian u32.

    Args:
        corpus: a corpus artifact.
        encoder: the index's, so that the model meets the tokens that are counted there.
        path: the file to write.
        end: the id put before each document.

    Returns:
        The stream [N], memory-mapped.
    """
    with path.open("wb") as file:
        for batch in iter_batches(corpus, "documents", columns=["text"], batch_size=BATCH):
            for ids in encoder.encode(batch.column("text").to_pylist()):
                file.write(np.array([end], "<u4").tobytes() + ids.astype("<u4").tobytes())
    return np.memmap(path, dtype="<u4", mode="r")
