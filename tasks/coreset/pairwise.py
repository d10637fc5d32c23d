"""Pairs of responses as examples of the coreset stages: the gradient of a reward model's Bradley-Terry loss,

    -log sigmoid(r(prompt, context, chosen) - r(prompt, context, rejected)).

As input ids and labels an example is the tokens of both texts one after the other, the labels saying which: 0 for the
chosen, 1 for the rejected. What has no gradient, a tie or a text longer than the model reads, has no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longloom.kernels.huggingface.load import load_reward_model
from longloom.storage.parquet import iter_batches
from longloom.tasks.coreset.batched import Example, PerExample, Sink
from longloom.tasks.coreset.gradients import in_type
from longloom.tasks.preference.encoding import Asked, Reading, encode, set_apart_padding

CHOSEN, REJECTED = 0, 1


def encode_pairs(
    comparisons: Path, tokenizer: PreTrainedTokenizerBase, reading: Reading
) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of each comparison, in order.

    Raises:
        ValueError: a chat template that refuses a conversation; the row's id is named.
    """
    from longloom.tasks.preference.pairs import NAME  # not above: with it comes duckdb, which `make gpu-check` lacks

    columns = ["id", "prompt", "chosen", "rejected", "context", "tie"]
    for batch in iter_batches(comparisons, NAME, columns, 1024):
        for row in batch.to_pylist():
            try:
                chosen, rejected = (
                    encode(tokenizer, Asked(row["prompt"], row["context"], row[side]), reading)
                    for side in ("chosen", "rejected")
                )
            except ValueError as error:
                raise ValueError(f"comparison {row['id']!r}: {error}") from None
            if row["tie"] or max(len(chosen), len(rejected)) > reading.max_length:
                yield [], []
            else:
                yield chosen + rejected, [CHOSEN] * len(chosen) + [REJECTED] * len(rejected)


def load_reward_body(
    base: Path, *, device: str = "cpu", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model under a reward head, with a padding token that is not the end token."""
    model, tokenizer, _ = load_reward_model(base, device=device, dtype=dtype)
    set_apart_padding(tokenizer, model)
    return model, tokenizer


def load_adapted_reward(base: Path, adapter: Path, *, device: str = "cpu", dtype: str = "float32") -> PeftModel:
    """Loads a reward model with one adapter, which brings the head, the adapter trainable and dropout off."""
    model, _ = load_reward_body(base, device=device, dtype=dtype)
    adapted: PeftModel = PeftModel.from_pretrained(
        model, adapter, is_trainable=True, torch_device=device, autocast_adapter_dtype=False
    )
    return in_type(adapted, model.dtype).eval()


def pair_gradient(
    model: PeftModel, parameters: dict[str, torch.nn.Parameter], input_ids: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of one pair and its flat gradient [P], each text by itself: the plain reference of `PerPair`.

    Args:
        model: from `load_adapted_reward`.
        parameters: from `gradients.trainable`.
        input_ids, labels: int64 [T], see the module.
    """
    chosen, rejected = (_score(model, input_ids[None, labels == side]) for side in (CHOSEN, REJECTED))
    loss = -F.logsigmoid(chosen - rejected).squeeze()
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), torch.cat([gradient.reshape(-1) for gradient in gradients])


class PerPair(PerExample):
    """Per-pair gradients of a batch by one backward pass; see `PerExample`.

    A pair is two rows of the batch, and its gradient the sum of theirs: the loss's own derivative has the signs.
    """

    def __call__(self, examples: Sequence[Example], sink: Sink) -> Tensor:
        """Takes the gradients of a batch of pairs; as `PerExample`, see the module for what an example is."""
        texts = [ids[labels == side] for ids, labels in examples for side in (CHOSEN, REJECTED)]
        device = next(self._model.parameters()).device
        pad = int(cast("PreTrainedModel", self._model.get_base_model()).config.get_text_config().pad_token_id)
        padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True)

        def fold(name: str, gradients: Tensor) -> None:
            sink(name, gradients.unflatten(0, (-1, 2)).sum(1))

        with self._batch((len(texts), padded.shape[1]), fold):
            scores = _score(self._model, padded.to(device), mask.to(device)).unflatten(0, (-1, 2))
            losses = -F.logsigmoid(scores[:, CHOSEN] - scores[:, REJECTED])
            losses.sum().backward()
        return losses.detach()


def _score(model: PeftModel, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Of each text [B], no less than float32."""
    mask = torch.ones_like(input_ids) if mask is None else mask
    with torch.enable_grad():
        scores: Tensor = model(input_ids=input_ids, attention_mask=mask).logits[:, 0]
    return scores if scores.dtype.itemsize >= 4 else scores.float()
