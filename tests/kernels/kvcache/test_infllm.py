"""InfLLM by its definition, block after block in loops of float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.infllm import InfLLMPolicy
from longloom.kernels.kvcache.longcache import LongCachePolicy

from .test_kv_policies import close, dense, run
from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens, turn

#: A scope of 3 + 2 * 5 + 4 + 11 = 28 tokens.
SMALL: dict[str, Any] = {"sink": 3, "local": 11, "chunk": 4, "blocks": 2, "block": 5, "representatives": 2}


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def cuts(length: int, *, sink: int, local: int, chunk: int, blocks: int, block: int, **_: int) -> list[int]:
    """Where chunks end."""
    full = sink + blocks * block + block - 1 + local
    return sorted({*range(chunk, length, chunk), *([full] if full < length else []), length})


def seen_by(tokens: Tokens, end: int, new: int, options: dict[str, int]) -> list[int]:
    """Slots that the chunk of the `new` tokens before `end` sees, of one row without padding."""
    sink, local, block = options["sink"], options["local"], options["block"]
    middle = range(sink, max(sink, end - local))
    if len(middle) <= options["blocks"] * block + block - 1:
        return [*range(end)]
    query, key = tokens.query[0].double(), tokens.key[0].double()
    groups = len(query) // HEADS
    relevance = []
    for first in range(sink, sink + len(middle) // block * block, block):
        score = 0.0
        for head in range(len(query)):
            paid = [
                sum(float(query[head, m + j] @ key[head // groups, m]) for j in range(1, local + 1)) / local
                for m in range(first, first + block)
            ]
            best = sorted(range(block), key=lambda place: -paid[place])[: options["representatives"]]
            for place in best:
                for asking in range(end - new, end):
                    score += float(query[head, asking] @ key[head // groups, first + place])
        relevance.append((score, first))
    chosen = sorted(first for _, first in sorted(relevance)[-options["blocks"] :])
    filling = range(sink + len(relevance) * block, end - local)
    return [*range(sink), *(first + i for first in chosen for i in range(block)), *filling, *range(end - local, end)]


def defined(tokens: Tokens, *, padding: int = 0, **options: int) -> Tensor:
    """The attention of one row, which in its batch has so much padding before it."""
    length, groups = tokens.key.shape[2], tokens.query.shape[1] // HEADS
    output = torch.empty(tokens.query.shape, dtype=torch.float64)
    begin = 0
    for end in [cut - padding for cut in cuts(padding + length, **options) if cut > padding]:
        slots = seen_by(tokens, end, end - begin, options)
        places = torch.arange(len(slots))
        for head in range(tokens.query.shape[1]):
            key, value = tokens.key[:, head // groups, slots], tokens.value[:, head // groups, slots].double()
            logits = turn(tokens.query[:, head, begin:end], places[begin - end :]) @ turn(key, places).mT * SCALING
            future = places > places[begin - end :, None]
            output[:, head, begin:end] = logits.masked_fill(future, -torch.inf).softmax(-1) @ value
        begin = end
    return output


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        SMALL | {"chunk": 11},
        SMALL | {"chunk": 1, "representatives": 1},
        SMALL | {"blocks": 1, "representatives": 5},
        SMALL | {"sink": 0, "block": 1, "representatives": 1, "blocks": 6},
        SMALL | {"local": 3, "chunk": 3, "block": 13, "representatives": 4},
    ],
)
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_the_definition(options: dict[str, int], groups: int) -> None:
    tokens = random_tokens(90, groups=groups)
    close(run(InfLLMPolicy(**options), tokens, [90])[0], defined(tokens, **options))


@settings(max_examples=25, deadline=None)
@given(
    sink=st.integers(0, 5),
    local=st.integers(1, 14),
    chunk=st.integers(1, 14),
    blocks=st.integers(1, 3),
    block=st.integers(1, 7),
    representatives=st.integers(1, 7),
    length=st.integers(1, 70),
    seed=st.integers(0, 2**16),
)
def test_any_sizes(length: int, seed: int, **options: int) -> None:
    options["chunk"] = min(options["chunk"], options["local"])
    options["representatives"] = min(options["representatives"], options["block"])
    tokens = random_tokens(length, groups=2, seed=seed)
    close(run(InfLLMPolicy(**options), tokens, [length])[0], defined(tokens, **options))


@pytest.mark.parametrize("padding", [[0, 17, 33], [5, 60, 89]])
@pytest.mark.parametrize("pieces", [[90], [40, 8, 40, 2], [28, *[4] * 15, 2]])
def test_rows_choose_for_themselves(padding: list[int], pieces: list[int]) -> None:
    tokens = random_tokens(90, batch=3)
    ours = run(InfLLMPolicy(**SMALL), tokens, pieces, padding)[0]
    assert ours.isfinite().all()
    for row, pad in enumerate(padding):
        close(ours[row : row + 1, :, pad:], defined(tokens[row : row + 1, pad:], padding=pad, **SMALL))


def test_a_middle_of_as_many_blocks_is_full_attention() -> None:
    tokens = random_tokens(28 + 40)
    ours = run(InfLLMPolicy(**SMALL), tokens, [68])[0]
    close(ours[:, :, :28], dense(tokens)[:, :, :28])
    assert (ours[:, :, 28:] - dense(tokens)[:, :, 28:]).abs().amax(dim=(0, 1, 3)).min() > 1e-3
    close(run(InfLLMPolicy(**SMALL | {"blocks": 10}), tokens, [68])[0], dense(tokens))


@pytest.mark.parametrize("length", range(45, 56))
def test_what_fills_the_next_block_stays_visible(length: int) -> None:
    """A token that all other tokens have nothing of, at every age until its block may be left out."""
    tokens = random_tokens(length, groups=1)
    marked = length - SMALL["local"] - 1  # it has just left the local tokens
    tokens.value[:, :, marked] = 1000.0
    slots = seen_by(tokens, length, 1, SMALL)
    output = run(InfLLMPolicy(**SMALL | {"chunk": 1}), tokens, [length])[0]
    whole = (marked + 1 - SMALL["sink"]) % SMALL["block"] == 0  # it was the one to fill its block
    assert whole or marked in slots
    assert whole or (output[..., -1, :].abs() > 0.5).any()


def test_a_block_is_found_by_the_keys_that_were_paid_to() -> None:
    options = {"sink": 1, "local": 4, "chunk": 1, "blocks": 1, "block": 4, "representatives": 1}
    query = torch.zeros(1, HEADS, 40, SIZE)
    key, value = torch.zeros_like(query), torch.zeros_like(query)
    query[..., 0] = 1.0  # what all look for but the last
    query[:, :, -1, :2] = torch.tensor([0.0, 1.0])
    key[:, :, 10, :2] = torch.tensor([5.0, 2.0])  # paid to, and answers the last one with 2
    key[:, :, 11, 1] = -50.0
    value[:, :, 10] = 3.0
    key[:, :, 22, :2] = torch.tensor([5.0, 1.0])
    key[:, :, 23, 1] = 50.0  # would answer with 50, but nobody paid to it
    output = run(InfLLMPolicy(**options), Tokens(query, key, value), [40])[0]
    assert seen_by(Tokens(query, key, value), 40, 1, options) == [0, 9, 10, 11, 12, 33, 34, 35, 36, 37, 38, 39]
    assert (output[:, :, -1] > 0.5).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_sums_in_float32(dtype: torch.dtype) -> None:
    tokens = random_tokens(80, batch=2)
    half = Tokens(tokens.query.to(dtype), tokens.key.to(dtype), tokens.value.to(dtype))
    output, state = run(InfLLMPolicy(**SMALL), half, [60, 20])
    assert output.dtype == dtype
    assert state.paid.dtype == state.means.dtype == torch.float32  # type: ignore[attr-defined]
    whole = Tokens(half.query.float(), half.key.float(), half.value.float())
    reference = run(InfLLMPolicy(**SMALL), whole, [80])[0]
    assert ((output.float() - reference).norm() / reference.norm()).item() < 1e-2


@pytest.mark.parametrize("pieces", [[90], [40, 8, 40, 2], [28, *[4] * 15, 2], [1] * 90])
def test_tokens_in_host_memory_change_nothing(pieces: list[int]) -> None:
    options = SMALL | {"chunk": 1} if pieces[0] == 1 else SMALL
    tokens, padding = random_tokens(90, batch=2), [0, 17]
    ours, state = run(InfLLMPolicy(host=True, **options), tokens, pieces, padding)
    theirs, other = run(InfLLMPolicy(**options), tokens, pieces, padding)
    close(ours, theirs)
    assert torch.equal(state.means, other.means)  # type: ignore[attr-defined]
    assert state.bytes() < other.bytes()


def test_a_state_goes_on_by_itself() -> None:
    policy, tokens = InfLLMPolicy(**SMALL), random_tokens(80)
    _, state = run(policy, tokens[:, :60], [60])
    other = state.fork()
    rest = tokens[:, 60:]
    policy.attend(state, rest.key.repeat(1, 3, 1, 1), rest.key, rest.value, ROPE, start=None, scaling=SCALING)  # type: ignore[arg-type]
    ours = policy.attend(other, rest.query, rest.key, rest.value, ROPE, start=None, scaling=SCALING)  # type: ignore[arg-type]
    close(ours, run(policy, tokens, [60, 20])[0][:, :, 60:])


def test_what_is_held_beside_the_tokens_is_little() -> None:
    options = {"sink": 4, "local": 64, "chunk": 16, "blocks": 2, "block": 32}
    tokens = random_tokens(4000, groups=1)
    _, state = run(InfLLMPolicy(**options), tokens, [4000])
    held = state.tokens.keys, state.tokens.values  # type: ignore[attr-defined]
    beside = state.bytes() - sum(part.untyped_storage().nbytes() for part in held)
    recent = (64 + 16 + 2 * 32) * HEADS * 4
    blocks = (4000 // 32 * 9 // 8 + 64) * HEADS * SIZE * 4
    assert 0 < beside <= recent + blocks


@pytest.mark.parametrize(
    ("window", "local", "chunk", "blocks"),
    [(8192, 4096, 512, 30), (1024, 512, 64, 2), (131072, 8192, 512, 63)],
)
def test_defaults_fill_what_longcache_fills(window: int, local: int, chunk: int, blocks: int) -> None:
    rope = Rope(ROPE.inv_freq, window=window)
    ours, theirs = InfLLMPolicy().fitted(rope), LongCachePolicy().fitted(rope)
    assert (ours.sink, ours.local, ours.chunk, ours.blocks) == (32, local, chunk, blocks)
    assert (theirs.sink, theirs.local, theirs.chunk) == (32, local, chunk)
    assert 0 <= theirs.most_chosen - ours.most_chosen < 128


def test_options_that_make_no_sense() -> None:
    for options, message in [
        ({"blocks": -1}, "KV policy 'infllm': blocks must be a whole number >= 0, found -1"),
        ({"block": 0}, "KV policy 'infllm': block must be a whole number >= 1, found 0"),
        ({"representatives": 0}, "KV policy 'infllm': representatives must be a whole number >= 1, found 0"),
        ({"block": 3}, "KV policy 'infllm': representatives must be at most block=3, found 4"),
        ({"sink": -1}, "KV policy 'infllm': sink must be a whole number >= 0, found -1"),
        (
            {"local": 4, "chunk": 5},
            "KV policy 'infllm': chunk must be at most local=4, for a chunk lies within the local tokens, found 5",
        ),
    ]:
        with pytest.raises(ValueError, match=exactly(message)):
            InfLLMPolicy(**options)  # type: ignore[arg-type]


def test_a_scope_that_does_not_fit_the_window_is_refused() -> None:
    for options, window, message in [
        (
            {"blocks": 3},
            1024,
            "KV policy 'infllm': a scope of 1055 tokens (sink 32 + 3 blocks of 128, less than one more that fills + "
            "local 512) is larger than the model's window of 1024",
        ),
        (
            {},
            512,
            "KV policy 'infllm': the model's window of 512 has no room for a block of 128 tokens, and less than one "
            "more that fills, beside sink 32 and local 256",
        ),
        ({}, None, "KV policy 'infllm' needs the option 'local': the model's window is not known"),
        ({"local": 64}, None, "KV policy 'infllm' needs the option 'blocks': the model's window is not known"),
    ]:
        with pytest.raises(ValueError, match=exactly(message)):
            InfLLMPolicy(**options).fitted(Rope(ROPE.inv_freq, window=window))


def test_without_blocks_it_streams() -> None:
    tokens = random_tokens(50)
    options = {"sink": 3, "local": 6, "chunk": 2}
    ours, state = run(InfLLMPolicy(blocks=0, **options), tokens, [50])
    close(ours, run(LongCachePolicy(spans=0, **options), tokens, [50])[0])
    assert state.paid is state.means is None  # type: ignore[attr-defined]
