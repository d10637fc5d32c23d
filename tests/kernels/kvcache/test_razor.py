"""RazorAttention: exact where it should be, its formula head by head in float64, and the memory that it leaves."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.pages import PAGE
from longloom.kernels.kvcache.base import KVPolicy, LayerState
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState
from longloom.kernels.kvcache.razor import RazorPolicy
from longloom.kernels.kvcache.registry import get_policy

from .dense_heads import answers, held, razor
from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens, turn

#: The best head by induction is head 1 of layer 0, by echo head 0 of layer 2; layer 1 has neither.
PROFILE = HeadProfile("test", "", ((0.1, 0.9), (0.2, 0.3), (0.0, 0.1)), ((0.0, 0.1), (0.2, 0.3), (0.6, 0.5)))
PROTECTED = [{1}, set(), {0}]
SETTINGS: dict[str, Any] = {"window": 7, "compression": 4.0, "sink": 3}
POLICY = RazorPolicy(PROFILE, **SETTINGS)


def feed(
    policy: KVPolicy[Any], state: LayerState, tokens: Tokens, begin: int, end: int, start: Tensor | None = None
) -> Tensor:
    part = tokens[:, begin:end]
    return policy.attend(state, part.query, part.key, part.value, ROPE, start=start, scaling=SCALING)


def answer(
    policy: KVPolicy[Any], tokens: Tokens, prompt: int, start: Tensor | None = None, layer: int = 0
) -> tuple[Tensor, Any]:
    """The prompt in one piece, then single steps: the outputs of the steps."""
    state = policy.state_type(layer)
    feed(policy, state, tokens, 0, prompt, start)
    steps = [feed(policy, state, tokens, now, now + 1, start) for now in range(prompt, tokens.key.shape[2])]
    return torch.cat(steps, dim=2), state


def double(tokens: Tokens) -> Tokens:
    return Tokens(tokens.query.double(), tokens.key.double(), tokens.value.double())


def apart(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert not ours.isnan().any()
    return (ours.double() - theirs).abs().max().item()


def everything(head: int, seen: int) -> tuple[range, list[int]]:
    return range(seen), []


@pytest.mark.parametrize(
    ("policy", "prompt"),
    [
        (replace(POLICY, induction=1.0), 60),  # all heads are retrieval heads
        (replace(POLICY, echo=1.0), 60),
        (replace(POLICY, compression=1.0), 60),
        (POLICY, 9),  # below S_0 and the sinks
        (POLICY, 10),
        (POLICY, 11),  # a single one is dropped, and the mean of one is itself
        (replace(POLICY, fold=True, induction=1.0), 60),
        (replace(POLICY, fold=True), 9),
        (replace(POLICY, fold=True), 10),  # the answer's token takes the place of a single one
        (replace(POLICY, sink=80), 60),
        (replace(POLICY, window=2**40), 60),
        (replace(POLICY, window=2**40, fold=True), 60),
        (POLICY, 1),
    ],
)
def test_exact_where_nothing_can_be_lost(policy: RazorPolicy, prompt: int) -> None:
    tokens = double(random_tokens(prompt + 1, batch=2, seed=prompt))
    for layer in range(3):
        ours, _ = answer(policy, tokens, prompt, layer=layer)
        assert apart(ours, answers(tokens, prompt, everything)) < 1e-6


@pytest.mark.parametrize("prompt", [12, 60])
def test_two_that_are_dropped_are_lost(prompt: int) -> None:
    """The tests of exactness could fail."""
    tokens = double(random_tokens(prompt + 1))
    lost = apart(answer(POLICY, tokens, prompt)[0], answers(tokens, prompt, everything))
    assert lost > 0.005


@pytest.mark.parametrize("fold", [False, True])
def test_exact_where_the_dropped_have_one_key(fold: bool) -> None:
    """Whatever their values: after rotation, as the mean is taken."""
    tokens = double(random_tokens(60, batch=2))
    places = torch.arange(3, 53)  # without the last 7 tokens, which at the end are still in the window
    same = turn(tokens.key[:, :, 3:4].expand(-1, -1, len(places), -1), -places)
    tokens = Tokens(tokens.query, torch.cat((tokens.key[:, :, :3], same, tokens.key[:, :, 53:]), dim=2), tokens.value)
    ours, state = answer(replace(POLICY, compression=40.0, fold=fold), tokens, 50)
    assert state.cache.dropped.tolist() == [[50 if fold else 40, 0]] * 2
    assert apart(ours, answers(tokens, 50, everything)) < 1e-6


@pytest.mark.parametrize("prompt", [12, 13, 41, 122])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("fold", [False, True])
def test_equals_the_formula(prompt: int, groups: int, fold: bool) -> None:
    tokens = double(random_tokens(prompt + 5, batch=2, groups=groups, seed=prompt))
    for layer, protected in enumerate(PROTECTED):
        ours, _ = answer(replace(POLICY, fold=fold), tokens, prompt, layer=layer)
        assert apart(ours, answers(tokens, prompt, razor(protected, prompt, **SETTINGS, fold=fold))) < 1e-6


@pytest.mark.parametrize("count", ["before scaling", "nowhere"])
def test_the_number_of_the_dropped_counts_after_the_scaling(count: str) -> None:
    """As it is tested, the formula tells a misplaced log N_d."""
    tokens = double(random_tokens(64))
    wrong = answers(tokens, 60, razor(set(), 60, **SETTINGS), count=count)
    assert apart(answer(POLICY, tokens, 60, layer=1)[0], wrong) > 0.05


def test_without_compensation_the_dropped_are_gone() -> None:
    tokens = double(random_tokens(64, batch=2))
    lean = replace(POLICY, compensate=False)
    ours, state = answer(lean, tokens, 60)
    assert apart(ours, answers(tokens, 60, razor({1}, 60, **SETTINGS), compensate=False)) < 1e-6
    assert apart(ours, answers(tokens, 60, razor({1}, 60, **SETTINGS))) > 0.05
    assert state.cache.mean_key is None


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("padding", [[0, 21, 55, 60], [59, 3]])
def test_each_row_of_a_batch_has_the_window_of_its_own_length(padding: list[int], fold: bool) -> None:
    policy = replace(POLICY, fold=fold)
    tokens = double(random_tokens(80, batch=len(padding)))
    ours, state = answer(policy, tokens, 60, torch.tensor(padding))
    assert ours.isfinite().all()
    for row, pad in enumerate(padding):
        keeps = razor({1}, 60 - pad, **SETTINGS, fold=fold)
        alone = tokens[row : row + 1, pad:]
        assert apart(ours[row : row + 1], answers(alone, 60 - pad, keeps)) < 1e-6
        assert state.cache.kv_len[row].tolist() == [len(keeps(head, 80 - pad)[0]) for head in range(HEADS)]


@pytest.mark.parametrize("pieces", [[60], [58, 2], [7, 2, 51], [2] * 30])
@pytest.mark.parametrize("padding", [None, [0, 31]])
def test_pieces_of_the_prompt_change_nothing(pieces: list[int], padding: list[int] | None) -> None:
    """The compression waits for the last of them."""
    tokens = random_tokens(61, batch=2)
    caches = []
    for cut in (pieces, [60]):
        state, begin = POLICY.state_type(0), 0
        for length in cut:
            end = begin + length
            start = None if padding is None else torch.tensor([min(pad, end) for pad in padding])
            feed(POLICY, state, tokens, begin, end, start)
            begin = end
        assert state.cache is None  # type: ignore[attr-defined]
        feed(POLICY, state, tokens, 60, 61, start)
        caches.append(state.cache)  # type: ignore[attr-defined]
    ours, whole = caches
    for name in ("table", "kv_len", "mean_key", "mean_value", "dropped"):
        assert torch.equal(getattr(ours, name), getattr(whole, name)), name
    for row, head in product(range(2), range(HEADS)):
        assert torch.equal(held(ours, ours.keys, row, head), held(whole, whole.keys, row, head))
        assert torch.equal(held(ours, ours.values, row, head), held(whole, whole.values, row, head))


def test_the_prompt_meets_full_attention() -> None:
    tokens, full = random_tokens(50), get_policy("full")
    ours = feed(POLICY, POLICY.state_type(1), tokens, 0, 50)
    assert torch.equal(ours, feed(full, full.state_type(1), tokens, 0, 50))


def test_keeping_from_a_shared_prefill_is_the_same_to_the_bit() -> None:
    tokens, padding = random_tokens(44, batch=2), torch.tensor([0, 17])
    prompt = PromptState(0)
    feed(PromptPolicy(observed=9), prompt, tokens, 0, 40, padding)
    before = prompt.fork()
    state = POLICY.keep(prompt, ROPE)
    shared = torch.cat([feed(POLICY, state, tokens, now, now + 1, padding) for now in range(40, 44)], dim=2)
    assert torch.equal(shared, answer(POLICY, tokens, 40, padding)[0])
    for name in ("keys", "values", "queries"):
        assert torch.equal(getattr(prompt, name), getattr(before, name))


TURNS = [1, 12, 1, 1, 30, 1]  # an answer's first token, then turns and answers


@pytest.mark.parametrize("padding", [[0, 0], [0, 38], [33, 7]])
@pytest.mark.parametrize("fold", [False, True])
def test_several_turns(fold: bool, padding: list[int]) -> None:
    tokens, start = double(random_tokens(40 + sum(TURNS), batch=2)), torch.tensor(padding)
    policy, begin = replace(POLICY, fold=fold), 40
    state: Any = policy.state_type(0)
    feed(policy, state, tokens, 0, 40, start)
    outputs = []
    for length in TURNS:
        outputs.append(feed(policy, state, tokens, begin, begin + length, start))
        begin += length
    for row, pad in enumerate(padding):
        keeps = razor({1}, 40 - pad, **SETTINGS, fold=fold)
        expected = answers(tokens[row : row + 1, pad:], 40 - pad, keeps)
        assert apart(torch.cat(outputs, dim=2)[row : row + 1], expected) < 1e-6


@pytest.mark.parametrize("padding", [[0, 0], [5, 57]])
def test_where_it_folds_the_mean_is_that_of_all_dropped_and_compressed_heads_stop_growing(padding: list[int]) -> None:
    tokens, start = random_tokens(400, batch=2), torch.tensor(padding)
    policy = replace(POLICY, fold=True)
    _, state = answer(policy, tokens, 60, start, layer=1)
    cache = state.cache
    for row, pad in enumerate(padding):
        width = max(7, (60 - pad) // 4)
        key = turn(tokens.key[row, :, pad:], torch.arange(400 - pad))
        value = tokens.value[row, :, pad:].double()
        assert cache.dropped[row].tolist() == [400 - pad - 3 - width] * HEADS
        assert cache.kv_len[row].tolist() == [3 + width] * HEADS
        for mean, whole in ((cache.mean_key, key), (cache.mean_value, value)):
            assert apart(mean[row], whole[:, 3:-width].mean(dim=1)) < 1e-6
        for head in range(HEADS):
            near = held(cache, cache.keys, row, head).double()
            assert apart(near[:3], key[head, :3]) < 1e-5
            order = near[3:, 0].argsort()  # the window is a ring
            window = key[head, -width:]
            assert apart(near[3:][order], window[window[:, 0].argsort()]) < 1e-5
    held_before = state.bytes()
    more = random_tokens(130, batch=2, seed=1)
    for now in range(130):
        feed(policy, state, more, now, now + 1, start)
    assert state.bytes() == held_before


def numbers(tokens: int, protected: int, heads: int, *, size: int, bytes_each: int, compensate: bool = True) -> int:
    """Bytes of one layer of one row: whole pages of keys and values, the page table, lengths, means and counts."""
    kept = [tokens] * protected + [min(tokens, 4 + max(4000, tokens // 5))] * (heads - protected)
    pages = [-(-length // PAGE) for length in kept]
    means = (2 * size * 4 + 4) * heads if compensate else 0
    return 2 * sum(pages) * PAGE * size * bytes_each + 4 * max(pages) * heads + 4 * heads + means


@pytest.mark.parametrize(
    ("tokens", "ratio"), [(100, 1.0), (4004, 1.0), (8000, 0.575), (20_000, 0.32), (24_000, 0.32), (30_001, 0.32)]
)
@pytest.mark.parametrize("compensate", [True, False])
def test_bytes_under_the_papers_settings(tokens: int, ratio: float, compensate: bool) -> None:
    """Of 100 KV heads 14 are protected by induction and another one by echo: 0.15 + 0.85 * max(4000 / N, 1 / 5)."""
    layers, heads, size = 10, 10, 16
    induction = torch.rand(layers, heads, generator=torch.Generator().manual_seed(2))
    echo = torch.zeros(layers, heads)
    echo[divmod(int(induction.argmin()), heads)] = 1.0
    profile = HeadProfile("test", "", *(tuple(map(tuple, scores.tolist())) for scores in (induction, echo)))
    policy = RazorPolicy(profile, compensate=compensate)
    best = set(induction.flatten().argsort(descending=True)[:14].tolist()) | {int(induction.argmin())}
    keys = torch.zeros(1, heads, tokens, size, dtype=torch.float16)
    total = 0
    for layer in range(layers):
        found = policy.keep(PromptState(layer, tokens, keys=keys, values=keys), ROPE).bytes()
        protected = sum(head // heads == layer for head in best)
        assert found == numbers(tokens, protected, heads, size=size, bytes_each=2, compensate=compensate)
        total += found
    full = 2 * layers * keys.nbytes
    margin = PAGE / tokens + 0.01  # pages that are not full; tables and means
    assert ratio - 0.0001 < total / full < ratio + margin


@pytest.mark.parametrize("fold", [False, True])
def test_what_the_prompt_held_is_freed(fold: bool) -> None:
    tokens = random_tokens(3001, batch=2)
    policy = replace(POLICY, compression=1000.0, fold=fold)
    state: Any = policy.state_type(1)
    feed(policy, state, tokens, 0, 3000)
    assert state.bytes() >= 2 * 2 * HEADS * 3000 * SIZE * 4
    feed(policy, state, tokens, 3000, 3001)
    assert state.prompt is None
    pages = 2 * HEADS  # each head's 10 tokens and the answer's take one
    small = (2 * SIZE * 4 + 4) * pages + 4 * pages + 4 * pages  # means and counts, lengths, table
    assert state.bytes() == 2 * pages * PAGE * SIZE * 4 + small + (2 * 4 * pages if fold else 0)


def test_a_fork_goes_on_by_itself() -> None:
    policy = replace(POLICY, fold=True)
    tokens, others = random_tokens(40), random_tokens(90, seed=1)
    _, state = answer(policy, tokens[:, :31], 30)
    fork = state.fork()
    expected = feed(policy, state.fork(), tokens, 31, 40)
    feed(policy, fork, others, 31, 90)
    assert torch.equal(feed(policy, state, tokens, 31, 40), expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 3e-2)],
)
@pytest.mark.parametrize("fold", [False, True])
def test_types(dtype: torch.dtype, tolerance: float, fold: bool) -> None:
    tokens = random_tokens(320)
    tokens = Tokens(*(part.to(dtype) for part in (tokens.query, tokens.key, tokens.value)))
    ours, state = answer(replace(POLICY, fold=fold), tokens, 300)
    assert ours.dtype == state.cache.keys.dtype == dtype
    assert state.cache.mean_key.dtype == torch.float32
    assert apart(ours, answers(tokens, 300, razor({1}, 300, **SETTINGS, fold=fold))) < tolerance


@pytest.mark.parametrize(
    ("options", "layer", "message"),
    [
        ({"heads": None}, 0, "KV policy 'razor' needs the model's head profile: `longloom heads` makes one"),
        (
            {},
            3,
            "KV policy 'razor': the head profile is of 3 layers with 2 KV heads, found layer 3 with 2",
        ),
        (
            {"heads": HeadProfile("test", "", ((0.1, 0.2, 0.3),))},
            0,
            "KV policy 'razor': the head profile is of 1 layers with 3 KV heads, found layer 0 with 2",
        ),
        ({"sink": 2**40}, 0, "compress: sink must be 0 to 1073741824, found 1099511627776"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], layer: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        answer(replace(POLICY, **options), random_tokens(31), 30, layer=layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"induction": 1.5}, "KV policy 'razor': induction must be a share from 0 to 1, found 1.5"),
        ({"induction": True}, "KV policy 'razor': induction must be a share from 0 to 1, found True"),
        ({"echo": -0.1}, "KV policy 'razor': echo must be a share from 0 to 1, found -0.1"),
        ({"echo": float("nan")}, "KV policy 'razor': echo must be a share from 0 to 1, found nan"),
        ({"window": 0}, "KV policy 'razor': window must be a whole number >= 1, found 0"),
        ({"sink": -1}, "KV policy 'razor': sink must be a whole number >= 0, found -1"),
        ({"sink": 1.0}, "KV policy 'razor': sink must be a whole number >= 0, found 1.0"),
        ({"compression": 0.5}, "KV policy 'razor': compression must be a number >= 1, found 0.5"),
        ({"compression": float("nan")}, "KV policy 'razor': compression must be a number >= 1, found nan"),
        (
            {"fold": True, "compensate": False},
            "KV policy 'razor': fold=1 needs compensate=1, for it folds into the mean",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        RazorPolicy(**options)
