"""Embeddings of n-grams: any model of sentence-transformers, or the input embeddings of a language model, averaged.

The second needs no download and no second model. Each vector is the mean over the n-gram's tokens of the model's input
embeddings, less their mean over the vocabulary: that common direction says nothing and makes all cosines large (Mu and
Viswanath, arXiv 1702.01417). Cosines of other embeddings lie elsewhere, so gamma has to be looked at (sensitivity.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longloom.tasks.trace.names import INPUT_EMBEDDINGS

#: Texts -> unit vectors (or zero), float32 [texts, d].
Embed = Callable[[Sequence[str]], np.ndarray]


def embedder(name: str, model: Path | None) -> Embed:
    """What embeds n-grams.

    Args:
        name: a folder or the hub's name of a model of sentence-transformers, or INPUT_EMBEDDINGS.
        model: whose input embeddings are meant.

    Raises:
        ValueError: it cannot be loaded.
    """
    if name != INPUT_EMBEDDINGS:
        from longloom.tasks.retrieval.encoder import Encoder

        return Encoder(name, query_prefix=None, device=None).queries
    assert model is not None
    return _averaged(model)


def _averaged(folder: Path) -> Embed:
    from longloom.kernels.huggingface.load import load_model

    model, tokenizer = load_model(folder, device="cpu", dtype="float32")
    embedding: Any = model.get_input_embeddings()
    weights = embedding.weight.detach().numpy()  # [V, d]
    centred = weights - weights.mean(axis=0)

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), centred.shape[1]), np.float32)
        for row, ids in zip(rows, _ids(tokenizer, texts), strict=True):
            if ids:
                row += centred[ids].mean(axis=0)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(norms > 0, norms, 1)

    return embed


def _ids(tokenizer: Callable[..., Any], texts: Sequence[str]) -> list[list[int]]:
    """With a space before each, as in running text."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    return found
