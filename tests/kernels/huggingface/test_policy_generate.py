"""Greedy generation and log-likelihoods under KV policies, on a tiny random model in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from longloom.kernels.huggingface import generate as generation
from longloom.kernels.huggingface import reading
from longloom.kernels.huggingface.generate import generate
from longloom.kernels.huggingface.loglikelihood import loglikelihood
from longloom.kernels.kvcache.registry import get_policy

from .models import VOCABULARY, prompts

FULL, STREAMING = get_policy("full"), get_policy("streaming", sink=2, window=9)
both = pytest.mark.parametrize("policy", [FULL, STREAMING], ids=lambda policy: policy.name)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 8)


def new_ids(model: PreTrainedModel, prompt: list[int], **options: Any) -> list[int]:
    """What transformers generates."""
    ids = torch.tensor([prompt])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, eos_token_id=None, **options
    )
    return answer[0, len(prompt) :].tolist()


@pytest.mark.usefixtures("small_chunks")
def test_full_generates_what_transformers_generates(model: PreTrainedModel) -> None:
    asked = prompts(5, 1, 31, 16, 50)  # the last two are longer than a chunk, and one than the trained positions
    answers = generate(model, asked, policies=[FULL], max_new_tokens=20, eos_token_ids=[])[0]
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer.ids == new_ids(model, prompt, max_new_tokens=20)
        assert answer.prompt_tokens == len(prompt)
        assert answer.seconds > 0
    assert len({token for answer in answers for token in answer.ids}) > 10


@both
@pytest.mark.usefixtures("small_chunks")
def test_a_prompt_is_answered_alike_alone_and_in_a_batch(model: PreTrainedModel, policy: Any) -> None:
    asked = prompts(3, 40, 17)
    together = generate(model, asked, policies=[policy], max_new_tokens=25, eos_token_ids=[])[0]
    for prompt, answer in zip(asked, together, strict=True):
        [alone] = generate(model, [prompt], policies=[policy], max_new_tokens=25, eos_token_ids=[])[0]
        assert alone.ids == answer.ids


@both
def test_chunks_do_not_matter(model: PreTrainedModel, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(44, 30)
    answers = []
    for chunk in (1, 7, 512):
        monkeypatch.setattr(reading, "CHUNK", chunk)
        answers.append(
            [a.ids for a in generate(model, asked, policies=[policy], max_new_tokens=9, eos_token_ids=[])[0]],
        )
    assert answers[0] == answers[1] == answers[2]


@both
def test_each_row_stops_before_its_own_end_token(model: PreTrainedModel, policy: Any) -> None:
    asked = prompts(6, 11, 4)
    whole = [a.ids for a in generate(model, asked, policies=[policy], max_new_tokens=20, eos_token_ids=[])[0]]
    ends = {whole[0][4], whole[1][9]}
    for ids, answer in zip(
        whole, generate(model, asked, policies=[policy], max_new_tokens=20, eos_token_ids=ends)[0], strict=True
    ):
        stop = next((i for i, token in enumerate(ids) if token in ends), 20)
        assert answer.ids == ids[:stop]


def test_generation_ends_when_all_rows_have_stopped(model: PreTrainedModel) -> None:
    asked = prompts(6)
    [whole] = generate(model, asked, policies=[FULL], max_new_tokens=20, eos_token_ids=[])[0]
    [short] = generate(model, asked, policies=[FULL], max_new_tokens=20_000_000, eos_token_ids=[whole.ids[7]])[0]
    assert short.ids == whole.ids[: whole.ids.index(whole.ids[7])]
    assert short.kv_bytes <= whole.kv_bytes


def test_end_tokens_wait_for_the_least_number(model: PreTrainedModel) -> None:
    [prompt] = prompts(6)
    first = new_ids(model, prompt, max_new_tokens=1)
    assert generate(model, [prompt], policies=[FULL], max_new_tokens=9, eos_token_ids=first)[0][0].ids == []
    [answer] = generate(model, [prompt], policies=[FULL], max_new_tokens=9, eos_token_ids=first, min_new_tokens=9)[0]
    assert len(answer.ids) == 9
    assert first[0] not in answer.ids


def test_end_tokens_outside_the_vocabulary_never_come(model: PreTrainedModel) -> None:
    """A tokenizer may name more than the model has rows for; and a negative one is not the last token."""
    [prompt] = prompts(6)
    asked: dict[str, Any] = {"policies": [FULL], "max_new_tokens": 9, "min_new_tokens": 9}
    expected = generate(model, [prompt], eos_token_ids=[], **asked)[0][0].ids
    assert generate(model, [prompt], eos_token_ids=[VOCABULARY, 10 * VOCABULARY, -1], **asked)[0][0].ids == expected
    with torch.no_grad():
        likeliest = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    both = [VOCABULARY, likeliest]
    assert generate(model, [prompt], policies=[FULL], max_new_tokens=9, eos_token_ids=both)[0][0].ids == []


def test_memory_is_shared_among_the_rows(model: PreTrainedModel) -> None:
    answers = generate(model, prompts(30, 20), policies=[STREAMING], max_new_tokens=5, eos_token_ids=[])[0]
    assert [a.kv_bytes for a in answers] == [2 * 2 * 2 * (2 + 9) * 6 * 4] * 2  # layers, k and v, heads, tokens, size


class Clock:
    """Every look at it takes a second, and what it is told to watch takes longer."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now

    def slow(self, function: Any, seconds: float) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.now += seconds
            return function(*args, **options)

        return call


def test_time_is_shared_out_by_what_it_was_for(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(reading, "time", clock)
    monkeypatch.setattr(generation.PolicyCache, "kept_by", clock.slow(generation.PolicyCache.kept_by, 100))
    monkeypatch.setattr(generation, "_decode", clock.slow(generation._decode, 1000))
    monkeypatch.setattr(generation, "feed", clock.slow(generation.feed, 10_000))
    monkeypatch.setattr(generation, "policy_attention", clock.slow(generation.policy_attention, 100_000))
    asked = prompts(30, 20)
    policies = [FULL, get_policy("snapkv", budget=9, window=3), STREAMING]
    for policy, rows in zip(
        policies, generate(model, asked, policies=policies, max_new_tokens=5, eos_token_ids=[]), strict=True
    ):
        chooses = policy is not STREAMING
        reads = 110_001 / (1 + chooses)  # FULL and SnapKV have one prefill
        enter = 1 + 100_000  # checks that have no part in a step
        compress, decode = 1 + 100 * chooses, 1 + 1000 + 4 * 10_000
        for row in rows:
            assert row.decode_steps == 4  # the first of five tokens came with the prompt
            assert (row.compress_seconds, row.decode_seconds) == (compress / 2, decode / 2)
            assert row.seconds == (reads + compress + enter + decode) / 2


def test_a_row_that_has_ended_takes_part_in_the_steps_of_its_batch(model: PreTrainedModel) -> None:
    asked = prompts(6, 11)
    long, short = generate(model, asked, policies=[FULL], max_new_tokens=9, eos_token_ids=[])[0]
    end = short.ids[2]
    assert end not in long.ids
    first, second = generate(model, asked, policies=[FULL], max_new_tokens=9, eos_token_ids=[end])[0]
    assert (len(first.ids), len(second.ids)) == (9, short.ids.index(end))
    assert first.decode_steps == second.decode_steps == 8
    [alone] = generate(model, asked[1:], policies=[FULL], max_new_tokens=9, eos_token_ids=[end])[0]
    assert alone.decode_steps == len(alone.ids)  # one more, which gave the end token
    [none] = generate(model, asked[1:], policies=[FULL], max_new_tokens=9, eos_token_ids=short.ids[:1])[0]
    assert (none.ids, none.decode_steps) == ([], 0)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [1, 2, 9, 30])
def test_loglikelihood_is_the_models_own(model: PreTrainedModel, length: int) -> None:
    context, continuation = prompts(21, length)
    with torch.no_grad():
        scores = model(torch.tensor([context + continuation])).logits[0, 20:-1].double().log_softmax(-1)
    expected = scores[range(length), continuation].sum().item()
    total, greedy = loglikelihood(model, context, continuation, policy=FULL)
    assert total == pytest.approx(expected, abs=1e-4)
    assert not greedy
    best = new_ids(model, context, max_new_tokens=length)
    assert loglikelihood(model, context, best, policy=FULL)[1]
    wrong = [*best[:-1], (best[-1] + 1) % VOCABULARY]
    assert not loglikelihood(model, context, wrong, policy=FULL)[1]


@pytest.mark.usefixtures("small_chunks")
def test_loglikelihood_and_generation_agree_under_a_lossy_policy(model: PreTrainedModel) -> None:
    [context] = prompts(40)
    [answer] = generate(model, [context], policies=[STREAMING], max_new_tokens=20, eos_token_ids=[])[0]
    assert answer.ids != new_ids(model, context, max_new_tokens=20)
    lossy, greedy = loglikelihood(model, context, answer.ids, policy=STREAMING)
    assert greedy
    full, greedy = loglikelihood(model, context, answer.ids, policy=FULL)
    assert not greedy
    assert abs(lossy - full) > 0.1


def test_bad_requests(model: PreTrainedModel) -> None:
    good: dict[str, Any] = {"policies": [FULL], "max_new_tokens": 3, "eos_token_ids": []}
    assert generate(model, [], **good) == [[]]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(model, [[3], []], **good)
    with pytest.raises(ValueError, match=r"prompt 0 holds token 61: the model's vocabulary is 0\.\.60"):
        generate(model, [[3, 61]], **good)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, found 0"):
        generate(model, [[3]], **{**good, "max_new_tokens": 0})
    with pytest.raises(ValueError, match="min_new_tokens must be within 0 and max_new_tokens=3, found 4"):
        generate(model, [[3]], min_new_tokens=4, **good)
    with pytest.raises(ValueError, match="the context is empty"):
        loglikelihood(model, [], [3], policy=FULL)
    with pytest.raises(ValueError, match="the continuation is empty"):
        loglikelihood(model, [3], [], policy=FULL)
