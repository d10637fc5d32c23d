"""A head profile with its scores put at random places: as many heads are protected as before, but not those that look
things up. What RazorAttention compares its choice of heads with."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from longloom.kernels.kvcache.heads import HeadProfile, Scores
from longloom.storage.stats import Stats

PROFILE = "heads.json"


def build(heads: Path, out: Path, *, seed: int) -> Stats:
    """Writes `heads.json`.

    Args:
        heads: a head profile's folder.
        out: an empty folder.
        seed: of the places.
    """
    profile = HeadProfile.read(heads / PROFILE)
    layers, width = profile.shape
    chance = random.Random(seed)

    def mixed(scores: Scores) -> Scores:
        flat = [value for row in scores for value in row]
        chance.shuffle(flat)
        return tuple(tuple(flat[layer * width : (layer + 1) * width]) for layer in range(layers))

    echo = None if profile.echo is None else mixed(profile.echo)
    dataclasses.replace(profile, source="random", induction=mixed(profile.induction), echo=echo).write(out / PROFILE)
    return Stats(counts={"layers": layers, "kv_heads": layers * width})
