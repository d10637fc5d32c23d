"""KV policies that read a prompt with full attention and keep its best tokens, against float64 loops over heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longloom.kernels.kvcache.base import KVPolicy, LayerState
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState
from longloom.kernels.kvcache.registry import get_policy

from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens, turn

POLICIES = [
    get_policy("knorm", budget=9),
    get_policy("recent", budget=9, sink=2),
    get_policy("snapkv", budget=12, window=4),
]
every = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)


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
    state = policy.state_type(0)
    feed(policy, state, tokens, 0, prompt, start)
    steps = [feed(policy, state, tokens, now, now + 1, start) for now in range(prompt, length)]
    return torch.cat(steps, dim=2), state


def turned(x: Tensor, begin: int = 0) -> Tensor:
    """[n, SIZE] rotated to positions begin, begin + 1, ..., in float64."""
    return turn(x, torch.arange(begin, begin + len(x)))


def chosen(policy: Any, tokens: Tokens, prompt: int, head: int) -> list[int]:
    """What one KV head keeps of one row, by the method's definition."""
    query, keys = tokens.query, tokens.key[0, head, :prompt].double()
    if policy.name == "knorm":
        return sorted(sorted(range(prompt), key=lambda slot: float(keys[slot].norm()))[: policy.budget])
    if policy.name == "recent":
        rest = policy.budget - policy.sink
        return sorted({*range(min(policy.sink, prompt)), *range(max(0, prompt - rest), prompt)})
    first, groups = prompt - policy.window, query.shape[1] // HEADS
    votes = torch.zeros(prompt, dtype=torch.float64)
    for voter in range(first, prompt):
        for group in range(groups):
            q = turned(query[0, head * groups + group, voter : voter + 1], voter)
            scores = (turned(keys) @ q[0] * SCALING)[: voter + 1]
            votes[: voter + 1] += scores.softmax(0)
    pooled = [float(votes[max(0, slot - 3) : min(first, slot + 4)].max()) for slot in range(first)]
    best = sorted(range(first), key=lambda slot: -pooled[slot])[: policy.budget - policy.window]
    return sorted([*best, *range(first, prompt)])


def by_definition(policy: Any, tokens: Tokens, prompt: int) -> Tensor:
    query, key, value = tokens.query, tokens.key, tokens.value
    length, groups = query.shape[2], query.shape[1] // HEADS
    output = torch.empty(1, groups * HEADS, length - prompt, SIZE, dtype=torch.float64)
    for head in range(HEADS):
        kept = chosen(policy, tokens, prompt, head)
        rotated = turned(key[0, head])
        for now in range(prompt, length):
            slots = [*kept, *range(prompt, now + 1)]
            for member in range(groups):
                q = turned(query[0, head * groups + member, now : now + 1], now)[0]
                weights = (rotated[slots] @ q * SCALING).softmax(0)
                output[0, head * groups + member, now - prompt] = weights @ value[0, head, slots].double()
    return output


@every
@pytest.mark.parametrize("prompt", [13, 40, 121])
def test_answers_come_from_what_the_method_keeps(policy: Any, prompt: int) -> None:
    tokens = random_tokens(prompt + 6, seed=prompt)
    ours, _ = answer(policy, tokens, prompt)
    assert (ours.double() - by_definition(policy, tokens, prompt)).abs().max() < 1e-5


@every
def test_the_prompt_meets_full_attention(policy: Any) -> None:
    tokens = random_tokens(50)
    full = get_policy("full")
    ours = feed(policy, policy.state_type(0), tokens, 0, 50, None)
    assert torch.equal(ours, feed(full, full.state_type(0), tokens, 0, 50, None))


@every
def test_keeping_from_a_shared_prefill_is_the_same_to_the_bit(policy: Any) -> None:
    tokens = random_tokens(44)
    reader = PromptPolicy(observed=20)  # more than any of them needs
    prompt = PromptState(0)
    for begin, end in ((0, 16), (16, 32), (32, 40)):
        feed(reader, prompt, tokens, begin, end, None)
    before = prompt.fork()
    state = policy.keep(prompt, ROPE)
    shared = torch.cat([feed(policy, state, tokens, now, now + 1, None) for now in range(40, 44)], dim=2)
    alone = policy.state_type(0)
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
    state = policy.state_type(0)
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
        ("recent", {"budget": 3}, "sink must be a whole number from 0 to budget=3, found 4"),
        ("snapkv", {"budget": 8}, "window must be a whole number from 1 to budget=8, found 32"),
        ("snapkv", {}, "needs the option 'budget'; its options: budget, window"),
    ],
)
def test_bad_options(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_policy(name, **options)
