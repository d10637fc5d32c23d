"""transformers' own generate() with the cache of a KV policy: greedy, sampled, in padded batches, in several turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longloom.kernels.huggingface.attention import policy_attention
from longloom.kernels.huggingface.cache import PolicyCache
from longloom.kernels.huggingface.generate import generate
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.base import KVPolicy
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy

from .dense import Rule, causal, dense_logits, greedy, razor
from .models import VOCABULARY, prompts

SINK, WINDOW = 2, 5
NEW = 14


@pytest.fixture(scope="module")
def policies(model: PreTrainedModel) -> dict[str, KVPolicy[Any]]:
    heads = HeadProfile("probe", fingerprint(model), ((0.1, 0.2), (0.9, 0.3)))
    options = {"heads": heads, "induction": 0.25, "echo": 0, "window": WINDOW, "compression": 100, "sink": SINK}
    return {
        "full": get_policy("full"),
        "razor": get_policy("razor", **options),
        "razor that folds": get_policy("razor", fold=True, **options),
        "snapkv": get_policy("snapkv", budget=8, window=4),
        "streaming": get_policy("streaming", sink=SINK, window=WINDOW),
    }


every = pytest.mark.parametrize("name", ["full", "razor", "razor that folds", "snapkv", "streaming"])


def protected(prompt: int) -> Any:
    """The rule of `razor` above: of 2 layers with 2 KV heads one head is protected."""

    def rule(layer: int, head: int, tokens: int) -> Rule:
        return causal(tokens) if (layer, head) == (1, 0) else razor(tokens, prompt, sink=SINK, window=WINDOW)

    return rule


def batch_of(asked: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, N], padded on the left."""
    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in asked])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])
    return ids, mask


def answer(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: PolicyCache | None, new: int = NEW, **options: Any
) -> Tensor:
    """The new tokens alone."""
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    return model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=new, **settings)[
        :, ids.shape[1] :
    ]


@every
def test_greedy_in_a_padded_batch_is_what_our_loop_gives(
    model: PreTrainedModel, policies: dict[str, KVPolicy[Any]], name: str
) -> None:
    asked = prompts(30, 11, 47, 2)
    ids, mask = batch_of(asked)
    with policy_attention(model, policies[name]) as cache:
        together = answer(model, ids, mask, cache).tolist()
    ours = generate(model, asked, policies=[policies[name]], max_new_tokens=NEW, eos_token_ids=[])[0]
    assert together == [row.ids for row in ours]
    for prompt, row in zip(asked, together, strict=True):
        with policy_attention(model, policies[name]) as cache:
            assert answer(model, *batch_of([prompt]), cache).tolist() == [row]
    alone = answer(model, ids, mask, None).tolist()
    assert (together == alone) == (name == "full")


@every
def test_rows_that_end_early_leave_the_others_alone(
    model: PreTrainedModel, policies: dict[str, KVPolicy[Any]], name: str
) -> None:
    asked = prompts(30, 11, 47)
    ids, mask = batch_of(asked)
    with policy_attention(model, policies[name]) as cache:
        whole = answer(model, ids, mask, cache)
    end = int(whole[1, 4])
    with policy_attention(model, policies[name]) as cache:
        rows = answer(model, ids, mask, cache, eos_token_id=end).tolist()
    for row, full in zip(rows, whole.tolist(), strict=True):
        stop = full.index(end) + 1 if end in full else NEW
        assert row == (full[:stop] + [0] * NEW)[: len(row)]
    assert rows[1][5:] == [0] * (len(rows[1]) - 5)


def sampled(model: PreTrainedModel, cache: PolicyCache, ids: Tensor, mask: Tensor) -> Tensor:
    """Sampling in a plain loop over the model's steps."""
    chosen = []
    for _ in range(NEW):
        logits = model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]
        ids = torch.multinomial((logits / 0.7).softmax(-1), 1)
        mask = torch.cat((mask, torch.ones_like(ids)), dim=1)
        chosen.append(ids)
    return torch.cat(chosen, dim=1)


@every
@pytest.mark.parametrize("several", [1, 3])
@torch.no_grad()
def test_sampling_follows_the_policys_distributions(
    model: PreTrainedModel, policies: dict[str, KVPolicy[Any]], name: str, several: int
) -> None:
    ids, mask = batch_of(prompts(30, 11))
    options = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "num_return_sequences": several}
    answers = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        with policy_attention(model, policies[name]) as cache:
            answers.append(answer(model, ids, mask, cache, **options).tolist())
    torch.manual_seed(5)
    with policy_attention(model, policies[name]) as cache:
        expected = sampled(model, cache, ids.repeat_interleave(several, 0), mask.repeat_interleave(several, 0))
    assert answers[0] == answers[1] == expected.tolist()
    assert answers[0] != answers[2]
    assert len({tuple(row) for row in answers[0]}) == 2 * several


def talk(
    model: PreTrainedModel, policy: KVPolicy[Any], asked: list[list[int]], later: list[Tensor], *, whole: bool
) -> tuple[list[Tensor], PolicyCache]:
    """The answers of several turns on one cache, told each time all ids or only the new ones."""
    ids, mask = batch_of(asked)
    answers = []
    with policy_attention(model, policy) as cache:
        for turn in [*later, None]:
            new = ids if whole else ids[:, cache.get_seq_length() :]
            answers.append(answer(model, new, mask, cache))
            # The last token of the answer has not been fed: it is among the next turn's new ones.
            assert cache.get_seq_length() == ids.shape[1] + NEW - 1
            if turn is not None:
                ids = torch.cat((ids, answers[-1], turn), dim=1)
                mask = torch.cat((mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])), dim=1)
    return answers, cache


@every
@pytest.mark.parametrize("lengths", [(40, 40), (40, 23), (33,)])
def test_turns_told_in_whole_or_in_part_are_the_same(
    model: PreTrainedModel, policies: dict[str, KVPolicy[Any]], name: str, lengths: tuple[int, ...]
) -> None:
    asked = prompts(*lengths)
    later = [torch.tensor(prompts(*[9] * len(asked))), torch.tensor(prompts(*[1] * len(asked)))]
    answers, _ = talk(model, policies[name], asked, later, whole=True)
    again, _ = talk(model, policies[name], asked, later, whole=False)
    assert [turn.tolist() for turn in answers] == [turn.tolist() for turn in again]
    if len(asked) > 1:  # each row as alone
        for row, prompt in enumerate(asked):
            alone, _ = talk(model, policies[name], [prompt], [turn[row : row + 1] for turn in later], whole=False)
            assert [turn[row].tolist() for turn in answers] == [turn[0].tolist() for turn in alone]


@pytest.mark.parametrize("name", ["full", "razor"])
def test_what_follows_the_prompt_is_attended_exactly(
    model: PreTrainedModel, policies: dict[str, KVPolicy[Any]], name: str
) -> None:
    [prompt, *turns] = prompts(40, 9, 6)
    answers, _ = talk(model, policies[name], [prompt], [torch.tensor([turn]) for turn in turns], whole=True)
    ids = list(prompt)
    rule = protected(len(prompt)) if name == "razor" else lambda layer, head, tokens: causal(tokens)
    for turn, told in zip([*turns, []], answers, strict=True):
        expected = greedy(model, ids, NEW, rule)
        assert told[0].tolist() == expected
        ids += expected + turn
    if name == "razor":  # and it is no small thing
        assert greedy(model, list(prompt), NEW, lambda layer, head, tokens: causal(tokens)) != answers[0][0].tolist()


@torch.no_grad()
def test_the_prompt_ends_before_the_first_single_token(
    model: PreTrainedModel, policies: dict[str, KVPolicy[Any]]
) -> None:
    """Where an answer has one token alone, nothing tells the prompt's end, and the next turn is of the prompt."""
    [prompt, turn] = prompts(30, 12)
    ids, mask = batch_of([prompt])
    with policy_attention(model, policies["razor"]) as cache:
        first = answer(model, ids, mask, cache, new=1)[0].tolist()
        later = torch.tensor([prompt + first + turn])
        told = answer(model, later, torch.ones_like(later), cache)[0].tolist()
    assert told == greedy(model, prompt + first + turn, NEW, protected(len(prompt) + 1 + len(turn)))


@torch.no_grad()
def test_chunks_that_leave_one_token_over_end_the_prompt_before_it(
    model: PreTrainedModel, policies: dict[str, KVPolicy[Any]]
) -> None:
    [prompt] = prompts(41)
    ids, mask = batch_of([prompt])
    found = []
    for chunk in (8, 9):  # 41 = 5 * 8 + 1 = 4 * 9 + 5
        with policy_attention(model, policies["razor"]) as cache:
            found.append(answer(model, ids, mask, cache, prefill_chunk_size=chunk)[0].tolist())
    assert found[0] == greedy(model, prompt, NEW, protected(40))
    assert found[1] == greedy(model, prompt, NEW, protected(41))


@every
@torch.no_grad()
def test_a_prompt_of_one_token(model: PreTrainedModel, policies: dict[str, KVPolicy[Any]], name: str) -> None:
    """It is the whole prompt, so nothing of the answer is ever dropped, unless the policy drops it anyway."""
    ids, mask = torch.tensor([[7], [9]]), torch.ones(2, 1, dtype=torch.int64)
    with policy_attention(model, policies[name]) as cache:
        found = answer(model, ids, mask, cache)
    ours = generate(model, ids.tolist(), policies=[policies[name]], max_new_tokens=NEW, eos_token_ids=[])[0]
    assert found.tolist() == [row.ids for row in ours]
    if name in ("full", "razor", "snapkv"):
        assert found.tolist() == answer(model, ids, mask, None).tolist()


@torch.no_grad()
def test_razors_logits_after_the_prompt(model: PreTrainedModel, policies: dict[str, KVPolicy[Any]]) -> None:
    [prompt, turn] = prompts(50, 20)
    with policy_attention(model, policies["razor"]) as cache:
        pieces = torch.tensor([prompt + turn]).split([17, 33, 1, 12, 1, 6], dim=1)
        logits = torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], dim=1)[0]
    expected = dense_logits(model, prompt + turn, protected(len(prompt)))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=2e-5)


def test_what_a_cache_cannot_do_is_refused(model: PreTrainedModel, policies: dict[str, KVPolicy[Any]]) -> None:
    ids, mask = batch_of(prompts(20))
    for name, policy in policies.items():
        with policy_attention(model, policy) as cache, pytest.raises(ValueError, match="beam search moves rows"):
            answer(model, ids, mask, cache, num_beams=2)
        with policy_attention(model, policy) as cache, pytest.raises(ValueError, match="assisted decoding takes"):
            answer(model, ids, mask, cache, prompt_lookup_num_tokens=3)
        with policy_attention(model, policy) as cache:
            answer(model, ids, mask, cache)
            seen = ids.shape[1] + NEW - 1
            message = f"found no token that the KV policy's cache has not seen, it has seen {seen}: pass the ids of all"
            with pytest.raises(ValueError, match=message):
                answer(model, ids[:, :4], mask[:, :4], cache)  # new ids, but a mask over them alone
            longer = torch.randint(VOCABULARY, (3, seen + 2))
            with pytest.raises(ValueError, match="serves one batch: it holds 1 rows, found 3"):
                answer(model, longer, torch.ones_like(longer), cache)
            with pytest.raises(ValueError, match="cannot be reset, cropped, reordered or offloaded: open a new one"):
                cache.reset()
            assert cache.get_seq_length() == seen, name
