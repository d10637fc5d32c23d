"""Log-likelihoods are those of what `generate` does, under every KV policy; a context is read once for many."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import longloom.kernels.huggingface.reading as reading
from longloom.kernels.huggingface.generate import generate
from longloom.kernels.huggingface.loglikelihood import loglikelihood
from longloom.kernels.huggingface.reading import read_context
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.base import KVPolicy, Rope
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy, names

from .models import VOCABULARY, prompts, random_model

SCOPE = {"sink": 2, "local": 8, "chunk": 8}
#: Options under which a context of 70 tokens loses or hides something, for every policy.
OPTIONS: dict[str, dict[str, Any]] = {
    "adakv": {"budget": 14, "window": 4},
    "duo": {"sink": 3, "recent": 7},
    "full": {},
    "h2o": {"budget": 14},
    "infllm": {**SCOPE, "blocks": 2, "block": 4, "representatives": 2},
    "knorm": {"budget": 14},
    "longcache": {**SCOPE, "spans": 2, "span": 4, "k": 2},
    "pyramidkv": {"budget": 14, "window": 4},
    "razor": {"window": 8, "compression": 40, "sink": 3, "induction": 0.3},
    "razor+longcache": {**SCOPE, "spans": 2, "span": 4, "k": 2, "induction": 0.6},
    "razor-alibi": {"eps": 0.3},
    "recent": {"budget": 14},
    "snapkv": {"budget": 14, "window": 4},
    "streaming": {"sink": 3, "window": 7},
}
CASES = [
    *OPTIONS.items(),
    ("longcache", {**OPTIONS["longcache"], "asking": 6}),
    ("longcache", {**OPTIONS["longcache"], "reuse": 4}),
    ("longcache", {**OPTIONS["longcache"], "host": True}),
    ("razor", {**OPTIONS["razor"], "fold": True}),
]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda given: str(given))
SCOPED = ["infllm", "longcache", "razor+longcache"]


@cache
def model_for(name: str) -> PreTrainedModel:
    return random_model("bloom" if name == "razor-alibi" else "llama")


def policy_of(name: str, options: dict[str, Any]) -> KVPolicy[Any]:
    policy = get_policy(name, **options)
    if policy.profiled:
        profile = HeadProfile("test", fingerprint(model_for(name)), ((0.1, 0.9), (0.5, 0.6)))
        policy = get_policy(name, **options, heads=profile)
    return policy


def test_every_policy_is_here() -> None:
    assert list(OPTIONS) == names()


@cases
def test_what_generate_gives_is_greedy(name: str, options: dict[str, Any]) -> None:
    model, policy = model_for(name), policy_of(name, options)
    for context in prompts(70, 43, 12):  # two that are longer than any scope, and one that grows out of it
        [answer] = generate(model, [context], policies=[policy], max_new_tokens=12, eos_token_ids=[])[0]
        assert loglikelihood(model, context, answer.ids, policy=policy)[1]


@cases
def test_probabilities_of_what_follows_a_token_sum_to_its_own(name: str, options: dict[str, Any]) -> None:
    """No later token has a say: that of `first` is the sum over all continuations that begin with it."""
    model, policy = model_for(name), policy_of(name, options)
    context = prompts(70)[0]
    first = [7, 3, 9]
    read = read_context(model, context, policy=policy, continuations=1)
    alone, _ = loglikelihood(model, read, first, policy=policy)
    longer = [loglikelihood(model, read, [*first, token], policy=policy)[0] for token in range(VOCABULARY)]
    assert torch.tensor(longer).logsumexp(0).item() == pytest.approx(alone, abs=1e-4)


@cases
def test_a_context_that_is_read_once_changes_no_bit(name: str, options: dict[str, Any]) -> None:
    model, policy = model_for(name), policy_of(name, options)
    context, *continuations = prompts(70, 5, 1, 9, 5)
    read = read_context(model, context, policy=policy, continuations=4)
    held = read.cache.bytes()
    for continuation in (*continuations, continuations[0]):
        shared = loglikelihood(model, read, continuation, policy=policy)
        assert shared == loglikelihood(model, context, continuation, policy=policy)
        assert math.isfinite(shared[0])
    assert read.cache.bytes() == held


def calls_of(model: PreTrainedModel, context: list[int], continuation: list[int], **options: Any) -> list[int]:
    """How many tokens each of the model's calls for the continuation has."""
    read = read_context(model, context, policy=options["policy"], continuations=1)
    found: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, given, named: found.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        loglikelihood(model, read, continuation, **options)
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize("name", SCOPED)
def test_only_what_chooses_together_comes_token_by_token(name: str) -> None:
    policy = policy_of(name, OPTIONS[name])
    context, continuation = prompts(10, 15)
    fitted = policy.fitted(Rope(torch.ones(3), window=32))
    assert fitted.joint_from is not None
    within = fitted.joint_from - len(context)
    assert 3 < within < 14
    asked: dict[str, Any] = {"policy": policy}
    assert calls_of(model_for(name), context, continuation, **asked) == [within, *[1] * (14 - within)]
    assert calls_of(model_for(name), context, continuation, **asked, rolling=True) == [14]
    assert calls_of(model_for(name), context, continuation, policy=get_policy("streaming", sink=2, window=5)) == [14]


def test_steps_that_reuse_a_selection_begin_with_the_continuation() -> None:
    """As an answer's do: the first one opens the scope that those behind it go on with."""
    policy = policy_of("longcache", {**OPTIONS["longcache"], "reuse": 4})
    context, continuation = prompts(10, 15)
    assert calls_of(model_for("longcache"), context, continuation, policy=policy) == [1] * 14


@pytest.mark.parametrize("name", SCOPED)
def test_a_text_is_read_in_chunks_that_choose_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 16)
    model, policy = model_for(name), policy_of(name, OPTIONS[name])
    context, text = prompts(1, 60)
    rolling, _ = loglikelihood(model, context, text, policy=policy, rolling=True)
    token_by_token, _ = loglikelihood(model, context, text, policy=policy)
    assert abs(rolling - token_by_token) > 0.1
    assert calls_of(model, context, text, policy=policy, rolling=True) == [16, 16, 16, 11]


def test_a_prompt_s_end_that_is_as_long_as_a_chunk_is_refused() -> None:
    model = model_for("longcache")
    policy = policy_of("longcache", {**OPTIONS["longcache"], "asking": 512})
    message = (
        r"^KV policy 'longcache': asking must be less than 512, the tokens of a chunk in which prompts are read, "
        r"found 512$"
    )
    asked: dict[str, Any] = {"policies": [policy], "max_new_tokens": 1, "eos_token_ids": []}
    with pytest.raises(ValueError, match=message):
        generate(model, [[3]], **asked)
    with pytest.raises(ValueError, match=message):
        loglikelihood(model, [3], [4], policy=policy)
    with pytest.raises(ValueError, match=message):
        reading.read_prefix(model, [3] * 512, policies=[policy], prompts=1)
    just = policy_of("longcache", {**OPTIONS["longcache"], "asking": 511})
    assert len(generate(model, [[3]], **{**asked, "policies": [just]})[0][0].ids) == 1
