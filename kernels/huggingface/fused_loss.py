"""A causal language model's loss from its last hidden states, without its logits.

Which models that fits is not looked up in a list of names: on a few tokens the model's own logits and losses must be
those of softcap(h W^T + bias) and `linear_cross_entropy`, and large logits may not change otherwise (`loss_refusal`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longloom.kernels.minisequence.linear_cross_entropy import linear_cross_entropy

#: What models call c of the soft cap c tanh(z / c) on their logits: Gemma 2 and later, RecurrentGemma, xLSTM.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

#: The largest logit that the model is shown: soft caps of 30 hardly change those of a few random tokens.
_LARGEST = 100.0

#: Relative errors allowed between the model's logits and losses and ours: of float32 and float64 (transformers computes
#: the loss in float32), and of shorter types.
_EXACT, _SHORT = 1e-3, 3e-2


class DecoderOutput:
    """The last hidden states that the model's decoder returns within the block."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._decoder = model.get_decoder()
        self.hidden: Tensor | None = None

    def __enter__(self) -> DecoderOutput:
        self._handle = self._decoder.register_forward_hook(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.hidden = output[0]  # by number, output or tuple


def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The output layer, if it is a linear one without adapters; of peft's `modules_to_save`, the one in force."""
    head: Any = model.get_output_embeddings()
    copies = getattr(head, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict):
        active = head.active_adapters
        own = head.disable_adapters or any(name not in copies for name in active)
        head = head.original_module if own else copies[active[0]] if len(active) == 1 else None
    return head if type(head) is nn.Linear else None


def softcap_of(model: PreTrainedModel) -> float | None:
    """Gemma 2's c of c tanh(z / c); None: logits as they are."""
    config = model.config.get_text_config()
    caps = [float(cap) for name in _SOFTCAPS if (cap := getattr(config, name, None)) is not None]
    return caps[0] if caps else None


def fused_loss(
    model: PreTrainedModel,
    hidden: Tensor,
    labels: Tensor,
    *,
    num_items_in_batch: Tensor | float | None = None,
    shift_labels: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """What transformers' `ForCausalLMLoss` is of the model's logits, differentiable likewise.

    Args:
        model: with a `plain_head`.
        hidden: [B, S, d], the decoder's.
        labels: [B, S] int64, of each token itself.
        num_items_in_batch: labels that count in all batches of an optimiser's step: the sum is divided by it, so that
            gradient accumulation weighs every token alike; None: the mean over this batch.
        shift_labels: [B, S], of each token's successor, in place of `labels`.
        ignore_index: of labels that do not count. Where none counts the loss is 0 (transformers: NaN).
    """
    head = plain_head(model)
    assert head is not None
    weight: Tensor = head.weight
    bias: Tensor | None = head.bias
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # as it would cast a linear layer's
        low = torch.get_autocast_dtype(kind)
        hidden, weight, bias = hidden.to(low), weight.to(low), None if bias is None else bias.to(low)
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    loss = linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]).contiguous(),
        weight,
        shift_labels.reshape(-1).contiguous().to(hidden.device),
        bias=bias,
        softcap=softcap_of(model),
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    if num_items_in_batch is None:
        return loss
    if isinstance(num_items_in_batch, Tensor):
        return loss / num_items_in_batch.to(loss.device).clamp(min=1)
    return loss / max(num_items_in_batch, 1)


def fused_forward(model: PreTrainedModel, own: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's forward pass; in training with labels, with the fused loss and without logits (`logits` is None).

    Without labels, in evaluation mode and where logits are asked for (`logits_to_keep`), the model's own; so it is
    where trl's trainers ask for the head that they have fused themselves (`fused_lm_head`). What transformers' Trainer
    says to a model whose loss is liger's is understood: `skip_logits`, to spare them in evaluation, too. Where router
    logits are asked for, the loss holds the routers' balance as the model's own does.

    Raises:
        ValueError: reentrant checkpointing has cut the decoder off from the loss.
    """
    given = dict(zip(inspect.signature(own).parameters, args, strict=False)) | kwargs
    kept = given.get("logits_to_keep", 0)
    skips = given.pop("skip_logits", None)
    if (
        given.get("labels") is None
        or given.get("fused_lm_head")
        or isinstance(kept, Tensor)
        or kept
        or not (model.training if skips is None else skips)
    ):
        return own(**given)
    labels = given.pop("labels")
    asked = given.pop("return_dict", None)
    with DecoderOutput(model) as decoder:
        output = own(**given | {"logits_to_keep": 1, "return_dict": True})
    hidden = decoder.hidden
    assert hidden is not None
    cut = torch.is_grad_enabled() and not hidden.requires_grad
    if cut and any(part.requires_grad for part in model.get_decoder().parameters()):
        raise ValueError(
            "minisequence: reentrant gradient checkpointing trains nothing below the head, as no input requires "
            "gradients: use_reentrant=False, or model.enable_input_require_grads()"
        )
    extras = {name: given[name] for name in ("num_items_in_batch", "shift_labels", "ignore_index") if name in given}
    loss = fused_loss(model, hidden, labels, **extras)
    if output.get("aux_loss") is not None:
        loss = loss + model.router_aux_loss_coef * output["aux_loss"].to(loss.device)
    output = type(output)(**{**output, "loss": loss, "logits": None})
    return output if (model.config.return_dict if asked is None else asked) else output.to_tuple()


@torch.no_grad()
def loss_refusal(model: PreTrainedModel) -> str | None:
    """Why the fused loss does not fit this model; None: it does, as a few tokens show."""
    head = plain_head(model)
    if head is None:
        layer = type(model.get_output_embeddings())
        return f"its output layer is {layer.__module__.partition('.')[0]}'s {layer.__name__}, no plain linear layer"
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "its forward takes no logits_to_keep"
    # By its weight the routers' loss may be too small to be seen in what is compared below.
    routed = hasattr(model.config.get_text_config(), "output_router_logits")
    if routed and not hasattr(model, "router_aux_loss_coef"):
        return "what weight the loss of its routers has is not known"
    spared = {"output_router_logits": False} if routed else {}
    ids = (torch.arange(8, device=model.device) * 7 % head.out_features)[None]
    labels = ids.masked_fill(torch.arange(8, device=model.device) == 3, -100)
    tolerance = _EXACT if model.dtype in (torch.float32, torch.float64) else _SHORT
    there = [] if model.device.type == "cpu" else [model.device]
    kind = "cuda" if model.device.type == "cpu" else model.device.type
    for count in (None, torch.tensor(3.0)):
        extras: dict[str, Any] = {} if count is None else {"num_items_in_batch": count}
        try:
            with torch.random.fork_rng(there, device_type=kind), DecoderOutput(model) as decoder:
                theirs = model(input_ids=ids, labels=labels, use_cache=False, return_dict=True, **extras, **spared)
            hidden = decoder.hidden
            assert hidden is not None
            logits, ours = _logits(model, hidden), fused_loss(model, hidden, labels, **extras)
        except Exception as error:  # of a model that we know nothing of
            return f"its loss cannot be compared ({type(error).__name__})"
        if logits.shape != theirs.logits.shape or not _alike(logits, theirs.logits, tolerance):
            return "its logits are not those of a linear layer on the decoder's output"
        if not _alike(ours, theirs.loss, tolerance):
            return f"its loss is {float(theirs.loss):.4g} where the mean cross-entropy gives {float(ours):.4g}"
    large = torch.linspace(-_LARGEST, _LARGEST, head.out_features)
    hook = head.register_forward_hook(lambda module, inputs, output: large.to(output).expand_as(output).clone())
    try:
        with torch.random.fork_rng(there, device_type=kind):
            found = model(input_ids=ids, use_cache=False, return_dict=True, **spared).logits
    finally:
        hook.remove()
    if not _alike(_capped(model, large.to(found).expand_as(found)), found, tolerance):
        return "it changes large logits in a way that is not known"
    return None


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    head = plain_head(model)
    assert head is not None
    return _capped(model, head(hidden))


def _capped(model: PreTrainedModel, logits: Tensor) -> Tensor:
    cap = softcap_of(model)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _alike(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return bool((ours.double() - theirs.double()).norm() <= tolerance * theirs.double().norm())
