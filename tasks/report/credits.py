"""What a reward model earns by prompt, so that two that judged the same comparisons can be paired over prompts."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longloom.tasks.report.read import read_table

TEXTS, NUMBERS = ("id", "condition", "context"), ("chosen", "rejected")
SCORES = {**dict.fromkeys(TEXTS, pa.string()), **dict.fromkeys(NUMBERS, pa.float64())}
#: Digests that artifacts of earlier versions lack.
LATER_SCORES = dict.fromkeys(("prompt", "responses"), pa.string())


def prompt_credits(path: Path) -> dict[str, dict[str, float]]:
    """Condition -> prompt -> credit, whose mean over the prompts is the accuracy over the comparisons.

    A prompt's name tells its comparisons and contexts too: equal in two runs if both judged the same. A comparison
    earns 1 where the better response has the higher score, 1/2 where both have the same.

    Args:
        path: scores.parquet of a preference evaluation; none, or one of an earlier version, has no credits.
    """
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in read_table(path, SCORES, optional=LATER_SCORES).to_pylist() if path.exists() else []:
        if "prompt" in row:
            groups[row["condition"]][row["prompt"]].append(row)
    found: dict[str, dict[str, float]] = {}
    for condition, prompts in groups.items():
        scale = len(prompts) / sum(map(len, prompts.values()))
        for prompt, own in prompts.items():
            compared = repr(sorted((row["id"], row["responses"], row["context"] or "") for row in own))
            earned = sum((np.sign(row["chosen"] - row["rejected"]) + 1) / 2 for row in own)
            name = f"{prompt}-{hashlib.sha256(compared.encode()).hexdigest()[:8]}"
            found.setdefault(condition, {})[name] = float(earned * scale)
    return found
