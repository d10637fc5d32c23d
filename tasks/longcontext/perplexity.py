"""Perplexity by position: how well a model predicts what stands behind ever longer contexts, under a KV policy.

A document is read once, in the chunks in which prompts are read, so a policy that chooses by chunks chooses as it would
for a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longloom.kernels.huggingface.attention import policy_attention
from longloom.kernels.huggingface.reading import CHUNK
from longloom.kernels.kvcache.base import KVPolicy, SharedPrefillPolicy
from longloom.kernels.kvcache.full import FullPolicy
from longloom.tasks.progress import Progress, silent


@torch.inference_mode()
def perplexity_at(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    tokens: int,
    policy: KVPolicy[Any],
    progress: Progress = silent,
) -> list[float]:
    """The perplexity of the last tokens of each length: those at length - tokens .. length - 1, over all documents.

    Args:
        model: see `policy_attention`.
        documents: token ids, each as many as the largest length at least.
        lengths: of contexts with what is predicted, in tokens; they may exceed the model's window.
        tokens: predicted ones at the end of each length.
        policy: the KV policy. One that compresses a prompt which full attention has read predicts as that does.
        progress: called with documents done and in all.

    Returns:
        exp(mean negative log-likelihood) for each length, in order.

    Raises:
        ValueError: nothing to read, numbers out of range, a document that is too short, a policy that is no different
            from full attention while a prompt is read.
    """
    if not documents or not lengths:
        raise ValueError(f"found {len(documents)} documents and {len(lengths)} lengths, expected at least one of each")
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}, expected at least 1")
    if min(lengths) <= tokens:
        raise ValueError(f"length {min(lengths)} leaves no context for {tokens} tokens, expected {tokens + 1} at least")
    for number, ids in enumerate(documents):
        if len(ids) < max(lengths):
            raise ValueError(f"document {number} has {len(ids)} tokens, expected {max(lengths)} at least")
    if isinstance(policy, SharedPrefillPolicy) and not isinstance(policy, FullPolicy):
        raise ValueError(f"KV policy {policy.name!r} reads texts with full attention: ask for the perplexity of 'full'")
    totals = torch.zeros(len(lengths), dtype=torch.float64)
    for done, ids in enumerate(documents, 1):
        scores = _scores(model, torch.tensor(ids[: max(lengths)]), lengths, tokens, policy)
        totals += torch.stack([scores[length - tokens : length].sum() for length in lengths])
        progress(done, len(documents))
    return [math.exp(-total / (tokens * len(documents))) for total in totals.tolist()]


def _scores(model: PreTrainedModel, ids: Tensor, lengths: Sequence[int], tokens: int, policy: KVPolicy[Any]) -> Tensor:
    """Log-likelihoods [N] float64 of the tokens ids [N] given those before, where they are asked for; else 0."""
    scores = torch.zeros(len(ids), dtype=torch.float64)
    asked = torch.zeros(len(ids), dtype=torch.bool)
    for length in lengths:
        asked[length - tokens : length] = True
    with policy_attention(model, policy) as cache:
        for begin in range(0, len(ids) - 1, CHUNK):
            piece = ids[begin : min(begin + CHUNK, len(ids) - 1)]  # the last token is predicted and never read
            predicting = asked[begin + 1 : begin + 1 + len(piece)].nonzero()[:, 0]
            logits = model(
                input_ids=piece[None].to(model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=predicting.to(model.device) if len(predicting) else 1,
            ).logits[0]
            if len(predicting):
                targets = ids[begin + 1 + predicting].to(logits.device)
                found = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
                scores[begin + 1 + predicting] = found.double().cpu()
    return scores
