"""The family of policies that compress a prompt: any lengths, heads, padding and pieces, against loops in float64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import longloom.kernels.kvcache.compressed as module
from longloom.kernels.attention.decode import decode
from longloom.kernels.attention.pack import pack
from longloom.kernels.attention.pages import PAGE, RaggedKV
from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.compressed import CompressedPolicy, CompressedState, tokens_of
from longloom.kernels.kvcache.evicting import EvictingPolicy
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.prompt import PromptState
from longloom.kernels.kvcache.razor import RazorPolicy
from longloom.kernels.kvcache.registry import get_policy

from .dense_heads import Keeps, answers, held, razor
from .tokens import HEADS, ROPE, SCALING, SIZE, Tokens, random_tokens

#: By which heads are retrieval heads: an order of the two, of which none, the first or both are chosen.
SHARES = {0: 0.0, 1: 0.5, 2: 1.0}


def run(
    policy: CompressedPolicy, tokens: Tokens, pieces: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, CompressedState]:
    """Piece by piece, told of the padding only what is known by then, as attention masks do."""
    state, outputs = CompressedState(0, layers=3), []
    for length in pieces:
        end = state.seen + length
        part = tokens[:, state.seen : end]
        start = torch.tensor([min(end, pad) for pad in padding]) if any(padding) else None
        outputs.append(policy.attend(state, part.query, part.key, part.value, ROPE, start=start, scaling=SCALING))
        assert state.seen == end
    return torch.cat(outputs, dim=2), state


@dataclass(frozen=True)
class Third(EvictingPolicy):
    """Keeps of all heads the tokens whose first value is high, of equal ones the earlier; of head 0 one less."""

    name: ClassVar[str] = "third"

    def scores(self, prompt: PromptState, rope: Rope) -> Tensor:
        assert prompt.values is not None
        scores: Tensor = prompt.values[:, :, : prompt.seen, 0].sign().float()
        return scores

    def counts(self, prompt: PromptState, scores: Tensor) -> Tensor:
        counts = super().counts(prompt, scores)
        counts[:, 0] = (counts[:, 0] - 1).clamp(min=0)
        return counts


def thirds(tokens: Tokens, prompt: int, budget: int | float) -> Keeps:
    """What `Third` keeps of a row."""
    kept = min(budget if isinstance(budget, int) else max(1, int(budget * prompt)), prompt)

    def keeps(head: int, seen: int) -> tuple[list[int], list[int]]:
        order = sorted(range(prompt), key=lambda token: -float(tokens.value[0, head, token, 0].sign()))
        best = order[: kept - 1 if head == 0 else kept] if kept else []
        return [*sorted(best), *range(prompt, seen)], []

    return keeps


@dataclass(frozen=True)
class Drawn:
    """One batch: how it is padded, cut and fed."""

    prompt: list[int]
    after: list[int]
    padding: list[int]
    groups: int
    seed: int

    @property
    def tokens(self) -> Tokens:
        drawn = random_tokens(
            sum(self.prompt + self.after), batch=len(self.padding), groups=self.groups, seed=self.seed
        )
        return Tokens(drawn.query.double(), drawn.key.double(), drawn.value.double())


@st.composite
def batches(draw: st.DrawFn) -> Drawn:
    """A prompt of 1 to 150 tokens in pieces of two or more, a single token that ends it, and pieces of any length."""
    prompt = draw(st.one_of(st.just([1]), st.lists(st.integers(2, 50), min_size=1, max_size=3)))
    length = sum(prompt)
    near = st.sampled_from([0, length // 2, length - 1, length])
    return Drawn(
        prompt,
        [1, *draw(st.lists(st.integers(1, 9), max_size=4))],
        draw(st.lists(st.one_of(near, st.integers(0, length)), min_size=1, max_size=3)),
        draw(st.sampled_from([1, 2, 3])),
        draw(st.integers(0, 2**16)),
    )


def check(policy: CompressedPolicy, drawn: Drawn, keeps: Any, compensate: bool = True) -> None:
    """Every row answers as it should alone, and holds what it should."""
    tokens, length = drawn.tokens, sum(drawn.prompt)
    ours, state = run(policy, tokens, drawn.prompt + drawn.after, drawn.padding)
    assert ours.isfinite().all()
    cache = state.cache
    assert cache is not None
    for row, pad in enumerate(drawn.padding):
        alone = tokens[row : row + 1, pad:]
        own: Keeps = keeps(alone, length - pad)
        expected = answers(alone, length - pad, own, compensate=compensate)
        assert (ours[row : row + 1, :, length:] - expected).abs().max() < 1e-6
        for head in range(HEADS):
            kept, gone = own(head, alone.key.shape[2])
            assert int(cache.kv_len[row, head]) == len(kept)
            assert cache.dropped is None or int(cache.dropped[row, head]) == len(gone)
            values = held(cache, cache.values, row, head)
            assert sorted(values[:, 0].tolist()) == sorted(alone.value[0, head, list(kept), 0].tolist())
    RaggedKV(cache.keys, cache.values, cache.table, cache.kv_len)  # finds nothing wrong with the pages
    assert torch.equal(cache.host_len, cache.kv_len)
    assert torch.equal(cache.host_table, cache.table)


@settings(max_examples=120, deadline=None)
@given(
    drawn=batches(),
    protected=st.sampled_from([0, 1, 2]),
    sink=st.integers(0, 6),
    window=st.one_of(st.integers(1, 12), st.sampled_from([63, 64, 65])),
    compression=st.sampled_from([1.0, 1.5, 3.0, 1e9]),
    mode=st.sampled_from(["plain", "lean", "fold"]),
)
def test_razor(drawn: Drawn, protected: int, sink: int, window: int, compression: float, mode: str) -> None:
    policy = RazorPolicy(
        HeadProfile("test", "", ((0.2, 0.1),)),
        induction=SHARES[protected],
        echo=0.0,
        window=window,
        compression=compression,
        sink=sink,
        compensate=mode != "lean",
        fold=mode == "fold",
    )
    heads = set(range(protected))

    def keeps(alone: Tokens, prompt: int) -> Keeps:
        return razor(heads, prompt, sink=sink, window=window, compression=compression, fold=policy.fold)

    check(policy, drawn, keeps, policy.compensate)


@settings(max_examples=80, deadline=None)
@given(
    drawn=batches(),
    budget=st.one_of(st.integers(1, 70), st.sampled_from([0.01, 0.3, 0.5, 0.99])),
)
def test_evicting_with_ties_and_a_count_of_each_head(drawn: Drawn, budget: int | float) -> None:
    check(Third(budget), drawn, lambda alone, prompt: thirds(alone, prompt, budget))


@settings(max_examples=40, deadline=None)
@given(
    drawn=batches(),
    budget=st.one_of(st.integers(3, 70), st.sampled_from([0.01, 0.3, 0.5, 0.99])),
)
def test_the_recent_tokens(drawn: Drawn, budget: int | float) -> None:
    """Another definition, of a policy of the registry."""
    policy: Any = get_policy("recent", budget=budget, sink=2)

    def keeps(alone: Tokens, prompt: int) -> Keeps:
        kept = policy.kept(prompt)
        sink = min(2, max(0, kept - 1))

        def own(head: int, seen: int) -> tuple[list[int], list[int]]:
            return [token for token in range(seen) if token < sink or token >= prompt - (kept - sink)], []

        return own

    check(policy, drawn, keeps)


def test_a_long_later_turn_is_decoded_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def counted(query: Tensor, cache: RaggedKV, **options: Any) -> tuple[Tensor, Tensor]:
        steps.append(query.shape[2])
        return decode(query, cache, **options)

    monkeypatch.setattr(module, "decode", counted)
    drawn = Drawn([30], [1, 1200, 1], [0, 7], groups=2, seed=0)
    check(Third(9), drawn, lambda alone, prompt: thirds(alone, prompt, 9))
    assert steps == [1, 512, 512, 176, 1]


@dataclass(frozen=True)
class Observer(CompressedPolicy):
    """Keeps everything and says what it was shown."""

    name: ClassVar[str] = "observer"
    shown: Any = None

    @property
    def observed(self) -> int:
        return 3

    def compress(self, prompt: PromptState, rope: Rope) -> RaggedKV:
        assert prompt.keys is not None
        assert prompt.values is not None
        self.shown.append((tokens_of(prompt), prompt.queries, prompt.scaling, prompt.keys[:, :, : prompt.seen].clone()))
        rows = len(prompt.keys)
        chosen = torch.arange(prompt.seen).expand(rows, HEADS, -1)
        count = torch.full((rows, HEADS), prompt.seen, dtype=torch.int32)
        return pack(prompt.keys[:, :, : prompt.seen], prompt.values[:, :, : prompt.seen], chosen, count)


@pytest.mark.parametrize("pieces", [[20], [2, 18], [18, 2], [5, 5, 10]])
@pytest.mark.parametrize("padding", [[0, 0], [0, 7], [20, 19]])
def test_a_prompt_is_compressed_once_and_as_a_whole(pieces: list[int], padding: list[int]) -> None:
    shown: list[Any] = []
    tokens = random_tokens(25, batch=2)
    run(Observer(shown=shown), tokens, [*pieces, 1, 3, 1], padding)
    ((lengths, queries, scaling, keys),) = shown
    assert lengths == [20 - pad for pad in padding]
    assert torch.equal(queries, tokens.query[:, :, 17:20])
    assert scaling == SCALING
    for row, pad in enumerate(padding):
        assert torch.equal(
            keys[row, :, pad:], ROPE.rotate(tokens.key[row : row + 1, :, pad:20], torch.arange(20 - pad))[0]
        )


def test_a_row_that_begins_behind_the_prompt_is_refused() -> None:
    """As when padded prompts are fed token by token: its padding would be kept as tokens."""
    tokens = random_tokens(12, batch=2)
    run(Third(5), tokens, [10, 1, 1], [0, 10])
    message = (
        "KV policy 'third': prompts end before the first token that is fed alone, here after 10, found a row that is "
        "padding beyond that: feed more tokens at once"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(Third(5), tokens, [10, 1, 1], [0, 11])


def test_the_state_counts_the_prompt_then_the_pages() -> None:
    tokens = random_tokens(100)
    state = CompressedState(0)
    assert state.bytes() == 0
    policy = Third(5)
    for begin, end in ((0, 99), (99, 100)):
        part = tokens[:, begin:end]
        policy.attend(state, part.query, part.key, part.value, ROPE, start=None, scaling=SCALING)
        if end == 99:
            assert state.bytes() == 2 * HEADS * 99 * SIZE * 4
    assert state.bytes() == 2 * HEADS * PAGE * SIZE * 4 + 2 * HEADS * 4  # a page a head; the table and the lengths


@pytest.mark.parametrize("budget", [0, -1, 1.0, 0.0, 1.5, True, float("nan"), "9", None])
def test_a_budget_is_a_whole_number_or_a_share(budget: Any) -> None:
    message = f"budget must be a whole number >= 1 or a share between 0 and 1, found {budget!r}"
    with pytest.raises(ValueError, match=f"^KV policy 'third': {re.escape(message)}$"):
        Third(budget)
