"""Votes over a million keys to spans, against torch.topk and a mask."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu.harness import Run, same
from gpu.timing import Call
from longloom.kernels.attention.spans import vote_spans


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked: LongCache's 127 spans of 32 tokens."""

    keys: int = 1 << 20
    most: int = 127
    span: int = 32
    sets: int = 48
    fuzz: int = 24


def votes(run: Run, batch: int, keys: int, voted: int) -> Tensor:
    """[B, N] int32 as `topk_votes` gives them: few keys have any, neighbours often together, many as many."""
    found = torch.zeros(batch, keys, dtype=torch.int32, device=run.device)
    centres = torch.randint(keys, (batch, max(1, voted // 4), 1), device=run.device)
    places = (centres + torch.randint(-40, 41, (batch, max(1, voted // 4), 4), device=run.device)).clamp(0, keys - 1)
    counts = torch.randint(1, 9, places.shape, device=run.device, dtype=torch.int32)
    return found.scatter_add_(1, places.flatten(1), counts.flatten(1))


def by_hand(row: Tensor, most: int, span: int, begin: int, end: int) -> list[int]:
    """The positions of one row, in plain Python."""
    given = [(count, place) for place, count in enumerate(row.tolist()) if begin <= place < end and count > 0]
    chosen = [place for _, place in sorted(given, reverse=True)[:most]]
    around = {place + step for place in chosen for step in range(-(span // 2), span // 2)}
    return sorted({min(max(place, begin), end - 1) for place in around})


def measure(run: Run, sizes: Sizes) -> None:
    """The votes of a decode step (at most 128 keys) and of a chunk (up to 65,536)."""
    for name, voted in (("a step's", 128), ("a chunk's", 65_536)):
        sets = [votes(run, 1, sizes.keys, voted) for _ in range(sizes.sets)]
        moved = 4 * sizes.keys + 4 * sizes.most * sizes.span
        options = {"implementation": run.implementation}
        calls = [functools.partial(vote_spans, given, sizes.most, sizes.span, **options) for given in sets]
        case = f"{name} votes over {sizes.keys // 1024}K keys"
        run.time(case, run.implementation, calls, moved=moved, graph=True, peak=True)
        peers = {"topk, mask, nonzero": lambda sets=sets: [_plain(given, sizes) for given in sets]}
        run.fastest(case, peers, moved=moved, peak=True)


def _plain(given: Tensor, sizes: Sizes) -> Call:
    """With torch's own wait for the device (`nonzero`); ties as they fall."""
    around = torch.arange(-(sizes.span // 2), sizes.span // 2, device=given.device)

    def call() -> Tensor:
        chosen = given[0].topk(min(sizes.most, sizes.keys)).indices
        mask = torch.zeros(sizes.keys, dtype=torch.bool, device=given.device)
        mask[(chosen[:, None] + around).clamp(0, sizes.keys - 1)] = True
        return mask.nonzero()

    return call


def check_fuzz(run: Run, sizes: Sizes) -> None:
    """Random votes, ranges and spans, one of them of full size, against plain Python."""
    for trial in range(sizes.fuzz):
        keys = sizes.keys if trial == 0 else random.choice([5, 300, 20_000])
        batch, most, span = random.randint(1, 3), random.choice([1, 7, sizes.most]), random.choice([2, 16, 32])
        given = votes(run, batch, keys, random.choice([1, 50, 3000]))
        begin, end = torch.randint(0, keys + 1, (2, batch)).sort(dim=0).values.int()
        ranges: dict[str, Any] = {"begin": begin.to(run.device), "end": end.to(run.device)} if trial % 2 else {}
        ours = ranges | {"implementation": run.implementation}
        with run.no_waits():
            (positions, count), again = (vote_spans(given, most, span, **ours) for _ in range(2))
        same((positions, count), again)
        for b in range(batch):
            bounds = (int(begin[b]), int(end[b])) if ranges else (0, keys)
            wanted = by_hand(given[b], most, span, *bounds)
            wanted += [-1] * (positions.shape[1] - len(wanted))
            if positions[b].tolist() != wanted or int(count[b]) != sum(place >= 0 for place in wanted):
                raise AssertionError(f"row {b} of {keys} keys, most {most}, span {span}, range {bounds}")


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {"random votes": check_fuzz}
