"""How prompts are read: in chunks of constant size, once for all policies, prompts and continuations that can share it.

Activations and logits are bounded at any prompt length. A prefix is read in the chunks that the whole prompt would be,
and what was read stays as it is: those that share it go on from copies, so sharing changes no bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
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
class Prefill:
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


@dataclass(frozen=True)
class Context:
    """What several continuations follow, read once.

    Attributes:
        cache: what the policy keeps of it.
        logits: [1, vocabulary], of its last token.
        seconds: one continuation's share of the time that it took.
    """

    cache: PolicyCache
    logits: Tensor
    seconds: float


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
        ValueError: no tokens, no whole number of chunks, a token outside the vocabulary, or a policy that cannot have
            prompts in chunks of CHUNK.
    """
    check_chunks(policies)
    check_ids(model, ids, "the prefix")
    if len(ids) % CHUNK:
        raise ValueError(f"a prefix has whole chunks of {CHUNK} tokens, found {len(ids)} tokens")
    caches, seconds = [], []
    for prefill in prefills(policies):
        began = now(model)
        with policy_attention(model, prefill.policy) as cache:
            feed(model, cache, torch.tensor([list(ids)], device=model.device), None)  # its end is no prompt's
        caches.append(cache)
        seconds.append((now(model) - began) / prompts)
    return Prefix(list(ids), caches, seconds)


@torch.inference_mode()
def read_context(model: PreTrainedModel, ids: Sequence[int], *, policy: KVPolicy[Any], continuations: int) -> Context:
    """Read what `continuations` continuations follow, for `loglikelihood`.

    Args:
        model: see `policy_attention`.
        ids: tokens, at least one.
        policy: as `loglikelihood` gets it.
        continuations: how many share its time.

    Raises:
        ValueError: no tokens, a token outside the vocabulary, or a policy that cannot have prompts in chunks of CHUNK.
    """
    check_chunks([policy])
    check_ids(model, ids, "the context")
    encoding = encoding_of(model, policy)
    began = now(model)
    (prefill,) = prefills([policy])
    with policy_attention(model, prefill.policy) as cache:
        batch = torch.tensor([list(ids)], device=model.device)
        logits = feed(model, cache, batch, None, apart=prefill.policy.apart)
    own = cache.kept_by(policy, encoding, last=True) if isinstance(policy, SharedPrefillPolicy) else cache
    return Context(own, logits, (now(model) - began) / continuations)


def check_chunks(policies: Iterable[KVPolicy[Any]]) -> None:
    """Refuse (ValueError) a policy that cannot have prompts in chunks of CHUNK."""
    for policy in policies:
        policy.check_chunks(CHUNK)


def prefills(policies: Sequence[KVPolicy[Any]]) -> Iterator[Prefill]:
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
            yield Prefill(PromptPolicy(observed=observed, summed=summed), members)
    for number, policy in alone.items():
        yield Prefill(policy, [number])


def feed(model: PreTrainedModel, cache: PolicyCache, ids: Tensor, mask: Tensor | None, *, apart: int = 0) -> Tensor:
    """Feed ids [B, S] in chunks, the last `apart` in one of their own; the last token's logits [B, vocabulary].

    A call with at most `apart` tokens is taken for such an end: a last chunk of the text as short as that joins the one
    before it.
    """
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


def now(model: PreTrainedModel) -> float:
    """Seconds on a clock, once the device has done all that it was told."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def check_ids(model: PreTrainedModel, ids: Sequence[int], what: str) -> None:
    if not ids:
        raise ValueError(f"{what} is empty: at least one token is needed")
    size = model.config.get_text_config().vocab_size
    for token in (min(ids), max(ids)):
        if not 0 <= token < size:
            raise ValueError(f"{what} holds token {token}: the model's vocabulary is 0..{size - 1}")
