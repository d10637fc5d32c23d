"""Which prompts begin alike for so long that the beginning is worth reading once: questions on one document."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from longloom.kernels.huggingface.reading import CHUNK

#: Prompts are answered from a common beginning if that is at least this part of each of them.
_SHARED_PART = 0.5


def common_beginning(prompts: Sequence[npt.NDArray[np.int32]], *, apart: int = 0) -> int:
    """Tokens that all prompts begin with, in whole chunks; 0 if that is too small a part of one of them.

    At least one token of each prompt stays outside: its logits are where the answer starts. Of policies that want
    `apart` last tokens in a call of their own, so many do.
    """
    common = min((_equal(one, other) for one, other in pairwise(prompts)), default=len(prompts[0]))
    return _usable(common, [len(prompt) for prompt in prompts], apart)


def alike(prompts: Sequence[npt.NDArray[np.int32]], *, apart: int = 0) -> list[list[int]]:
    """Groups of prompts (by index, in order) that can be answered from a common beginning; the others alone.

    See `common_beginning`.
    """
    groups: list[list[int]] = []
    common = 0
    for index in sorted(range(len(prompts)), key=lambda index: prompts[index].tobytes()):  # what begins alike, together
        if groups:
            last = groups[-1]
            equal = _equal(prompts[last[-1]], prompts[index])
            equal = equal if len(last) == 1 else min(common, equal)
            if _usable(equal, [len(prompts[member]) for member in (*last, index)], apart):
                last.append(index)
                common = equal
                continue
        groups.append([index])
    return sorted(sorted(group) for group in groups)


def _equal(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """Tokens at the beginning that are equal."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _usable(common: int, lengths: Sequence[int], apart: int) -> int:
    common = max(0, min(common, min(lengths) - max(1, apart)))
    common -= common % CHUNK
    return common if common >= _SHARED_PART * max(lengths) else 0
