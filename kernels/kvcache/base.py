"""What a KV policy is: it owns one layer's keys and values, and answers that layer's attention from them.

Notable choices: a policy receives *un-rotated* queries and keys, for methods choose at which positions they rotate; a
policy is frozen and keeps everything that changes in a `LayerState`; memory is measured on storages, never computed.

Names of dimensions: B rows of the batch, Hq query heads, Hkv KV heads (Hq = G * Hkv), S new tokens, N tokens seen,
D head size. A *slot* is a column of the left-padded batch; a *position* counts a row's real tokens from 0.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary position embedding in Llama's convention: feature i turns together with feature i + D/2.

    Attributes:
        inv_freq: [D/2] float32, radians a position.
        attention_scaling: factor on the rotated vectors (YaRN's; 1 elsewhere).
        window: positions that the model was trained on, 0 .. window - 1; None: not known.
    """

    inv_freq: Tensor
    attention_scaling: float = 1.0
    window: int | None = None
    _tables: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False, repr=False, default_factory=dict)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn the vectors of `x` to `positions`.

        Angles are float32 products, as in transformers, so results are equal to the model's own; at position p an
        angle is therefore only known to about p * 6e-8 radians.

        Args:
            x: [B, H, S, D].
            positions: [S], or [B, S] where rows differ; any integers.

        Returns:
            [B, H, S, D] in x's dtype.
        """
        angles = positions[..., None].float() * self.inv_freq.to(x.device)  # [S, D/2] or [B, S, D/2]
        if positions.ndim == 2:
            angles = angles[:, None]  # the same for every head
        cos, sin = angles.cos(), angles.sin()
        if self.attention_scaling != 1.0:
            cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions 0 .. length - 1 at least, [>= length, D/2] float32 each.

        They are kept, and made anew only where the length passes a power of two: an answer asks for one more with each
        token.
        """
        if device not in self._tables or len(self._tables[device][0]) < length:
            positions = torch.arange(1 << (length - 1).bit_length(), device=device)
            angles = positions[:, None].float() * self.inv_freq.to(device)
            scale = self.attention_scaling
            self._tables[device] = angles.cos() * scale, angles.sin() * scale
        return self._tables[device]

    def slopes_on(self, device: torch.device) -> None:
        """None: a rotation, no biases."""


@dataclass(frozen=True, eq=False)
class Alibi:
    """Linear biases in place of rotation: slope * (j - i) on the logit of query i and key j (arXiv 2108.12409).

    Attributes:
        slopes: [Hq] float32, positive.
        bounds: [layers, Hq] float64 on the CPU, by how much a key's logit can exceed that of the query's own token, the
            biases left aside (`razor_alibi.logit_bounds`); None: not asked for (`KVPolicy.bounded`).
    """

    slopes: Tensor
    bounds: Tensor | None = None

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x` itself: nothing rotates."""
        return x

    def slopes_on(self, device: torch.device) -> Tensor:
        """The slopes, as the attention functions take them."""
        return self.slopes.to(device)


@dataclass(eq=False)
class LayerState:
    """What a policy remembers of one layer. A policy that holds tensors subclasses it and adds them as fields.

    Attributes:
        layer: the layer's index in the model.
        seen: slots fed so far, padding included; `attend` advances it.
        layers: of the model; 0 where nobody said.
        sliding: those of them that attend to a sliding window, which the policy leaves alone.
    """

    layer: int
    seen: int = 0
    layers: int = 0
    sliding: tuple[int, ...] = field(default=(), kw_only=True)

    def bytes(self) -> int:
        """Memory held: the bytes of every distinct storage behind this state's tensors, spare capacity included."""
        storages = {}
        for tensor in _tensors(vars(self)):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def fork(self) -> Self:
        """A copy that goes on by itself: every tensor is copied."""
        return copy.deepcopy(self)


State = TypeVar("State", bound=LayerState)


class KVPolicy(ABC, Generic[State]):
    """A rule for what a layer keeps of the keys and values it has seen, and how queries see what is kept.

    A policy is a frozen dataclass whose fields are its options, checked in `__post_init__` (ValueError). It names
    itself in `name`, names the class of its per-layer state in `state_type`, and fills `attend`. One that is `profiled`
    has a field `heads`, the profile of the model that it works on. Its methods take the position encodings that it
    names in `encodings` and no others; one that is `bounded` needs `Alibi.bounds`.
    """

    name: ClassVar[str]
    state_type: ClassVar[type[LayerState]]
    profiled: ClassVar[bool] = False
    encodings: ClassVar[tuple[type, ...]] = (Rope,)
    bounded: ClassVar[bool] = False

    @property
    def apart(self) -> int:
        """Last tokens of a prompt that are to come in a call of their own; 0: the prompt may be cut anywhere."""
        return 0

    @property
    def joint_from(self) -> int | None:
        """From how many tokens seen on the queries of one call choose together what all of them see; None: never do.

        There a later token of a call has a say in what an earlier one sees. So tokens that are predicted one from the
        other, as an answer's are, come one at a time behind it; text that is read may come in chunks. Of a policy that
        is `fitted`.
        """
        return None

    def check_chunks(self, size: int) -> None:
        """Refuse (ValueError) that prompts come in chunks of so many tokens, with their last `apart` in one more."""

    def fitted(self, rope: Rope | Alibi) -> Self:
        """This policy with whatever its defaults leave to the model.

        Raises:
            ValueError: it does not fit the model.
        """
        return self

    @abstractmethod
    def attend(
        self,
        state: State,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Any,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Take in S new tokens of one layer and return the attention output of their queries.

        Called with consecutive pieces of the same batch: chunks of the prompt, then decode steps. Every query sees no
        later token, whatever the pieces' sizes; which of the earlier ones it sees, later ones may help to choose
        (`joint_from`).

        Args:
            state: the layer's state, changed in place; `state.seen` advances by S.
            query: [B, Hq, S, D], un-rotated.
            key: [B, Hkv, S, D], un-rotated.
            value: [B, Hkv, S, D].
            rope: the model's rotary embedding, or its `Alibi`; a token's position is its slot minus its row's start.
            start: [B] int64, the left padding of each row known so far (a row that is padding throughout has
                start = the slots fed); None where no row is padded.
            scaling: factor on the scores.

        Returns:
            [B, Hq, S, D]; finite, and without meaning at padding.
        """


class SharedPrefillPolicy(KVPolicy[State]):
    """A policy under which a prompt meets full attention, and which then chooses what to keep of it: it fills `keep`.

    Several of them can go on from one prefill (`kvcache.prompt`). A policy of any other kind changes the prefill and
    runs alone.
    """

    @property
    def observed(self) -> int:
        """How many of a prompt's last queries `keep` looks at."""
        return 0

    @property
    def summed(self) -> bool:
        """Whether `keep` looks at the attention that each token of a prompt received.

        Policies of either kind share a prefill among themselves, so that no other pays for the sums.
        """
        return False

    @abstractmethod
    def keep(self, prompt: Any, rope: Any) -> State:
        """The state to decode with, of a prompt that has come in.

        Args:
            prompt: a `kvcache.prompt.PromptState` with at least `observed` queries (fewer if it is shorter), and with
                `sums` if `summed`. It may serve other policies too and is not changed; only `full` may take its tensors
                as they are.
            rope: the model's rotary embedding, or its `Alibi`.
        """


def positions_of(begin: int, length: int, start: Tensor | None, device: torch.device) -> Tensor:
    """Positions of slots begin .. begin + length - 1: [S], or [B, S] where rows are padded (negative at padding)."""
    slots = torch.arange(begin, begin + length, device=device)
    return slots if start is None else slots - start[:, None]


def reserve(rows: Tensor | None, needed: int, like: Tensor, *, limit: int | None = None) -> Tensor:
    """Make room for `needed` tokens, with spare capacity so that appending costs amortised constant time a token.

    Args:
        rows: [B, Hkv, C, D], or None at first.
        needed: tokens to hold.
        like: [B, Hkv, any, D], gives shape, dtype and device.
        limit: capacity never to exceed (at least `needed`).

    Returns:
        `rows` itself if C >= needed; else a copy with a larger C, zeros after the old ones. The first allocation is
        exact, later ones hold an eighth (at least 64 tokens) to spare.
    """
    if rows is not None and rows.shape[2] >= needed:
        return rows
    capacity = needed if rows is None else needed + max(64, needed // 8)
    if limit is not None:
        assert needed <= limit, (needed, limit)
        capacity = min(capacity, limit)
    larger = like.new_zeros(like.shape[0], like.shape[1], capacity, like.shape[3])
    if rows is not None:
        larger[:, :, : rows.shape[2]] = rows
    return larger


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in _tensors(part)]
