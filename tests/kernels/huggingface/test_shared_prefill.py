"""One prefill for several KV policies and several prompts: the same bits as each alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

import longloom.kernels.huggingface.reading as reading
from longloom.kernels.huggingface.generate import Generation, generate
from longloom.kernels.huggingface.reading import read_prefix
from longloom.kernels.kvcache.registry import get_policy

from .models import prompts

SWEEP = [
    get_policy("full"),
    get_policy("streaming", sink=2, window=9),
    get_policy("snapkv", budget=14, window=4),
    get_policy("recent", budget=14),
    get_policy("knorm", budget=14),
    get_policy("snapkv", budget=30, window=8),
    get_policy("h2o", budget=14),
    get_policy("h2o", budget=9),
    get_policy("adakv", budget=14, window=4),
    get_policy("pyramidkv", budget=14, window=4),
]
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "eos_token_ids": [5]}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 16)


def facts(answers: list[Generation]) -> list[tuple[list[int], int, int]]:
    return [(answer.ids, answer.prompt_tokens, answer.kv_bytes) for answer in answers]


@pytest.mark.parametrize("lengths", [(70,), (70, 33, 5, 64)])
def test_a_sweep_is_what_each_policy_gives_alone(
    model: PreTrainedModel, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits: list[list[torch.Tensor]] = []
    forward = LlamaForCausalLM.forward

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        logits[-1].append(output.logits)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", note)
    asked = prompts(*lengths)
    logits.append([])
    together = generate(model, asked, policies=SWEEP, **OPTIONS)
    distinct = {str(facts(answers)) for answers in together}
    assert len(distinct) >= 5  # the policies do differ
    logits.append([])
    for policy, answers in zip(SWEEP, together, strict=True):
        [alone] = generate(model, asked, policies=[policy], **OPTIONS)
        assert facts(alone) == facts(answers)
    # To the bit: every tensor of logits of the sweep is among those of the runs alone, which need more of them.
    alone_bytes = {tensor.numpy().tobytes() for tensor in logits[1]}
    assert all(tensor.numpy().tobytes() in alone_bytes for tensor in logits[0])
    assert len(logits[0]) == len(logits[1]) - 7 * -(-max(lengths) // 16)  # seven of ten prefills are spared


def test_prompts_that_begin_alike_give_what_they_give_alone(model: PreTrainedModel) -> None:
    document, *questions = prompts(50, 7, 22, 1)
    asked = [document + question for question in questions]
    prefix = read_prefix(model, document[:48], policies=SWEEP, prompts=len(asked))
    for prompt in asked:
        shared = generate(model, [prompt], policies=SWEEP, prefix=prefix, **OPTIONS)
        alone = generate(model, [prompt], policies=SWEEP, **OPTIONS)
        assert [facts(answers)[0][:2] for answers in shared] == [facts(answers)[0][:2] for answers in alone]


def test_the_bits_of_a_shared_prefix(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    forward = LlamaForCausalLM.forward

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        seen.append(output.logits.numpy().tobytes())
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", note)
    [prompt] = prompts(71)
    for policy in SWEEP:
        prefix = read_prefix(model, prompt[:64], policies=[policy], prompts=1)
        seen.clear()
        generate(model, [prompt], policies=[policy], prefix=prefix, **OPTIONS)
        shared = list(seen)
        seen.clear()
        generate(model, [prompt], policies=[policy], **OPTIONS)
        assert shared == seen[4:]  # four chunks were read before


def test_a_prefix_serves_any_number_of_prompts_unchanged(model: PreTrainedModel) -> None:
    [document] = prompts(32)
    prefix = read_prefix(model, document, policies=SWEEP, prompts=2)
    before = [cache.bytes() for cache in prefix.caches]
    first = generate(model, [[*document, 3]], policies=SWEEP, prefix=prefix, **OPTIONS)
    generate(model, [[*document, 9, 9]], policies=SWEEP, prefix=prefix, **OPTIONS)
    again = generate(model, [[*document, 3]], policies=SWEEP, prefix=prefix, **OPTIONS)
    assert [facts(answers) for answers in first] == [facts(answers) for answers in again]
    assert [cache.bytes() for cache in prefix.caches] == before


def test_bad_prefixes(model: PreTrainedModel) -> None:
    [document] = prompts(32)
    with pytest.raises(ValueError, match="a prefix has whole chunks of 16 tokens, found 31 tokens"):
        read_prefix(model, document[1:], policies=SWEEP, prompts=1)
    with pytest.raises(ValueError, match="the prefix is empty"):
        read_prefix(model, [], policies=SWEEP, prompts=1)
    prefix = read_prefix(model, document, policies=SWEEP, prompts=1)
    for wrong in ([document], [[*document, 1], [*document, 2]], [[*document[1:], 0, 1]]):
        with pytest.raises(
            ValueError, match="a prefix of 32 tokens needs one prompt that begins with it and is longer"
        ):
            generate(model, wrong, policies=SWEEP, prefix=prefix, **OPTIONS)
