"""The verdicts of the three stages' benchmark on made-up scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import three_stages


def seed(gain: float) -> dict[str, Any]:
    """Three stages are `gain` points better on long contexts; retrieval is better by a point a chunk."""
    lengths = [str(length) for length in three_stages.LENGTHS]
    plain = dict.fromkeys(lengths, 50.0)
    better = {length: 50.0 + (gain if int(length) > three_stages.SHORT else 0) for length in lengths}
    retrieval = {
        f"full/bm25:words={size},k={k},order={order}": dict.fromkeys(lengths, 50.0 + k)
        for size in three_stages.SIZES
        for k in three_stages.K
        for order in ("document", "rank")
    }
    return {
        "by length": {arm: better if arm == "three stages" else plain for arm in three_stages.ARMS},
        "retrieval": {"full": better, **retrieval},
    }


def test_a_difference_holds_if_every_seed_has_its_sign(tmp_path: Path) -> None:
    def verdicts(*seeds: dict[str, Any]) -> dict[str, bool]:
        return {claim["claim"]: claim["holds"] for claim in three_stages.claims(list(seeds))}

    long, short = (f"three stages above all in one on {name} contexts, points" for name in ("long", "short"))
    assert verdicts(seed(3), seed(4))[long]
    assert not verdicts(seed(3), seed(-1))[long]
    assert not verdicts(seed(3), seed(4))[short]
    size, length = three_stages.SIZES[0], three_stages.LENGTHS[-1]
    most = three_stages.RETRIEVED // size
    direct = f"retrieval of {most} x {size} words at or above direct long context, {length} tokens"
    assert verdicts(seed(most))[direct]
    assert not verdicts(seed(most + 1))[direct]
    assert not verdicts(seed(0))[f"document order above rank order, k={most}, {size} words, {length} tokens"]

    table = three_stages.summary([seed(2), seed(4)])
    last = str(three_stages.LENGTHS[-1])
    assert table["by length"]["three stages"][last] == {"mean": 53.0, "least": 52.0, "most": 54.0}
    three_stages.draw(table, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
