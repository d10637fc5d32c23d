"""DuoAttention against its mask, head by head and query by query, in float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longloom.kernels.kvcache.duo import DuoState
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy

from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens, turn

#: Of its 3 layers with 2 KV heads the best half are head 1 of layer 0 and both of layer 2.
PROFILE = HeadProfile("test", "", ((0.1, 0.7), (0.3, 0.2), (0.8, 0.9)))
RETRIEVAL = [{1}, set(), {0, 1}]
TOKEN = 2 * SIZE * 4  # bytes of a key and a value
WHICH = HEADS * 8  # bytes of the numbers of the heads


def duo(sink: int = 3, recent: int = 7, retrieval: float = 0.5) -> Any:
    return get_policy("duo", heads=PROFILE, retrieval=retrieval, sink=sink, recent=recent)


def run(policy: Any, tokens: Tokens, pieces: list[int], padding: list[int], layer: int = 0) -> tuple[Tensor, DuoState]:
    """Piece by piece, told of the padding only what is known by then."""
    state, outputs = DuoState(layer), []
    for length in pieces:
        end = state.seen + length
        part = tokens[:, state.seen : end]
        start = torch.tensor([min(end, pad) for pad in padding]) if any(padding) else None
        outputs.append(policy.attend(state, part.query, part.key, part.value, ROPE, start=start, scaling=SCALING))
        assert state.seen == end
    return torch.cat(outputs, dim=2), state


def by_definition(tokens: Tokens, sink: int, recent: int, retrieval: set[int]) -> Tensor:
    """Rows without padding."""
    length, groups = tokens.key.shape[2], tokens.query.shape[1] // HEADS
    places = torch.arange(length)
    output = torch.empty(tokens.query.shape, dtype=torch.float64)
    for head in range(tokens.query.shape[1]):
        query, key = turn(tokens.query[:, head], places), turn(tokens.key[:, head // groups], places)
        for now in range(length):
            near = [slot for slot in range(now + 1) if slot < sink or now - slot < recent]
            seen = list(range(now + 1)) if head // groups in retrieval else near
            weights = (query[:, now : now + 1] @ key[:, seen].transpose(1, 2) * SCALING).softmax(-1)
            output[:, head, now] = (weights @ tokens.value[:, head // groups, seen].double())[:, 0]
    return output


@pytest.mark.parametrize(("sink", "recent"), [(4, 8), (0, 5), (1, 1), (9, 2), (2, 130), (0, 1)])
@pytest.mark.parametrize("pieces", [[90], [1] * 90, [2, 1, 60, 20, 1, 6], [40, 7, 3, 40]])
@pytest.mark.parametrize("groups", [1, 3])
def test_prompts_and_answers_are_attention_under_its_mask(
    sink: int, recent: int, pieces: list[int], groups: int
) -> None:
    tokens = random_tokens(90, batch=2, groups=groups)
    for layer, retrieval in enumerate(RETRIEVAL):
        ours, _ = run(duo(sink, recent), tokens, pieces, [0, 0], layer)
        assert (ours.double() - by_definition(tokens, sink, recent, retrieval)).abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 44), max_size=9),
    padding=st.lists(st.integers(0, 44), min_size=2, max_size=3),
    sink=st.integers(0, 6),
    recent=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_padded_rows_in_any_pieces(cuts: set[int], padding: list[int], sink: int, recent: int, seed: int) -> None:
    tokens = random_tokens(45, batch=len(padding), seed=seed)
    pieces = [end - begin for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 45], strict=True)]
    ours, _ = run(duo(sink, recent), tokens, pieces, padding)
    assert ours.isfinite().all()
    for row, pad in enumerate(padding):
        expected = by_definition(tokens[row : row + 1, pad:], sink, recent, RETRIEVAL[0])
        assert (ours[row, :, pad:].double() - expected[0]).abs().max() < 1e-5


def test_retrieval_heads_are_full_attention_to_the_bit() -> None:
    tokens = random_tokens(60, batch=2)
    full = get_policy("full")
    expected = full.attend(
        full.state_type(0), tokens.query, tokens.key, tokens.value, ROPE, start=None, scaling=SCALING
    )
    assert torch.equal(run(duo(), tokens, [60], [0, 0], layer=2)[0], expected)
    assert torch.equal(run(duo(retrieval=1.0), tokens, [60], [0, 0], layer=1)[0], expected)
    assert (run(duo(retrieval=0.0), tokens, [60], [0, 0], layer=2)[0] - expected).abs().max() > 0.1


@pytest.mark.parametrize("pieces", [[5, 1, 1], [100], [1] * 100, [64, 1, 35, 1]])
def test_streaming_heads_hold_a_fixed_number_of_tokens(pieces: list[int]) -> None:
    total = sum(pieces)
    tokens = random_tokens(total, batch=2)
    _, state = run(duo(), tokens, pieces, [0, 0], layer=1)
    assert state.keys is None
    assert state.bytes() == 2 * HEADS * (3 + 7) * TOKEN + WHICH
    _, both = run(duo(), tokens, pieces, [0, 0], layer=0)
    assert both.keys is not None
    assert both.near_keys is not None
    assert both.keys.shape[:2] == both.near_keys.shape[:2] == (2, 1)
    assert both.bytes() == 2 * (both.keys.shape[2] + 3 + 7) * TOKEN + WHICH


def test_memory_stays_while_decoding() -> None:
    tokens, state = random_tokens(80), DuoState(1)
    policy = duo()
    sizes = set()
    for begin, end in [(0, 30), (30, 40), *((now, now + 1) for now in range(40, 80))]:
        part = tokens[:, begin:end]
        policy.attend(state, part.query, part.key, part.value, ROPE, start=None, scaling=SCALING)
        sizes.add(state.bytes())
    assert sizes == {HEADS * (3 + 7) * TOKEN + WHICH}


@pytest.mark.parametrize("padding", [[0, 0], [3, 11]])
def test_a_step_copies_nothing_from_the_host(padding: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it would wait for the copy, in every layer."""
    tokens, policy = random_tokens(31, batch=2), duo()
    _, state = run(policy, tokens[:, :30], [30], padding)
    start = torch.tensor(padding) if any(padding) else None
    part = tokens[:, 30:]
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("made of numbers of the host"))
    policy.attend(state, part.query, part.key, part.value, ROPE, start=start, scaling=SCALING)


def test_a_fork_goes_on_by_itself() -> None:
    tokens, others = random_tokens(34), random_tokens(34, seed=1)
    _, state = run(duo(), tokens[:, :31], [30, 1], [0])
    part, other = tokens[:, 31:32], others[:, 31:34]
    policy = duo()
    first = policy.attend(state.fork(), part.query, part.key, part.value, ROPE, start=None, scaling=SCALING)
    policy.attend(state.fork(), other.query, other.key, other.value, ROPE, start=None, scaling=SCALING)
    again = policy.attend(state, part.query, part.key, part.value, ROPE, start=None, scaling=SCALING)
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retrieval": 1.5}, "KV policy 'duo': retrieval must be a share from 0 to 1, found 1.5"),
        ({"retrieval": "all"}, "KV policy 'duo': retrieval must be a share from 0 to 1, found 'all'"),
        ({"sink": -1}, "KV policy 'duo': sink must be a whole number >= 0, found -1"),
        ({"recent": 0}, "KV policy 'duo': recent must be a whole number >= 1, found 0"),
        ({"recent": 2.5}, "KV policy 'duo': recent must be a whole number >= 1, found 2.5"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        get_policy("duo", **options)


@pytest.mark.parametrize(
    ("heads", "layer", "message"),
    [
        (None, 0, "KV policy 'duo' needs the model's head profile: `longloom heads` makes one"),
        (PROFILE, 3, "KV policy 'duo': the head profile is of 3 layers with 2 KV heads, found layer 3 with 2"),
        (
            HeadProfile("test", "", ((0.1, 0.2, 0.3),)),
            0,
            "KV policy 'duo': the head profile is of 1 layers with 3 KV heads, found layer 0 with 2",
        ),
    ],
)
def test_profiles_that_do_not_fit(heads: HeadProfile | None, layer: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(get_policy("duo", heads=heads), random_tokens(5), [5], [0], layer)
