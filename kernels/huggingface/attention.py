"""Run a transformers model with another attention within a `with` block; `policy_attention`: under a KV policy.

transformers dispatches attention by name through a registry, so no class is patched. A KV policy needs queries and
keys before rotation: within the block, the model's own rotary module gives way to one that rotates by nothing. Any
model whose attention then differs from its own in nothing but that rotation is supported, which is checked on a few
tokens (`_check`) rather than looked up in a list of names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from longloom.kernels.huggingface.cache import PolicyCache
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.base import KVPolicy, Rope

#: Called as function(module, query [B,Hq,S,D], key [B,Hkv,N,D], value [B,Hkv,N,D], start, scaling=..., **kwargs), with
#: start [B] the left padding or None; returns (output [B,S,Hq,D], None).
AttentionFunction = Callable[..., tuple[Tensor, None]]

#: The name in transformers' registries. It stays there once registered, inert unless a model's config names it.
NAME = "longloom"

#: What models pass along that changes nothing of causal attention over all tokens.
_HARMLESS = {"scaling", "dropout", "position_ids", "use_cache", "output_router_logits"}

_FUNCTIONS: WeakKeyDictionary[nn.Module, AttentionFunction] = WeakKeyDictionary()
_CHECKED: WeakSet[nn.Module] = WeakSet()


@contextmanager
def attention_function(model: PreTrainedModel, function: AttentionFunction) -> Iterator[None]:
    """Let every attention layer of `model` call `function` within the block.

    Raises:
        ValueError: the model does not dispatch its attention through transformers' registry, or is within such a
            block already.
    """
    decoder = model.get_decoder()
    layers = _own_layers(decoder)
    AttentionInterface.register(NAME, _dispatch)
    AttentionMaskInterface.register(NAME, _left_padding)
    previous = decoder.config._attn_implementation
    try:
        _FUNCTIONS.update((layer, function) for layer in layers)
        decoder.set_attn_implementation(NAME)
        if decoder.config._attn_implementation != NAME:
            raise _unsupported(model, "it does not dispatch its attention through transformers' AttentionInterface")
        yield
    finally:
        for layer in layers:
            _FUNCTIONS.pop(layer, None)
        decoder.set_attn_implementation(previous)


@contextmanager
def policy_attention(
    model: PreTrainedModel, policy: KVPolicy[Any], *, cache: PolicyCache | None = None
) -> Iterator[PolicyCache]:
    """Put `policy` in charge of the model's attention within the block.

    Positions are counted by the policy: row b's first token that the (left-padded) attention mask shows has position
    0. `position_ids` are ignored. For inference: call the model under torch.no_grad or inference_mode.

    Args:
        model: any causal model of transformers with rotary positions in Llama's convention and full causal attention,
            in evaluation mode.
        policy: see `longloom.kernels.kvcache.registry`.
        cache: of this policy, to go on with; None: an empty one.

    Yields:
        The cache to pass as `past_key_values` in every call, for one batch.

    Raises:
        ValueError: the model is of a kind that KV policies do not fit, with the reason; or the policy's head profile
            belongs to other weights.
    """
    if model.training:
        raise ValueError("KV policies run a model in evaluation mode: call model.eval() first")
    decoder = model.get_decoder()
    _own_layers(decoder)
    rope = rope_of(model)
    if decoder not in _CHECKED:
        _check(model, rope)
        _CHECKED.add(decoder)
    _check_profile(model, policy)
    held = cache or PolicyCache.empty(policy, layers=decoder.config.num_hidden_layers)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, start: Tensor | None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        output = policy.attend(held.take(module.layer_idx, key), query, key, value, rope, start=start, scaling=scaling)
        return output.transpose(1, 2).contiguous(), None

    with attention_function(model, attend), _unrotated(decoder, rope):
        yield held


def _check_profile(model: PreTrainedModel, policy: KVPolicy[Any]) -> None:
    """Refuse a head profile that is missing, or was made of another model."""
    if not policy.profiled:
        return
    heads = getattr(policy, "heads", None)
    if heads is None:
        raise ValueError(f"KV policy {policy.name!r} needs the model's head profile: `longloom heads` makes one")
    found = fingerprint(model)
    if heads.weights != found:
        raise ValueError(
            f"KV policy {policy.name!r}: the head profile was made of weights {heads.weights[:12]}, this model has "
            f"{found[:12]}; `longloom heads` makes one that fits"
        )


def rope_of(model: PreTrainedModel) -> Rope:
    """The model's rotary embedding (ValueError: it has none that KV policies can work with)."""
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    inv_freq = getattr(rotary, "inv_freq", None)
    if not isinstance(inv_freq, Tensor):
        raise _unsupported(model, "it has no rotary position embedding that all layers share")
    kind = getattr(rotary, "rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise _unsupported(model, f"its rotary frequencies change with the length (rope_type {kind!r})")
    return Rope(inv_freq.float(), float(getattr(rotary, "attention_scaling", 1.0)))


def _own_layers(decoder: nn.Module) -> list[nn.Module]:
    """The layers (attention and whatever else knows its index), if their attention is still their own."""
    layers = [module for module in decoder.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    if any(layer in _FUNCTIONS for layer in layers):
        raise ValueError("this model's attention is replaced already: leave that block before entering another")
    return layers


def _dispatch(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What transformers calls under NAME."""
    if attention_mask is not None and attention_mask.ndim != 1:
        raise ValueError(
            f"the attention mask must be [rows, tokens] with zeros at the left padding, found {attention_mask.ndim}-D"
        )
    return _FUNCTIONS[module](module, query, key, value, attention_mask, **kwargs)


def _left_padding(*, kv_length: int, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """What transformers calls under NAME once a forward pass: the mask [B, N] as left padding [B], None where none."""
    if attention_mask is None:
        return None
    if attention_mask.shape[-1] != kv_length:
        raise ValueError(
            f"the attention mask must cover all {kv_length} tokens seen so far, found {attention_mask.shape[-1]}"
        )
    shown = attention_mask.bool()
    if bool((shown[:, :-1] & ~shown[:, 1:]).any()):
        raise ValueError("the attention mask hides tokens that follow shown ones: KV policies need padding on the left")
    start = kv_length - shown.sum(dim=-1)
    return start if bool(start.any()) else None


class _NoRotation(nn.Module):
    """Stands in for a model's rotary module: cosines of one and sines of zero."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return x.new_ones(1, 1, self.size), x.new_zeros(1, 1, self.size)  # for every row and position


@contextmanager
def _unrotated(decoder: nn.Module, rope: Rope) -> Iterator[None]:
    rotary = decoder.rotary_emb
    decoder.rotary_emb = _NoRotation(2 * rope.inv_freq.shape[-1])
    try:
        yield
    finally:
        decoder.rotary_emb = rotary


@torch.no_grad()
def _check(model: PreTrainedModel, rope: Rope) -> None:
    """Show on a few tokens that rotating by `rope` is all that stands between un-rotated vectors and attention.

    Every layer's attention is made to answer zeros, so that layers receive the same input with and without the model's
    own rotation, and `rope` must turn the one into the other.
    """
    decoder = model.get_decoder()
    seen: list[tuple[int, Tensor, Tensor]] = []

    def record(
        module: Any, query: Tensor, key: Tensor, value: Tensor, start: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        for name, extra in kwargs.items():
            if name not in _HARMLESS and extra is not None:
                shown = f"{name}={extra}" if isinstance(extra, int | float | str) else name
                raise _unsupported(model, f"the attention of layer {module.layer_idx} uses {shown}")
        if not query.shape[-1] == key.shape[-1] == value.shape[-1] == 2 * rope.inv_freq.shape[-1]:
            raise _unsupported(model, f"layer {module.layer_idx} does not rotate its heads as a whole")
        seen.append((module.layer_idx, query, key))
        return torch.zeros_like(query).transpose(1, 2).contiguous(), None

    ids = torch.arange(6, device=model.device)[None] % decoder.config.vocab_size
    with attention_function(model, record):
        decoder(input_ids=ids, use_cache=False)
        with _unrotated(decoder, rope):
            decoder(input_ids=ids, use_cache=False)
    layers = decoder.config.num_hidden_layers
    if [layer for layer, _, _ in seen] != [*range(layers)] * 2:
        raise _unsupported(model, "not every layer is one attention over all tokens")
    positions = torch.arange(ids.shape[1], device=model.device)
    for (layer, *rotated), (_, *plain) in zip(seen[:layers], seen[layers:], strict=True):
        for theirs, ours in zip(rotated, plain, strict=True):
            if (rope.rotate(ours, positions) - theirs).norm() > 1e-2 * theirs.norm():
                raise _unsupported(model, f"layer {layer} does not rotate queries and keys in Llama's convention")


def _unsupported(model: PreTrainedModel, reason: str) -> ValueError:
    kind = getattr(model.config, "model_type", type(model).__name__)
    return ValueError(f"KV policies do not fit this model of type {kind!r}: {reason}")
