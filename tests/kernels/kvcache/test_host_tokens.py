"""Tokens in host memory: the bits of tokens on the device, and a device that holds no more however many come."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longloom.kernels.huggingface.generate import generate
from longloom.kernels.kvcache import tokens as module
from longloom.kernels.kvcache.base import LayerState
from longloom.kernels.kvcache.registry import get_policy
from longloom.kernels.kvcache.scoped import scope
from longloom.kernels.kvcache.tokens import DeviceTokens, HostTokens

from ..huggingface.models import LAYERS, prompts, random_model
from .test_kv_policies import PROFILE, pieces_of, run
from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens

#: Policies with a finite scope, with options under which they choose of a hundred tokens.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("longcache", {"sink": 3, "local": 8, "chunk": 4, "spans": 2, "span": 4, "k": 2}),
    ("longcache", {"sink": 0, "local": 1, "chunk": 1, "spans": 1, "span": 2, "k": 1}),
    ("longcache", {"sink": 5, "local": 7, "chunk": 3, "spans": 3, "span": 6}),
    ("longcache", {"sink": 2, "local": 5, "chunk": 5, "spans": 0}),
    ("longcache", {"sink": 1, "local": 6, "chunk": 2, "spans": 2, "span": 2, "scoring": "int8"}),
    ("longcache", {"sink": 3, "local": 8, "chunk": 4, "spans": 2, "span": 4, "k": 2, "summary": 4, "blocks": 3}),
    ("longcache", {"sink": 3, "local": 8, "chunk": 4, "spans": 2, "span": 4, "k": 2, "reuse": 3}),
    ("infllm", {"sink": 3, "local": 6, "chunk": 3, "blocks": 2, "block": 4, "representatives": 2}),
    ("razor+longcache", {"sink": 3, "local": 8, "chunk": 4, "spans": 2, "span": 4, "heads": PROFILE, "induction": 0.5}),
]
options = pytest.mark.parametrize(("name", "given"), OPTIONS, ids=lambda part: part if isinstance(part, str) else "")
#: Those that keep nothing but the tokens.
bare = pytest.mark.parametrize("given", [given for name, given in OPTIONS[:4]])

TOKEN = 2 * HEADS * SIZE * 4  # bytes of a row's keys and values


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 16)


def both(
    name: str, given: dict[str, Any], tokens: Tokens, pieces: Sequence[int], padding: Sequence[int] | None = None
) -> None:
    """The host's answers are the device's, bit for bit."""
    expected, _ = run(get_policy(name, **given), tokens, pieces, padding)
    found, state = run(get_policy(name, host=1, **given), tokens, pieces, padding)
    assert torch.equal(found, expected)
    assert isinstance(held_by(state), HostTokens)


def held_by(state: LayerState) -> Any:
    """A layer's tokens; under razor+longcache those of its retrieval heads."""
    return getattr(getattr(state, "far", state), "tokens", None)


@options
@pytest.mark.parametrize(
    "pieces", [[80], [1] * 40, [37, 1, 1, 1, 20, 1, 1], [7, 13, 60]], ids=["prompt", "steps", "turns", "pieces"]
)
def test_answers_are_those_of_the_device(name: str, given: dict[str, Any], pieces: list[int]) -> None:
    both(name, given, random_tokens(sum(pieces), batch=2), pieces)


@options
@settings(max_examples=6, deadline=None)
@given(pieces=pieces_of(50), padding=st.lists(st.integers(0, 49), min_size=1, max_size=3))
def test_padded_rows_too(name: str, given: dict[str, Any], pieces: list[int], padding: list[int]) -> None:
    both(name, given, random_tokens(50, batch=len(padding)), pieces, padding)


@options
def test_half_precision_too(name: str, given: dict[str, Any]) -> None:
    tokens = random_tokens(90)
    both(name, given, Tokens(*(part.bfloat16() for part in (tokens.query, tokens.key, tokens.value))), [85, 1, 4])


def test_no_rows() -> None:
    both(*OPTIONS[3], random_tokens(50, batch=0), [48, 1, 1])


# What is held where


def tensors_on(root: Any) -> Iterator[Tensor]:
    """All tensors that can be reached from an object."""
    seen, left = {id(root)}, [root]
    while left:
        thing = left.pop()
        if isinstance(thing, Tensor):
            yield thing
            continue
        for other in gc.get_referents(thing):
            if id(other) not in seen and not isinstance(other, type):
                seen.add(id(other))
                left.append(other)


@bare
def test_the_device_holds_no_more_at_any_length(given: dict[str, Any]) -> None:
    policy, sizes = get_policy("longcache", host=1, **given), set()
    for length in (40, 90, 200):
        _, state = run(policy, random_tokens(length, batch=2), [length - 2, 1, 1])
        sizes.add(state.bytes())
        held = held_by(state)
        assert {id(tensor) for tensor in tensors_on(state)} == {id(part) for part in (*held.pages, *held.tensors())}
        assert len({page.data_ptr() for page in held.pages}) == len(held.pages)
        on_host = sum(page.untyped_storage().nbytes() for page in held.pages)
        assert (length - given["local"]) * 2 * TOKEN <= on_host <= (length + 16) * 2 * TOKEN
    [size] = sizes
    assert size <= 2 * TOKEN * (given["local"] + 2 * given["chunk"])


def test_pages_stay_where_they_are() -> None:
    tokens, held = random_tokens(400), HostTokens(8, 4, 8)
    places: list[int] = []
    for begin in range(0, 400, 4):
        held.append(tokens.key[:, :, begin : begin + 4], tokens.value[:, :, begin : begin + 4])
        now = [page.data_ptr() for page in held.pages]
        assert now[: len(places)] == places
        places = now
    assert len(places) == 392 // 16 + 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_slots_are_found(data: st.DataObject) -> None:
    """Cut as a prompt may be cut: pages and the ring have the keys, and any slots of a row get the same attention."""
    local = data.draw(st.integers(1, 12))
    chunk, recent = data.draw(st.integers(1, local)), data.draw(st.integers(local, 20))
    length, batch = data.draw(st.integers(1, 150)), 2
    tokens = random_tokens(length, batch=batch)
    host, device = HostTokens(local, chunk, recent), DeviceTokens()
    seen = 0
    while seen < length:
        step = min(length - seen, data.draw(st.integers(1, chunk - seen % chunk)))
        now = slice(seen, seen + step)
        host.append(tokens.key[:, :, now], tokens.value[:, :, now])
        device.append(tokens.key[:, :, now], tokens.value[:, :, now])
        seen += step
    older = max(0, length - local)
    if older:
        assert torch.equal(torch.cat(list(host.pieces()), dim=2)[:, :, :older], tokens.key[:, :, :older])
    asked = data.draw(st.integers(0, min(length, recent)))
    assert torch.equal(host.last(asked), tokens.key[:, :, length - asked :])
    assert torch.equal(device.last(asked), tokens.key[:, :, length - asked :])

    chosen = [sorted({length - 1, *data.draw(st.sets(st.integers(0, length - 1)))}) for _ in range(batch)]
    count = torch.tensor([len(slots) for slots in chosen], dtype=torch.int32)
    most = int(count.max())
    positions = torch.tensor([slots + [length + 5] * (most - len(slots)) for slots in chosen], dtype=torch.int32)
    query = tokens.query[:, :, -1:].contiguous()
    cos, sin = ROPE.tables(most, query.device)
    expected = device.attend(query, positions, count, cos, sin, SCALING)
    assert torch.equal(host.attend(query, positions, count, cos, sin, SCALING), expected)


@settings(deadline=None)
@given(slots=st.sets(st.integers(0, 60)).map(sorted), page=st.integers(1, 9))
def test_runs_are_neighbours_on_one_page(slots: list[int], page: int) -> None:
    runs = module._runs(torch.tensor(slots, dtype=torch.int32), page)
    assert [first + n for first, begin, end in runs for n in range(end - begin)] == slots
    assert [number for _, begin, end in runs for number in range(begin, end)] == list(range(len(slots)))
    assert all(first // page == (first + end - begin - 1) // page for first, begin, end in runs)
    for (first, begin, end), (second, _, _) in pairwise(runs):
        assert second != first + end - begin or second % page == 0  # no run could be longer


@torch.no_grad()
def test_a_model_answers_as_from_the_device() -> None:
    """Prompts of different lengths in one batch; what is told to be held is the rings."""
    model, asked = random_model(max_position_embeddings=64), prompts(150, 97)
    options = {"sink": 2, "local": 16, "chunk": 8, "spans": 2, "span": 4}
    policies = [get_policy("longcache", host=host, **options) for host in (0, 1)]
    device, host = generate(model, asked, policies=policies, max_new_tokens=12, eos_token_ids=[])
    assert [answer.ids for answer in host] == [answer.ids for answer in device]
    assert {answer.kv_bytes for answer in host} == {LAYERS * (16 + 8) * TOKEN}
    assert min(answer.kv_bytes for answer in device) >= LAYERS * (150 + 11) * TOKEN


# Copies


@options
def test_a_copy_goes_on_by_itself(name: str, given: dict[str, Any]) -> None:
    policy, tokens, other = get_policy(name, host=1, **given), random_tokens(90), random_tokens(90, seed=1)
    _, state = run(policy, tokens[:, :50], [50])
    for mine, rest in ((state.fork(), other), (state, tokens)):
        part = rest[:, 50:]
        answer = policy.attend(mine, part.query, part.key, part.value, ROPE, start=None, scaling=SCALING)
        names = ("query", "key", "value")
        whole = Tokens(*(torch.cat((getattr(tokens, n)[:, :, :50], getattr(part, n)), dim=2) for n in names))
        assert torch.equal(answer, run(policy, whole, [50, 40])[0][:, :, 50:])


def test_copies_share_full_pages_alone() -> None:
    _, state = run(get_policy("longcache", host=1, **OPTIONS[0][1]), random_tokens(90), [90])
    fork = state.fork()
    own, others = held_by(state), held_by(fork)
    assert [one is other for one, other in zip(own.pages, others.pages, strict=True)] == [True] * 5 + [False]
    assert own.ring is not others.ring
    assert fork.bytes() == state.bytes()


# The scope


@pytest.mark.parametrize("sink", [0, 2])
def test_a_scope_is_laid_out_row_by_row(sink: int) -> None:
    """Rows of 30 slots: one that chose three tokens, one that chose five, one that is seen whole, and padding."""
    seen, local, most = 30, 4, 5
    middles = [[9, 10, 20], [11, 12, 13, 24, 25], [], []]
    firsts = [0, 3, seen - sink - local - 1, seen]
    expected = [
        [*range(first, min(first + sink, seen)), *middle, *range(max(first + sink, seen - local), seen)]
        if middle
        else [*range(first, seen)]
        for first, middle in zip(firsts, middles, strict=True)
    ]
    shift = [seen - len(slots) for slots in expected]
    chosen = torch.tensor([middle + [-1] * (most - len(middle)) for middle in middles], dtype=torch.int32)
    first, size = torch.tensor(firsts, dtype=torch.int32), sink + most + local
    found = scope(first, sink, chosen, torch.tensor(shift, dtype=torch.int32), size)
    assert found.shape == (4, size)
    for row, slots in zip(found.tolist(), expected, strict=True):
        assert row[: len(slots)] == slots
        assert all(slot >= seen for slot in row[len(slots) :])
