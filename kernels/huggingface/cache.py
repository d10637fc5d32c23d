"""The transformers cache that a KV policy lives in: it hands keys and values through, and holds the layers' states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from longloom.kernels.kvcache.base import Alibi, KVPolicy, LayerState, Rope, SharedPrefillPolicy
from longloom.kernels.kvcache.prompt import PromptState


class PolicyLayer(CacheLayerMixin):
    """One layer of a `PolicyCache`.

    `update` is where the model offers the layer's new keys and values. They are not stored here: they go on to the
    attention function, where the policy stores what it wants in `state`.
    """

    is_sliding = False
    supports_early_init = False

    def __init__(self, state: LayerState) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state = state
        self.batch_size = -1  # transformers' word for: not known yet

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Remember the new keys [B, Hkv, S, D] until the cache's `take`, and return both as they are.

        Raises:
            ValueError: other rows than before.
        """
        rows = key_states.shape[0]
        if self.batch_size not in (-1, rows):
            raise ValueError(f"a KV policy's cache serves one batch: it holds {self.batch_size} rows, found {rows}")
        self.batch_size = rows
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen (not tokens kept), padding included."""
        return self.state.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the padding mask: it always covers everything seen.

        Raises:
            ValueError: no new tokens, which generate() makes of new ids with an attention mask over them alone.
        """
        if not query_length:
            raise ValueError(
                f"found no token that the KV policy's cache has not seen, it has seen {self.state.seen}: pass the ids "
                "of all turns, or the new ones with an attention mask over all"
            )
        return self.state.seen + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate: the policy allocates."""

    def reorder_cache(self, *args: Any) -> NoReturn:
        """What beam search does after every token."""
        raise ValueError("beam search moves rows of the cache, which KV policies cannot: generate greedily or sample")

    def activate_past_recording(self) -> NoReturn:
        """What assisted decoding begins with."""
        raise ValueError("assisted decoding takes tokens back, which KV policies cannot: generate greedily or sample")

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError("a KV policy's cache cannot be reset, cropped, reordered or offloaded: open a new one")

    reset = crop = offload = prefetch = batch_repeat_interleave = batch_select_indices = _refuse


class PolicyCache(Cache):
    """The states of all layers under one KV policy, for one batch.

    Args:
        states: one a layer, in order.
    """

    def __init__(self, states: Iterable[LayerState]) -> None:
        self._policy_layers = [PolicyLayer(state) for state in states]
        super().__init__(layers=list(self._policy_layers))

    @classmethod
    def empty(cls, policies: Sequence[KVPolicy[Any]], *, sliding: Iterable[int] = ()) -> PolicyCache:
        """Before the first token, with the policies of the layers, of which some attend to a sliding window."""
        slide = tuple(sorted(sliding))
        return cls(
            policy.state_type(layer, layers=len(policies), sliding=slide) for layer, policy in enumerate(policies)
        )

    def fork(self) -> PolicyCache:
        """A copy that goes on by itself."""
        return PolicyCache(layer.state.fork() for layer in self._policy_layers)

    def kept_by(self, policy: SharedPrefillPolicy[Any], rope: Rope | Alibi, *, last: bool = False) -> PolicyCache:
        """What the policy keeps of this cache, which holds the states of a `PromptPolicy`.

        A layer with a sliding window has another state, which is no policy's business: it is copied.

        Args:
            policy: keeps a part of every layer.
            rope: the model's positions.
            last: nobody needs this cache any more: every layer is emptied as soon as it is compressed, so that never
                more than one is held twice.
        """
        kept = []
        for layer in self._policy_layers:
            state = layer.state
            kept.append(policy.keep(state, rope) if isinstance(state, PromptState) else state.fork())
            if last:
                layer.state = type(state)(state.layer, layers=state.layers, sliding=state.sliding)
        return PolicyCache(kept)

    def take(self, layer: int, key: Tensor) -> LayerState:
        """The layer's state to attend with, for exactly the keys that the layer's `update` last handed through.

        Raises:
            ValueError: `key` did not come through this cache, so the model was called without it.
        """
        held = self._policy_layers[layer]
        if key is not held.keys:
            raise ValueError("the model was called without its KV policy's cache: pass past_key_values=cache")
        held.keys = held.values = None
        return held.state

    def bytes(self) -> int:
        """Memory that the policy holds for the batch on the device, measured over all layers.

        A ragged cache's page tables have a copy on the host besides, of 4 bytes a page.
        """
        return sum(layer.state.bytes() for layer in self._policy_layers)
