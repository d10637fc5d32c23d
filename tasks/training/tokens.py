"""A corpus as one stream of token ids on disk: end-of-document, document, end-of-document, document, ..."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from longloom.storage.parquet import iter_batches

#: Documents encoded at once; the Rust tokenizer works on them in parallel.
BATCH = 256


def write_tokens(corpus: Path, tokenizer: PreTrainedTokenizerBase, path: Path) -> npt.NDArray[np.uint32]:
    """Encodes a corpus artifact into a file of little-endian u32.

    Args:
        corpus: a corpus artifact.
        tokenizer: its eos token is put before each document.
        path: the file to write.

    Returns:
        The stream [N], memory-mapped.

    Raises:
        ValueError: the tokenizer has no eos token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer: has no eos token, expected one to put between documents")
    with path.open("wb") as file:
        for batch in iter_batches(corpus, "documents", columns=["text"], batch_size=BATCH):
            encoded = tokenizer(batch.column("text").to_pylist(), add_special_tokens=False)["input_ids"]
            for ids in encoded:
                file.write(np.array([tokenizer.eos_token_id, *ids], dtype="<u4").tobytes())
    return np.memmap(path, dtype="<u4", mode="r")
