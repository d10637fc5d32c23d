"""What is measured of each claim, out of the artifacts of the replication: a value for every run of it.

An artifact stands under a role and, where it is repeated, its seed: `needle/full/0`. A measure has no value where its
part did not run, and where nothing would follow from it: a model that finds no needle has none to lose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Values = tuple[float, ...]
#: Samples of a preference from which a profile is inferred, where the paper calls it useful.
FEW = 2
#: Needles within the window, in per cent, that a model must find for a loss of some to tell anything; the same of
#: looked-up answers; points of accuracy by which a reward model must use the context for a wrong one to matter; rank
#: correlation of a model's answers with its corpus for another correlation to be compared with it.
FOUND, ANSWERED, HEARD, KNOWN = 20.0, 10.0, 5.0, 0.05
#: Rows of a table.
Rows = list[dict[str, Any]]


class Missing(Exception):
    """There is no value; says why."""


@dataclass
class Evidence:
    """The artifacts by role and seed, and which of them were read.

    Attributes:
        folders: role and seed -> folder.
        read: those that a measure looked at, in order.
    """

    folders: Mapping[str, Path]
    read: dict[str, None] = field(default_factory=dict)

    def one(self, role: str) -> Path:
        """The artifact that is not repeated."""
        if role not in self.folders:
            raise Missing("its part did not run")
        self.read[role] = None
        return self.folders[role]

    def seeds(self, role: str) -> list[Path]:
        """Those of every seed, in order."""
        count = sum(1 for name in self.folders if name.rpartition("/")[0] == role)
        if not count:
            raise Missing("its part did not run")
        return [self.one(f"{role}/{seed}") for seed in range(count)]

    def scores(self, role: str, *, beyond: bool | None = None) -> list[float]:
        """Mean score over an evaluation's samples, 0..100, of every seed.

        Args:
            role: of the evaluations.
            beyond: those beyond the model's window alone, or those within it; None: all.
        """
        means = []
        for folder in self.seeds(role):
            window = window_of(folder)
            rows = [
                row for row in _rows(folder / "samples.parquet") if beyond is None or (row["length"] > window) == beyond
            ]
            if not rows:
                raise Missing("its part did not run")
            means.append(_mean([100 * row["score"] for row in rows]))
        return means


def window_of(evaluation: Path) -> int:
    """Tokens of the evaluated model's window."""
    return int(_rows(evaluation / "scores.parquet")[0]["window"])


def _rows(path: Path) -> Rows:
    rows: Rows = pq.read_table(path).to_pylist()
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _less(one: list[float], other: list[float]) -> Values:
    return tuple(a - b for a, b in zip(one, other, strict=True))


def _share(part: list[float], whole: list[float]) -> Values:
    """In per cent; of nothing, nothing can be kept."""
    return tuple(100 * a / b if b else 0.0 for a, b in zip(part, whole, strict=True))


def _lost(part: list[float], whole: list[float]) -> Values:
    """In per cent; of nothing, nothing can be lost."""
    return tuple(100 * (b - a) / b if b else 0.0 for a, b in zip(part, whole, strict=True))


def _found(within: list[float], who: str) -> list[float]:
    """The scores as they are, if they are high enough to compare with."""
    if _mean(within) < FOUND:
        raise Missing(f"{who} finds {_mean(within):.1f}% of the needles within the window, too few to compare with")
    return within


# ---- Generalization v.s. Memorization


def _correlations(found: Evidence, task: str, *, small: bool = False) -> list[float]:
    """On questions that were not made of the corpus, as the paper's were not."""
    values = []
    for folder in found.seeds("trace"):
        rows = [
            row
            for row in _rows(folder / "memorization.parquet")
            if (row["set"], row["task"], row["measure"], row["rule"]) == ("held-out", task, "task-gram", "all")
        ]
        rows.sort(key=lambda row: (row["parameters"], row["model"] == "base"))
        rho = (rows[0] if small else rows[-1])["rho"] if rows else None
        if rho is None:
            raise Missing("its correlation is not defined: too few points")
        values.append(rho)
    return values


def _ngrams_knowledge(found: Evidence) -> Values:
    return tuple(_correlations(found, "knowledge"))


def _memorized(found: Evidence) -> list[float]:
    """The correlations on facts, if they are there to be compared."""
    values = _correlations(found, "knowledge")
    if _mean(values) < KNOWN:
        raise Missing(f"on facts there is no correlation ({_mean(values):.3f}) that another one could be compared with")
    return values


def _ngrams_tasks(found: Evidence) -> Values:
    return _less(_memorized(found), _correlations(found, "translation"))


def _ngrams_size(found: Evidence) -> Values:
    return _less(_memorized(found), _correlations(found, "knowledge", small=True))


# ---- TAGCOS


def _losses(found: Evidence, method: str) -> list[float]:
    rows = [
        row
        for row in _rows(found.one("proof") / "proof.parquet")
        if row["average"] == "sources" and row["method"] == method
    ]
    return [row["loss"] for row in sorted(rows, key=lambda row: row["seed"] or 0)]


def _tagcos_random(found: Evidence) -> Values:
    return _less(_losses(found, "random"), _losses(found, "tagcos"))


def _tagcos_full(found: Evidence) -> Values:
    (start,) = _losses(found, "untrained")
    whole = [start - loss for loss in _losses(found, "all")]
    if min(whole) <= 0:
        raise Missing("a training on everything does not lower the held-out loss, so there is no way to go")
    return _share([start - loss for loss in _losses(found, "tagcos")], whole)


# ---- Mini-sequences


def _memory(found: Evidence) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((found.one("memory") / "memory.json").read_text(encoding="utf-8"))
    return numbers


def _longer(found: Evidence, than: str) -> Values:
    longest = _memory(found)["longest"]
    return (longest["mini-sequences"] / longest[than],)


def _minisequence_exact(found: Evidence) -> Values:
    """Powers of ten, no smaller than float64's own."""
    return tuple(math.log10(max(error["gradient"], 2**-52)) for error in _memory(found)["errors"])


# ---- ChatQA 2


def _extended(found: Evidence) -> Values:
    after = []
    for old, new in zip(found.seeds("extension/before/full"), found.seeds("extension/after/full"), strict=True):
        rows = [row for row in _rows(new / "samples.parquet") if row["length"] > window_of(old)]
        if not rows:
            raise Missing("no sample is longer than the window before extension")
        after.append(_mean([100 * row["score"] for row in rows]))
    before = _found(found.scores("extension/before/full", beyond=False), "the model before extension")
    return _share(after, before)


def _reads_on(found: Evidence) -> Values:
    return _increase(found.seeds("extension/positions/limited"), found.seeds("extension/positions/after"))


def _increase(old: list[Path], new: list[Path]) -> Values:
    """Of the perplexity of the last tokens of the same texts, in per cent."""
    before, after = ([_rows(each / "positions.parquet")[-1]["perplexity"] for each in side] for side in (old, new))
    return tuple(100 * (b / a - 1) for a, b in zip(before, after, strict=True))


def _chunks(found: Evidence) -> tuple[str, str]:
    roles = {name.rpartition("/")[0] for name in found.folders if name.startswith("rag/k=")}
    if not roles:
        raise Missing("its part did not run")
    order = sorted(roles, key=lambda role: int(role.rpartition("=")[2]))
    return order[0], order[-1]


def _more_chunks(found: Evidence) -> Values:
    fewest, most = map(found.scores, _chunks(found))
    return _less(*_answered(most, fewest))


def _retrieval(found: Evidence) -> Values:
    return _less(*_answered(found.scores(_chunks(found)[1]), found.scores("rag/whole")))


def _answered(one: list[float], other: list[float]) -> tuple[list[float], list[float]]:
    if max(_mean(one), _mean(other)) < ANSWERED:
        raise Missing(f"either way less than {ANSWERED:g}% is answered right, too little to compare")
    return one, other


# ---- RazorAttention


def _bytes(found: Evidence, role: str) -> list[float]:
    return [_mean([row["kv_bytes_mean"] for row in _rows(folder / "cost.parquet")]) for folder in found.seeds(role)]


def _razor_cache(found: Evidence) -> Values:
    kept = _share(_bytes(found, "needle/razor"), _bytes(found, "needle/full"))
    return tuple(100 - share for share in kept)


def _full(found: Evidence) -> list[float]:
    return _found(found.scores("needle/full"), "full attention")


def _razor_quality(found: Evidence) -> Values:
    return _less(_full(found), found.scores("needle/razor"))


def _razor_heads(found: Evidence) -> Values:
    _full(found)
    return _less(found.scores("needle/razor"), found.scores("needle/random-heads"))


def _razor_mean(found: Evidence) -> Values:
    return _lost(found.scores("needle/uncompensated"), _found(found.scores("needle/razor"), "Razor"))


# ---- LongCache


def _scope(found: Evidence) -> Values:
    return _less(_full(found), found.scores("needle/scope"))


def _far(found: Evidence, policy: str) -> Values:
    return _share(found.scores(f"beyond/{policy}", beyond=True), _full(found))


def _streaming(found: Evidence) -> Values:
    _full(found)
    return _less(found.scores("beyond/longcache", beyond=True), found.scores("beyond/streaming", beyond=True))


def _perplexity(found: Evidence) -> Values:
    return _increase(found.seeds("positions/streaming"), found.seeds("positions/longcache"))


# ---- Context-aware preferences


def _preferences(found: Evidence) -> list[dict[str, Any]]:
    return [
        json.loads((folder / "preference.json").read_text(encoding="utf-8")) for folder in found.seeds("preference")
    ]


def _accuracy(found: Evidence, condition: str) -> list[float]:
    values = []
    for numbers in _preferences(found):
        if condition not in numbers["conditions"]:
            raise Missing(f"the comparisons have no condition {condition}")
        values.append(100 * numbers["conditions"][condition]["value"])
    return values


def _context(found: Evidence) -> Values:
    return _less(_accuracy(found, "ctx"), _accuracy(found, "nc"))


def _heard(found: Evidence) -> None:
    if _mean(list(_context(found))) < HEARD:
        raise Missing(f"the model uses the right context by less than {HEARD:g} points, so a wrong one tells nothing")


def _nonsense(found: Evidence) -> Values:
    _heard(found)
    shares = []
    for folder in found.seeds("preference"):
        margins: dict[str, dict[str, float]] = {"nc": {}, "nonsense": {}}
        for row in _rows(folder / "scores.parquet"):
            if row["condition"] in margins:
                margins[row["condition"]][row["id"]] = row["chosen"] - row["rejected"]
        turned = [margins["nc"][name] * margin < 0 for name, margin in margins["nonsense"].items()]
        shares.append(100 * _mean([float(each) for each in turned]))
    return tuple(shares)


def _negated(found: Evidence) -> Values:
    _heard(found)
    return tuple(_accuracy(found, "negated"))


def _profiles(found: Evidence) -> list[dict[str, Any]]:
    profiles = [numbers["profiles"] for numbers in _preferences(found)]
    if any(each is None or FEW not in _curve(each) for each in profiles):
        raise Missing(f"no context has comparisons enough to infer it from {FEW} samples")
    return profiles


def _curve(profiles: dict[str, Any]) -> dict[int, float]:
    """Samples -> accuracy on a profile's other comparisons, 0..100."""
    return {point["k"]: 100 * point["inferred"] for point in profiles["points"] if point["inferred"] is not None}


def _profile(found: Evidence) -> Values:
    return tuple(_curve(each)[FEW] - 100 * each["nc"] for each in _profiles(found))


def _samples(found: Evidence) -> Values:
    curves = [_curve(each) for each in _profiles(found)]
    if any(max(curve) == FEW for curve in curves):
        raise Missing(f"no context has comparisons enough to infer it from more than {FEW} samples")
    return tuple(curve[max(curve)] - curve[FEW] for curve in curves)


#: Name of a claim -> its measure.
MEASURES: dict[str, Callable[[Evidence], Values]] = {
    "ngrams-knowledge": _ngrams_knowledge,
    "ngrams-tasks": _ngrams_tasks,
    "ngrams-size": _ngrams_size,
    "tagcos-random": _tagcos_random,
    "tagcos-full": _tagcos_full,
    "minisequence-plain": partial(_longer, than="plain"),
    "minisequence-checkpointing": partial(_longer, than="checkpointing"),
    "minisequence-exact": _minisequence_exact,
    "chatqa2-needle": _extended,
    "chatqa2-extension": _reads_on,
    "chatqa2-chunks": _more_chunks,
    "chatqa2-rag": _retrieval,
    "razor-cache": _razor_cache,
    "razor-quality": _razor_quality,
    "razor-heads": _razor_heads,
    "razor-mean": _razor_mean,
    "longcache-scope": _scope,
    "longcache-beyond": partial(_far, policy="longcache"),
    "longcache-asking": partial(_far, policy="asking"),
    "longcache-streaming": _streaming,
    "longcache-perplexity": _perplexity,
    "preferences-context": _context,
    "preferences-nonsense": _nonsense,
    "preferences-negated": _negated,
    "preferences-profile": _profile,
    "preferences-samples": _samples,
}
