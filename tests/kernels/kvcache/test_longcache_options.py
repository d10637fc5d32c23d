"""LongCache's options that are not exact: what they are, against loops in float64, and where they are exact again."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longloom.kernels.attention.quantise import quantise
from longloom.kernels.attention.summaries import summarise
from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.held_scope import HeldScope
from longloom.kernels.kvcache.key_blocks import KeyBlocks
from longloom.kernels.kvcache.longcache import SCORING, LongCachePolicy, LongCacheState
from longloom.kernels.kvcache.registry import get_policy, policy_settings, policy_text
from longloom.kernels.kvcache.streaming import StreamingPolicy
from longloom.kernels.kvcache.tokens import DeviceTokens

from .longcache_loops import cuts, largest_scope, seen_by, turned
from .test_kv_policies import close, run
from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens

TIGHT: dict[str, Any] = {"sink": 3, "local": 16, "chunk": 8, "spans": 3, "span": 4, "k": 2}
TURNS = [50, 27, *[1] * 9, 37, *[1] * 5]  # a prompt in two pieces, an answer, a second turn
PADDING = [0, 21, 82]  # the last row begins with the answer


def longcache(**options: Any) -> LongCachePolicy:
    return LongCachePolicy(**{**TIGHT, **options})


# --- reuse ------------------------------------------------------------------------------------------------------------


def reused(policy: LongCachePolicy, tokens: Tokens, pieces: Sequence[int], row: int, pad: int) -> Tensor:
    """One row by loops: [Hq, n - pad, SIZE]. A step sees the last selection's scope and every token since."""
    query, key, value = (part[row, :, pad:] for part in (tokens.query, tokens.key, tokens.value))
    output = torch.full(query.shape, torch.nan, dtype=torch.float64)
    held: list[int] = []
    since = 0
    bounds = dict.fromkeys([sum(pieces[:number]) for number, length in enumerate(pieces) if length == 1])
    for first, end in cuts(policy, pieces):
        step = first in bounds
        since = since % policy.reuse + 1 if step else 0
        low, high = max(0, first - pad), end - pad
        if high <= 0:
            held = []
            continue
        fresh = [*range(low, high)]
        held = [*held, *fresh] if since > 1 else seen_by(policy, query[:, low:high], key[:, :high])
        places = [*range(len(held))]
        for head in range(len(query)):
            own = head // (len(query) // HEADS)
            keys = turned(key[own, held], places, ROPE.inv_freq, ROPE.attention_scaling)
            asked = turned(query[head, low:high], places[-len(fresh) :], ROPE.inv_freq, ROPE.attention_scaling)
            for i, slot in enumerate(fresh):
                seen = len(held) - len(fresh) + i + 1
                weights = (keys[:seen] @ asked[i] * SCALING).softmax(0)
                output[head, slot] = weights @ value[own, held[:seen]].double()
    return output


@pytest.mark.parametrize(
    "options", [{"reuse": 2}, {"reuse": 4}, {"reuse": 100}, {"reuse": 3, "sink": 0, "local": 1, "chunk": 1}]
)
@pytest.mark.parametrize("groups", [1, 3])
def test_steps_between_two_selections_see_the_last_one_and_all_since(options: dict[str, Any], groups: int) -> None:
    policy, tokens = longcache(**options), random_tokens(sum(TURNS), batch=3, groups=groups)
    together, _ = run(policy, tokens, TURNS, PADDING)
    assert together.isfinite().all()
    for row, pad in enumerate(PADDING):
        close(together[row, :, pad:], reused(policy, tokens, TURNS, row, pad), 2e-5)


@settings(max_examples=25, deadline=None)
@given(
    reuse=st.integers(2, 5),
    local=st.integers(1, 9),
    pieces=st.lists(st.sampled_from([1, 1, 1, 2, 13]), min_size=1, max_size=14),
    data=st.data(),
)
def test_any_lengths(reuse: int, local: int, pieces: list[int], data: st.DataObject) -> None:
    policy = longcache(reuse=reuse, local=local, chunk=data.draw(st.integers(1, local)))
    padding = data.draw(st.lists(st.integers(0, sum(pieces) - 1), min_size=1, max_size=3))
    tokens = random_tokens(sum(pieces), batch=len(padding), groups=2, seed=data.draw(st.integers(0, 99)))
    together, _ = run(policy, tokens, pieces, padding)
    for row, pad in enumerate(padding):
        close(together[row, :, pad:], reused(policy, tokens, pieces, row, pad), 5e-5)


def test_the_first_step_after_a_selection_is_exact_and_those_between_are_not() -> None:
    tokens, pieces = random_tokens(100), [90, *[1] * 10]
    exact, ours = run(longcache(), tokens, pieces)[0], run(longcache(reuse=3), tokens, pieces)[0]
    different = (ours - exact).abs().amax(dim=(0, 1, 3)) > 1e-4
    assert different[90:].tolist() == [place % 3 != 0 for place in range(10)]
    assert not different[:90].any()


def test_reuse_of_one_step_is_the_default() -> None:
    assert longcache(reuse=1) == longcache()
    tokens = random_tokens(80)
    assert torch.equal(*(run(policy, tokens, [70, *[1] * 10])[0] for policy in (longcache(reuse=1), longcache())))


@pytest.mark.parametrize("pieces", [[40, *[1] * 9], [1] * 30])
def test_with_nothing_to_reuse_it_is_streaming(pieces: list[int]) -> None:
    tokens = random_tokens(sum(pieces), batch=2)
    ours, state = run(longcache(sink=2, local=7, chunk=1, spans=0, reuse=8), tokens, pieces, [0, 5])
    streaming = run(StreamingPolicy(sink=2, window=7), tokens, pieces, [0, 5])[0]
    close(ours[0], streaming[0])
    close(ours[1, :, 5:], streaming[1, :, 5:])
    assert state.bytes() == run(longcache(sink=2, local=7, chunk=1, spans=0), tokens, pieces)[1].bytes()


def test_within_the_scope_it_is_full_attention() -> None:
    tokens, pieces = random_tokens(31, batch=2), [20, *[1] * 11]
    close(run(longcache(reuse=4), tokens, pieces)[0], run(get_policy("full"), tokens, pieces)[0])


def test_a_new_turn_ends_the_reuse_and_frees_its_memory() -> None:
    tokens, policy = random_tokens(120), longcache(reuse=50)
    pieces = [90, 1, 1, 1, 9, 1]
    exact = run(longcache(), tokens[:, :103], pieces)[0]
    ours, state = run(policy, tokens[:, :103], pieces)
    close(ours[:, :, 93:], exact[:, :, 93:])
    assert isinstance(state, LongCacheState)
    assert state.held is not None
    for part in [tokens[:, 103:107]]:
        policy.attend(state, part.query, part.key, part.value, ROPE, start=None, scaling=SCALING)
    assert state.held is None


def test_no_step_between_selections_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    choose = LongCachePolicy.choose

    def counted(self: LongCachePolicy, state: Any, query: Tensor, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(state.seen)
        return choose(self, state, query, begin, end)

    monkeypatch.setattr(LongCachePolicy, "choose", counted)
    run(longcache(reuse=4, chunk=16), random_tokens(70), [60, *[1] * 10])
    assert asked[-3:] == [61, 65, 69]
    assert asked[:-3] == [32, 48, 60]


def test_an_answer_searches_after_a_prompt_that_came_as_one_text() -> None:
    """As transformers' generate feeds it: the first call of the answer is a single token."""
    tokens, pieces = random_tokens(70), [60, *[1] * 10]
    ours = run(longcache(reuse=4, asking=5), tokens, pieces)[0]
    assert torch.equal(ours[:, :, 60:], run(longcache(reuse=4), tokens, pieces)[0][:, :, 60:])
    assert (ours - run(longcache(reuse=4, spans=0), tokens, pieces)[0])[:, :, 60:].abs().amax() > 1e-2


def test_reuse_in_half_precision() -> None:
    tokens = random_tokens(80)
    half = Tokens(tokens.query.bfloat16(), tokens.key.bfloat16(), tokens.value.bfloat16())
    whole = Tokens(half.query.float(), half.key.float(), half.value.float())
    # Every key is chosen, for a vote may change with the queries' rounding.
    policy = longcache(spans=30, span=2, k=60, reuse=4)
    ours = run(policy, half, [70, *[1] * 10])[0]
    assert ours.dtype == torch.bfloat16
    expected = run(policy, whole, [70, *[1] * 10])[0]
    assert (ours.float() - expected).norm() / expected.norm() < 1e-2


def test_a_forked_state_goes_on_by_itself() -> None:
    policy, tokens = longcache(reuse=6, summary=4, blocks=2), random_tokens(80)
    _, state = run(policy, tokens[:, :72], [70, 1, 1])
    other = state.fork()
    assert other.bytes() == state.bytes()
    for step in (72, 73):
        part = tokens[:, step : step + 1]
        ours = policy.attend(state, part.query, part.key, part.value, ROPE, start=None, scaling=SCALING)
    part = tokens[:, 73:74]
    theirs = policy.attend(other, part.query, part.key, part.value, ROPE, start=None, scaling=SCALING)
    skipped = Tokens(*(torch.cat((x[:, :, :72], x[:, :, 73:74]), 2) for x in (tokens.query, tokens.key, tokens.value)))
    close(theirs, run(policy, skipped, [70, 1, 1, 1])[0][:, :, -1:])
    assert (ours - theirs).abs().max() > 1e-4


# --- summary ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.integers(1, 20), min_size=1, max_size=9), size=st.sampled_from([2, 4, 16]))
def test_summaries_do_not_depend_on_how_keys_come(pieces: list[int], size: int) -> None:
    key = random_tokens(sum(pieces), batch=2).key
    blocks = KeyBlocks(size)
    for part in key.split(pieces, dim=2):
        blocks.append(part)
    assert blocks.table is not None
    assert torch.equal(blocks.table[:, :, : -(-key.shape[2] // size)], summarise(key, size))


@pytest.mark.parametrize("size", [2, 4, 32])
def test_with_all_blocks_it_is_exact(size: int) -> None:
    tokens = random_tokens(sum(TURNS), batch=3)
    ours = run(longcache(summary=size, blocks=80), tokens, TURNS, PADDING)[0]
    exact = run(longcache(), tokens, TURNS, PADDING)[0]
    for row, pad in enumerate(PADDING):
        close(ours[row, :, pad:], exact[row, :, pad:])


def looked_at(policy: LongCachePolicy, query: Tensor, key: Tensor, begin: int, end: int, now: int) -> set[int]:
    """What queries [Hq, S, SIZE] choose of slots begin .. end - 1, by loops over blocks of keys [HEADS, n, SIZE]."""
    votes = [0] * end
    for head in range(len(query)):
        keys = key[head // (len(query) // HEADS), :now].double()
        for q in query[head].double():
            blocks = [(i, keys[i : i + policy.summary]) for i in range(0, now, policy.summary)]
            bounds = [
                (float(torch.maximum(q * part.amax(0), q * part.amin(0)).sum()), i)
                for i, part in blocks
                if i < end and i + policy.summary > begin
            ]
            slots = [
                slot
                for _, i in sorted(bounds, reverse=True)[: policy.blocks]
                for slot in range(max(i, begin), min(end, i + policy.summary))
            ]
            for slot in sorted(slots, key=lambda slot: (float(keys[slot] @ q), slot))[-policy.k :]:
                votes[slot] += 1
    assert policy.spans is not None
    kept = sorted((slot for slot in range(end) if votes[slot]), key=lambda slot: (votes[slot], slot))[-policy.spans :]
    half = policy.span // 2
    return {slot for middle in kept for slot in range(max(begin, middle - half), min(end, middle + half))}


@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize("size", [4, 8])
def test_votes_come_from_the_most_promising_blocks(size: int, queries: int) -> None:
    policy = longcache(summary=size, blocks=2)
    # Local tokens fewer than a block's: of the middle's last block not all keys may have come.
    tokens, bounds = random_tokens(78, batch=2), [(3, 77 - queries), (30, 50)]
    state = LongCacheState(0)
    for part in (tokens[:, :33], tokens[:, 33:70], tokens[:, 70:]):
        policy._take_in(state, part.key, part.value)
    begin, end = (torch.tensor(bound, dtype=torch.int32) for bound in zip(*bounds, strict=True))
    slots, count = policy.choose(state, tokens.query[:, :, -queries:].contiguous(), begin, end)
    for row, (low, high) in enumerate(bounds):
        ours = slots[row, : count[row]].tolist()
        expected = looked_at(policy, tokens.query[row, :, -queries:], tokens.key[row], low, high, 78)
        assert ours == sorted(expected)
    exact = longcache().choose(state, tokens.query[:, :, -queries:].contiguous(), begin, end)[0]
    assert not torch.equal(slots, exact)


def test_how_a_prompt_comes_does_not_matter() -> None:
    policy, tokens = longcache(summary=4, blocks=2, chunk=1), random_tokens(60)
    close(run(policy, tokens, [60])[0], run(policy, tokens, [1] * 60)[0])


def test_no_choice_depends_on_later_tokens() -> None:
    policy, tokens = longcache(summary=4, blocks=2), random_tokens(90)
    other = random_tokens(90, seed=1)
    changed = Tokens(
        *(
            torch.cat((getattr(tokens, name)[:, :, :80], 9 * getattr(other, name)[:, :, 80:]), 2)
            for name in vars(tokens)
        )
    )
    assert torch.equal(run(policy, tokens, [90])[0][:, :, :80], run(policy, changed, [90])[0][:, :, :80])


# --- Together ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"reuse": 3}, {"summary": 4, "blocks": 3}, {"summary": 8, "blocks": 2, "reuse": 4}, {"scoring": "int8"}]
)
def test_tokens_in_host_memory_change_nothing(options: dict[str, Any]) -> None:
    tokens = random_tokens(sum(TURNS), batch=3)
    device = run(longcache(**options), tokens, TURNS, PADDING)[0]
    host = run(longcache(host=True, **options), tokens, TURNS, PADDING)[0]
    for row, pad in enumerate(PADDING):
        close(host[row, :, pad:], device[row, :, pad:], 1e-6)


def test_summaries_of_all_blocks_and_reuse_are_reuse() -> None:
    tokens = random_tokens(sum(TURNS), batch=3)
    ours = run(longcache(summary=4, blocks=80, reuse=4), tokens, TURNS, PADDING)[0]
    for row, pad in enumerate(PADDING):
        close(ours[row, :, pad:], reused(longcache(reuse=4), tokens, TURNS, row, pad), 2e-5)


@pytest.mark.parametrize("scoring", ["int8", "fp8"])
@pytest.mark.parametrize("options", [{}, {"reuse": 4}, {"host": True}])
def test_a_scoring_copy_chooses_what_its_keys_would(scoring: str, options: dict[str, Any]) -> None:
    """Queries meet codes * scale in the search, and the keys themselves in the attention."""
    tokens, state = random_tokens(90, batch=2), LongCacheState(0)
    policy = longcache(scoring=scoring, **options)
    for first in range(0, 90, 8):  # as chunks come
        part = tokens[:, first : min(90, first + 8)]
        policy._take_in(state, part.key, part.value)
    codes, scales = quantise(tokens.key, SCORING[scoring])
    rounded = LongCacheState(0)
    rounded.tokens.append(codes.float() * scales[..., None], tokens.value)
    begin, end = torch.tensor([3, 10], dtype=torch.int32), torch.tensor([74, 60], dtype=torch.int32)
    found, exact = [], []
    for now in range(60, 90):
        query = tokens.query[:, :, now : now + 1].contiguous()
        slots, count = policy.choose(state, query, begin, end)
        wanted = longcache().choose(rounded, query, begin, end)
        assert torch.equal(slots, wanted[0])
        assert torch.equal(count, wanted[1])
        found.append(slots)
        exact.append(longcache().choose(_whole(tokens), query, begin, end)[0])
    assert not torch.equal(torch.cat(found), torch.cat(exact))


def _whole(tokens: Tokens) -> LongCacheState:
    state = LongCacheState(0)
    state.tokens.append(tokens.key, tokens.value)
    return state


@pytest.mark.parametrize("scoring", ["int8", "fp8"])
def test_whatever_is_searched_all_of_a_middle_that_fits_is_seen(scoring: str) -> None:
    """And codes are copied as they are when the copy grows."""
    tokens = random_tokens(sum(TURNS), batch=3)
    policy = longcache(scoring=scoring, spans=200, span=2, k=150)
    ours, state = run(policy, tokens, TURNS, PADDING)
    exact = run(longcache(spans=200, span=2, k=150), tokens, TURNS, PADDING)[0]
    for row, pad in enumerate(PADDING):
        close(ours[row, :, pad:], exact[row, :, pad:])
    assert isinstance(state, LongCacheState)
    assert state.codes is not None
    assert state.codes.codes is not None
    assert state.codes.codes.dtype == SCORING[scoring]
    codes, scales = quantise(tokens.key, SCORING[scoring])
    assert torch.equal(state.codes.codes[:, :, : sum(TURNS)].float(), codes.float())
    assert state.codes.scales is not None
    assert torch.equal(state.codes.scales[:, :, : sum(TURNS), 0], scales)


@pytest.mark.parametrize("options", [{"summary": 4}, {"reuse": 4}, {"summary": 8, "reuse": 3}, {"scoring": "fp8"}])
def test_bytes_are_those_of_all_tensors_that_hang_on_the_state(options: dict[str, Any]) -> None:
    _, state = run(longcache(**options), random_tokens(90, batch=2), [85, *[1] * 5])
    held, left, known = {}, [state], {id(state)}
    while left:
        thing = left.pop()
        if isinstance(thing, Tensor):
            held[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
            continue
        fresh = [part for part in gc.get_referents(thing) if id(part) not in known and not isinstance(part, type)]
        known |= {id(part) for part in fresh}
        left += fresh
    assert state.bytes() == sum(held.values())
    _, plain = run(longcache(), random_tokens(90, batch=2), [85, *[1] * 5])
    assert state.bytes() > plain.bytes()


def test_nothing_waits_for_the_device() -> None:
    """On torch's meta device there are no numbers: whoever looks at one fails."""

    def of(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    blocks, held, tokens = KeyBlocks(4), HeldScope(), DeviceTokens()
    for length in (50, 1):
        blocks.append(of(2, HEADS, length, SIZE))
        tokens.append(of(2, HEADS, length, SIZE), of(2, HEADS, length, SIZE))
    bound = of(2).int()
    asked = of(2, 3 * HEADS, 1, SIZE)
    assert blocks.votes(asked, tokens.pieces(), 2, 4, bound, bound).shape == (2, 51)
    held.fill(tokens, of(2, 30).int(), bound, ROPE, spare=1)
    assert held.attend(asked, ROPE, bound.long(), SCALING).shape == asked.shape
    held.append(of(2, HEADS, 1, SIZE), of(2, HEADS, 1, SIZE), ROPE, bound.long())
    assert held.attend(asked, ROPE, bound.long(), SCALING).shape == asked.shape
    with pytest.raises(RuntimeError):
        bound[0].item()


# --- Options ----------------------------------------------------------------------------------------------------------


def test_the_default_is_exact_and_holds_nothing_more() -> None:
    policy = get_policy("longcache")
    assert isinstance(policy, LongCachePolicy)
    assert (policy.scoring, policy.summary, policy.reuse, policy.block) == ("exact", 0, 1, None)
    _, state = run(longcache(), random_tokens(80), [77, 1, 2])
    assert isinstance(state, LongCacheState)
    assert state.codes is state.blocks is state.held is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scoring": "int8", "reuse": 4}, "longcache:scoring=int8,reuse=4"),
        ({"summary": 32, "blocks": 16}, "longcache:summary=32,blocks=16"),
        ({"scoring": "exact", "summary": 0, "reuse": 1, "blocks": 8}, "longcache"),
    ],
)
def test_options_are_written_down_and_read_back(options: dict[str, Any], text: str) -> None:
    policy = get_policy("longcache", **options)
    assert policy_text(policy) == text
    assert get_policy("longcache", **policy_settings(policy)) == policy


@pytest.mark.parametrize(
    ("window", "options", "spans"),
    [
        (8192, {"reuse": 1}, 127),
        (8192, {"reuse": 2}, 126),  # the paper's scope fills the window
        (8192, {"reuse": 33}, 126),
        (8192, {"reuse": 34}, 125),
        (131072, {"reuse": 64}, 256),
        (8192, {"spans": 0, "reuse": 9}, 0),
    ],
)
def test_the_default_scope_leaves_room_for_the_tokens_since(window: int, options: dict[str, Any], spans: int) -> None:
    fitted = get_policy("longcache", **options).fitted(Rope(ROPE.inv_freq, window=window))
    assert isinstance(fitted, LongCachePolicy)
    assert fitted.spans == spans
    assert largest_scope(fitted) + fitted.most_reused <= window


def test_positions_stay_within_scope_and_reuse() -> None:
    asked = [0]

    class Recording(Rope):
        def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
            asked.append(int(positions.max()) + 1)
            return super().rotate(x, positions)

        def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
            asked.append(length)
            return super().tables(length, device)

    policy, tokens = longcache(reuse=5), random_tokens(120, batch=2)
    state = policy.state_type(0)
    for length in [90, *[1] * 30]:
        part = tokens[:, state.seen : state.seen + length]
        policy.attend(state, part.query, part.key, part.value, Recording(ROPE.inv_freq), start=None, scaling=SCALING)
    assert max(asked) == largest_scope(policy) + 4


@pytest.mark.parametrize(
    ("window", "options", "message"),
    [
        (
            31,
            {"reuse": 2},
            "a scope of 32 tokens (sink 3 + 3 spans of 4 + local 16 + 1 of reuse=2) is larger than the "
            "model's window of 31",
        ),
        (
            22,
            {"spans": None, "reuse": 2},
            "the model's window of 22 has no room for a span of 4 tokens beside sink 3 and local 16 + 1 of reuse=2",
        ),
    ],
)
def test_a_scope_that_grows_beyond_the_window_is_refused(window: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^KV policy 'longcache': {re.escape(message)}$"):
        longcache(**options).fitted(Rope(ROPE.inv_freq, window=window))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "int4"}, "scoring must be one of exact, int8, fp8, found 'int4'"),
        ({"scoring": 8}, "scoring must be one of exact, int8, fp8, found 8"),
        ({"summary": 48}, "summary must be 0 or a power of two, found 48"),
        ({"summary": 1}, "summary must be 0 or a power of two, found 1"),
        ({"summary": -2}, "summary must be a whole number >= 0, found -2"),
        ({"summary": 32, "k": 9}, "blocks must be at least k=9, found 8"),
        ({"blocks": 0}, "blocks must be a whole number >= 1, found 0"),
        ({"block": 32, "host": 1}, "block=32 needs the keys side by side, but with host=1 they are in pages"),
        ({"reuse": 0}, "reuse must be a whole number >= 1, found 0"),
        (
            {"summary": 32, "scoring": "int8"},
            "block, scoring and summary are three ways to search the keys, found summary=32 and scoring=int8",
        ),
        (
            {"block": 128, "scoring": "fp8"},
            "block, scoring and summary are three ways to search the keys, found scoring=fp8 and block=128",
        ),
        (
            {"block": 128, "summary": 64},
            "block, scoring and summary are three ways to search the keys, found summary=64 and block=128",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^KV policy 'longcache': {re.escape(message)}$"):
        get_policy("longcache", **options)
