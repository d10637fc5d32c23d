"""Scores of comparisons by any scorer: each distinct question is asked once, and equal ones get equal scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longloom.tasks.preference.encoding import Asked
from longloom.tasks.preference.rows import Row
from longloom.tasks.preference.scorer import Scorer
from longloom.tasks.progress import Progress, silent

if TYPE_CHECKING:
    from longloom.tasks.preference.scorer import RewardScorer

Floats = NDArray[np.float64]
#: Which questions the scorer can read.
Fits = Callable[[Sequence[Asked]], Sequence[bool]]


def fits_of(scorer: RewardScorer) -> Fits:
    """Which questions are no longer than a reward model reads."""
    return lambda asked: [len(ids) <= scorer.reading.max_length for ids in scorer.encode(asked)]


class Memory:
    """A scorer that remembers.

    On a reversal set the two orders of a pair are the same two questions: asked once, and so, whatever a device's
    arithmetic does with batches, exactly as often right as wrong without a context.

    Args:
        scorer: any.
        fits: which questions it can read; None: all.
        progress: of all that is asked at once.
    """

    def __init__(self, scorer: Scorer, fits: Fits | None = None, *, progress: Progress = silent) -> None:
        self._scorer = scorer
        self._fits = fits
        self._progress = progress
        self._known: dict[tuple[str, str | None, str], float] = {}

    def readable(self, rows: Sequence[Row], contexts: Sequence[Sequence[str | None]]) -> list[Row]:
        """The rows of which both responses can be read in each of the contexts beside the row.

        With a row that cannot be read go the others of the same two responses: one order of a reversal without the
        other would tell whoever does not look at the context which is chosen.
        """
        if self._fits is None:
            return [*rows]
        asked = [
            (place, Asked(row.prompt, context, response))
            for place, (row, own) in enumerate(zip(rows, contexts, strict=True))
            for context in own
            for response in (row.chosen, row.rejected)
        ]
        read = self._fits([question for _, question in asked])
        too_long = {rows[place].pair for (place, _), fit in zip(asked, read, strict=True) if not fit}
        return [row for row in rows if row.pair not in too_long]

    def ask(self, rows: Sequence[Row], contexts: Sequence[str | None]) -> tuple[Floats, Floats]:
        """Scores of each row's chosen and rejected response in the context beside it: [n] and [n].

        Raises:
            ValueError: a score that is not finite; names the comparison.
        """
        keys = [
            (row.asked, context, response)
            for row, context in zip(rows, contexts, strict=True)
            for response in (row.chosen, row.rejected)
        ]
        new: dict[tuple[str, str | None, str], Row] = {}
        for place, key in enumerate(keys):
            if key not in self._known:
                new.setdefault(key, rows[place // 2])
        asked = [Asked(row.prompt, context, response) for (_, context, response), row in new.items()]
        if asked:
            found = np.asarray(self._scorer(asked, progress=self._progress), dtype=np.float64)
            assert found.shape == (len(asked),), "a scorer scores every question"
            for row, score in zip(new.values(), found, strict=True):
                if not np.isfinite(score):
                    raise ValueError(
                        f"comparison {row.id!r}: found the score {score}, expected a number; is the model sound?"
                    )
            self._known |= zip(new, map(float, found), strict=True)
        scores = np.array([self._known[key] for key in keys]).reshape(-1, 2)
        return scores[:, 0], scores[:, 1]

    def margins(self, rows: Sequence[Row], contexts: Sequence[str | None]) -> Floats:
        """How much better the chosen response is of every row in every context: [n, Z]."""
        every = [context for _ in rows for context in contexts]
        chosen, rejected = self.ask([row for row in rows for _ in contexts], every)
        return (chosen - rejected).reshape(len(rows), len(contexts))
