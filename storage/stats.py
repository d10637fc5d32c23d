"""What a pure `build` function tells about the artifact it wrote."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stats:
    """Counts and findings of one build.

    Attributes:
        counts: sizes that travel in the ref (documents, tokens, examples, ...).
        values: findings for the manifest (final loss, check verdicts, the kernel that ran, ...). JSON only.
        volatile: names of files below `out` that differ between equal runs (times, rendered pages). They are
            hashed for verification, but are no part of the artifact's digest.
    """

    counts: dict[str, int]
    values: dict[str, object] = field(default_factory=dict)
    volatile: tuple[str, ...] = ()
