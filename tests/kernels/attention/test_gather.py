"""Gather + RoPE attention: Triton and the reference against the dense formula in float64."""

import math
import re
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention import gather
from longloom.kernels.attention.combine import combine
from longloom.kernels.attention.gather import gather_attention


class Call(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    positions: Tensor
    count: Tensor
    cos: Tensor
    sin: Tensor


def tables(rows: int, head_dim: int, *, first: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions first, first + 1, ..."""
    frequencies = 100.0 ** -(torch.arange(head_dim // 2, dtype=torch.float64) / (head_dim // 2))
    angles = (first + torch.arange(rows))[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def random_call(
    counts: list[int],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    kv_heads: int = 2,
    group: int = 1,
    steps: int = 1,
    head_dim: int = 32,
    spare: int = 3,
) -> Call:
    """A cache whose heads are strided views, chosen keys in ascending order, and rubbish behind them."""
    batch, slots = len(counts), max(counts) + spare
    tokens = 2 * slots + 5
    key, value = torch.randn(2, batch, tokens + 2, kv_heads, head_dim).to(dtype)[:, :, 1:-1].transpose(2, 3)
    positions = torch.full((batch, slots), 1 << 30, dtype=torch.int32)
    for b, count in enumerate(counts):
        positions[b, :count] = torch.randperm(tokens)[:count].sort().values
    call = Call(
        torch.randn(batch, kv_heads * group, steps, head_dim).to(dtype),
        key,
        value,
        positions,
        torch.tensor(counts, dtype=torch.int32),
        *tables(slots + 1, head_dim),
    )
    return Call(*(part.to(device) for part in call))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Features i and i + D / 2 as one complex number, turned."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos, sin)
    return torch.cat((turned.real, turned.imag), dim=-1)


def by_hand(call: Call, scale: float) -> tuple[Tensor, Tensor]:
    """The formula, one query head after the other, in float64; positions out of range add nothing."""
    query, key, value = (part.double().cpu() for part in call[:3])
    positions, count = call.positions.long().cpu(), call.count.tolist()
    cos, sin = call.cos.double().cpu(), call.sin.double().cpu()
    output, lse = torch.zeros_like(query), torch.full(query.shape[:3], -math.inf, dtype=torch.float64)
    steps, tokens = query.shape[2], key.shape[2]
    for b in range(len(query)):
        length = max(0, min(count[b], positions.shape[1]))
        slots = torch.arange(length)
        chosen = positions[b, :length]
        real = (chosen >= 0) & (chosen < tokens)
        slots, chosen = slots[real], chosen[real]
        for head in range(query.shape[1]):
            h = head // (query.shape[1] // key.shape[1])
            keys = rotated(key[b, h, chosen], cos[slots], sin[slots])
            for i in range(steps):
                own = length - steps + i
                seen = slots <= own
                if seen.any():
                    logits = keys[seen] @ rotated(query[b, head, i], cos[own], sin[own]) * scale
                    output[b, head, i] = logits.softmax(0) @ value[b, h, chosen[seen]]
                    lse[b, head, i] = logits.logsumexp(0)
    return output, lse


CASES = {
    "one query": {"counts": [97, 1, 64], "group": 4},
    "few queries": {"counts": [50, 7], "group": 1, "steps": 7},
    "few queries of groups": {"counts": [33, 130], "group": 4, "steps": 7, "kv_heads": 1},
    "a chunk": {"counts": [150], "group": 1, "steps": 40, "kv_heads": 3},
    "a chunk of groups": {"counts": [41, 99], "group": 4, "steps": 40, "kv_heads": 1},
    "nothing but the chunk": {"counts": [40], "group": 2, "steps": 40, "spare": 0},
    "rows shorter than the chunk": {"counts": [40, 3, 0], "group": 2, "steps": 7},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("head_dim", [32, 80])
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_equals_the_formula(case, head_dim, implementation, dtype, device, assert_close):
    call = random_call(**CASES[case], head_dim=head_dim, dtype=dtype, device=device)
    output, lse = gather_attention(*call, scale=head_dim**-0.5, implementation=implementation)
    expected, expected_lse = by_hand(call, head_dim**-0.5)
    assert output.dtype == dtype
    assert lse.dtype == torch.float32
    assert_close(output, expected)
    assert_close(lse, expected_lse, tolerance=1e-3 if dtype != torch.float32 else 1e-5)


@pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
@pytest.mark.parametrize("steps", [1, 40])
def test_head_sizes(head_dim, steps, dtype, device, assert_close):
    call = random_call([75], group=4, kv_heads=1, steps=steps, head_dim=head_dim, dtype=dtype, device=device)
    output, _ = gather_attention(*call, scale=head_dim**-0.5, implementation="triton")
    assert_close(output, by_hand(call, head_dim**-0.5)[0])


@pytest.mark.parametrize("processors", [1, 3, 50])
@pytest.mark.parametrize("steps", [1, 5])
def test_any_number_of_splits_shares_the_work(processors, steps, device, assert_close, monkeypatch):
    monkeypatch.setattr("longloom.kernels.attention.triton.gather.multiprocessors", lambda _: processors)
    call = random_call([300, 5, 129], group=2, steps=steps, device=device)
    output, lse = gather_attention(*call, scale=0.2, implementation="triton")
    expected, expected_lse = by_hand(call, 0.2)
    assert_close(output, expected)
    assert_close(lse, expected_lse)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_all_positions_are_ordinary_rope_attention(implementation, device, assert_close):
    """A prefill chunk behind its past, rotated to true positions beforehand, causal to the bottom right."""
    call = random_call([90], group=2, steps=21, spare=0, head_dim=64, device=device)
    call = call._replace(
        key=call.key[:, :, :90],
        value=call.value[:, :, :90],
        positions=torch.arange(90, dtype=torch.int32, device=device)[None],
    )
    output, _ = gather_attention(*call, scale=0.125, implementation=implementation)
    exact = Call(*(part.double() for part in call))
    past = torch.ones(21, 90, dtype=torch.bool, device=device).tril(90 - 21)
    expected = torch.nn.functional.scaled_dot_product_attention(
        rotated(exact.query, exact.cos[69:90], exact.sin[69:90]),
        rotated(exact.key, exact.cos[:90], exact.sin[:90]),
        exact.value,
        attn_mask=past,
        scale=0.125,
        enable_gqa=True,
    )
    assert_close(output, expected)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_only_distances_count(implementation, device, assert_close):
    """Tables that begin elsewhere give the same attention; tables with a factor scale the logits by its square."""
    call = random_call([60], group=2, steps=3, device=device)
    expected, _ = gather_attention(*call, scale=0.2, implementation=implementation)
    cos, sin = (table.to(device) for table in tables(len(call.cos), 32, first=1000))
    moved, _ = gather_attention(*call._replace(cos=cos, sin=sin), scale=0.2, implementation=implementation)
    assert_close(moved, expected, tolerance=1e-4)
    scaled = call._replace(cos=call.cos * 2, sin=call.sin * 2)
    assert_close(gather_attention(*scaled, scale=0.05, implementation=implementation)[0], expected)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_parts_of_the_slots_combine_to_the_whole(implementation, device, assert_close):
    """Without rotation a slot's number means nothing, so the slots can be dealt into two calls."""
    call = random_call([80], group=2, spare=0, device=device)
    call = call._replace(cos=torch.ones_like(call.cos), sin=torch.zeros_like(call.sin))
    whole, lse = gather_attention(*call, scale=0.2, implementation=implementation)
    halves = []
    for first in (0, 1):
        positions = call.positions[:, first::2].contiguous()
        part = call._replace(positions=positions, count=torch.full_like(call.count, 40))
        halves.append(gather_attention(*part, scale=0.2, implementation=implementation))
    outputs, parts = (torch.stack(both) for both in zip(*halves, strict=True))
    merged, merged_lse = combine(outputs, parts, implementation=implementation)
    assert_close(merged, whole)
    assert_close(merged_lse, lse)


def test_the_reference_computes_float64_exactly(device, assert_close, monkeypatch):
    monkeypatch.setattr(gather, "_LOGITS", 1000)  # several blocks of queries
    call = random_call([70, 23], group=2, steps=19, dtype=torch.float64, device=device)
    output, lse = gather_attention(*call, scale=0.2)
    expected, expected_lse = by_hand(call, 0.2)
    assert output.dtype == lse.dtype == torch.float64
    assert_close(output, expected, tolerance=1e-12)
    assert_close(lse, expected_lse, tolerance=1e-12)


def _runs(tokens: int) -> list[int]:
    """Positions in runs of neighbours, long ones at both ends, in the middle and side by side, and single ones."""
    runs = [(0, 40), (41, 44), (50, 51), (60, 110), (111, 170), (180, 181), (tokens - 33, tokens)]
    return [place for begin, end in runs for place in range(begin, end)]


LAYOUTS = {
    "room to spare": lambda x: torch.nn.functional.pad(x, (0, 0, 0, 9))[:, :, : x.shape[2]],
    "heads side by side": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "numbers between the rows": lambda x: torch.nn.functional.pad(x, (0, 3))[..., : x.shape[3]],
    "one for all heads": lambda x: x[:, :1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("steps", [1, 6])
def test_the_reference_reads_runs_and_any_strides(layout, few, steps, dtype, device, assert_close, monkeypatch):
    """Blocks of 64 slots, runs of 30 read where they lie; with few queries and with many."""
    monkeypatch.setattr(gather, "_RUN", 30)
    monkeypatch.setattr(gather, "_BLOCK", 1)
    monkeypatch.setattr(gather, "_LOGITS", 1000)
    monkeypatch.setattr(gather, "_ROWS", 12 if few else 0)
    call = random_call([187, 101, 50], group=2, steps=steps, head_dim=16, spare=1, dtype=dtype, device=device)
    runs = _runs(call.key.shape[2])
    for b, count in enumerate(call.count.tolist()):
        own = runs if b == 0 else runs[3 : 3 + count]
        call.positions[b, :count] = torch.tensor(own, dtype=torch.int32)
    laid = [LAYOUTS[layout](part) for part in (call.key, call.value)]
    for part in laid:
        assert not part.is_contiguous()
    call = call._replace(key=laid[0], value=laid[1])
    output, lse = gather_attention(*call, scale=0.2, implementation="reference")
    expected, expected_lse = by_hand(call, 0.2)
    assert_close(output, expected)
    assert_close(lse, expected_lse, tolerance=1e-3 if dtype != torch.float32 else 1e-5)


def test_pieces_follow_the_runs(monkeypatch):
    monkeypatch.setattr(gather, "_RUN", 30)
    runs = torch.tensor(_runs(300), dtype=torch.int32)
    assert gather._pieces(runs, 50) == [
        (0, 40, 0),
        (40, 44, None),
        (44, 94, 60),
        (94, 144, 111),
        (144, 153, 161),
        (153, 154, None),
        (154, 187, 267),
    ]
    assert gather._pieces(runs[44:94], 64) == [(0, 50, 60)]
    for count in (29, 30, 31):  # as many as make a run, but not neighbours
        assert gather._pieces(2 * runs[:count], 64) == [(0, count, None)]


def test_the_kernel_reads_nothing_out_of_range(device, assert_close):
    """What the host cannot look at on a GPU: such positions add nothing, such queries give zeros and -inf."""
    from longloom.kernels.attention.triton.gather import gather_attention as run

    call = random_call([60, 50, 40, 30, 20], group=2, steps=4, device=device)
    call.positions[0, 10:15] = torch.tensor([-1, 1 << 30, call.key.shape[2], -(1 << 31), (1 << 31) - 1])
    call.positions[4] = -1
    call.count.copy_(torch.tensor([60, 1000, 2, -3, 20]))
    output, lse = run(*call, 0.2)
    expected, expected_lse = by_hand(call, 0.2)
    assert_close(output, expected)
    assert_close(lse, expected_lse)
    assert torch.equal(lse.isinf().sum(dim=(1, 2)).cpu(), torch.tensor([0, 0, 8, 16, 16]))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_no_queries_give_nothing(implementation, device):
    call = random_call([5], device=device)
    output, lse = gather_attention(
        *call._replace(query=call.query[:, :, :0].contiguous()), scale=1.0, implementation=implementation
    )
    assert output.shape == (1, 2, 0, 32)
    assert lse.shape == (1, 2, 0)


def test_splits_follow_from_the_shape():
    from longloom.kernels.attention.triton.gather import _splits

    assert _splits(8, 264, 256, 2) == 32  # decode, 8 KV heads, 8192 slots
    assert _splits(128, 132, 272, 16) == 1  # a chunk of 512 queries, 32 heads
    assert _splits(300, 264, 256, 2) > 1  # one and a bit rounds
    assert _splits(1, 264, 3, 2) == 1  # too little to share


BAD = {
    "query must be [B, Hq, Sq, D], found [1, 4, 32]": lambda c: {"query": c.query[:, :, 0].contiguous()},
    "key must be of float32, found float16": lambda c: {"key": c.key.half()},
    "key must be [B, Hkv, N, D] with B=1, D=32, found [1, 2, 65, 16]": lambda c: {"key": c.key[..., :16]},
    "value must be [B, Hkv, N, D] with B=1, Hkv=2, N=65, D=32, found [1, 2, 64, 32]": lambda c: {
        "value": c.value[:, :, 1:]
    },
    "value must be contiguous in its last dimension": lambda c: {"value": c.value.mT.contiguous().mT},
    "positions must be of int32, found int64": lambda c: {"positions": c.positions.long()},
    "count must be [B] with B=1, found [2]": lambda c: {"count": c.count.repeat(2)},
    "3 query heads are no multiple of 2 KV heads": lambda c: {"query": c.query[:, :3].contiguous()},
    "query must be of an even head size, found 31": lambda c: {
        name: getattr(c, name)[..., :31].clone(memory_format=torch.contiguous_format)
        for name in ("query", "key", "value")
    },
    "query must be at most M=2 queries, each with a slot of its own, found 3": lambda c: {
        "positions": c.positions[:, :2].contiguous()
    },
    "cos must be [R, D/2] with D/2=16, found [31, 32]": lambda c: {"cos": c.cos.repeat(1, 2)},
    "cos must be of float32, found float64": lambda c: {"cos": c.cos.double()},
    "sin must be [R, D/2] with R=31, D/2=16, found [30, 16]": lambda c: {"sin": c.sin[1:]},
    "cos must be at least M=30 rows, found 29": lambda c: {"cos": c.cos[2:], "sin": c.sin[2:]},
    "count must be 0 to M=30, found -1": lambda c: {"count": c.count - 28},
    "count must be 0 to M=30, found 31": lambda c: {"count": c.count + 4},
    "positions must be 0 to 64, found -1": lambda c: {"positions": c.positions.clone().fill_(-1)},
    "positions must be 0 to 64, found 65": lambda c: {"positions": c.positions.clone().fill_(65)},
    "count must be on cpu like query, found meta": lambda c: {"count": c.count.to("meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_call_is_refused(message):
    call = random_call([27], group=2, steps=3, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=re.escape(f"gather_attention: {message}")):
        gather_attention(*call._replace(**BAD[message](call)), scale=1.0)


def test_a_scale_that_is_no_number_is_refused():
    call = random_call([27], device=torch.device("cpu"))
    with pytest.raises(ValueError, match="gather_attention: scale must be finite, found nan"):
        gather_attention(*call, scale=float("nan"))


def test_triton_refuses_float64():
    call = random_call([27], dtype=torch.float64, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="'triton' cannot do this: Triton kernels take float16, bfloat16 or float32"):
        gather_attention(*call, scale=1.0, implementation="triton")
