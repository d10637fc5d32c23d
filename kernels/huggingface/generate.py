"""Greedy or sampled generation under KV policies, with one prefill for those that can share it.

A loop of our own over the model's forward pass: each row stops by itself. A policy that shares its prefill takes the
same way alone as with others, and answers drawn behind one prompt go on from copies: sharing changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longloom.kernels.huggingface.attention import encoding_of, policy_attention
from longloom.kernels.huggingface.cache import PolicyCache
from longloom.kernels.huggingface.reading import Prefix, check_chunks, check_ids, feed, now, prefills
from longloom.kernels.kvcache.base import KVPolicy, SharedPrefillPolicy


@dataclass(frozen=True)
class Generation:
    """One prompt's answer.

    Attributes:
        ids: the new tokens, without the end token that stopped them.
        prompt_tokens: length of the prompt.
        kv_bytes: this row's equal share of the bytes that the batch's cache held at the end: what decoding needs.
        peak_kv_bytes: the same of the most that was held: at the end, or when the prompt had come in.
        seconds: this row's equal share of the wall-clock time; a prefill that several policies or prompts share is
            shared out equally among them.
        compress_seconds: of it, what choosing and packing what the policy keeps of the prompt took.
        decode_seconds: of it, what the answer took.
        decode_steps: forward passes in that time; a row that has ended waits for the others of its batch.
    """

    ids: list[int]
    prompt_tokens: int
    kv_bytes: int
    peak_kv_bytes: int
    seconds: float
    compress_seconds: float
    decode_seconds: float
    decode_steps: int


@dataclass(frozen=True)
class Sampling:
    """Tokens are drawn, not the likeliest taken.

    Attributes:
        temperature: that the logits are divided by, above 0.
        seeds: one a prompt: what is drawn for it depends on no other prompt, but for the logits' rounding.
    """

    temperature: float
    seeds: Sequence[int]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    policies: Sequence[KVPolicy[Any]],
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    min_new_tokens: int = 0,
    prefix: Prefix | None = None,
    samplings: Sequence[Sampling] = (),
) -> list[list[Generation]]:
    """Continue each prompt under each policy, greedily by default, the prompts as one left-padded batch.

    A prompt may be longer than the model was trained for; to truncate is the caller's business. However many answers
    are drawn, prompts are read once; then one copy more of what a policy keeps of them is held.

    Args:
        model: see `policy_attention`.
        prompts: token ids, at least one a prompt.
        policies: the KV policies; those that share their prefill get one.
        max_new_tokens: at most so many new tokens a prompt, at least 1.
        eos_token_ids: a row stops before any of these; those outside the vocabulary never come.
        min_new_tokens: end tokens are never chosen among the first so many tokens.
        prefix: what the prompt, which must be a single one, begins with; of the same model and policies.
        samplings: how tokens are drawn, for one answer to every prompt each; none: the likeliest are taken, once.

    Returns:
        One list a policy, or one a sampling for the first policy, then for the next; each of one answer a prompt, in
        order.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, counts out of range, a prefix that does not fit, or
            a policy that cannot have prompts in chunks of CHUNK.
    """
    check_chunks(policies)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise ValueError(f"min_new_tokens must be within 0 and max_new_tokens={max_new_tokens}, found {min_new_tokens}")
    for row, prompt in enumerate(prompts):
        check_ids(model, prompt, f"prompt {row}")
    for drawn in samplings:
        if not (drawn.temperature > 0 and len(drawn.seeds) == len(prompts)):
            raise ValueError(
                f"sampling needs a temperature above 0 and {len(prompts)} seeds, found {drawn.temperature} and"
                f" {len(drawn.seeds)}"
            )
    draws: Sequence[Sampling | None] = samplings or [None]
    known = 0
    if prefix is not None:
        known = len(prefix.ids)
        left = max(1, *(policy.apart for policy in policies))
        if len(prompts) != 1 or len(prompts[0]) < known + left or list(prompts[0][:known]) != prefix.ids:
            raise ValueError(f"a prefix of {known} tokens needs one prompt that begins with it and is longer by {left}")
    if not prompts:
        return [[] for _ in policies for _ in draws]
    encodings = [encoding_of(model, policy) for policy in policies]
    longest = max(map(len, prompts))
    batch = torch.zeros(len(prompts), longest, dtype=torch.int64)
    shown = torch.zeros(len(prompts), longest + max_new_tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        batch[row, longest - len(prompt) :] = torch.tensor(prompt)
        shown[row, longest - len(prompt) :] = True
    batch = batch.to(model.device)
    mask = None if bool(shown.all()) else shown.to(model.device)
    answers: dict[int, list[list[Generation]]] = {}
    for way, prefill in enumerate(prefills(policies)):
        began = now(model)
        apart = prefill.policy.apart
        # Where the text behind the prefix is too short for a call of its own (`feed`), the whole is read.
        shared = prefix is not None and not 0 < longest - known - apart <= apart
        read = prefix.caches[way].fork() if prefix is not None and shared else None
        with policy_attention(model, prefill.policy, cache=read) as cache:
            logits = feed(model, cache, batch[:, known if shared else 0 :], mask, apart=apart)
        spent = now(model) - began + (0.0 if prefix is None else prefix.seconds[way])
        ends = [end for end in sorted(set(eos_token_ids)) if 0 <= end < logits.shape[-1]]
        prompt_bytes = cache.bytes() // len(prompts)
        held: PolicyCache | None = cache
        del cache, read
        for member in prefill.members:
            chosen = now(model)
            assert held is not None
            policy = policies[member]
            last = member == prefill.members[-1]
            own = held
            if isinstance(policy, SharedPrefillPolicy):
                own = held.kept_by(policy, encodings[member], last=last)
            compressed = now(model)
            if last:
                held = None  # what was evicted is freed before the answer
            shared_out = (spent / len(prefill.members) + compressed - chosen) / len(draws)
            ended = compressed
            answers[member] = []
            for left, sampling in zip(range(len(draws))[::-1], draws, strict=True):
                began = ended
                answering = own.fork() if left else own
                with policy_attention(model, policy, cache=answering):
                    ready = now(model)  # the way in looks at all weights, where the policy has a head profile
                    ids, steps = _decode(
                        model, answering, logits.clone(), mask, ends, max_new_tokens, min_new_tokens, _chooser(sampling)
                    )
                ended = now(model)
                kv_bytes = answering.bytes() // len(prompts)
                rows = [
                    Generation(
                        ids=row,
                        prompt_tokens=len(prompt),
                        kv_bytes=kv_bytes,
                        peak_kv_bytes=max(prompt_bytes, kv_bytes),
                        seconds=(shared_out + ended - began) / len(prompts),
                        compress_seconds=(compressed - chosen) / len(draws) / len(prompts),
                        decode_seconds=(ended - ready) / len(prompts),
                        decode_steps=steps,
                    )
                    for row, prompt in zip(ids, prompts, strict=True)
                ]
                answers[member].append(rows)
                del answering  # before there is another copy
    return [rows for member in range(len(policies)) for rows in answers[member]]


def _decode(
    model: PreTrainedModel,
    cache: PolicyCache,
    logits: Tensor,
    mask: Tensor | None,
    ends: Sequence[int],
    most: int,
    least: int,
    choose: Callable[[Tensor], Tensor],
) -> tuple[list[list[int]], int]:
    """New tokens of each row, from the prompt's last logits [B, vocabulary], which may be changed; forward passes."""
    answers: list[list[int]] = [[] for _ in logits]
    running = set(range(len(answers)))
    for step in range(most):
        if step < least:
            logits[:, ends] = -torch.inf
        chosen = choose(logits)  # [B]
        for row, token in enumerate(chosen.tolist()):
            if row in running and token in ends:
                running.remove(row)
            elif row in running:
                answers[row].append(token)
        if not running or step + 1 == most:
            break
        logits = feed(model, cache, chosen[:, None], mask)
    return answers, step  # which made no pass itself


def _chooser(sampling: Sampling | None) -> Callable[[Tensor], Tensor]:
    """From logits [B, vocabulary] to tokens [B], a step after the other."""
    if sampling is None:
        return lambda logits: logits.argmax(dim=-1)
    generators = [torch.Generator().manual_seed(seed) for seed in sampling.seeds]

    def draw(logits: Tensor) -> Tensor:
        # A token's part of [0, 1) is as wide as it is likely; on the CPU, where every machine draws the same.
        upto = (logits.cpu().double() / sampling.temperature).softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.stack([torch.rand((), generator=each, dtype=torch.float64) for each in generators])
        return (upto <= drawn[:, None] * upto[:, -1:]).sum(dim=-1).to(logits.device)

    return draw
