"""Which KV heads look things up: the profile of a model's heads, and the choice of those to protect.

Source: RazorAttention (arXiv 2407.15891, section 3.2): echo and induction scores of every head, the maximum over the
query heads of a KV head, ranked over all layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Scores of all KV heads, a row a layer.
Scores = tuple[tuple[float, ...], ...]

#: Of the file.
FORMAT = "longloom head profile"
VERSION = 1


@dataclass(frozen=True)
class HeadProfile:
    """How strongly each KV head of a model looks things up.

    Attributes:
        source: how the scores were found: "probe", or the format that they were imported from.
        weights: fingerprint of the model's weights (`kernels.huggingface.weights`), to which the scores belong.
        induction: attention to what followed the earlier occurrences of a token, 0..1; or imported scores, whose order
            alone matters.
        echo: attention to the occurrences themselves; None: not known.
        settings: how they were found (tokens, repeats, seed, ...), for the reader.
        sliding_layers: layers that attend to a sliding window, in order: KV policies leave them alone, so their heads
            are not ranked, whatever their scores.
    """

    source: str
    weights: str
    induction: Scores
    echo: Scores | None = None
    settings: tuple[tuple[str, Any], ...] = field(default=(), compare=False)
    sliding_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shape = _shape(self.induction)
        for name, scores in (("induction", self.induction), ("echo", self.echo)):
            if scores is None:
                continue
            if not shape[1] or any(len(row) != shape[1] for row in scores) or len(scores) != shape[0]:
                raise ValueError(f"head profile: {name} has rows of different lengths, expected [layers, KV heads]")
            wrong = [value for row in scores for value in row if not math.isfinite(value)]
            if wrong:
                raise ValueError(f"head profile: {name} holds {wrong[0]}, expected finite scores")
        sliding = self.sliding_layers
        if any(type(layer) is not int for layer in sliding) or list(sliding) != sorted(
            set(sliding) & {*range(shape[0])}
        ):
            raise ValueError(
                f"head profile: sliding_layers is {list(sliding)}, expected layers of 0 to {shape[0] - 1} in order"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and KV heads a layer."""
        return _shape(self.induction)

    @property
    def ranked(self) -> list[tuple[int, int]]:
        """The heads (layer, KV head) that `chosen` chooses from, in order."""
        layers, heads = self.shape
        return [(layer, head) for layer in range(layers) if layer not in self.sliding_layers for head in range(heads)]

    def chosen(self, *, induction: float, echo: float) -> frozenset[tuple[int, int]]:
        """The retrieval heads (layer, KV head): the best shares by either score, together.

        Of n ranked heads round(share * n) are taken, at least one if the share is not 0; of equal scores the first.

        Args:
            induction, echo: shares of the ranked heads, 0 to 1 (the paper: 0.14 and 0.01). A profile without echo
                scores has none to give.
        """
        found = frozenset(self._best(self.induction, induction))
        return found if self.echo is None else found | frozenset(self._best(self.echo, echo))

    def protected(self, policy: str, layer: int, kv_heads: int, *, induction: float, echo: float) -> list[int]:
        """Those of `chosen` that are in one layer, in order.

        Raises:
            ValueError: the model, of which this layer has so many KV heads, has not the profile's shape.
        """
        layers, known = self.shape
        if layer >= layers or kv_heads != known:
            raise ValueError(
                f"KV policy {policy!r}: the head profile is of {layers} layers with {known} KV heads, "
                f"found layer {layer} with {kv_heads}"
            )
        return sorted(head for at, head in self.chosen(induction=induction, echo=echo) if at == layer)

    def _best(self, scores: Scores, share: float) -> list[tuple[int, int]]:
        heads = self.ranked
        count = max(1, round(share * len(heads))) if share else 0
        return sorted(heads, key=lambda head: -scores[head[0]][head[1]])[:count]

    def write(self, path: Path) -> None:
        """As JSON."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "source": self.source,
            "weights": self.weights,
            "layers": self.shape[0],
            "kv_heads": self.shape[1],
            "induction": self.induction,
            "echo": self.echo,
            "sliding_layers": self.sliding_layers,
            "settings": dict(self.settings),
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def read(cls, path: Path) -> HeadProfile:
        """What `write` wrote.

        Raises:
            ValueError: another kind of file, another version, or scores that are none.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"head profile {path}: {error}, expected a file that `longloom heads` wrote") from None
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ValueError(
                f"head profile {path}: found another kind of file, expected one that `longloom heads` wrote"
            )
        if content.get("version") != VERSION:
            raise ValueError(f"head profile {path}: version is {content.get('version')!r}, expected {VERSION}")
        try:
            return cls(
                source=str(content["source"]),
                weights=str(content["weights"]),
                induction=_scores(content["induction"]),
                echo=None if content["echo"] is None else _scores(content["echo"]),
                settings=tuple(content["settings"].items()),
                sliding_layers=tuple(content.get("sliding_layers", ())),  # older files have none
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"head profile {path}: {type(error).__name__}: {error}, expected it whole") from None
        except ValueError as error:
            raise ValueError(f"head profile {path}: {str(error).removeprefix('head profile: ')}") from None


def given(policy: str, heads: HeadProfile | None) -> HeadProfile:
    """The profile of a policy that needs one (ValueError: it has none)."""
    if heads is None:
        raise ValueError(f"KV policy {policy!r} needs the model's head profile: `longloom heads` makes one")
    return heads


def check_share(policy: str, option: str, share: Any) -> None:
    """A share of a model's KV heads is a number from 0 to 1 (ValueError: anything else)."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"KV policy {policy!r}: {option} must be a share from 0 to 1, found {share!r}")


def _shape(scores: Scores) -> tuple[int, int]:
    return len(scores), len(scores[0]) if scores else 0


def _scores(rows: Any) -> Scores:
    return tuple(tuple(float(value) for value in row) for row in rows)
