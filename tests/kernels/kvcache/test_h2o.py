"""H2O against loops over heads and tokens in float64, and by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longloom.kernels.kvcache import received as sums_module
from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.h2o import H2OState
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState
from longloom.kernels.kvcache.received import received
from longloom.kernels.kvcache.registry import get_policy

from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens, turn

TOKEN = 2 * SIZE * 4 + 4 + 4  # bytes of a key and a value, a sum and a slot


def feed(policy: Any, state: Any, tokens: Tokens, begin: int, end: int, start: Tensor | None = None) -> Tensor:
    part = tokens[:, begin:end]
    output: Tensor = policy.attend(state, part.query, part.key, part.value, ROPE, start=start, scaling=SCALING)
    return output


def answer(policy: Any, tokens: Tokens, prompt: int, start: Tensor | None = None) -> tuple[Tensor, H2OState]:
    """The prompt in one piece, then single steps: the outputs of the steps."""
    state = H2OState(0)
    feed(policy, state, tokens, 0, prompt, start)
    steps = [feed(policy, state, tokens, now, now + 1, start) for now in range(prompt, tokens.key.shape[2])]
    return torch.cat(steps, dim=2), state


def kept(state: H2OState, row: int, head: int) -> list[int]:
    assert state.slots is not None
    return sorted(slot for slot in state.slots[row, head].tolist() if slot >= 0)


def evicted(sums: dict[int, float], budget: int, now: int) -> dict[int, float]:
    """The method's choice when slot `now` is the newest: budget // 2 heavy hitters, and the latest."""
    recent = budget - budget // 2
    older = sorted(sums.keys() & set(range(now - recent + 1)), key=lambda slot: (-sums[slot], slot))
    room = budget - (len(sums) - len(older))
    return {slot: sums[slot] for slot in sums if slot > now - recent or slot in older[:room]}


def by_definition(tokens: Tokens, prompt: int, budget: int, head: int) -> tuple[Tensor, list[list[int]]]:
    """One KV head of one row: outputs of its steps [G, steps, SIZE] in float64, and what it holds after each."""
    length = tokens.key.shape[2]
    groups = tokens.query.shape[1] // HEADS
    places = torch.arange(length)
    queries = turn(tokens.query[0, head * groups : (head + 1) * groups], places)  # [G, N, SIZE]
    keys, values = turn(tokens.key[0, head], places), tokens.value[0, head].double()
    sums = dict.fromkeys(range(prompt), 0.0)
    for now in range(prompt):
        for query in queries[:, now]:
            for slot, weight in enumerate((keys[: now + 1] @ query * SCALING).softmax(0).tolist()):
                sums[slot] += weight
    sums = evicted(sums, budget, prompt - 1)
    outputs, history = [], []
    for now in range(prompt, length):
        sums[now] = 0.0
        slots = sorted(sums)
        outputs.append([])
        for query in queries[:, now]:
            weights = (keys[slots] @ query * SCALING).softmax(0)
            outputs[-1].append(weights @ values[slots])
            for slot, weight in zip(slots, weights.tolist(), strict=True):
                sums[slot] += weight
        sums = evicted(sums, budget, now)
        history.append(sorted(sums))
    return torch.stack([torch.stack(step) for step in outputs], dim=1), history


@pytest.mark.parametrize("prompt", [1, 7, 40, 121])
@pytest.mark.parametrize("budget", [2, 3, 12, 31])
@pytest.mark.parametrize("groups", [1, 3])
def test_every_step_evicts_what_the_method_evicts(prompt: int, budget: int, groups: int) -> None:
    tokens = random_tokens(prompt + 25, groups=groups, seed=prompt)
    policy, state = get_policy("h2o", budget=budget), H2OState(0)
    expected = [by_definition(tokens, prompt, budget, head) for head in range(HEADS)]
    for begin in range(0, prompt, 25):
        feed(policy, state, tokens, begin, min(prompt, begin + 25))
    for step in range(25):
        ours = feed(policy, state, tokens, prompt + step, prompt + step + 1)
        for head, (outputs, history) in enumerate(expected):
            own = ours[0, head * groups : (head + 1) * groups, 0]
            assert (own.double() - outputs[:, step]).abs().max() < 1e-5
            assert kept(state, 0, head) == history[step]
            assert len(history[step]) == min(budget, prompt + step + 1)


def test_by_hand() -> None:
    """Each token attends to a single other one, so that sums are counts. Two heavy hitters, two recent tokens."""
    looks_at = [0, 1, 1, 3, 0, 5, 5, 5, 6]
    names = torch.eye(len(looks_at) + 1)
    key = 200 * names[: len(looks_at)][None, None]
    query, value = names[looks_at][None, None], names[: len(looks_at)][None, None]
    policy, state = get_policy("h2o", budget=4), H2OState(0)
    still = Rope(torch.zeros(5))

    def attend(begin: int, end: int) -> Tensor:
        part = slice(begin, end)
        return policy.attend(
            state, query[:, :, part], key[:, :, part], value[:, :, part], still, start=None, scaling=1.0
        )

    attend(0, 6)  # sums 2 2 0 1 0 1: 0 and 1 are heavy, 4 and 5 recent
    for now, held in (
        (6, [0, 1, 5, 6]),  # 4, no longer recent, has received nothing
        (7, [0, 5, 6, 7]),  # 5 has received 3; of 0 and 1 with 2 each the later goes
        (8, [0, 5, 7, 8]),  # 6 has received 1
    ):
        assert attend(now, now + 1)[0, 0, 0].tolist() == names[looks_at[now]].tolist()
        assert kept(state, 0, 0) == held


def test_the_prompt_meets_full_attention() -> None:
    tokens = random_tokens(50)
    full = get_policy("full")
    ours = feed(get_policy("h2o", budget=4), H2OState(0), tokens, 0, 50)
    assert torch.equal(ours, feed(full, full.state_type(0), tokens, 0, 50))


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 39), max_size=6), seed=st.integers(0, 999))
def test_chunks_of_the_prompt_do_not_matter(cuts: set[int], seed: int) -> None:
    tokens = random_tokens(48, batch=2, seed=seed)
    whole, _ = answer(get_policy("h2o", budget=9), tokens, 40)
    prompt = PromptState(0)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 40], strict=True):
        feed(PromptPolicy(summed=True), prompt, tokens, begin, end)
    policy = get_policy("h2o", budget=9)
    state = policy.keep(prompt, ROPE)  # type: ignore[attr-defined]
    assert (feed(policy, state, tokens, 40, 48) - whole).abs().max() < 1e-5  # several tokens at once


@settings(max_examples=25, deadline=None)
@given(padding=st.lists(st.integers(0, 29), min_size=2, max_size=3), seed=st.integers(0, 999))
@pytest.mark.parametrize("budget", [7, 0.4])
def test_padded_rows_equal_rows_alone(budget: float, padding: list[int], seed: int) -> None:
    policy, tokens = get_policy("h2o", budget=budget), random_tokens(42, batch=len(padding), seed=seed)
    together, state = answer(policy, tokens, 30, torch.tensor(padding))
    for row, pad in enumerate(padding):
        alone, own = answer(policy, tokens[row : row + 1, pad:], 30 - pad)
        assert (together[row] - alone[0]).abs().max() < 1e-5
        for head in range(HEADS):
            assert [slot - pad for slot in kept(state, row, head)] == kept(own, 0, head)


def test_keeping_from_a_shared_prefill_is_the_same_to_the_bit() -> None:
    tokens = random_tokens(44)
    policy, prompt, alone = get_policy("h2o", budget=9), PromptState(0), H2OState(0)
    for begin, end in ((0, 16), (16, 32), (32, 40)):
        feed(PromptPolicy(observed=20, summed=True), prompt, tokens, begin, end)
        feed(policy, alone, tokens, begin, end)
    before = prompt.fork()
    state = policy.keep(prompt, ROPE)  # type: ignore[attr-defined]
    for now in range(40, 44):
        assert torch.equal(feed(policy, state, tokens, now, now + 1), feed(policy, alone, tokens, now, now + 1))
    for name in ("keys", "values", "queries", "sums"):
        assert torch.equal(getattr(prompt, name), getattr(before, name))


def test_memory_is_the_budget_at_every_step() -> None:
    policy, tokens, state = get_policy("h2o", budget=10), random_tokens(90, batch=3), H2OState(0)
    feed(policy, state, tokens, 0, 60)
    reading = 3 * HEADS * 60 * (2 * SIZE * 4 + 4)
    assert state.bytes() == reading
    for now in range(60, 90):
        feed(policy, state, tokens, now, now + 1)
        assert state.bytes() == 3 * HEADS * 10 * TOKEN + 3 * 8  # and the rows' budgets
        assert len(kept(state, 1, 0)) == 10


def test_a_share_is_of_each_rows_prompt() -> None:
    tokens, padding = random_tokens(70, batch=3), torch.tensor([0, 40, 57])
    _, state = answer(get_policy("h2o", budget=0.25), tokens, 60, padding)
    assert [len(kept(state, row, 0)) for row in range(3)] == [15, 5, 2]
    assert state.bytes() == 3 * HEADS * 15 * TOKEN + 3 * 8


def test_a_prompt_below_the_budget_grows_up_to_it() -> None:
    tokens, state = random_tokens(150), H2OState(0)
    policy = get_policy("h2o", budget=100)
    feed(policy, state, tokens, 0, 5)
    for now in range(5, 150):
        feed(policy, state, tokens, now, now + 1)
        assert len(kept(state, 0, 1)) == min(100, now + 1)
        assert state.bytes() <= HEADS * 100 * TOKEN + 8


def test_a_fork_goes_on_by_itself() -> None:
    tokens, others = random_tokens(34), random_tokens(34, seed=1)
    policy = get_policy("h2o", budget=6)
    _, state = answer(policy, tokens[:, :31], 30)
    expected = feed(policy, state.fork(), tokens, 31, 32)
    feed(policy, state.fork(), others, 31, 34)
    assert torch.equal(feed(policy, state, tokens, 31, 32), expected)


def test_a_row_that_is_padding_when_prompts_end_is_refused() -> None:
    tokens, policy = random_tokens(12, batch=2), get_policy("h2o", budget=6)
    for padding, fits in (([0, 10], True), ([0, 11], False)):
        state = H2OState(0)
        for begin, end in ((0, 10), (10, 11)):
            part, start = tokens[:, begin:end], torch.tensor(padding).clamp(max=end)
            options: dict[str, Any] = {"start": start, "scaling": SCALING}
            if fits or begin == 0:
                policy.attend(state, part.query, part.key, part.value, ROPE, **options)
                continue
            with pytest.raises(ValueError, match=r"'h2o': prompts end before .* here after 10, .* feed more tokens"):
                policy.attend(state, part.query, part.key, part.value, ROPE, **options)


@pytest.mark.parametrize("weights", [1, 300, 1 << 24])
def test_what_keys_receive(weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the whole matrix in float64, in blocks of one query, of some and of all."""
    monkeypatch.setattr(sums_module, "_WEIGHTS", weights)
    tokens, padding = random_tokens(33, batch=3), torch.tensor([0, 9, 30])
    whole = received(tokens.query, tokens.key, padding, SCALING)
    for row, pad in enumerate(padding.tolist()):
        for head in range(HEADS):
            queries = tokens.query[row, 3 * head : 3 * head + 3, pad:].double()
            logits = queries @ tokens.key[row, head, pad:].double().T * SCALING
            later = torch.ones(33 - pad, 33 - pad, dtype=torch.bool).triu(1)
            expected = logits.masked_fill(later, -torch.inf).softmax(-1).sum((0, 1))
            assert (whole[row, head, pad:].double() - expected).abs().max() < 1e-5
            assert not whole[row, head, :pad].any()
    first = received(tokens.query[:, :, :20], tokens.key[:, :, :20], padding.clamp(max=20), SCALING)
    rest = received(tokens.query[:, :, 20:], tokens.key, padding, SCALING)
    rest[:, :, :20] += first
    assert (rest - whole).abs().max() < 1e-5
    assert received(tokens.query.bfloat16(), tokens.key.bfloat16(), None, SCALING).dtype == torch.float32


@pytest.mark.parametrize("budget", [1, 0, -3, True, 2.0, 1.0, 0.0])
def test_bad_budgets(budget: float) -> None:
    message = f"KV policy 'h2o': budget must be a whole number >= 2 or a share between 0 and 1, found {budget!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        get_policy("h2o", budget=budget)
