"""Greedy or sampled generation and log-likelihoods under KV policies, with one prefill for those that can share it.

A loop of our own over the model's forward pass: prompts enter in chunks of constant size, so that activations and
logits are bounded at any prompt length, and each row stops by itself. A policy that shares its prefill takes the same
way alone as with others, and a prefix is read in the chunks that the whole prompt would be: sharing changes no bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longloom.kernels.huggingface.attention import encoding_of, policy_attention
from longloom.kernels.huggingface.cache import PolicyCache
from longloom.kernels.kvcache.base import KVPolicy, SharedPrefillPolicy
from longloom.kernels.kvcache.full import FullPolicy
from longloom.kernels.kvcache.prompt import PromptPolicy

#: Prompt tokens a forward pass.
CHUNK = 512


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


@dataclass(frozen=True)
class _Prefill:
    """One way of reading prompts: the policy that reads, and the numbers of those that go on from there."""

    policy: KVPolicy[Any]
    members: list[int]


@dataclass(frozen=True)
class Prefix:
    """The beginning of several prompts, read once.

    Attributes:
        ids: its tokens.
        caches: one for each way in which the policies read prompts.
        seconds: one prompt's share of the time that each took.
    """

    ids: list[int]
    caches: list[PolicyCache]
    seconds: list[float]


@torch.inference_mode()
def read_prefix(
    model: PreTrainedModel, ids: Sequence[int], *, policies: Sequence[KVPolicy[Any]], prompts: int
) -> Prefix:
    """Read what `prompts` prompts begin with, for `generate`.

    Args:
        model: see `policy_attention`.
        ids: tokens, a multiple of CHUNK.
        policies: as `generate` gets them.
        prompts: how many share its time.

    Raises:
        ValueError: no tokens, no whole number of chunks, or a token outside the vocabulary.
    """
    _check_ids(model, ids, "the prefix")
    if len(ids) % CHUNK:
        raise ValueError(f"a prefix has whole chunks of {CHUNK} tokens, found {len(ids)} tokens")
    caches, seconds = [], []
    for prefill in _prefills(policies):
        began = _now(model)
        with policy_attention(model, prefill.policy) as cache:
            _feed(model, cache, torch.tensor([list(ids)], device=model.device), None)  # its end is no prompt's
        caches.append(cache)
        seconds.append((_now(model) - began) / prompts)
    return Prefix(list(ids), caches, seconds)


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
    sampling: Sampling | None = None,
) -> list[list[Generation]]:
    """Continue each prompt under each policy, greedily by default, the prompts as one left-padded batch.

    A prompt may be longer than the model was trained for; to truncate is the caller's business.

    Args:
        model: see `policy_attention`.
        prompts: token ids, at least one a prompt.
        policies: the KV policies; those that share their prefill get one.
        max_new_tokens: at most so many new tokens a prompt, at least 1.
        eos_token_ids: a row stops before any of these.
        min_new_tokens: end tokens are never chosen among the first so many tokens.
        prefix: what the prompt, which must be a single one, begins with; of the same model and policies.
        sampling: how tokens are drawn; None: the likeliest is taken.

    Returns:
        One list a policy, of one answer a prompt, in order.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, counts out of range, a prefix that does not fit.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise ValueError(f"min_new_tokens must be within 0 and max_new_tokens={max_new_tokens}, found {min_new_tokens}")
    for row, prompt in enumerate(prompts):
        _check_ids(model, prompt, f"prompt {row}")
    if sampling is not None and not (sampling.temperature > 0 and len(sampling.seeds) == len(prompts)):
        raise ValueError(
            f"sampling needs a temperature above 0 and {len(prompts)} seeds, found {sampling.temperature} and"
            f" {len(sampling.seeds)}"
        )
    known = 0
    if prefix is not None:
        known = len(prefix.ids)
        left = max(1, *(policy.apart for policy in policies))
        if len(prompts) != 1 or len(prompts[0]) < known + left or list(prompts[0][:known]) != prefix.ids:
            raise ValueError(f"a prefix of {known} tokens needs one prompt that begins with it and is longer by {left}")
    if not prompts:
        return [[] for _ in policies]
    encodings = [encoding_of(model, policy) for policy in policies]
    longest = max(map(len, prompts))
    batch = torch.zeros(len(prompts), longest, dtype=torch.int64)
    shown = torch.zeros(len(prompts), longest + max_new_tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        batch[row, longest - len(prompt) :] = torch.tensor(prompt)
        shown[row, longest - len(prompt) :] = True
    batch = batch.to(model.device)
    mask = None if bool(shown.all()) else shown.to(model.device)
    ends = sorted(set(eos_token_ids))
    answers: dict[int, list[Generation]] = {}
    for way, prefill in enumerate(_prefills(policies)):
        began = _now(model)
        apart = prefill.policy.apart
        # Where the text behind the prefix is too short for a call of its own (`_feed`), the whole is read.
        shared = prefix is not None and not 0 < longest - known - apart <= apart
        read = prefix.caches[way].fork() if prefix is not None and shared else None
        with policy_attention(model, prefill.policy, cache=read) as cache:
            logits = _feed(model, cache, batch[:, known if shared else 0 :], mask, apart=apart)
        spent = _now(model) - began + (0.0 if prefix is None else prefix.seconds[way])
        prompt_bytes = cache.bytes() // len(prompts)
        held: PolicyCache | None = cache
        del cache, read
        for member in prefill.members:
            began = _now(model)
            assert held is not None
            policy = policies[member]
            last = member == prefill.members[-1]
            own = held
            if isinstance(policy, SharedPrefillPolicy):
                own = held.kept_by(policy, encodings[member], last=last)
            compressed = _now(model)
            if last:
                held = None  # what was evicted is freed before the answer
            with policy_attention(model, policy, cache=own):
                ready = _now(model)  # the way in looks at all weights, where the policy has a head profile
                ids, steps = _decode(
                    model, own, logits.clone(), mask, ends, max_new_tokens, min_new_tokens, _chooser(sampling)
                )
            ended = _now(model)
            seconds = (spent / len(prefill.members) + ended - began) / len(prompts)
            kv_bytes = own.bytes() // len(prompts)
            answers[member] = [
                Generation(
                    ids=row,
                    prompt_tokens=len(prompt),
                    kv_bytes=kv_bytes,
                    peak_kv_bytes=max(prompt_bytes, kv_bytes),
                    seconds=seconds,
                    compress_seconds=(compressed - began) / len(prompts),
                    decode_seconds=(ended - ready) / len(prompts),
                    decode_steps=steps,
                )
                for row, prompt in zip(ids, prompts, strict=True)
            ]
    return [answers[member] for member in range(len(policies))]


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
    encoding = encoding_of(model, policy)
    targets = torch.tensor(continuation, device=model.device)
    (prefill,) = _prefills([policy])
    with policy_attention(model, prefill.policy) as cache:
        ids = torch.tensor([list(context)], device=model.device)
        logits = _feed(model, cache, ids, None, apart=prefill.policy.apart)
    own = cache.kept_by(policy, encoding, last=True) if isinstance(policy, SharedPrefillPolicy) else cache
    del cache
    with policy_attention(model, policy, cache=own):
        total, greedy = _score(logits, targets[:1])
        size = policy.apart or CHUNK
        for begin in range(1, len(targets), size):
            piece = targets[begin : begin + size]
            before = targets[None, begin - 1 : begin - 1 + len(piece)]  # each target is predicted by the one before
            logits = model(input_ids=before, past_key_values=own, use_cache=True).logits[0]
            score, likeliest = _score(logits, piece)
            total, greedy = total + score, greedy and likeliest
    return total, greedy


def _prefills(policies: Sequence[KVPolicy[Any]]) -> Iterator[_Prefill]:
    """The ways in which the policies read prompts: those that are shared, and one for each of the other policies."""
    alone = dict(enumerate(policies))
    for summed in (False, True):
        sharing = {
            number: policy
            for number, policy in enumerate(policies)
            if isinstance(policy, SharedPrefillPolicy) and policy.summed == summed
        }
        alone = {number: policy for number, policy in alone.items() if number not in sharing}
        if sharing:
            # Full attention takes the prompt's own tensors and appends to them: it goes last.
            members = sorted(sharing, key=lambda number: isinstance(policies[number], FullPolicy))
            observed = max(policy.observed for policy in sharing.values())
            yield _Prefill(PromptPolicy(observed=observed, summed=summed), members)
    for number, policy in alone.items():
        yield _Prefill(policy, [number])


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
        logits = _feed(model, cache, chosen[:, None], mask)
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


def _score(logits: Tensor, targets: Tensor) -> tuple[float, bool]:
    """Log-probability of targets [S] under logits [S, vocabulary], and whether each is its row's likeliest."""
    scores = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])
    return float(scores.double().sum()), bool((logits.argmax(dim=-1) == targets).all())


def _feed(model: PreTrainedModel, cache: PolicyCache, ids: Tensor, mask: Tensor | None, *, apart: int = 0) -> Tensor:
    """Feed ids [B, S] in chunks, the last `apart` in one of their own; the last token's logits [B, vocabulary].

    A call with at most `apart` tokens is taken for such an end: a last chunk of the text as short as that joins the one
    before it.

    Raises:
        ValueError: chunks of the text would be as short as what comes apart.
    """
    if apart >= CHUNK:
        raise ValueError(f"a prompt's last tokens come apart from chunks of {CHUNK}: expected fewer, found {apart}")
    text, end = ids.split([max(0, ids.shape[1] - apart), min(apart, ids.shape[1])], dim=1)
    chunks = list(text.split(CHUNK, dim=1))
    if len(chunks) > 1 and chunks[-1].shape[1] <= apart:
        chunks[-2:] = [torch.cat(chunks[-2:], dim=1)]
    for chunk in (*chunks, end):
        if not chunk.shape[1]:
            continue
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


def _now(model: PreTrainedModel) -> float:
    """Seconds on a clock, once the device has done all that it was told."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _check_ids(model: PreTrainedModel, ids: Sequence[int], what: str) -> None:
    if not ids:
        raise ValueError(f"{what} is empty: at least one token is needed")
    size = model.config.vocab_size
    for token in (min(ids), max(ids)):
        if not 0 <= token < size:
            raise ValueError(f"{what} holds token {token}: the model's vocabulary is 0..{size - 1}")
