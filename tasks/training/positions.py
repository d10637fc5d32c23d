"""Perplexity by position: how well a model predicts text at every depth of a context, under a KV policy.

The context is cut into equal stretches. Of each the second half is predicted, so that the first has a context too, and
the same texts are read whatever the model and the policy. Before each stands what the tokenizer puts before a text
(a bos token, for most), as the model has seen it in training; it is not predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.registry import get_policy
from longloom.storage.parquet import iter_batches
from longloom.storage.stats import Stats
from longloom.tasks.longcontext.perplexity import perplexity_at
from longloom.tasks.ngrams.encode import TokenizerEncoder
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.sft import opening

#: Stretches of a context.
STRETCHES = 16
#: Perplexity of the tokens `first` to `last` of the texts, counted from 0.
SCHEMA = pa.schema(
    [("first", pa.int64()), ("last", pa.int64()), ("predicted", pa.int64()), ("perplexity", pa.float64())]
)


def build(
    model: Path,
    corpus: Path,
    out: Path,
    *,
    length: int,
    texts: int,
    policy: str,
    options: Mapping[str, Any],
    progress: Progress = silent,
) -> Stats:
    """Writes `positions.parquet`, a row a stretch.

    Args:
        model: a model folder.
        corpus: a corpus artifact that the model was not trained on.
        out: the artifact's folder.
        length: of the contexts, in tokens of the corpus; may exceed the model's window.
        texts: contexts, at equal distances in the corpus.
        policy, options: the KV policy.
        progress: texts read, and in all.

    Raises:
        ValueError: a length of fewer than two tokens a stretch; a corpus shorter than it; a model or policy that cannot
            read so.
    """
    if length < 4 * STRETCHES:
        raise ValueError(
            f"length is {length}, expected at least {4 * STRETCHES} to measure {STRETCHES} stretches of it"
        )
    network, tokenizer = load_model(model)
    stream = _stream(corpus, TokenizerEncoder(model), tokenizer.eos_token_id)
    if len(stream) < length:
        raise ValueError(f"corpus: {len(stream):,} tokens to measure with, expected at least {length:,}")
    begins = np.linspace(0, len(stream) - length, texts).astype(int).tolist()
    ends = [length * (number + 1) // STRETCHES for number in range(STRETCHES)]
    tokens = length // STRETCHES // 2
    before = opening(tokenizer)
    found = perplexity_at(
        network,
        [before + stream[begin : begin + length].tolist() for begin in begins],
        [len(before) + end for end in ends],
        tokens=tokens,
        policy=get_policy(policy, **options),
        progress=progress,
    )
    rows = [
        {"first": end - tokens, "last": end - 1, "predicted": tokens * texts, "perplexity": perplexity}
        for end, perplexity in zip(ends, found, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "positions.parquet", compression="zstd")
    return Stats(
        counts={"length": length, "texts": texts, "predicted": tokens * texts * STRETCHES},
        values={"window": network.config.get_text_config().max_position_embeddings, "perplexity": found},
    )


def _stream(corpus: Path, encoder: TokenizerEncoder, end: int | None) -> np.ndarray:
    """The corpus's tokens [N], documents parted by the end token where there is one."""
    parts = []
    for batch in iter_batches(corpus, "documents", columns=["text"], batch_size=256):
        for ids in encoder.encode(batch.column("text").to_pylist()):
            parts += [ids] if end is None else [ids, np.array([end], ids.dtype)]
    return np.concatenate(parts)
