"""Head scores that others published, read into scores of a model's KV heads [layers, KV heads].

Formats, as the authors' repositories write them (read there in the code, and for the first two in released files):
- DuoAttention (arXiv 2410.10819, mit-han-lab/duo-attention): `full_attention_heads.tsv`, a row a layer and a column a
  KV head, the gate alpha of each; its loader clips them to 0..1, and so does this.
- Retrieval_Head (arXiv 2404.15574, nightdessert/Retrieval_Head): JSON {"layer-head": [score of each detection, ...]},
  a query head each; its README ranks by the mean. A KV head takes the maximum over its group, as in RazorAttention.
- KVzip (arXiv 2505.23416, snu-mllab/KVzip): `utils/head_score/*.pt`, a tensor of torch [layers, KV heads], squeezed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longloom.kernels.kvcache.heads import Scores
from longloom.kernels.torch_file import are_numbers, load_plain
from longloom.storage.json_text import read_json

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Heads:
    """How many heads a model has."""

    layers: int
    query: int
    kv: int


def read_scores(path: Path, layout: str, heads: Heads) -> Scores:
    """Scores of every KV head, the larger the more it looks things up.

    Args:
        path: the file.
        layout: "duoattention", "retrieval-head" or "kvzip".
        heads: of the model that they are to fit.

    Raises:
        ValueError: an unknown layout; a file that cannot be read as it; scores of other heads than the model's, or such
            as are not finite.
    """
    if layout not in _READERS:
        raise ValueError(f"unknown layout of head scores {layout!r}; known: {', '.join(sorted(_READERS))}")
    if not path.exists():
        raise FileNotFoundError(f"head scores {path}: no such file")
    if path.is_dir():
        raise ValueError(f"head scores {path}: is a folder, expected one file")
    scores = _READERS[layout](path, heads)
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        layer, head = wrong[0].tolist()
        raise ValueError(
            f"head scores {path}: KV head {head} of layer {layer} has {scores[layer, head]}, expected finite scores"
        )
    return tuple(tuple(row) for row in scores.tolist())


def _duoattention(path: Path, heads: Heads) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty file is refused below
            gates = np.loadtxt(path, dtype=np.float64, delimiter="\t", ndmin=2)
    except ValueError as error:
        raise ValueError(f"head scores {path}: {error}, expected numbers separated by tabs, a line a layer") from None
    if gates.shape != (heads.layers, heads.kv):
        raise _misfit(path, gates.shape, heads)
    gates[np.isfinite(gates)] = gates[np.isfinite(gates)].clip(0, 1)
    return gates


def _retrieval_head(path: Path, heads: Heads) -> Array:
    content = read_json(path, expected="one JSON object of head scores")
    if not isinstance(content, Mapping):
        raise ValueError(f'head scores {path}: found no JSON object, expected {{"layer-head": [scores], ...}}')
    expected = {f"{layer}-{head}": (layer, head) for layer in range(heads.layers) for head in range(heads.query)}
    if strange := sorted(content.keys() ^ expected.keys()):
        name = strange[0]
        raise ValueError(
            f"head scores {path}: {'has' if name in content else 'lacks'} {name!r:.60}, expected the "
            f"{heads.query} query heads of each of the model's {heads.layers} layers"
        )
    means = np.empty((heads.layers, heads.query))
    for name, place in expected.items():
        detections = content[name]
        if not isinstance(detections, list) or not detections or not all(map(_is_number, detections)):
            raise ValueError(f"head scores {path}: {name!r} holds {detections!r:.60}, expected a list of numbers")
        means[place] = math.fsum(detections) / len(detections) if all(map(math.isfinite, detections)) else math.nan
    best: Array = means.reshape(heads.layers, heads.kv, -1).max(axis=2)
    return best


def _kvzip(path: Path, heads: Heads) -> Array:
    scores = load_plain(path, f"head scores {path}")
    if not are_numbers(scores):
        raise ValueError(f"head scores {path}: holds a {type(scores).__name__}, expected a tensor of real numbers")
    expected = (heads.layers, heads.kv)
    if tuple(scores.squeeze().shape) != tuple(size for size in expected if size != 1):
        raise _misfit(path, tuple(scores.shape), heads)
    return np.array(scores.detach().reshape(expected).tolist(), dtype=np.float64)


def _is_number(value: Any) -> bool:
    """A float, or an integer that a float can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**53)


def _misfit(path: Path, found: tuple[int, ...], heads: Heads) -> ValueError:
    shape = " x ".join(map(str, found)) or "a single number"
    return ValueError(
        f"head scores {path}: has the shape {shape}, expected the model's {heads.layers} layers x {heads.kv} KV heads"
    )


_READERS: dict[str, Callable[[Path, Heads], Array]] = {
    "duoattention": _duoattention,
    "kvzip": _kvzip,
    "retrieval-head": _retrieval_head,
}
