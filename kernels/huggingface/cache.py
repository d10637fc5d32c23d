"""The transformers cache that a KV policy lives in: it hands keys and values through, and holds the layers' states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from longloom.kernels.kvcache.base import KVPolicy, LayerState, Rope, SharedPrefillPolicy


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

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Remember the new keys [B, Hkv, S, D] until the cache's `take`, and return both as they are."""
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen (not tokens kept), padding included."""
        return self.state.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the padding mask: it always covers everything seen."""
        return self.state.seen + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate: the policy allocates."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError("a KV policy's cache cannot be reset, cropped, reordered or offloaded: open a new one")

    reset = reorder_cache = crop = offload = prefetch = batch_repeat_interleave = batch_select_indices = _refuse


class PolicyCache(Cache):
    """The states of all layers under one KV policy, for one batch.

    Args:
        states: one a layer, in order.
    """

    def __init__(self, states: Iterable[LayerState]) -> None:
        self._policy_layers = [PolicyLayer(state) for state in states]
        super().__init__(layers=list(self._policy_layers))

    @classmethod
    def empty(cls, policy: KVPolicy[Any], layers: int) -> PolicyCache:
        """Before the first token."""
        return cls(policy.state_type(layer, layers=layers) for layer in range(layers))

    def fork(self) -> PolicyCache:
        """A copy that goes on by itself."""
        return PolicyCache(layer.state.fork() for layer in self._policy_layers)

    def kept_by(self, policy: SharedPrefillPolicy[Any], rope: Rope) -> PolicyCache:
        """What the policy keeps of this cache, which holds the states of a `PromptPolicy`."""
        return PolicyCache(policy.keep(layer.state, rope) for layer in self._policy_layers)

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
        """Memory that the policy holds for the batch, measured over all layers."""
        return sum(layer.state.bytes() for layer in self._policy_layers)
