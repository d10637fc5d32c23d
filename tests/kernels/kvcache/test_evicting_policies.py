"""KV policies that read a prompt with full attention and keep its best tokens, against float64 loops over heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longloom.kernels.kvcache.base import KVPolicy, LayerState
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState
from longloom.kernels.kvcache.registry import get_policy

from .definitions import by_definition, chosen
from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens

LAYERS = 3  # of the model whose first layer these are

POLICIES = [
    get_policy("adakv", budget=12, window=4),
    get_policy("knorm", budget=9),
    get_policy("pyramidkv", budget=12, window=4),
    get_policy("recent", budget=9, sink=2),
    get_policy("snapkv", budget=12, window=4),
]
every = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)


def numbered(length: int, *, batch: int = 1, groups: int = 3) -> Tokens:
    """Random tokens whose values are their slots."""
    tokens = random_tokens(length, batch=batch, groups=groups)
    slots = torch.arange(float(length))[:, None].expand_as(tokens.value)
    return Tokens(tokens.query, tokens.key, slots.contiguous())


def kept(state: Any, after: int = 1) -> list[list[list[int]]]:
    """Which tokens each row and head kept of a numbered prompt, `after` tokens being fed behind it."""
    cache = state.cache
    return [
        [
            [
                int(cache.values[cache.table[row, head, slot // cache.page], slot % cache.page, 0])
                for slot in range(int(cache.kv_len[row, head]) - after)
            ]
            for head in range(cache.table.shape[1])
        ]
        for row in range(len(cache.table))
    ]


def feed(
    policy: KVPolicy[Any], state: LayerState, tokens: Tokens, begin: int, end: int, start: Tensor | None
) -> Tensor:
    part = tokens[:, begin:end]
    return policy.attend(state, part.query, part.key, part.value, ROPE, start=start, scaling=SCALING)


def answer(
    policy: KVPolicy[Any], tokens: Tokens, prompt: int, start: Tensor | None = None
) -> tuple[Tensor, LayerState]:
    """The prompt in one piece, then single steps: the outputs of the steps."""
    length = tokens.key.shape[2]
    state = policy.state_type(0, layers=LAYERS)
    feed(policy, state, tokens, 0, prompt, start)
    steps = [feed(policy, state, tokens, now, now + 1, start) for now in range(prompt, length)]
    return torch.cat(steps, dim=2), state


@every
@pytest.mark.parametrize("prompt", [1, 2, 13, 40, 121])
@pytest.mark.parametrize("groups", [1, 3])
def test_answers_come_from_what_the_method_keeps(policy: Any, prompt: int, groups: int) -> None:
    tokens = random_tokens(prompt + 6, groups=groups, seed=prompt)
    ours, _ = answer(policy, tokens, prompt)
    assert (ours.double() - by_definition(policy, tokens, prompt, layers=LAYERS)).abs().max() < 1e-5


@every
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("prompt", [3, 17, 59])
def test_a_share_is_of_the_prompt_and_may_be_less_than_the_window_or_the_sinks(
    policy: Any, share: float, prompt: int
) -> None:
    policy, tokens = replace(policy, budget=share), random_tokens(prompt + 4, seed=prompt)
    ours, _ = answer(policy, tokens, prompt)
    assert (ours.double() - by_definition(policy, tokens, prompt, layers=LAYERS)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["adakv", "pyramidkv", "recent", "snapkv"])
@pytest.mark.parametrize("tokens", [1, 5, 30])
def test_a_share_of_one_token_keeps_the_newest(name: str, tokens: int) -> None:
    state = answer(get_policy(name, budget=0.01), numbered(tokens + 1), tokens)[1]
    assert kept(state) == [[[tokens - 1]] * HEADS]


def test_a_share_less_than_the_window_keeps_the_windows_newest() -> None:
    state = answer(get_policy("snapkv", budget=0.25, window=8), numbered(25), 24)[1]
    assert kept(state) == [[[*range(18, 24)]] * HEADS]


def test_a_share_less_than_the_sinks_keeps_the_first_of_them_and_the_newest() -> None:
    state = answer(get_policy("recent", budget=0.1, sink=5), numbered(31), 30)[1]
    assert kept(state) == [[[0, 1, 29]] * HEADS]


@every
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3), groups=st.sampled_from([1, 2]), share=st.booleans()
)
def test_each_padded_row_keeps_what_it_keeps_alone(policy: Any, lengths: list[int], groups: int, share: bool) -> None:
    policy = replace(policy, budget=0.4) if share else policy
    tokens = numbered(41, batch=len(lengths), groups=groups)
    padding = torch.tensor([40 - length for length in lengths])
    together = kept(answer(policy, tokens, 40, padding)[1])
    for row, length in enumerate(lengths):
        alone = tokens[row : row + 1, 40 - length :]
        expected = chosen(policy, alone, length, layers=LAYERS) if length else [[]] * HEADS
        assert [[slot - 40 + length for slot in head] for head in together[row]] == expected


@every
def test_equal_scores_keep_the_earliest(policy: Any) -> None:
    tokens = numbered(31)
    same = Tokens(torch.zeros_like(tokens.query), torch.zeros_like(tokens.key), tokens.value)
    assert kept(answer(policy, same, 30)[1]) == [chosen(policy, same, 30, layers=LAYERS)]


@every
@pytest.mark.parametrize("pieces", [[30], [29, 1], [7, 2, 21]])
def test_pieces_of_the_prompt_do_not_matter(policy: Any, pieces: list[int]) -> None:
    tokens = numbered(31)
    prompt, begin = PromptState(0, layers=LAYERS), 0
    for length in pieces:
        feed(PromptPolicy(observed=policy.observed), prompt, tokens, begin, begin + length, None)
        begin += length
    assert kept(policy.keep(prompt, ROPE), 0) == kept(answer(policy, tokens, 30)[1])


@every
def test_a_budget_of_the_prompt_keeps_all(policy: Any) -> None:
    for budget in (30, 31, 1000):
        state = answer(replace(policy, budget=budget), numbered(31), 30)[1]
        assert kept(state) == [[[*range(30)]] * HEADS]


@every
def test_the_prompt_meets_full_attention(policy: Any) -> None:
    tokens = random_tokens(50)
    full = get_policy("full")
    ours = feed(policy, policy.state_type(0, layers=LAYERS), tokens, 0, 50, None)
    assert torch.equal(ours, feed(full, full.state_type(0), tokens, 0, 50, None))


@every
def test_keeping_from_a_shared_prefill_is_the_same_to_the_bit(policy: Any) -> None:
    tokens = random_tokens(44)
    reader = PromptPolicy(observed=20)  # more than any of them needs
    prompt = PromptState(0, layers=LAYERS)
    for begin, end in ((0, 16), (16, 32), (32, 40)):
        feed(reader, prompt, tokens, begin, end, None)
    before = prompt.fork()
    state = policy.keep(prompt, ROPE)
    shared = torch.cat([feed(policy, state, tokens, now, now + 1, None) for now in range(40, 44)], dim=2)
    alone = policy.state_type(0, layers=LAYERS)
    for begin, end in ((0, 16), (16, 32), (32, 40)):
        feed(policy, alone, tokens, begin, end, None)
    steps = torch.cat([feed(policy, alone, tokens, now, now + 1, None) for now in range(40, 44)], dim=2)
    assert torch.equal(shared, steps)
    for name in ("keys", "values", "queries"):
        assert torch.equal(getattr(prompt, name), getattr(before, name))


@every
@settings(max_examples=25, deadline=None)
@given(padding=st.lists(st.integers(0, 29), min_size=2, max_size=3), seed=st.integers(0, 999))
def test_padded_rows_equal_rows_alone_however_short(policy: Any, padding: list[int], seed: int) -> None:
    tokens = random_tokens(36, batch=len(padding), seed=seed)
    together, _ = answer(policy, tokens, 30, torch.tensor(padding))
    assert together.isfinite().all()
    for row, pad in enumerate(padding):
        alone, _ = answer(policy, tokens[row : row + 1, pad:], 30 - pad)
        assert (together[row] - alone[0]).abs().max() < 1e-5


@every
def test_several_tokens_at_once_after_the_prompt(policy: Any) -> None:
    tokens = random_tokens(40)
    steps, _ = answer(policy, tokens, 30)
    state = policy.state_type(0, layers=LAYERS)
    feed(policy, state, tokens, 0, 30, None)
    first = feed(policy, state, tokens, 30, 31, None)
    rest = feed(policy, state, tokens, 31, 40, None)
    assert (torch.cat((first, rest), dim=2) - steps).abs().max() < 1e-5


@every
def test_memory_is_the_budget_and_the_answer(policy: Any) -> None:
    _, state = answer(policy, random_tokens(301), 300)
    spare = policy.budget + 1 + 64
    assert 0 < state.bytes() <= 2 * HEADS * SIZE * 4 * spare


@every
def test_a_fork_goes_on_by_itself(policy: Any) -> None:
    tokens, others = random_tokens(34), random_tokens(34, seed=1)
    _, state = answer(policy, tokens[:, :31], 30)
    fork = state.fork()
    expected = feed(policy, state.fork(), tokens, 31, 32, None)
    feed(policy, fork, others, 31, 34, None)
    assert torch.equal(feed(policy, state, tokens, 31, 32, None), expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "knorm",
            {"budget": 0},
            "KV policy 'knorm': budget must be a whole number >= 1 or a share between 0 and 1, found 0",
        ),
        ("recent", {"budget": 4}, "sink must be a whole number from 0 on, less than budget=4, found 4"),
        ("recent", {"budget": 0.5, "sink": -1}, "sink must be a whole number from 0 on, found -1"),
        ("snapkv", {"budget": 8}, "'snapkv': window must be a whole number from 1 to budget=8, found 32"),
        ("snapkv", {"budget": 0.5, "window": 0}, "window must be a whole number from 1, found 0"),
        ("pyramidkv", {"budget": 8}, "'pyramidkv': window must be a whole number from 1 to budget=8, found 32"),
        ("pyramidkv", {"budget": 64, "beta": 0.5}, "'pyramidkv': beta must be a number >= 1, found 0.5"),
        ("adakv", {"budget": 64, "safeguard": 1.5}, "'adakv': safeguard must be a share from 0 to 1, found 1.5"),
        ("snapkv", {}, "needs the option 'budget'; its options: budget, window"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_policy(name, **options)
