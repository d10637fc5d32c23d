"""Run a transformers model with another attention within a `with` block; `policy_attention`: under a KV policy.

transformers dispatches attention by name through a registry, so no class is patched. A KV policy needs queries and
keys before rotation: within the block, the model's own rotary module gives way to one that rotates by nothing. Any
model whose attention then differs from its own in nothing but that rotation is supported, which is checked on a few
tokens (`_check`) rather than looked up in a list of names. Layers that attend to a sliding window, as their mask says,
are left to it: `streaming` without sinks is attention to the last tokens at their own positions, in bounded memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from longloom.kernels.huggingface.bloom import alibi_of, dispatching, is_bloom
from longloom.kernels.huggingface.cache import PolicyCache
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.base import Alibi, KVPolicy, Rope
from longloom.kernels.kvcache.heads import HeadProfile, given
from longloom.kernels.kvcache.registry import names_for
from longloom.kernels.kvcache.streaming import StreamingPolicy

#: Called as function(module, query [B,Hq,S,D], key [B,Hkv,N,D], value [B,Hkv,N,D], start, scaling=..., **kwargs), with
#: start [B] the left padding or None; returns (output [B,S,Hq,D], None).
AttentionFunction = Callable[..., tuple[Tensor, None]]

#: The name in transformers' registries. It stays there once registered, inert unless a model's config names it.
NAME = "longloom"

#: The same of `_check`, whose masks say what a layer sees in place of where its padding ends.
CHECK = "longloom check"

#: What models pass along that changes nothing of causal attention, given the mask.
_HARMLESS = {"scaling", "dropout", "position_ids", "use_cache", "output_router_logits", "sliding_window"}

_FUNCTIONS: WeakKeyDictionary[nn.Module, AttentionFunction] = WeakKeyDictionary()

#: The sliding windows of the models that were checked, by layer.
_CHECKED: WeakKeyDictionary[nn.Module, Mapping[int, int]] = WeakKeyDictionary()
_WARNED: WeakSet[nn.Module] = WeakSet()


@contextmanager
def attention_function(model: PreTrainedModel, function: AttentionFunction, *, name: str = NAME) -> Iterator[None]:
    """Let every attention layer of `model` call `function` within the block.

    Args:
        model: any whose attention goes through transformers' registry.
        function: see `AttentionFunction`.
        name: NAME or CHECK.

    Raises:
        ValueError: the model does not dispatch its attention through transformers' registry, or is within such a
            block already.
    """
    decoder = model.get_decoder()
    layers = _own_layers(decoder)
    AttentionInterface.register(name, _dispatch)
    AttentionMaskInterface.register(name, _left_padding if name == NAME else _seen)
    previous = decoder.config._attn_implementation
    try:
        _FUNCTIONS.update((layer, function) for layer in layers)
        decoder.set_attn_implementation(name)
        if decoder.config._attn_implementation != name:
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

    transformers' own generate() works with the cache: greedy or sampled, several answers a prompt, left-padded batches
    and several turns. A later turn passes all ids so far, or the new ones alone with an attention mask over all. Beam
    search and assisted decoding are refused.

    Layers that attend to a sliding window keep exactly that, whatever the policy; a warning, once a model, names them.

    Args:
        model: any causal model of transformers with rotary positions in Llama's convention, in evaluation mode; its
            layers attend to all tokens before or to a sliding window. Or a BLOOM.
        policy: see `longloom.kernels.kvcache.registry`.
        cache: of this policy, to go on with; None: an empty one.

    Yields:
        The cache to pass as `past_key_values` in every call, for one batch.

    Raises:
        ValueError: the model is of a kind that KV policies do not fit, with the reason, or that this one does not; or
            the policy's head profile is missing or belongs to other weights.
    """
    if model.training:
        raise ValueError("KV policies run a model in evaluation mode: call model.eval() first")
    decoder = model.get_decoder()
    _own_layers(decoder)
    rope = encoding_of(model, policy)
    policy = policy.fitted(rope)
    windows = sliding_windows(model)
    if windows and decoder not in _WARNED:
        warnings.warn(_left_alone(windows, decoder.config.num_hidden_layers), stacklevel=3)
        _WARNED.add(decoder)
    if policy.profiled:
        check_profile(model, given(policy.name, getattr(policy, "heads", None)))
    policies: list[KVPolicy[Any]] = [policy] * decoder.config.num_hidden_layers
    ropes = [rope] * len(policies)
    for layer, window in windows.items():
        policies[layer], ropes[layer] = StreamingPolicy(sink=0, window=window), rope_of(model, sliding=True)
    held = cache or PolicyCache.empty(policies, sliding=windows)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, start: Tensor | None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        state = held.take(layer, key)
        output = policies[layer].attend(state, query, key, value, ropes[layer], start=start, scaling=scaling)
        return output.transpose(1, 2).contiguous(), None

    adapted = dispatching(decoder) if isinstance(rope, Alibi) else _unrotated(decoder, rope)
    with adapted, attention_function(model, attend):
        yield held


def check_profile(model: PreTrainedModel, heads: HeadProfile) -> None:
    """Refuse a head profile that was made of another model (ValueError)."""
    found = fingerprint(model)
    if heads.weights != found:
        raise ValueError(
            f"the head profile was made of weights {heads.weights[:12]}, this model has {found[:12]}; "
            "`longloom heads` makes one that fits"
        )


def sliding_windows(model: PreTrainedModel) -> Mapping[int, int]:
    """The layers that attend to a sliding window, and how many tokens a query sees there, itself included.

    Raises:
        ValueError: KV policies do not fit the model, with the reason.
    """
    decoder = model.get_decoder()
    if is_bloom(model):
        return {}
    if decoder not in _CHECKED:
        _CHECKED[decoder] = _check(model)
    return _CHECKED[decoder]


def _left_alone(windows: Mapping[int, int], layers: int) -> str:
    """What a model's user should know of its sliding windows."""
    sizes = sorted(set(windows.values()))
    if len(windows) == layers:
        seen = " or ".join(map(str, sizes))
        return f"all {layers} layers attend to a sliding window of {seen} tokens: no layer is left for the KV policy"
    named = []
    for size in sizes:
        own = [layer for layer in sorted(windows) if windows[layer] == size]
        which = f"layer{'s' if len(own) > 1 else ''} {', '.join(map(str, own))}"
        named.append(f"{which} attend{'' if len(own) > 1 else 's'} to a sliding window of {size} tokens")
    return f"{'; '.join(named)}: the KV policy leaves {'them' if len(windows) > 1 else 'it'} alone"


def encoding_of(model: PreTrainedModel, policy: KVPolicy[Any]) -> Rope | Alibi:
    """How the model encodes positions, for the policy's methods.

    Raises:
        ValueError: in a way that KV policies cannot work with, or this one cannot.
    """
    rope = alibi_of(model, bounds=policy.bounded) if is_bloom(model) else rope_of(model)
    if not isinstance(rope, policy.encodings):
        needed = "rotary positions; with ALiBi" if isinstance(rope, Alibi) else "ALiBi; with rotary positions"
        raise ValueError(f"KV policy {policy.name!r} needs {needed}: {', '.join(names_for(type(rope)))}")
    return rope


def rope_of(model: PreTrainedModel, *, sliding: bool = False) -> Rope:
    """The rotary embedding of the model's layers of full attention, or of those with a sliding window.

    Most models have one for all layers, some (Gemma 3, OLMo 3) one for each kind.

    Raises:
        ValueError: it has none that KV policies can work with.
    """
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    kinds = ["full_attention_", "sliding_attention_"]
    for prefix in ["", *(reversed(kinds) if sliding else kinds)]:  # a model may have layers of one kind alone
        inv_freq = getattr(rotary, f"{prefix}inv_freq", None)
        if isinstance(inv_freq, Tensor):
            break
    else:
        raise _unsupported(model, "it has no rotary position embedding that all layers share")
    kind = getattr(rotary, "rope_type", "default")
    if isinstance(kind, Mapping):
        kind = kind[prefix.removesuffix("_")]
    if kind in ("dynamic", "longrope"):
        raise _unsupported(model, f"its rotary frequencies change with the length (rope_type {kind!r})")
    scaling = float(getattr(rotary, f"{prefix}attention_scaling", 1.0))
    return Rope(inv_freq.float(), scaling, getattr(model.get_decoder().config, "max_position_embeddings", None))


def _own_layers(decoder: nn.Module) -> list[nn.Module]:
    """The layers (attention and whatever else knows its index), if their attention is still their own."""
    layers = [module for module in decoder.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    if any(layer in _FUNCTIONS for layer in layers):
        raise ValueError("this model's attention is replaced already: leave that block before entering another")
    return layers


def _dispatch(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What transformers calls under NAME and CHECK."""
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


def _seen(*, mask_function: Callable[..., Tensor], local_size: int | None = None, **_: Any) -> Tensor:
    """What transformers calls under CHECK: how many tokens a query sees, itself included, [1]; 0: all, -1: neither.

    The model's mask function is asked about the edges of what it should show, far beyond the few tokens that are fed.
    """
    window = local_size or 0
    edge = window or 1 << 19
    queries = torch.tensor([0, 1, edge - 1, edge, edge + 1, 2 * edge])[:, None]
    around = torch.arange(-1, 2)
    keys = torch.cat(((queries + around).flatten(), (queries - edge + around).flatten())).clamp(min=0)
    first = torch.zeros((), dtype=torch.int64)
    shown = mask_function(first, first, queries, keys)
    expected = keys <= queries
    if window:
        expected &= keys > queries - window
    return torch.tensor([window if torch.equal(shown.expand_as(expected), expected) else -1])


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
def _check(model: PreTrainedModel) -> dict[int, int]:
    """Show on a few tokens that rotating them is all that stands between un-rotated vectors and attention.

    Every layer's attention is made to answer zeros, so that layers receive the same input with and without the model's
    own rotation, and `rope_of` must turn the one into the other.

    Returns:
        The sliding windows, by layer: what the model's masks show. An argument `sliding_window` may say the same, but
        some models (Phi-3.5-MoE, Qwen2-MoE) pass none where they have one, and OLMoE passes one where it has none.
    """
    decoder = model.get_decoder()
    ropes = {sliding: rope_of(model, sliding=sliding) for sliding in (False, True)}
    windows: dict[int, int] = {}
    vectors: list[tuple[int, Tensor, Tensor]] = []

    def record(
        module: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        for name, extra in kwargs.items():
            if name not in _HARMLESS and extra is not None:
                shown = f"{name}={extra}" if isinstance(extra, int | float | str) else name
                raise _unsupported(model, f"the attention of layer {layer} uses {shown}")
        window = 0 if seen is None else int(seen)
        if window < 0:
            raise _unsupported(model, f"layer {layer} sees neither all tokens before nor a sliding window of them")
        asked = kwargs.get("sliding_window")
        if asked and asked != window:
            showing = f"a window of {window}" if window else "all tokens"
            raise _unsupported(model, f"layer {layer} uses sliding_window={asked}, its mask shows {showing}")
        if window:
            windows[layer] = window
        if not query.shape[-1] == key.shape[-1] == value.shape[-1] == 2 * ropes[layer in windows].inv_freq.shape[-1]:
            raise _unsupported(model, f"layer {layer} does not rotate its heads as a whole")
        vectors.append((layer, query, key))
        return torch.zeros_like(query).transpose(1, 2).contiguous(), None

    ids = torch.arange(6, device=model.device)[None] % decoder.config.vocab_size
    with attention_function(model, record, name=CHECK):
        decoder(input_ids=ids, use_cache=False)
        with _unrotated(decoder, ropes[False]):
            decoder(input_ids=ids, use_cache=False)
    layers = decoder.config.num_hidden_layers
    if [layer for layer, _, _ in vectors] != [*range(layers)] * 2:
        raise _unsupported(model, "not every layer is one attention over all tokens")
    positions = torch.arange(ids.shape[1], device=model.device)
    for (layer, *rotated), (_, *plain) in zip(vectors[:layers], vectors[layers:], strict=True):
        rope = ropes[layer in windows]
        for theirs, ours in zip(rotated, plain, strict=True):
            if (rope.rotate(ours, positions) - theirs).norm() > 1e-2 * theirs.norm():
                raise _unsupported(model, f"layer {layer} does not rotate queries and keys in Llama's convention")
    return windows


def _unsupported(model: PreTrainedModel, reason: str) -> ValueError:
    kind = getattr(model.config, "model_type", type(model).__name__)
    return ValueError(f"KV policies do not fit this model of type {kind!r}: {reason}")
