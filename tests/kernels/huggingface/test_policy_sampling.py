"""Sampled generation: drawn from the model's own distribution, by each prompt's seed alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from longloom.kernels.huggingface.generate import Sampling, generate
from longloom.kernels.kvcache.registry import get_policy

from .models import prompts

FULL, STREAMING = get_policy("full"), get_policy("streaming", sink=2, window=9)


def sampled(model: PreTrainedModel, asked: list[list[int]], seeds: list[int], **options: object) -> list[list[int]]:
    temperature = float(str(options.pop("temperature", 1.0)))
    asking = {"policies": [FULL], "max_new_tokens": 6, "eos_token_ids": [], **options}
    found = generate(model, asked, samplings=[Sampling(temperature, seeds)], **asking)  # type: ignore[arg-type]
    return [answer.ids for answer in found[0]]


def test_tokens_come_as_often_as_they_are_likely(model: PreTrainedModel) -> None:
    """2,000 draws of a first token against softmax(logits / T), by the total variation of what is likely."""
    (prompt,) = prompts(7)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    draws = 2000
    for temperature in (0.3, 2.0):
        expected = (logits / temperature).softmax(-1)
        found: Counter[int] = Counter()
        for begin in range(0, draws, 500):
            seeds = list(range(begin, begin + 500))
            rows = sampled(model, [prompt] * 500, seeds, max_new_tokens=1, temperature=temperature)
            found.update(token for (token,) in rows)
        for token, likely in enumerate(expected.tolist()):
            spread = (likely * (1 - likely) / draws) ** 0.5
            assert abs(found[token] / draws - likely) <= 5 * spread + 3 / draws, (token, likely)


def test_a_draw_depends_on_its_own_seed_alone(model: PreTrainedModel) -> None:
    asked = prompts(5, 31, 16)
    together = sampled(model, asked, [1, 2, 3])
    for prompt, seed, answer in zip(asked, [1, 2, 3], together, strict=True):
        assert sampled(model, [prompt], [seed]) == [answer]
    assert sampled(model, asked, [1, 2, 4])[:2] == together[:2]
    assert sampled(model, asked, [1, 2, 4])[2] != together[2]


def test_without_heat_the_likeliest_is_drawn(model: PreTrainedModel) -> None:
    asked = prompts(9, 20)
    greedy = [answer.ids for answer in generate(model, asked, policies=[FULL], max_new_tokens=6, eos_token_ids=[])[0]]
    assert sampled(model, asked, [5, 6], temperature=1e-6) == greedy


def test_policies_of_one_prefill_draw_alike_and_end_tokens_are_kept_back(model: PreTrainedModel) -> None:
    asked = prompts(8, 6)
    several = generate(
        model, asked, policies=[FULL, STREAMING], max_new_tokens=4, eos_token_ids=[], samplings=[Sampling(1.0, [3, 4])]
    )
    assert [answer.ids for answer in several[0]] == sampled(model, asked, [3, 4], max_new_tokens=4)
    everything = list(range(1, model.config.vocab_size))
    kept = sampled(model, asked, [3, 4], max_new_tokens=3, min_new_tokens=2, eos_token_ids=everything)
    assert all(ids[:2] == [0, 0] for ids in kept)


@pytest.mark.parametrize("name", ["full", "streaming", "snapkv", "h2o", "longcache", "infllm"])
def test_several_draws_are_those_of_one_reading_each(model: PreTrainedModel, name: str) -> None:
    scope = {"sink": 2, "local": 8, "chunk": 4}
    options = {
        "streaming": {"sink": 2, "window": 9},
        "snapkv": {"budget": 14, "window": 4},
        "h2o": {"budget": 9},
        "longcache": {**scope, "spans": 2, "span": 4},
        "infllm": {**scope, "blocks": 1, "block": 4},
    }
    policies = [get_policy(name, **options.get(name, {})), get_policy("recent", budget=9)]
    asked = prompts(40, 31)
    draws = [Sampling(1.0, seeds) for seeds in ([1, 2], [3, 4], [1, 2])]
    read: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, given, named: read.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    asking: dict[str, Any] = {"policies": policies, "max_new_tokens": 6, "eos_token_ids": []}
    together = generate(model, asked, samplings=draws, **asking)
    hook.remove()
    ways = 1 if name in ("full", "snapkv") else 2  # of reading
    assert read.count(40) == ways
    assert len(read) == ways + 2 * 3 * 5
    for number, draw in enumerate(draws):
        alone = generate(model, asked, samplings=[draw], **asking)
        for policy in range(2):
            rows = together[policy * len(draws) + number]
            facts = [(row.ids, row.kv_bytes, row.peak_kv_bytes, row.decode_steps) for row in rows]
            assert facts == [(row.ids, row.kv_bytes, row.peak_kv_bytes, row.decode_steps) for row in alone[policy]]
    assert together[0] != together[1]
    assert generate(model, [], samplings=[Sampling(1.0, [])] * 3, **asking) == [[]] * 6


def test_refusals(model: PreTrainedModel) -> None:
    for temperature, seeds in ((0.0, [1]), (1.0, []), (float("nan"), [1])):
        with pytest.raises(ValueError, match="a temperature above 0 and 1 seeds"):
            sampled(model, prompts(3), seeds, temperature=temperature)
