"""The gradient of one example: mean-token cross-entropy over the assistant's content, by the adapter's parameters.

One example at a time, as anybody would write it; the batches of `batched` have to give the same.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel

from longloom.kernels.huggingface.load import load_model
from longloom.tasks.training.mix import IGNORE


def load_adapted(base: Path, adapter: Path, *, device: str = "cpu", dtype: str = "float32") -> PeftModel:
    """Loads the base model with one adapter of the same type, the adapter trainable and dropout off."""
    model, _ = load_model(base, device=device, dtype=dtype)
    adapted: PeftModel = PeftModel.from_pretrained(
        model, adapter, is_trainable=True, torch_device=device, autocast_adapter_dtype=False
    )
    return in_type(adapted, model.dtype).eval()


def in_type(model: PeftModel, dtype: torch.dtype) -> PeftModel:
    """Casts all parameters in place and no buffer: rotary angles in bfloat16 are 0.2 rad off at position 1,000."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter for the trainable ones, in the model's order: the layout of the flat gradients."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def has_target(labels: torch.Tensor) -> bool:
    """Whether any token is predicted: the first one never is. `labels` is int64 [T]."""
    return bool((labels[1:] != IGNORE).any())


def example_gradient(
    model: PeftModel, parameters: dict[str, torch.nn.Parameter], input_ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over the labelled tokens of one example, and its gradient.

    Args:
        model: from `load_adapted`.
        parameters: from `trainable`.
        input_ids: int64 [T].
        labels: int64 [T], -100 where no loss is taken; token t is predicted from position t - 1.

    Returns:
        The loss, a scalar, and [P], the parameters' gradients one after the other, both in the model's type (the loss
        no less than float32). Safe to call from several threads.
    """
    positions = (labels[1:] != IGNORE).nonzero().squeeze(1)
    assert len(positions) > 0, "an example without a target has no gradient"
    # Most of a small model's work is the vocabulary head: ask for the labelled positions only, where the model can.
    narrow = "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters
    options = {"logits_to_keep": positions} if narrow else {}
    logits = model(input_ids=input_ids[None], use_cache=False, **options).logits[0]
    logits = logits if narrow else logits[positions]
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    loss = F.cross_entropy(logits, labels[1:][positions])
    # An expert that this example does not reach has no gradient: zeros.
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), torch.cat([gradient.reshape(-1) for gradient in gradients])
