"""BLOOM under other attention: it computes its own within the layer, and names no function that could be replaced.

`dispatching` lends a model of that kind, within a block, what newer ones have: attention looked up by name in
transformers' registry. `alibi_of` reads from it what takes the place of a rotation. MPT and Falcon, which have ALiBi
too, are other models: their layers are not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomModel, build_alibi_tensor

from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.base import Alibi
from longloom.kernels.kvcache.razor_alibi import logit_bounds

#: What modules are lent within the block.
_LENT = ("forward", "set_attn_implementation")

_BOUNDS: WeakKeyDictionary[nn.Module, tuple[str, Tensor]] = WeakKeyDictionary()


def is_bloom(model: PreTrainedModel) -> bool:
    """Whether the model is of the kind that this file is about."""
    return isinstance(model.get_decoder(), BloomModel)


def alibi_of(model: PreTrainedModel, *, bounds: bool) -> Alibi:
    """The model's slopes, and if asked for the bounds of its logits, which are computed once for its weights.

    Raises:
        ValueError: bounds of projections that are no plain matrices.
    """
    decoder = model.get_decoder()
    two = torch.ones(1, 2, dtype=torch.int64, device=model.device)
    slopes = build_alibi_tensor(two, decoder.num_heads, torch.float32)[:, 0, 1].contiguous()  # of position 1
    if not bounds:
        return Alibi(slopes)
    weights = fingerprint(model)
    known = _BOUNDS.get(decoder)
    if known is None or known[0] != weights:
        known = _BOUNDS[decoder] = weights, _bounds(decoder)
    return Alibi(slopes, known[1])


@contextmanager
def dispatching(decoder: nn.Module) -> Iterator[None]:
    """Let the attention of all layers be the function of transformers' registry that the model is set to.

    Within the block `set_attn_implementation` works, and that function gets what it gets of other models: query, key
    and value [B, H, S, D] after the cache, the mask of that name and `scaling`.

    Raises:
        ValueError: the model is set to sum its projections in slices.
    """
    layers = [module for module in decoder.modules() if isinstance(module, BloomAttention)]
    if any(layer.slow_but_exact and layer.pretraining_tp > 1 for layer in layers):
        raise ValueError("KV policies do not fit this model of type 'bloom': it uses slow_but_exact=True")
    changed = [*layers, decoder]
    own = [{name: vars(module)[name] for name in _LENT if name in vars(module)} for module in changed]
    try:
        for layer in layers:
            vars(layer)["forward"] = partial(_forward, layer, decoder.config)
        vars(decoder)["set_attn_implementation"] = partial(setattr, decoder.config, "_attn_implementation")
        yield
    finally:
        for module, before in zip(changed, own, strict=True):
            for name in _LENT:
                vars(module).pop(name, None)
            vars(module).update(before)  # as of accelerate, which wraps the forward of an instance


def _forward(
    layer: Any,
    config: Any,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor | None,
    layer_past: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """In place of a layer's own: the model's biases `alibi` are left to the function."""
    query, key, value = layer._reshape(layer.query_key_value(hidden_states))
    if layer_past is not None:
        key, value = layer_past.update(key, value, layer.layer_idx)
    attend = AttentionInterface()[config._attn_implementation]
    output, _ = attend(layer, query, key, value, attention_mask, scaling=layer.inv_norm_factor)  # [B, S, H, D]
    return layer.dense(output.flatten(2)) + residual, None


@torch.no_grad()
def _bounds(decoder: Any) -> Tensor:
    """Of all layers and heads, [layers, H] float64 on the CPU."""
    bounds = []
    for number, block in enumerate(decoder.h):
        attention, norm = block.self_attention, block.input_layernorm
        projection = attention.query_key_value
        if type(projection) is not nn.Linear:
            raise ValueError(
                f"KV policy 'razor-alibi' reads the weights of layer {number}: expected query_key_value to be a plain "
                f"Linear, found {type(projection).__module__}.{type(projection).__name__}"
            )
        weight = projection.weight.unflatten(0, (attention.num_heads, 3, -1))  # [H, 3, D, d], as `_reshape` has it
        bias = projection.bias.view(weight.shape[:3])
        found = logit_bounds(
            norm.weight, norm.bias, weight[:, 0], bias[:, 0], weight[:, 1], scaling=attention.inv_norm_factor
        )
        bounds.append(found.cpu())
    return torch.stack(bounds)
