"""How PyramidKV shares a budget out among the layers, and Ada-KV among the heads, against their papers' formulas."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState
from longloom.kernels.kvcache.registry import get_policy

from .definitions import by_definition, mean_kept, pyramid
from .tokens import ROPE, SCALING, random_tokens


def prompts(lengths: list[int], *, layer: int = 0, layers: int = 1) -> PromptState:
    """A prompt of rows of these lengths, without their content but for the shape."""
    longest = max(lengths)
    start = torch.tensor([longest - length for length in lengths])
    keys = torch.zeros(len(lengths), 1, longest, 1)
    return PromptState(layer, longest, layers, keys, keys, start=start)


def layer_budgets(policy: Any, tokens: int, layers: int) -> list[int]:
    scores = torch.zeros(1, 2, tokens)
    found = [policy.counts(prompts([tokens], layer=layer, layers=layers), scores) for layer in range(layers)]
    assert all(len(set(counts.flatten().tolist())) == 1 for counts in found)
    return [int(counts[0, 0]) for counts in found]


def test_a_pyramid_by_hand() -> None:
    # 40 beside the window of 8: the last layer has 40 / 4, the first 80 - 10, and steps of 15 between five layers.
    policy = get_policy("pyramidkv", budget=48, window=8, beta=4)
    assert layer_budgets(policy, 1000, 5) == [78, 63, 48, 33, 18]
    # Of 66 tokens 58 are before the window: the first layer has them all, the last one 80 - 58.
    assert layer_budgets(policy, 66, 5) == [66, 57, 48, 39, 30]
    assert layer_budgets(policy, 48, 5) == [48] * 5
    assert layer_budgets(policy, 20, 5) == [20] * 5
    assert layer_budgets(policy, 1000, 1) == [48]


def test_layers_with_sliding_windows_are_no_steps_of_a_pyramid() -> None:
    policy, scores = get_policy("pyramidkv", budget=48, window=8, beta=4), torch.zeros(1, 2, 1000)
    sliding = tuple(layer for layer in range(12) if layer % 6 != 5)
    kept = []
    for layer in (5, 11):
        prompt = prompts([1000], layer=layer, layers=12)
        prompt.sliding = sliding
        kept.append(int(policy.counts(prompt, scores)[0, 0]))  # type: ignore[attr-defined]
    assert kept == layer_budgets(policy, 1000, 2) == [78, 18]


@settings(max_examples=150, deadline=None)
@given(
    budget=st.one_of(st.integers(8, 500), st.floats(0.01, 0.99)),
    window=st.integers(1, 8),
    beta=st.sampled_from([1.0, 1.5, 3.0, 20.0, 1000.0]),
    tokens=st.integers(1, 700),
    layers=st.integers(1, 33),
)
def test_layers_follow_the_formula_and_keep_the_total(
    budget: float, window: int, beta: float, tokens: int, layers: int
) -> None:
    policy = get_policy("pyramidkv", budget=budget, window=window, beta=beta)
    budgets = layer_budgets(policy, tokens, layers)
    assert sum(budgets) == layers * mean_kept(policy, tokens)
    assert budgets == sorted(budgets, reverse=True)
    assert all(1 <= kept <= tokens for kept in budgets)
    for layer, kept in enumerate(budgets):
        assert abs(kept - pyramid(policy, tokens, layer, layers)) <= Fraction(1, 2) + Fraction(1, 10**9)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_every_layer_keeps_snapkvs_choice_of_its_budget(layer: int) -> None:
    policy, tokens = get_policy("pyramidkv", budget=14, window=4, beta=3), random_tokens(47, seed=layer)
    state = policy.state_type(layer, layers=4)
    first = tokens[:, :40]
    policy.attend(state, first.query, first.key, first.value, ROPE, start=None, scaling=SCALING)
    steps = [tokens[:, now : now + 1] for now in range(40, 47)]
    ours = torch.cat(
        [policy.attend(state, now.query, now.key, now.value, ROPE, start=None, scaling=SCALING) for now in steps], 2
    )
    assert (ours.double() - by_definition(policy, tokens, 40, layer=layer, layers=4)).abs().max() < 1e-5


@pytest.mark.parametrize("layers", [0, 2])
def test_a_pyramid_needs_the_number_of_layers(layers: int) -> None:
    policy, tokens = get_policy("pyramidkv", budget=9, window=3), random_tokens(12)
    prompt = PromptState(2, layers=layers)
    reader = PromptPolicy(observed=3)
    reader.attend(prompt, tokens.query, tokens.key, tokens.value, ROPE, start=None, scaling=SCALING)
    with pytest.raises(ValueError, match=f"needs the number of the model's layers, found {layers} at layer 2"):
        policy.keep(prompt, ROPE)


def head_budgets(scores: list[list[float]], kept: int, safeguard: str) -> list[int]:
    """Algorithms 1 and 2 of Ada-KV on the scores of one row's heads, rounded by largest remainders."""
    heads = range(len(scores))
    pool = [(-score, head, token) for head in heads for token, score in enumerate(scores[head])]
    best = [head for _, head, _ in sorted(pool)[: kept * len(scores)]]
    share = Fraction(safeguard)
    exact = [(1 - share) * best.count(head) + share * kept for head in heads]
    budgets = [int(budget) for budget in exact]
    rest = sorted(heads, key=lambda head: (int(exact[head]) - exact[head], head))
    for head in rest[: kept * len(scores) - sum(budgets)]:
        budgets[head] += 1
    return budgets


def test_heads_by_hand() -> None:
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.6], [0.5, 0.1, 0.1, 0.1], [0.65, 0.1, 0.1, 0.1]]])
    # The six best of all: four of head 0, one each of the others. A fifth of the even two is theirs anyway.
    for safeguard, expected in ((0, [4, 1, 1]), (1, [2, 2, 2]), (0.5, [3, 2, 1]), (0.2, [4, 1, 1])):
        policy = get_policy("adakv", budget=2, window=1, safeguard=safeguard)
        assert policy.counts(prompts([4]), scores).tolist() == [expected]


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[int], int, Tensor]:
    """Rows' lengths, heads, and scores [B, heads, N] with many equal ones, -inf at padding."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=3).filter(any))
    heads, longest = draw(st.integers(1, 5)), max(lengths)
    flat = draw(st.lists(st.integers(0, 6), min_size=heads * longest, max_size=heads * longest))
    scores = torch.tensor(flat, dtype=torch.float32).view(1, heads, longest).repeat(len(lengths), 1, 1)
    for row, length in enumerate(lengths):
        scores[row, :, : longest - length] = -torch.inf
    return lengths, heads, scores


@settings(max_examples=150, deadline=None)
@given(
    case=scored(),
    budget=st.one_of(st.integers(1, 15), st.floats(0.05, 0.95)),
    safeguard=st.sampled_from(["0", "0.2", "0.35", "1"]),
)
def test_heads_share_the_layers_budget(case: tuple[list[int], int, Tensor], budget: float, safeguard: str) -> None:
    lengths, heads, scores = case
    policy = get_policy("adakv", budget=budget, window=1, safeguard=float(safeguard))
    counts = policy.counts(prompts(lengths), scores)
    assert counts.dtype == torch.int32
    for row, length in enumerate(lengths):
        kept, found = mean_kept(policy, length) if length else 0, counts[row].tolist()
        own = scores[row, :, scores.shape[2] - length :].tolist()
        assert found == head_budgets(own, kept, safeguard)
        assert sum(found) == heads * kept
        assert all(int(Fraction(safeguard) * kept) <= count <= length for count in found)


def test_a_safeguard_of_one_is_snapkv() -> None:
    tokens = random_tokens(60, batch=2)
    caches = []
    for policy in (get_policy("adakv", budget=20, window=4, safeguard=1), get_policy("snapkv", budget=20, window=4)):
        prompt = PromptState(0)
        reader = PromptPolicy(observed=4)
        reader.attend(prompt, tokens.query, tokens.key, tokens.value, ROPE, start=None, scaling=SCALING)
        caches.append(policy.keep(prompt, ROPE).cache)
    assert torch.equal(caches[0].keys, caches[1].keys)


@pytest.mark.parametrize("safeguard", [0, 0.2])
def test_uneven_heads_hold_pages_of_their_own(safeguard: float) -> None:
    # One head looks at everything alike, the other at a single token: the first gets what it can.
    tokens = random_tokens(900, groups=1)
    tokens.query[:, 0], tokens.query[:, 1] = 0, tokens.key[:, 1, 5, None] * 30
    policy = get_policy("adakv", budget=260, window=4, safeguard=safeguard)
    prompt = PromptState(0)
    reader = PromptPolicy(observed=4)
    reader.attend(prompt, tokens.query, tokens.key, tokens.value, ROPE, start=None, scaling=SCALING)
    cache = policy.keep(prompt, ROPE).cache
    counts = cache.kv_len[0].tolist()
    assert sum(counts) == 2 * 260
    assert counts[0] > 1.5 * counts[1]
    assert len(cache.keys) == sum(-(-count // 64) for count in counts)  # whole pages of 64 tokens
