"""Targeted selection as in LESS (arXiv 2402.04333): the examples whose training steps most help a validation set.

    score(i) = max over validation sets V of  mean over v in V of  sum over checkpoints k of  w_k <train_ik, val_vk>

with unit rows: Adam's step on the training example against the plain gradient of the validation example (equation 3),
the mean within a subtask and the maximum over subtasks (section 4.2). The w_k are the training features' weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longloom.tasks.coreset.blas import one_thread
from longloom.tasks.coreset.ranking import DECIMALS, has_gradient, highest, spans
from longloom.tasks.coreset.registry import Pool, Selection
from longloom.tasks.coreset.rows import BLOCK_BYTES, Features
from longloom.tasks.progress import Progress, silent


@dataclass(frozen=True)
class Less:
    """See the module; all weights are 1. The mean is linear, so a validation set is its mean rows, one a checkpoint."""

    needs: ClassVar[frozenset[str]] = frozenset({"features", "targets"})

    def select(self, pool: Pool, budget: int, rng: np.random.Generator, *, progress: Progress = silent) -> Selection:
        """See `registry.Method`; rows of zeros come last; progress counts examples scored.

        Raises:
            ValueError: no validation set, one of another shape than the features, one without a gradient, or all rows
                are zero.
        """
        assert pool.features is not None
        assert pool.targets is not None
        if not pool.targets:
            raise ValueError("less: found no validation set, expected at least one")
        with one_thread():  # the order of sums must not depend on the number of threads
            means = np.stack(
                [_mean(name, target, pool.features) for name, target in sorted(pool.targets.items())]
            )  # [sets, checkpoints, d]
            scores = _scores(pool.features, means, progress)
        mask = has_gradient(pool.features, method="less")
        found = highest(np.where(mask, scores, np.nan), budget, method="less", missing="gradient")
        return Selection(found.indices, found.weights, None, found.counts | {"targets": len(means)}, found.notes)


def _mean(name: str, target: Features, features: Features) -> np.ndarray:
    """The mean row of a validation set at each checkpoint, over its examples with a gradient: float64 [k, d]."""
    checkpoints, dimension = len(features.weights), features.shape[1]
    if (len(target.weights), target.shape[1]) != (checkpoints, dimension):
        raise ValueError(
            f"less: validation set {name!r} has {len(target.weights)} checkpoints of {target.shape[1]} dimensions, "
            f"expected {checkpoints} of {dimension}, as the features have"
        )
    result = np.zeros((checkpoints, dimension))
    for number in range(checkpoints):
        known = 0
        for start, stop in _steps(target):
            rows = target.checkpoint(number, start, stop)
            result[number] += rows.sum(axis=0, dtype=np.float64)
            known += int(rows.any(axis=1).sum())
        if not known:
            raise ValueError(
                f"less: validation set {name!r} has no gradient in {target.shape[0]} examples, expected at least one"
            )
        result[number] /= known
    return result


def _scores(features: Features, means: np.ndarray, progress: Progress) -> np.ndarray:
    """The best set's score of each row, float64 [n]."""
    scores = np.empty(features.shape[0])
    for start, stop in _steps(features):
        sums = np.zeros((stop - start, len(means)))
        for number, weight in enumerate(features.weights):
            sums += weight * (features.checkpoint(number, start, stop).astype(np.float64) @ means[:, number].T)
        scores[start:stop] = np.round(sums, DECIMALS).max(axis=1)
        progress(stop, len(scores))
    return scores


def _steps(features: Features) -> list[tuple[int, int]]:
    """Rows in blocks of at most 64 MiB of float64."""
    return list(spans(features.shape[0], max(1, BLOCK_BYTES // (8 * max(1, features.shape[1])))))
