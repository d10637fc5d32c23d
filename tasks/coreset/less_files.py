"""Gradient features in LESS's layout, both ways: `{folder}/{name}-ckpt{step}-{kind}/dim{d}/all_orig.pt`, unit rows.

LESS (arXiv 2402.04333) writes one tensor a checkpoint, [examples, d], normalised; kind is `adam` for the training data
and `sgd` for validation data, and its matching weighs the checkpoints by what it is told. Rows of the two sides can be
compared only if one projection made both: ours is not that of LESS (`projection`), so bring both sides from one place.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from longloom.kernels.torch_file import are_numbers, load_plain
from longloom.tasks.coreset.checkpoints import weights
from longloom.tasks.coreset.store import (
    FORMAT,
    RECORD,
    StoredFeatures,
    open_features,
    read_record,
    shard_name,
    write_array,
    write_json,
)

#: Rows of a shard of imported features.
SHARD_ROWS = 1024
_FOLDER = re.compile(r"(?P<name>.+)-ckpt(?P<step>\d+)-(?P<kind>adam|sgd)")


def write_less(features: Path, folder: Path, *, name: str) -> list[Path]:
    """Writes the rows of every checkpoint as LESS's `matching` reads them.

    Args:
        features: a features artifact.
        folder: the gradients' folder; files that are there are replaced.
        name: of the data set.

    Returns:
        The files, a checkpoint each: float16 [n, d]. A whole checkpoint is held in memory while it is written.

    Raises:
        ValueError: a name that LESS's layout cannot tell from the rest.
    """
    if not _FOLDER.fullmatch(f"{name}-ckpt0-adam") or "/" in name or "-ckpt" in name:
        raise ValueError(f"name of the data set: found {name!r}, expected one without '/' and '-ckpt'")
    record, stored = read_record(features), open_features(features)
    kind = "sgd" if record["adam"] is None else "adam"
    written = []
    for number, one in enumerate(record["checkpoints"]):
        place = folder / f"{name}-ckpt{one['step']}-{kind}" / f"dim{stored.dimension}"
        place.mkdir(parents=True, exist_ok=True)
        rows = torch.from_numpy(stored.checkpoint(number, 0, stored.examples)).half()
        torch.save(rows, place / "all_orig.pt")
        written.append(place / "all_orig.pt")
    return written


def read_less(folder: Path, out: Path, *, name: str, dimension: int, rates: list[float], pool: str) -> StoredFeatures:
    """Makes a features artifact of LESS's files; it has no losses.

    Args:
        folder: the gradients' folder.
        out: where the artifact goes, an empty folder.
        name: of the data set.
        dimension: d, as in `dim{d}`.
        rates: the mean learning rate of each checkpoint in the order of their steps, LESS's checkpoint weights.
        pool: the fingerprint of the examples' ids that row i belongs to (`pool.fingerprint`).

    Raises:
        FileNotFoundError: no checkpoint of this data set.
        ValueError: both kinds, another number of rates, rows that are no tensor [n, d] of finite numbers, or
            checkpoints of different numbers of examples.
    """
    found = sorted(
        (int(match["step"]), match["kind"], path)
        for path in folder.glob(f"{name}-ckpt*")
        if (match := _FOLDER.fullmatch(path.name)) and match["name"] == name
    )
    if not found:
        raise FileNotFoundError(f"{folder}: found no {name}-ckpt*-adam or -sgd folder, expected LESS's gradients")
    kinds = sorted({kind for _, kind, _ in found})
    if len(kinds) > 1:
        raise ValueError(f"{name}: found gradients of the kinds {', '.join(kinds)}, expected one of them")
    if len(rates) != len(found):
        raise ValueError(f"rates: found {len(rates)}, expected {len(found)}, one a checkpoint of {name}")
    checkpoints, examples = [], None
    for number, ((step, _, path), rate, weight) in enumerate(zip(found, rates, weights(rates), strict=True), start=1):
        rows = _rows(path / f"dim{dimension}" / "all_orig.pt", dimension)
        if examples not in (None, len(rows)):
            raise ValueError(f"{path.name}: found {len(rows)} rows, expected {examples} as at the first checkpoint")
        examples = len(rows)
        label = f"checkpoint-{number:05d}"
        (out / label).mkdir()
        for shard, start in enumerate(range(0, examples, SHARD_ROWS)):
            write_array(out / label / shard_name(shard), rows[start : start + SHARD_ROWS])
        checkpoints.append({"name": label, "step": step, "mean_learning_rate": rate, "weight": weight})
    write_json(
        out / RECORD,
        {
            "format": FORMAT,
            "examples": examples,
            "shard_rows": SHARD_ROWS,
            "pool": pool,
            "model": None,
            "adam": {"source": "LESS"} if kinds == ["adam"] else None,
            "projection": {"kind": "LESS", "dimension": dimension, "seed": 0},
            "checkpoints": checkpoints,
        },
    )
    return open_features(out)


def _rows(path: Path, dimension: int) -> np.ndarray:
    """Unit rows, float16; a row of zeros stays one."""
    if not path.is_file():
        raise FileNotFoundError(f"found no {path}, expected LESS's unit rows")
    held = load_plain(path, str(path))
    if not are_numbers(held) or held.ndim != 2 or held.shape[1] != dimension:
        told = list(held.shape) if isinstance(held, torch.Tensor) else type(held).__name__
        raise ValueError(f"{path.parent.parent.name}: found {told}, expected a tensor [examples, {dimension}]")
    rows = held.detach().float()
    if not rows.isfinite().all():
        raise ValueError(f"{path.parent.parent.name}: found numbers that are not finite")
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    unit: np.ndarray = rows.half().numpy()
    return unit
