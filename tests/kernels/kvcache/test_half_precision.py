"""Half types: scores and sums are those of float32, so that an output is as near to the truth as full attention's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState
from longloom.kernels.kvcache.received import received
from longloom.kernels.kvcache.registry import get_policy
from longloom.kernels.kvcache.snapkv import SnapKVPolicy

QUERY_HEADS, HEADS, SIZE = 8, 2, 128
PROMPT, LENGTH = 200, 260
SCALING = SIZE**-0.5
ROPE = Rope(10000.0 ** -(torch.arange(0, SIZE, 2) / SIZE))
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def drawn(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one row; logits with a standard deviation of 8, as sharp heads have them."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, LENGTH, SIZE, generator=generator) * factor
        for heads, factor in ((QUERY_HEADS, 8**0.5), (HEADS, 8**0.5), (HEADS, 1.0))
    )
    return query.to(dtype), key.to(dtype), value.to(dtype)


def rotated(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """In float64 what the half type makes of their rotation, which is the model's own and no part of the test."""
    positions = torch.arange(LENGTH)
    turned = ROPE.rotate(query, positions), ROPE.rotate(key, positions)
    return turned[0].double(), turned[1].double().repeat_interleave(QUERY_HEADS // HEADS, dim=1)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def run(policy: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The prompt in one piece, then single steps."""
    state, outputs = policy.state_type(0, layers=1), []
    for piece in torch.arange(LENGTH).split([PROMPT, *[1] * (LENGTH - PROMPT)]):
        parts = (part[:, :, piece] for part in (query, key, value))
        outputs.append(policy.attend(state, *parts, ROPE, start=None, scaling=SCALING))
    return torch.cat(outputs, dim=2)


@halves
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("streaming", {"sink": 0, "window": LENGTH}),
        ("streaming", {"sink": 4, "window": LENGTH}),
        ("h2o", {"budget": 2 * LENGTH}),
        ("snapkv", {"budget": 2 * LENGTH}),
    ],
)
def test_keeping_everything_is_as_exact_as_full_attention(name: str, options: Any, dtype: torch.dtype) -> None:
    query, key, value = drawn(dtype)
    turned, keys = rotated(query, key)
    values = value.double().repeat_interleave(QUERY_HEADS // HEADS, dim=1)
    expected = scaled_dot_product_attention(turned, keys, values, is_causal=True, scale=SCALING)
    found, full = (run(policy, query, key, value) for policy in (get_policy(name, **options), get_policy("full")))
    assert found.dtype == dtype
    for part in (slice(0, PROMPT), slice(PROMPT, LENGTH)):
        assert error(found[:, :, part], expected[:, :, part]) < 1.5 * error(full[:, :, part], expected[:, :, part])


@halves
def test_sinks_at_a_distance_are_as_exact(dtype: torch.dtype) -> None:
    """Beyond the budget: each step's queries meet the sinks and the window at places of their own."""
    query, key, value = drawn(dtype)
    sink, window = 3, 90
    found = run(get_policy("streaming", sink=sink, window=window), query, key, value)
    place = torch.full((1,), sink + window - 1)
    for now in range(PROMPT, LENGTH):
        near, keys = (
            ROPE.rotate(query[:, :, now : now + 1], torch.tensor([now])),
            ROPE.rotate(key, torch.arange(LENGTH)),
        )
        far = ROPE.rotate(query[:, :, now : now + 1], place)
        group = QUERY_HEADS // HEADS
        wide = keys.double().repeat_interleave(group, dim=1)
        scores = torch.cat(
            (
                far.double() @ wide[:, :, :sink].mT,
                near.double() @ wide[:, :, now - window + 1 : now + 1].mT,
            ),
            dim=-1,
        )
        kept = [*range(sink), *range(now - window + 1, now + 1)]
        values = value[:, :, kept].double().repeat_interleave(group, dim=1)
        expected = (scores * SCALING).softmax(dim=-1) @ values
        assert error(found[:, :, now : now + 1], expected) < {torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]


@halves
def test_the_attention_that_is_summed_up_is_not_rounded(dtype: torch.dtype) -> None:
    query, key, _ = drawn(dtype)
    turned, keys = rotated(query, key)
    logits = (turned @ keys.mT * SCALING).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
    weights = logits.softmax(dim=-1)[:, :, -100:].sum(dim=2)
    expected = weights.unflatten(1, (HEADS, -1)).sum(dim=2)
    places = torch.arange(LENGTH)
    found = received(ROPE.rotate(query, places)[:, :, -100:], ROPE.rotate(key, places), None, SCALING)
    assert found.dtype == torch.float32
    assert error(found, expected) < 1e-5


@halves
def test_the_votes_of_a_window_are_not_rounded(dtype: torch.dtype) -> None:
    query, key, value = drawn(dtype)
    state = PromptState(0)
    PromptPolicy(observed=8).attend(state, query, key, value, ROPE, start=None, scaling=SCALING)
    found = SnapKVPolicy(budget=20, window=8).scores(state, ROPE)[:, :, : LENGTH - 8]
    turned, keys = rotated(query, key)
    logits = (turned[:, :, -8:] @ keys.mT * SCALING).masked_fill(
        torch.arange(LENGTH) > torch.arange(LENGTH - 8, LENGTH)[:, None], -torch.inf
    )
    votes = logits.softmax(dim=-1).unflatten(1, (HEADS, -1)).mean(dim=(2, 3))[..., : LENGTH - 8]
    expected = torch.nn.functional.max_pool1d(votes, 7, stride=1, padding=3)
    assert error(found, expected) < 1e-5


def test_wide_votes_stay_wide() -> None:
    query, key, value = (part.double() for part in drawn(torch.bfloat16))
    state = PromptState(0)
    PromptPolicy(observed=8).attend(state, query, key, value, ROPE, start=None, scaling=SCALING)
    assert SnapKVPolicy(budget=20, window=8).scores(state, ROPE).dtype == torch.float64
