"""Greedy generation and log-likelihoods under a KV policy.

A loop of our own over the model's forward pass: prompts enter in chunks of constant size, so that activations and
logits are bounded at any prompt length, and each row stops by itself.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longloom.kernels.huggingface.attention import policy_attention
from longloom.kernels.huggingface.cache import PolicyCache
from longloom.kernels.kvcache.base import KVPolicy

#: Prompt tokens a forward pass.
CHUNK = 512


@dataclass(frozen=True)
class Generation:
    """One prompt's answer.

    Attributes:
        ids: the new tokens, without the end token that stopped them.
        prompt_tokens: length of the prompt.
        kv_bytes: this row's equal share of the bytes that the batch's cache held at the end.
        seconds: this row's equal share of the batch's wall-clock time.
    """

    ids: list[int]
    prompt_tokens: int
    kv_bytes: int
    seconds: float


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    policy: KVPolicy[Any],
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    min_new_tokens: int = 0,
) -> list[Generation]:
    """Continue each prompt greedily, all of them as one left-padded batch.

    A prompt may be longer than the model was trained for; to truncate is the caller's business.

    Args:
        model: see `policy_attention`.
        prompts: token ids, at least one a prompt.
        policy: the KV policy.
        max_new_tokens: at most so many new tokens a prompt, at least 1.
        eos_token_ids: a row stops before any of these.
        min_new_tokens: end tokens are never chosen among the first so many tokens.

    Returns:
        One answer a prompt, in order.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, counts out of range.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise ValueError(f"min_new_tokens must be within 0 and max_new_tokens={max_new_tokens}, found {min_new_tokens}")
    for row, prompt in enumerate(prompts):
        _check_ids(model, prompt, f"prompt {row}")
    if not prompts:
        return []
    began = time.perf_counter()
    longest = max(map(len, prompts))
    batch = torch.zeros(len(prompts), longest, dtype=torch.int64)
    shown = torch.zeros(len(prompts), longest + max_new_tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        batch[row, longest - len(prompt) :] = torch.tensor(prompt)
        shown[row, longest - len(prompt) :] = True
    mask = None if bool(shown.all()) else shown.to(model.device)
    ends = sorted(set(eos_token_ids))
    answers: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    with policy_attention(model, policy) as cache:
        logits = _feed(model, cache, batch.to(model.device), mask)
        for step in range(max_new_tokens):
            if step < min_new_tokens:
                logits[:, ends] = -torch.inf
            chosen = logits.argmax(dim=-1)  # [B]
            for row, token in enumerate(chosen.tolist()):
                if row in running and token in ends:
                    running.remove(row)
                elif row in running:
                    answers[row].append(token)
            if not running or step + 1 == max_new_tokens:
                break
            logits = _feed(model, cache, chosen[:, None], mask)
        kv_bytes = cache.bytes() // len(prompts)
    seconds = (time.perf_counter() - began) / len(prompts)
    return [
        Generation(ids=ids, prompt_tokens=len(prompt), kv_bytes=kv_bytes, seconds=seconds)
        for ids, prompt in zip(answers, prompts, strict=True)
    ]


@torch.inference_mode()
def loglikelihood(
    model: PreTrainedModel, context: Sequence[int], continuation: Sequence[int], *, policy: KVPolicy[Any]
) -> tuple[float, bool]:
    """Score a given continuation.

    Args:
        model: see `policy_attention`.
        context: token ids, at least one.
        continuation: token ids, at least one.
        policy: the KV policy.

    Returns:
        The natural logarithm of the continuation's probability given the context, and whether greedy generation
        would have produced it.

    Raises:
        ValueError: an empty context or continuation, a token outside the vocabulary.
    """
    _check_ids(model, context, "the context")
    _check_ids(model, continuation, "the continuation")
    targets = torch.tensor(continuation, device=model.device)
    with policy_attention(model, policy) as cache:
        logits = _feed(model, cache, torch.tensor([list(context)], device=model.device), None)
        total, greedy = _score(logits, targets[:1])
        for begin in range(1, len(targets), CHUNK):
            piece = targets[begin : begin + CHUNK]
            before = targets[None, begin - 1 : begin - 1 + len(piece)]  # each target is predicted by the one before
            logits = model(input_ids=before, past_key_values=cache, use_cache=True).logits[0]
            score, likeliest = _score(logits, piece)
            total, greedy = total + score, greedy and likeliest
    return total, greedy


def _score(logits: Tensor, targets: Tensor) -> tuple[float, bool]:
    """Log-probability of targets [S] under logits [S, vocabulary], and whether each is its row's likeliest."""
    scores = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])
    return float(scores.double().sum()), bool((logits.argmax(dim=-1) == targets).all())


def _feed(model: PreTrainedModel, cache: PolicyCache, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Feed ids [B, S] in chunks and return the last token's logits [B, vocabulary]."""
    for chunk in ids.split(CHUNK, dim=1):
        seen = cache.get_seq_length() + chunk.shape[1]
        logits = model(
            input_ids=chunk,
            attention_mask=None if mask is None else mask[:, :seen],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
    last: Tensor = logits[:, -1]
    return last


def _check_ids(model: PreTrainedModel, ids: Sequence[int], what: str) -> None:
    if not ids:
        raise ValueError(f"{what} is empty: at least one token is needed")
    size = model.config.vocab_size
    for token in (min(ids), max(ids)):
        if not 0 <= token < size:
            raise ValueError(f"{what} holds token {token}: the model's vocabulary is 0..{size - 1}")
