"""The matrix that every KV policy passes, on random tensors, against dense float64 attention written here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longloom.kernels.kvcache.base import Alibi, KVPolicy, LayerState, Rope, reserve
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy, names

from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, alibi, random_tokens, turn


@dataclass(frozen=True)
class Case:
    """One line of the matrix.

    Attributes:
        name: of the policy.
        keep_all: options under which nothing is lost up to 400 tokens.
        tight: options that lose something after a dozen tokens, where the policy loses anything.
        budget: tokens that a tight layer may hold when n have been seen.
        evicts: reads a prompt with full attention and evicts then, so that it matters where the prompt ends.
    """

    name: str
    keep_all: dict[str, Any]
    tight: dict[str, Any]
    budget: Callable[[int], int]
    evicts: bool = False


#: Of the one layer here.
PROFILE = HeadProfile("test", "", ((0.1, 0.9),))

CASES = [
    Case("adakv", {"budget": 400, "window": 5}, {"budget": 9, "window": 3}, lambda n: 9 + 64, evicts=True),
    Case(
        "duo",
        {"heads": PROFILE, "sink": 4, "recent": 396},
        {"heads": PROFILE, "sink": 3, "recent": 7},
        lambda n: (n + max(64, n // 8) + 3 + min(n, 7)) // 2,  # half of the heads keep everything
    ),
    Case("full", {}, {}, lambda n: n + max(64, n // 8)),
    Case("h2o", {"budget": 400}, {"budget": 9}, lambda n: 10, evicts=True),  # with their sums and slots
    Case(
        "infllm",
        {"sink": 4, "local": 64, "chunk": 64, "blocks": 3, "block": 90},
        {"sink": 3, "local": 4, "chunk": 1, "blocks": 1, "block": 2, "representatives": 1},
        lambda n: n + max(64, n // 8) + 3 + (n // 2 + 66) * 3 // 2,  # with a key a query head of every block
    ),
    Case("knorm", {"budget": 400}, {"budget": 9}, lambda n: 9 + 64, evicts=True),
    Case(
        "longcache",
        {"sink": 4, "local": 396, "chunk": 64, "spans": 0},
        {"sink": 3, "local": 4, "chunk": 1, "spans": 1, "span": 2, "k": 1},
        lambda n: n + max(64, n // 8),  # nothing is evicted
    ),
    Case("pyramidkv", {"budget": 400, "window": 5}, {"budget": 9, "window": 3}, lambda n: 18 + 64, evicts=True),
    Case(
        "razor",
        {"heads": PROFILE, "window": 396},
        {"heads": PROFILE, "window": 5, "compression": 40, "sink": 3},
        lambda n: n + 64,  # half of the heads keep everything
        evicts=True,
    ),
    Case(
        "razor+longcache",
        {"heads": PROFILE, "sink": 4, "local": 396, "chunk": 64, "spans": 0},
        {"heads": PROFILE, "sink": 3, "local": 4, "chunk": 1, "spans": 1, "span": 2, "k": 1},
        lambda n: (n + max(64, n // 8) + 3 + min(n, 4)) // 2 + 1,  # half of the heads keep everything
    ),
    Case("razor-alibi", {"eps": 1e-300}, {"eps": 0.5}, lambda n: n + 64, evicts=True),
    Case("recent", {"budget": 400}, {"budget": 9, "sink": 2}, lambda n: 9 + 64, evicts=True),
    Case("snapkv", {"budget": 400, "window": 5}, {"budget": 9, "window": 3}, lambda n: 9 + 64, evicts=True),
    Case("streaming", {"sink": 4, "window": 396}, {"sink": 3, "window": 7}, lambda n: 3 + min(n, 7)),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
steady = pytest.mark.parametrize("case", [case for case in CASES if not case.evicts], ids=lambda case: case.name)
evicting = pytest.mark.parametrize("case", [case for case in CASES if case.evicts], ids=lambda case: case.name)


def encoding(policy: KVPolicy[Any], tokens: Tokens) -> Rope | Alibi:
    """Rotary positions where the policy can work with them."""
    return ROPE if Rope in policy.encodings else alibi(tokens.query.shape[1])


def dense(tokens: Tokens, rope: Rope | Alibi = ROPE) -> Tensor:
    """Full causal attention in float64, one loop a head."""
    positions = torch.arange(tokens.key.shape[2])
    future = torch.ones(len(positions), len(positions), dtype=torch.bool).triu(1)
    distance = positions - positions[:, None]
    groups = tokens.query.shape[1] // HEADS
    outputs = []
    for head in range(tokens.query.shape[1]):
        query, key = tokens.query[:, head].double(), tokens.key[:, head // groups].double()
        if isinstance(rope, Alibi):
            scores = query @ key.transpose(1, 2) * SCALING + rope.slopes[head].double() * distance
        else:
            scores = turn(query, positions) @ turn(key, positions).transpose(1, 2) * SCALING
        scores = scores.masked_fill(future, -torch.inf)
        outputs.append(scores.softmax(-1) @ tokens.value[:, head // groups].double())
    return torch.stack(outputs, dim=1)


def run(
    policy: KVPolicy[Any], tokens: Tokens, pieces: Sequence[int], padding: Sequence[int] | None = None
) -> tuple[Tensor, LayerState]:
    """Feed tokens piece by piece, telling of the padding only what is known by then, as attention masks do."""
    state = policy.state_type(0, layers=3)
    rope = encoding(policy, tokens)
    outputs = []
    for length in pieces:
        part = tokens[:, state.seen : state.seen + length]
        end = state.seen + length
        start = None if padding is None else torch.tensor([min(end, pad) for pad in padding])
        output = policy.attend(state, part.query, part.key, part.value, rope, start=start, scaling=SCALING)
        assert output.shape == part.query.shape
        assert state.seen == end
        outputs.append(output)
    assert state.seen == tokens.key.shape[2]
    return torch.cat(outputs, dim=2), state


def close(ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> None:
    assert not ours.isnan().any()
    difference = (ours.double() - reference.double()).abs().max().item()
    assert difference < tolerance, difference


@st.composite
def pieces_of(draw: st.DrawFn, total: int) -> list[int]:
    """Any way to cut `total` tokens into pieces."""
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=8)))
    return [end - begin for begin, end in zip([0, *cuts], [*cuts, total], strict=True)]


def test_every_policy_is_in_the_matrix() -> None:
    assert sorted(case.name for case in CASES) == names()


@cases
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pieces", [[37], [1] * 37, [30, 1, 1, 1, 1, 3], [1, 13, 23], [200, 133, 1, 1]])
def test_keeping_everything_is_full_attention(case: Case, groups: int, pieces: list[int]) -> None:
    tokens, policy = random_tokens(sum(pieces), batch=2, groups=groups), get_policy(case.name, **case.keep_all)
    expected = dense(tokens, encoding(policy, tokens))
    close(run(policy, tokens, pieces)[0], expected, 1e-5 * math.sqrt(len(pieces)))


@steady
@settings(max_examples=30, deadline=None)
@given(pieces=pieces_of(60), seed=st.integers(0, 2**16))
def test_pieces_do_not_matter(case: Case, pieces: list[int], seed: int) -> None:
    policy, tokens = get_policy(case.name, **case.tight), random_tokens(60, seed=seed)
    close(run(policy, tokens, pieces)[0], run(policy, tokens, [1] * 60)[0])


@steady
def test_long_prompt_equals_single_steps(case: Case) -> None:
    policy, tokens = get_policy(case.name, **case.tight), random_tokens(300)
    close(run(policy, tokens, [300])[0], run(policy, tokens, [1] * 300)[0])


@steady
@settings(max_examples=30, deadline=None)
@given(pieces=pieces_of(40), padding=st.lists(st.integers(0, 39), min_size=2, max_size=3))
def test_padded_rows_equal_rows_alone(case: Case, pieces: list[int], padding: list[int]) -> None:
    policy, tokens = get_policy(case.name, **case.tight), random_tokens(40, batch=len(padding))
    together = run(policy, tokens, pieces, padding)[0]
    assert together.isfinite().all()
    for row, pad in enumerate(padding):
        alone = tokens[row : row + 1, pad:]
        close(together[row : row + 1, :, pad:], run(policy, alone, [40 - pad])[0])


@cases
@pytest.mark.parametrize("options", ["keep_all", "tight"])
def test_no_query_sees_a_later_token(case: Case, options: str) -> None:
    policy, tokens = get_policy(case.name, **getattr(case, options)), random_tokens(50)
    other = random_tokens(50, seed=1)
    changed = Tokens(
        *(
            torch.cat((getattr(tokens, field.name)[:, :, :31], getattr(other, field.name)[:, :, 31:]), dim=2)
            for field in fields(tokens)
        )
    )
    ours, theirs = run(policy, tokens, [50])[0], run(policy, changed, [50])[0]
    close(ours[:, :, :31], theirs[:, :, :31])
    assert (ours[:, :, 31:] - theirs[:, :, 31:]).abs().max() > 0.1


@steady
@pytest.mark.parametrize("pieces", [[5], [100], [1] * 100, [64, 1, 35, 1]])
def test_bytes_are_what_is_held_and_within_budget(case: Case, pieces: list[int]) -> None:
    _, state = run(get_policy(case.name, **case.tight), random_tokens(sum(pieces), batch=2), pieces)
    states = [state, *(part for part in vars(state).values() if isinstance(part, LayerState))]
    holders = [*states, *(part.tokens for part in states if hasattr(part, "tokens"))]
    held = [value for holder in holders for value in vars(holder).values() if isinstance(value, Tensor)]
    assert len(held) >= 2
    assert state.bytes() == sum(tensor.untyped_storage().nbytes() for tensor in held)
    token = 2 * 2 * HEADS * SIZE * 4  # rows, keys and values, heads, size, bytes
    assert state.bytes() <= case.budget(sum(pieces)) * token


@steady
def test_half_precision(case: Case) -> None:
    policy, tokens = get_policy(case.name, **case.tight), random_tokens(80)
    half = Tokens(*(getattr(tokens, field.name).bfloat16() for field in fields(tokens)))
    whole = Tokens(*(getattr(half, field.name).float() for field in fields(half)))
    ours = run(policy, half, [77, 1, 2])[0]
    assert ours.dtype == torch.bfloat16
    reference = run(policy, whole, [80])[0]
    assert ((ours.float() - reference).norm() / reference.norm()).item() < 1e-2


def in_the_cache(tokens: Tokens, sink: int, window: int) -> Tensor:
    """StreamingLLM by its definition: each query attends to a cache of its own, at positions 0, 1, 2, ... in it."""
    groups = tokens.query.shape[1] // HEADS
    output = torch.empty(tokens.query.shape, dtype=torch.float64)
    for now in range(tokens.key.shape[2]):
        kept = sorted({*range(min(sink, now + 1)), *range(max(0, now - window + 1), now + 1)})
        places = torch.arange(len(kept))
        for head in range(tokens.query.shape[1]):
            key = turn(tokens.key[:, head // groups, kept], places)
            query = turn(tokens.query[:, head, now : now + 1], places[-1:])
            weights = (query @ key.transpose(1, 2) * SCALING).softmax(-1)
            output[:, head, now] = (weights @ tokens.value[:, head // groups, kept].double())[:, 0]
    return output


@pytest.mark.parametrize(("sink", "window"), [(4, 8), (0, 5), (1, 1), (3, 40), (9, 2), (2, 130)])
@pytest.mark.parametrize("pieces", [[150], [1] * 150, [140, 1, 1, 8]])
def test_streaming_is_attention_in_the_cache(sink: int, window: int, pieces: list[int]) -> None:
    tokens = random_tokens(150)
    ours = run(get_policy("streaming", sink=sink, window=window), tokens, pieces)[0]
    close(ours, in_the_cache(tokens, sink, window), 2e-5)


def test_streaming_differs_from_full_beyond_its_budget() -> None:
    tokens = random_tokens(30)
    ours = run(get_policy("streaming", sink=4, window=8), tokens, [30])[0]
    close(ours[:, :, :12], dense(tokens)[:, :, :12])
    assert (ours[:, :, 12:] - dense(tokens)[:, :, 12:]).abs().max() > 0.1


def test_streaming_holds_a_fixed_number_of_tokens() -> None:
    policy = get_policy("streaming", sink=4, window=8)
    sizes = {run(policy, random_tokens(n), [1] * n)[1].bytes() for n in (8, 20, 200)}
    assert sizes == {2 * HEADS * SIZE * 4 * (4 + 8)}


def test_bytes_count_a_shared_storage_once_and_a_view_in_full() -> None:
    policy = get_policy("full")
    state = policy.state_type(0)
    state.keys = torch.zeros(100)[:1]  # type: ignore[attr-defined]
    state.values = state.keys  # type: ignore[attr-defined]
    state.extra = {"nested": [torch.zeros(2, dtype=torch.float16)]}  # type: ignore[attr-defined]
    assert state.bytes() == 404


def test_growing_copies_rarely_and_keeps_what_was_there() -> None:
    like = torch.zeros(1, 1, 1, 1)
    rows, moves = None, 0
    for n in range(1, 4001):
        larger = reserve(rows, n, like)
        moves += larger is not rows
        larger[:, :, n - 1] = n
        rows = larger
    assert moves < 50
    assert rows is not None
    assert rows[0, 0, :4000, 0].tolist() == list(range(1, 4001))
    assert rows.shape[2] <= 4000 + 4000 // 8


def test_rotation_is_llamas() -> None:
    x = random_tokens(7, batch=2).key
    positions = torch.tensor([0, 1, 5, 6, 30, 2, 99])
    close(ROPE.rotate(x, positions), turn(x, positions))
    by_row = torch.stack((positions, positions.flip(0)))
    close(ROPE.rotate(x, by_row), torch.stack([turn(x[row], by_row[row]) for row in range(2)]))


def test_under_full_attention_a_row_of_a_prompt_has_the_bits_that_it_has_alone():
    tokens = random_tokens(40, batch=3)
    padding = [0, 13, 40]
    together, _ = run(get_policy("full"), tokens, (30, 10), padding)
    for row, pad in enumerate(padding[:2]):
        own = tokens[row : row + 1, pad:]
        alone, _ = run(get_policy("full"), own, (30 - pad, 10))
        assert torch.equal(together[row : row + 1, :, pad:], alone)
    assert not together[2].any()  # padding throughout
