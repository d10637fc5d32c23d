"""Log-likelihoods of given continuations under a KV policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longloom.kernels.huggingface import reading
from longloom.kernels.huggingface.attention import encoding_of, policy_attention
from longloom.kernels.huggingface.reading import Context, check_ids, read_context
from longloom.kernels.kvcache.base import KVPolicy


@torch.inference_mode()
def loglikelihood(
    model: PreTrainedModel,
    context: Sequence[int] | Context,
    continuation: Sequence[int],
    *,
    policy: KVPolicy[Any],
    rolling: bool = False,
) -> tuple[float, bool]:
    """Score a given continuation, as `generate` would produce it: no token helps to choose what one before it sees.

    Where queries of a call choose together (`KVPolicy.joint_from`) the continuation therefore comes token by token.

    Args:
        model: see `policy_attention`.
        context: token ids, at least one; or what `read_context` made of them for this model and policy, which stays as
            it is.
        continuation: token ids, at least one.
        policy: the KV policy.
        rolling: the continuation is a text to read, not an answer. It comes as prompts do: in chunks of CHUNK, or of
            the policy's `apart` last tokens, whose queries choose together, later ones with a say in what earlier ones
            see: the paper's chunked prefill for LongCache, whose perplexity this gives, and no longer the probability
            of an answer.

    Returns:
        The natural logarithm of the continuation's probability given the context, and whether greedy generation
        would have produced it.

    Raises:
        ValueError: an empty context or continuation, a token outside the vocabulary, or a policy that cannot have
            prompts in chunks of CHUNK.
    """
    check_ids(model, continuation, "the continuation")
    targets = torch.tensor(continuation, device=model.device)
    if isinstance(context, Context):
        own, logits = context.cache.fork(), context.logits
    else:
        read = read_context(model, context, policy=policy, continuations=1)
        own, logits = read.cache, read.logits
    joint = None if rolling else policy.fitted(encoding_of(model, policy)).joint_from
    most = (policy.apart if rolling else 0) or reading.CHUNK
    with policy_attention(model, policy, cache=own):
        total, greedy = _score(logits, targets[:1])
        begin = 1
        while begin < len(targets):
            size = most if joint is None else max(1, min(most, joint - own.get_seq_length()))
            piece = targets[begin : begin + size]
            before = targets[None, begin - 1 : begin - 1 + len(piece)]  # each target is predicted by the one before
            logits = model(input_ids=before, past_key_values=own, use_cache=True).logits[0]
            score, likeliest = _score(logits, piece)
            total, greedy = total + score, greedy and likeliest
            begin += len(piece)
    return total, greedy


def _score(logits: Tensor, targets: Tensor) -> tuple[float, bool]:
    """Log-probability of targets [S] under logits [S, vocabulary], and whether each is its row's likeliest."""
    scores = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])
    return float(scores.double().sum()), bool((logits.argmax(dim=-1) == targets).all())
