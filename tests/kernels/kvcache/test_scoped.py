"""What KV policies with a finite scope share: layout, chunks, rows, positions. The choice here is easy to foretell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.scoped import ScopedPolicy, ScopedState
from longloom.kernels.kvcache.tokens import DeviceTokens

from .tokens import ROPE, SCALING, Tokens, random_tokens, turn


@dataclass
class Call:
    """What `choose` was asked."""

    queries: Tensor
    seen: int
    begin: list[int]
    end: list[int]


@dataclass(frozen=True)
class EveryThird(ScopedPolicy):
    """Of the middle every third slot, by its own number, the last `most` of them."""

    name: ClassVar[str] = "every-third"

    most: int = 4
    calls: list[Call] = field(default_factory=list, compare=False)

    @property
    def most_chosen(self) -> int:
        return self.most

    def choose(self, state: Any, query: Tensor, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        assert begin.dtype == end.dtype == torch.int32
        assert query.is_contiguous()
        assert state.tokens.seen == state.seen
        self.calls.append(Call(query, state.seen, begin.tolist(), end.tolist()))
        chosen = [third(low, high, self.most) for low, high in zip(begin.tolist(), end.tolist(), strict=True)]
        rows = [[*slots, *[-1] * (self.most - len(slots))] for slots in chosen]
        counts = [len(slots) for slots in chosen]
        return torch.tensor(rows, dtype=torch.int32), torch.tensor(counts, dtype=torch.int32)


def third(low: int, high: int, most: int) -> list[int]:
    found = [slot for slot in range(low, high) if slot % 3 == 0]
    return found[max(0, len(found) - most) :]


class Watched(DeviceTokens):
    """Notes what each row of each chunk sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scopes: list[list[list[int]]] = []

    def attend(self, query: Tensor, positions: Tensor, count: Tensor, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
        assert positions.dtype == count.dtype == torch.int32
        self.scopes.append([row[:many] for row, many in zip(positions.tolist(), count.tolist(), strict=True)])
        return super().attend(query, positions, count, cos, sin, scale)


def policy_of(**options: Any) -> EveryThird:
    return EveryThird(**{"sink": 3, "local": 8, "chunk": 4, **options})


def run(
    policy: EveryThird, tokens: Tokens, pieces: Sequence[int], padding: Sequence[int] | None = None
) -> tuple[Tensor, ScopedState]:
    state, outputs = ScopedState(0, tokens=Watched()), []
    for length in pieces:
        end = state.seen + length
        part = tokens[:, state.seen : end]
        start = None if padding is None else torch.tensor([min(end, pad) for pad in padding])
        outputs.append(policy.attend(state, part.query, part.key, part.value, ROPE, start=start, scaling=SCALING))
    return torch.cat(outputs, dim=2), state


def chunks(policy: EveryThird, pieces: Sequence[int]) -> list[tuple[int, int]]:
    ends = [0, *accumulate(pieces)]
    full = policy.sink + policy.most + policy.local  # type: ignore[operator]
    places = {*ends, *range(0, ends[-1], policy.chunk), min(full, ends[-1])}  # type: ignore[call-overload]
    return [*pairwise(sorted(places))]


def seen_by(policy: EveryThird, pad: int, end: int) -> list[int]:
    """The scope of a row whose newest slot is end - 1."""
    assert policy.local is not None
    low, high = pad + policy.sink, end - policy.local
    if high - low <= policy.most:
        return [*range(pad, end)]
    return [*range(pad, low), *third(low, high, policy.most), *range(high, end)]


def expected(policy: EveryThird, tokens: Tokens, pieces: Sequence[int], row: int, pad: int) -> Tensor:
    """One row, one query after the other: [Hq, N, D], zeros at padding."""
    query, key, value = tokens.query[row], tokens.key[row], tokens.value[row].double()
    output = torch.zeros(query.shape, dtype=torch.float64)
    group = len(query) // len(key)
    for first, end in chunks(policy, pieces):
        slots = seen_by(policy, pad, end)
        places = torch.arange(len(slots))
        for now in range(max(first, pad), end):
            seen = slots.index(now) + 1
            for head in range(len(query)):
                keys = turn(key[head // group, slots[:seen]], places[:seen])
                own = turn(query[head, now : now + 1], places[seen - 1 : seen])[0]
                output[head, now] = (keys @ own * SCALING).softmax(0) @ value[head // group, slots[:seen]]
    return output


# --- The chunks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[60], [1] * 60, [17, 25, 1, 1, 16], [15, 45], [4] * 15, [59, 1]])
@pytest.mark.parametrize(
    "options", [{}, {"sink": 0}, {"chunk": 8}, {"chunk": 1, "local": 1}, {"most": 0}, {"chunk": 3}]
)
def test_answers_equal_a_loop(options: dict[str, Any], pieces: list[int]) -> None:
    policy, padding = policy_of(**options), [0, 11, 39, 60]
    tokens = random_tokens(60, batch=4)
    together, state = run(policy, tokens, pieces, padding)
    assert together.isfinite().all()
    for row, pad in enumerate(padding):
        difference = (together[row].double() - expected(policy, tokens, pieces, row, pad))[:, pad:]
        assert difference.numel() == 0 or difference.abs().max().item() < 2e-5
        scopes = [seen_by(policy, pad, end) for _, end in chunks(policy, pieces)]
        assert [scope[row] for scope in state.tokens.scopes] == scopes
    assert (state.seen, state.tokens.seen) == (60, 60)
    assert state.bytes() == sum(part.untyped_storage().nbytes() for part in state.tokens.tensors())


def test_choose_gets_each_chunk_s_queries_and_each_row_s_middle() -> None:
    policy, tokens = policy_of(), random_tokens(33, batch=3)  # a scope of 3 + 4 + 8
    run(policy, tokens, [26, 1, 6], [0, 9, 30])
    ends = [16, 20, 24, 26, 27, 28, 32, 33]  # from where the scope is full; multiples of 4, and the caller's
    assert [call.seen for call in policy.calls] == ends
    for call, (first, end) in zip(policy.calls, pairwise([15, *ends]), strict=True):
        assert torch.equal(call.queries, tokens.query[:, :, first:end])
        for row, pad in enumerate([0, 9, min(end, 30)]):
            low, high = min(pad + 3, end), end - 8
            if high - low > 4:
                assert (call.begin[row], call.end[row]) == (low, high)
            else:  # it fits
                assert call.begin[row] == call.end[row]
    assert [call.begin[1] < call.end[1] for call in policy.calls] == [False] * 3 + [True] * 5
    assert not any(call.begin[2] < call.end[2] for call in policy.calls)


@pytest.mark.parametrize(
    ("options", "length"), [({}, 15), ({"most": 0}, 40), ({"sink": 30}, 42), ({"most": 100}, 60), ({"local": 60}, 60)]
)
def test_nothing_is_chosen_where_everything_fits_or_nothing_may_be(options: dict[str, Any], length: int) -> None:
    policy = policy_of(**options)
    run(policy, random_tokens(length), [length - 2, 1, 1])
    assert policy.calls == []


def test_cuts_at_whole_chunks_change_no_bit() -> None:
    tokens = random_tokens(64, batch=2)
    whole = run(policy_of(), tokens, [64], [0, 6])[0]
    for pieces in ([4] * 16, [32, 32], [8, 4, 52]):
        assert torch.equal(run(policy_of(), tokens, pieces, [0, 6])[0], whole)


def test_the_padding_of_a_row_may_become_known_piece_by_piece() -> None:
    """A row is padding throughout until its first token has come; a mask over all says the same at once."""
    tokens, policy, state = random_tokens(40, batch=2), policy_of(), ScopedState(0)
    start = torch.tensor([0, 33])
    at_once = policy.attend(state, tokens.query, tokens.key, tokens.value, ROPE, start=start, scaling=SCALING)
    assert torch.equal(run(policy, tokens, [40], [0, 33])[0], at_once)
    assert torch.equal(run(policy, tokens, [16, 16, 8], [0, 33])[0], at_once)


def test_strided_queries_and_keys_will_do() -> None:
    """As a model's projections give them: [B, S, H, D] transposed."""
    tokens = random_tokens(40)
    strided = Tokens(*(part.transpose(1, 2).contiguous().transpose(1, 2) for part in vars(tokens).values()))
    assert not strided.query.is_contiguous()
    assert torch.equal(run(policy_of(), strided, [30, 10])[0], run(policy_of(), tokens, [30, 10])[0])


# --- Positions --------------------------------------------------------------------------------------------------------


def test_tables_are_the_rotation_of_positions_from_zero() -> None:
    rope = Rope(ROPE.inv_freq, attention_scaling=1.3)
    x = random_tokens(37).key
    for length in (1, 2, 5, 37, 3):
        cos, sin = rope.tables(length, x.device)
        assert len(cos) >= length
        assert cos.dtype == sin.dtype == torch.float32
        first, second = x[:, :, :length].chunk(2, dim=-1)
        turned = torch.cat(
            (first * cos[:length] - second * sin[:length], second * cos[:length] + first * sin[:length]), -1
        )
        assert torch.equal(turned, rope.rotate(x[:, :, :length], torch.arange(length)))


def test_tables_are_made_seldom_while_an_answer_grows() -> None:
    rope = Rope(ROPE.inv_freq)
    made = {rope.tables(length, torch.device("cpu"))[0].data_ptr() for length in range(1, 1025)}
    assert len(made) <= 11  # one a power of two


def test_scaled_vectors_are_scaled_once() -> None:
    """YaRN's factor is on queries and keys: with both all scores grow by its square."""
    tokens, policy = random_tokens(12), policy_of()
    plain = Rope(ROPE.inv_freq)
    state, other = ScopedState(0), ScopedState(0)
    ours = policy.attend(
        state, tokens.query, tokens.key, tokens.value, Rope(ROPE.inv_freq, 1.5), start=None, scaling=0.4
    )
    theirs = policy.attend(other, tokens.query, tokens.key, tokens.value, plain, start=None, scaling=0.4 * 1.5**2)
    torch.testing.assert_close(ours, theirs)


# --- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "options", "local", "chunk"),
    [
        (1024, {}, 512, 64),
        (8192, {}, 4096, 512),
        (1 << 20, {}, 8192, 512),
        (7, {}, 3, 1),
        (1, {}, 1, 1),
        (1024, {"chunk": 512}, 512, 512),
        (1024, {"local": 100}, 100, 12),
        (None, {"local": 100}, 100, 12),
        (None, {"local": 3, "chunk": 2}, 3, 2),
    ],
)
def test_local_and_chunk_come_from_the_window(
    window: int | None, options: dict[str, Any], local: int, chunk: int
) -> None:
    fitted = EveryThird(**options).fitted(Rope(ROPE.inv_freq, window=window))
    assert (fitted.local, fitted.chunk) == (local, chunk)
    assert type(fitted) is EveryThird


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sink": -1}, "sink must be a whole number >= 0, found -1"),
        ({"local": 0}, "local must be a whole number >= 1, found 0"),
        ({"local": "8"}, "local must be a whole number >= 1, found '8'"),
        ({"chunk": 0}, "chunk must be a whole number >= 1, found 0"),
        ({"chunk": 1.0}, "chunk must be a whole number >= 1, found 1.0"),
        ({"chunk": 9}, "chunk must be at most local=8, for a chunk lies within the local tokens, found 9"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^KV policy 'every-third': {re.escape(message)}$"):
        policy_of(**options)


def test_an_unknown_window_and_no_local_is_refused() -> None:
    message = "KV policy 'every-third' needs the option 'local': the model's window is not known"
    with pytest.raises(ValueError, match=f"^{message}$"):
        EveryThird().fitted(ROPE)
