"""The order in which models, policies, retrievals and groups of samples are shown."""

from __future__ import annotations

import re

#: Groups of samples that have an order of their own: LongBench-v2's, as its script prints them.
_GROUPS = ("easy", "hard", "short", "medium", "long")


def rank(name: str) -> tuple[int, str]:
    """Of models, methods and policies: base, the methods, random, everything; full attention before other policies."""
    known = {"base": 0, "full": 0, "random": 2, "all": 3}
    return known.get(name.partition("@")[0], 1), name  # full@8192: a policy that was asked with a max_length


def natural(text: str) -> list[str | int]:
    """Sorts numbers within a text as numbers: "k=5" before "k=20"."""
    parts = re.split(r"([0-9]+)", text)  # text and digits in turn
    return [int(part) if position % 2 else part for position, part in enumerate(parts)]


def group_rank(group: str) -> tuple[int, list[str | int]]:
    """Of groups of samples: known words in their order, then by the numbers in the name."""
    return (_GROUPS.index(group) if group in _GROUPS else len(_GROUPS)), natural(group)
