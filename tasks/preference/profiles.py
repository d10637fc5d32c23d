"""A profile inferred from k of its preferences: which candidate context explains them best.

arXiv 2407.14916 asks whether a context inferred from a few samples of a user's preferences is of use for further ones
(useful at k = 2, better with more). There a language model writes the profile; here it is chosen from a list by the
reward model itself: p(z | samples) is p(z) times the Bradley-Terry probabilities of the samples in context z. A profile
is a context that several comparisons have, or several wordings of one, where the comparisons bring a list of those.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longloom.storage.json_text import read_json
from longloom.tasks.preference.accuracy import credit, mean
from longloom.tasks.preference.rows import Row

Floats = NDArray[np.float64]

#: A comparisons artifact may bring a list of contexts and the profiles that they are wordings of.
LIST = "profiles.json"
#: Comparisons that an inferred context is judged by, at least; and at most, for each is scored in all contexts.
LEAST, MOST = 2, 8
#: Profiles at most, the most frequent ones.
PROFILES = 16
#: Draws of the samples for each profile.
DRAWS = 50


@dataclass(frozen=True)
class Point:
    """Accuracies on a profile's other comparisons, the mean over profiles and draws, with intervals over profiles.

    Attributes:
        k: samples that the context was inferred from.
        inferred, inferred_low, inferred_high: in the likeliest context; of several the mean.
        weighted, weighted_low, weighted_high: by the expected utility over all contexts.
        recovered: how often the likeliest context is the profile's own; of several equally likely ones their share.
    """

    k: int
    inferred: float | None
    inferred_low: float | None
    inferred_high: float | None
    weighted: float | None
    weighted_low: float | None
    weighted_high: float | None
    recovered: float


def read_profiles(comparisons: Path) -> dict[str, str]:
    """The list that a comparisons artifact brings; {}: none (ValueError: it holds something else)."""
    path = comparisons / LIST
    if not path.exists():
        return {}
    found = read_json(path, expected="a JSON object of contexts and their profiles")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"{path}: found something else, expected a JSON object of contexts and their profiles")
    return found


def profiles_of(
    rows: Sequence[Row], ks: Sequence[int], named: Mapping[str, str]
) -> tuple[list[int], dict[str, list[int]]]:
    """The samples that can be drawn, and the profiles with comparisons enough for them, by their rows.

    A profile is told by its most frequent context, of equally frequent ones the first by its text. A k that fewer than
    two profiles have enough for is left out; every k is judged by the same profiles.

    Args:
        rows: comparisons; ties and those without a context are passed over.
        ks: samples.
        named: context -> profile; a context that is not there is a profile of its own.

    Returns:
        The ks, ascending, and context -> places.
    """
    by_name: dict[str, list[int]] = defaultdict(list)
    times: dict[str, Counter[str]] = defaultdict(Counter)
    for place, row in enumerate(rows):
        if row.context is not None and not row.tie:
            name = named.get(row.context, row.context)
            by_name[name].append(place)
            times[name][row.context] += 1
    of = {min(times[name], key=lambda text: (-times[name][text], text)): places for name, places in by_name.items()}
    sizes = [len(places) for places in of.values()]
    kept = sorted({k for k in ks if sum(size >= k + LEAST for size in sizes) >= 2})
    if not kept:
        return [], {}
    own = {name: places for name, places in of.items() if len(places) >= kept[-1] + LEAST}
    chosen = sorted(own, key=lambda name: (-len(own[name]), name))[:PROFILES]
    return kept, {name: own[name][: kept[-1] + MOST] for name in chosen}


def curve(margins: Sequence[Floats], ks: Sequence[int], *, seed: int) -> list[Point]:
    """A point for no sample and for each k.

    Args:
        margins: of each of Z profiles, [m, Z]: its comparisons in the context of every profile. Beforehand all
            profiles are equally likely.
        ks: ascending; each profile has more comparisons than the last.
        seed: of the draws.
    """
    values: dict[int, list[list[Floats]]] = {k: [] for k in (0, *ks)}
    for number, profile in enumerate(margins):
        rng = np.random.default_rng([seed, number])
        likely = -np.logaddexp(0, -profile)  # [m, Z], log of the Bradley-Terry probability
        drawn: dict[int, list[Floats]] = {k: [] for k in values}
        for _ in range(DRAWS):
            order = rng.permutation(len(profile))
            rest = profile[order[ks[-1] :]]  # the same for every k
            for k in values:
                drawn[k].append(_outcome(likely[order[:k]].sum(axis=0), rest, number))
        for k, found in drawn.items():
            values[k].append(found)
    return [_point(k, np.array(found).mean(axis=1)) for k, found in values.items()]


def _outcome(log_posterior: Floats, rest: Floats, own: int) -> Floats:
    """Accuracy in the likeliest context, accuracy weighted, and whether the own context is the likeliest."""
    best = np.flatnonzero(log_posterior == log_posterior.max())
    weights = np.exp(log_posterior - log_posterior.max())
    weighted = credit((rest * (weights / weights.sum())).sum(axis=1)).mean()
    return np.array([credit(rest[:, best]).mean(), weighted, (own in best) / len(best)])


def _point(k: int, found: Floats) -> Point:
    """found: [profiles, 3]."""
    each = range(len(found))
    return Point(k, *mean(found[:, 0], each), *mean(found[:, 1], each), float(found[:, 2].mean()))
