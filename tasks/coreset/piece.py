"""One cluster's share of TAGCOS, wherever it is done: a worker needs neither k-means nor a model for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from longloom.tasks.coreset.blas import one_thread
from longloom.tasks.coreset.pursuit import Picks, pursue, released
from longloom.tasks.coreset.rows import Features, Held
from longloom.tasks.coreset.subset import Subset

#: Bytes of float32 rows of a cluster that are held together; those of a larger one are read anew in each pass.
HELD_BYTES = 256 << 20


@dataclass(frozen=True)
class Piece:
    """A cluster to pursue, wherever that may be.

    Attributes:
        features: of all examples.
        members: int64 [m], the cluster's examples.
        centroid: float64 [d].
        quota: 1 to m.
        mode: default or released.
    """

    features: Features
    members: np.ndarray
    centroid: np.ndarray
    quota: int
    mode: str


def pursued(piece: Piece) -> Picks:
    """What one cluster gives (indices: places in `members`), with its weights before they are scaled over all."""
    members = len(piece.members)
    small = 4 * members * piece.features.shape[1] <= HELD_BYTES
    rows = Held(piece.features.take(piece.members)) if small else Subset(piece.features, piece.members)
    with one_thread():
        if piece.mode == "released":
            indices = released(rows, piece.centroid, piece.quota)
            return Picks(indices, np.ones(len(indices)), 0)
        picks = pursue(rows, piece.centroid, piece.quota)
    return replace(picks, weights=picks.weights * (members / picks.weights.sum()))
