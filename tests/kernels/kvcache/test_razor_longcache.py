"""RazorAttention's heads under LongCache's scope: each kind of head has what its own policy has, and no more memory."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.longcache import LongCachePolicy
from longloom.kernels.kvcache.razor_longcache import RazorLongCachePolicy, RazorLongCacheState
from longloom.kernels.kvcache.registry import get_policy, policy_settings

from .test_kv_policies import close, in_the_cache, run
from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens

#: A scope of 3 + 2 * 4 + 9 = 20 tokens.
SMALL: dict[str, Any] = {"sink": 3, "local": 9, "chunk": 4, "spans": 2, "span": 4, "k": 2}
#: Layer 0 has a retrieval head among others, layer 1 none, layer 2 no others.
PROFILE = HeadProfile("test", "", ((0.1, 0.9), (0.0, 0.2), (0.8, 0.7)))
HALF = {"induction": 0.5, "echo": 0}


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def mixed(**options: Any) -> RazorLongCachePolicy:
    return RazorLongCachePolicy(heads=PROFILE, **{**SMALL, **HALF, **options})


def run_in(
    layer: int, policy: RazorLongCachePolicy, tokens: Tokens, pieces: list[int], padding: list[int] | None = None
) -> tuple[Tensor, RazorLongCacheState]:
    """`run` in another layer than the first."""
    state = RazorLongCacheState(layer, layers=3)
    outputs = []
    for length in pieces:
        part = tokens[:, state.seen : state.seen + length]
        end = state.seen + length
        start = None if padding is None else torch.tensor([min(end, pad) for pad in padding])
        outputs.append(policy.attend(state, part.query, part.key, part.value, ROPE, start=start, scaling=SCALING))
        assert state.seen == end
    return torch.cat(outputs, dim=2), state


def of_head(tokens: Tokens, head: int) -> Tokens:
    """Those of one KV head and its query heads."""
    query = tokens.query.unflatten(1, (HEADS, -1))[:, head]
    return Tokens(query, tokens.key[:, head : head + 1], tokens.value[:, head : head + 1])


@pytest.mark.parametrize("pieces", [[100], [60, 1, 1, 38], [1] * 100])
@pytest.mark.parametrize("groups", [1, 3])
def test_heads_of_either_kind_are_what_they_are_alone(pieces: list[int], groups: int) -> None:
    tokens = random_tokens(100, groups=groups)
    ours = run(mixed(), tokens, pieces)[0].unflatten(1, (HEADS, -1))
    far, near = 1, 0
    alone = run(LongCachePolicy(**SMALL), of_head(tokens, far), pieces)[0]
    close(ours[:, far], alone)
    close(ours[:, near], in_the_cache(tokens, SMALL["sink"], SMALL["local"]).unflatten(1, (HEADS, -1))[:, near], 2e-5)
    together = run(LongCachePolicy(**SMALL), tokens, pieces)[0].unflatten(1, (HEADS, -1))
    assert (together[:, far] - alone).abs().max() > 0.1  # votes of the other head's queries would change it


@pytest.mark.parametrize("pieces", [[100], [33, 64, 1, 1, 1]])
@pytest.mark.parametrize("padding", [None, [0, 40, 77]])
@pytest.mark.parametrize(("policy", "layer"), [(mixed(), 2), (mixed(induction=1), 0)])
def test_with_retrieval_heads_alone_it_is_longcache(
    policy: RazorLongCachePolicy, layer: int, pieces: list[int], padding: list[int] | None
) -> None:
    tokens = random_tokens(100, batch=3)
    ours, state = run_in(layer, policy, tokens, pieces, padding)
    theirs, other = run(LongCachePolicy(**SMALL), tokens, pieces, padding)
    assert torch.equal(ours, theirs)
    assert state.near is None
    assert state.bytes() == other.bytes() + 8 * HEADS


@pytest.mark.parametrize("pieces", [[100], [33, 64, 1, 1, 1]])
@pytest.mark.parametrize("padding", [[0, 0], [0, 40]])
@pytest.mark.parametrize(("policy", "layer"), [(mixed(), 1), (mixed(induction=0), 0)])
def test_without_retrieval_heads_it_is_streaming(
    policy: RazorLongCachePolicy, layer: int, pieces: list[int], padding: list[int]
) -> None:
    tokens = random_tokens(100, batch=2)
    ours, state = run_in(layer, policy, tokens, pieces, padding)
    for row, pad in enumerate(padding):
        expected = in_the_cache(tokens[row : row + 1, pad:], SMALL["sink"], SMALL["local"])
        close(ours[row : row + 1, :, pad:], expected, 2e-5)
    assert state.far is None
    assert state.bytes() == 2 * 2 * HEADS * SIZE * 4 * (SMALL["sink"] + SMALL["local"]) + 8 * HEADS


@pytest.mark.parametrize("padding", [[0, 17, 33], [5, 60, 89]])
def test_rows_go_by_themselves(padding: list[int]) -> None:
    policy, tokens = mixed(chunk=1), random_tokens(90, batch=3)
    ours = run(policy, tokens, [80, 10], padding)[0]
    assert ours.isfinite().all()
    for row, pad in enumerate(padding):
        close(ours[row : row + 1, :, pad:], run(policy, tokens[row : row + 1, pad:], [90 - pad])[0])


def test_of_the_middle_only_the_retrieval_heads_part_is_held() -> None:
    options = SMALL | {"sink": 4, "local": 64, "chunk": 32}
    sizes = {}
    for length in (2000, 4000):
        _, state = run(mixed(**options), random_tokens(length), [length])
        assert isinstance(state, RazorLongCacheState)
        assert state.far is not None
        assert state.near is not None
        assert state.near.bytes() == 2 * SIZE * 4 * (4 + 64)
        _, whole = run(LongCachePolicy(**options), random_tokens(length), [length])
        assert state.far.bytes() == whole.bytes() // HEADS
        sizes[length] = state.bytes() / whole.bytes()
    assert sizes[2000] < 0.5 + 68 / 2000
    assert 0.5 < sizes[4000] < 0.5 + 68 / 4000


@pytest.mark.parametrize("options", [{"host": True}, {"reuse": 3}, {"scoring": "int8"}, {"summary": 4, "blocks": 5}])
def test_longcaches_options_are_the_retrieval_heads(options: dict[str, Any]) -> None:
    pieces, tokens = [80, *[1] * 20], random_tokens(100)
    ours, state = run(mixed(**options), tokens, pieces)
    ours = ours.unflatten(1, (HEADS, -1))
    alone, other = run(LongCachePolicy(**SMALL | options), of_head(tokens, 1), pieces)
    assert torch.equal(ours[:, 1], alone)
    assert isinstance(state, RazorLongCacheState)
    assert state.far is not None
    assert state.far.bytes() == other.bytes()
    close(ours[:, 0], run(mixed(), tokens, pieces)[0].unflatten(1, (HEADS, -1))[:, 0])


@pytest.mark.parametrize("pieces", [[80], [60, 1, 19]])
def test_what_the_other_heads_dropped_does_not_come_back(pieces: list[int]) -> None:
    tokens = random_tokens(80)
    changed = Tokens(tokens.query, tokens.key.clone(), tokens.value.clone())
    changed.key[:, 0, 3:40] += 5
    changed.value[:, 0, 3:40] = 100.0
    ours, theirs = run(mixed(), tokens, pieces)[0], run(mixed(), changed, pieces)[0]
    assert torch.equal(ours[:, :, 48:], theirs[:, :, 48:])
    assert (ours[:, :3, 3:48] - theirs[:, :3, 3:48]).abs().amax(dim=(1, 3)).min() > 1
    assert torch.equal(ours[:, 3:], theirs[:, 3:])


def test_a_state_goes_on_by_itself() -> None:
    policy, tokens = mixed(), random_tokens(80)
    _, state = run(policy, tokens[:, :60], [60])
    other, rest = state.fork(), tokens[:, 60:]
    policy.attend(state, -rest.query, -rest.key, rest.value, ROPE, start=None, scaling=SCALING)  # type: ignore[arg-type]
    ours = policy.attend(other, rest.query, rest.key, rest.value, ROPE, start=None, scaling=SCALING)  # type: ignore[arg-type]
    close(ours, run(policy, tokens, [60, 20])[0][:, :, 60:])


def test_half_precision() -> None:
    tokens = random_tokens(80)
    half = Tokens(tokens.query.bfloat16(), tokens.key.bfloat16(), tokens.value.bfloat16())
    ours = run(mixed(), half, [76, 4])[0]
    assert ours.dtype == torch.bfloat16
    reference = run(mixed(), Tokens(half.query.float(), half.key.float(), half.value.float()), [80])[0]
    assert ((ours.float() - reference).norm() / reference.norm()).item() < 1e-2


def test_defaults_are_longcaches() -> None:
    rope = Rope(ROPE.inv_freq, window=1024)
    ours, theirs = RazorLongCachePolicy(heads=PROFILE).fitted(rope), LongCachePolicy().fitted(rope)
    assert (ours.sink, ours.local, ours.chunk, ours.spans) == (theirs.sink, theirs.local, theirs.chunk, theirs.spans)
    assert ours.heads is PROFILE
    assert policy_settings(get_policy("razor+longcache", heads=PROFILE, induction=0.25, span=16)) == {
        "induction": 0.25,
        "span": 16,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"induction": 1.5}, "induction must be a share from 0 to 1, found 1.5"),
        ({"echo": -0.1}, "echo must be a share from 0 to 1, found -0.1"),
        ({"echo": True}, "echo must be a share from 0 to 1, found True"),
        ({"local": 0}, "local must be a whole number >= 1, found 0"),
        ({"span": 3}, "span must be an even number, found 3"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(f"KV policy 'razor+longcache': {message}")):
        RazorLongCachePolicy(**options)


def test_a_profile_is_needed_and_must_fit() -> None:
    tokens = random_tokens(5)
    message = "KV policy 'razor+longcache' needs the model's head profile: `longloom heads` makes one"
    with pytest.raises(ValueError, match=exactly(message)):
        run(RazorLongCachePolicy(**SMALL), tokens, [5])
    message = "KV policy 'razor+longcache': the head profile is of 1 layers with 3 KV heads, found layer 0 with 2"
    with pytest.raises(ValueError, match=exactly(message)):
        run(RazorLongCachePolicy(heads=HeadProfile("test", "", ((0.1, 0.2, 0.3),)), **SMALL), tokens, [5])


def test_a_scope_larger_than_the_window_is_refused() -> None:
    message = (
        "KV policy 'razor+longcache': a scope of 1056 tokens (sink 32 + 16 spans of 32 + local 512) is larger than the "
        "model's window of 1024"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        RazorLongCachePolicy(heads=PROFILE, spans=16).fitted(Rope(ROPE.inv_freq, window=1024))
