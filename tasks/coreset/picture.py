"""A picture of a selection: gradient features on their two principal axes, so that a report need not read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.linalg import eigh

from longloom.tasks.coreset.blas import one_thread
from longloom.tasks.coreset.rows import Features, blocks

#: Examples drawn for the picture; the axes are theirs. More dots than that hide each other, and weigh on the page.
POOL = 2000
#: Chosen examples drawn besides, of those that the first draw left out.
CHOSEN = 500

MAP = pa.schema(
    [
        ("index", pa.int64()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("cluster", pa.int32()),
        ("chosen", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Picture:
    """What to draw.

    Attributes:
        dots: by index, as `MAP`.
        examples: of the pool, with a gradient.
        drawn: of them, at random; what is chosen of the others comes besides.
        variance: the share of the variance that the two axes hold, of the examples drawn.
    """

    dots: pa.Table
    examples: int
    drawn: int
    variance: float


def picture(features: Features, clusters: np.ndarray, chosen: np.ndarray, *, seed: int) -> Picture:
    """Draws examples and lays them on the axes of the greatest variance.

    The first draw and the axes depend on features and seed alone, so the pictures of several methods lie over each
    other. Examples without a gradient are left out.

    Args:
        features: of n examples.
        clusters: int32 [n], -1 for none.
        chosen: int64, the rows chosen.
        seed: of the draws.
    """
    alive = np.concatenate([np.flatnonzero(rows.any(axis=1)) + start for start, rows in blocks(features)])
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(alive, min(POOL, len(alive)), replace=False))
    others = np.setdiff1d(np.intersect1d(chosen, alive), drawn)
    others = rng.choice(others, min(CHOSEN, len(others)), replace=False)
    with one_thread():  # the order of sums must not depend on the number of threads
        rows = features.take(drawn).astype(np.float64)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(features.shape[1])
        axes, variance = _axes(rows - mean)
        indices = np.sort(np.concatenate([drawn, others])).astype(np.int64)
        places = (features.take(indices).astype(np.float64) - mean) @ axes
    picked = np.isin(indices, chosen)
    columns = [indices, places[:, 0].astype(np.float32), places[:, 1].astype(np.float32), clusters[indices], picked]
    return Picture(pa.table([pa.array(column) for column in columns], schema=MAP), len(alive), len(drawn), variance)


def _axes(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The two principal axes of centred rows, float64 [d, 2], zeros where there is no variance; and their share of it.

    From the rows' inner products, of which there are fewer than of the dimensions'. The entry of a row that reaches
    farthest is positive, so that the axes do not turn round.
    """
    axes = np.zeros((rows.shape[1], 2))
    gram = rows @ rows.T
    total, held = float(np.trace(gram)), 0.0
    if len(rows) < 2 or total <= 0:
        return axes, 0.0
    values, vectors = eigh(gram, subset_by_index=[len(rows) - 2, len(rows) - 1])
    for column in (0, 1):
        value, vector = values[1 - column], vectors[:, 1 - column]
        if value <= 1e-12 * total:
            continue
        axes[:, column] = rows.T @ vector / np.sqrt(value) * np.sign(vector[np.argmax(np.abs(vector))])
        held += float(value)
    return axes, held / total
