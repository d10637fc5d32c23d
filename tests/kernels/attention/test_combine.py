"""Merging parts of a softmax: Triton and the reference against the attention over all keys in float64."""

import math
import re

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.combine import combine


def attention(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Output and lse of query [..., S, D] over keys and values [..., n, D]."""
    logits = query @ keys.mT
    return logits.softmax(-1) @ values, logits.logsumexp(-1)


@pytest.mark.parametrize(
    ("parts", "shape"),
    [(1, (1, 2, 3, 32)), (2, (2, 3, 21, 64)), (3, (1, 1, 1, 80)), (5, (2, 2, 2, 16)), (40, (1, 3, 1, 128))],
)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_disjoint_parts_make_the_whole(parts, shape, implementation, dtype, device, assert_close):
    query = torch.randn(shape, dtype=torch.float64) * shape[-1] ** -0.25
    keys, values = torch.randn(2, *shape[:2], 7 * parts, shape[-1], dtype=torch.float64)
    found = [attention(query, keys[..., n::parts, :], values[..., n::parts, :]) for n in range(parts)]
    outputs, lse = (torch.stack(part).to(device) for part in zip(*found, strict=True))
    output, total = combine(outputs.to(dtype), lse.float(), implementation=implementation)
    expected, expected_lse = attention(query, keys, values)
    assert output.dtype == dtype
    assert total.dtype == torch.float32
    assert_close(output, expected)
    assert_close(total, expected_lse)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_parts_that_have_seen_nothing_add_nothing(implementation, device, assert_close):
    outputs = torch.randn(4, 2, 3, 5, 48, device=device)
    lse = torch.randn(4, 2, 3, 5, device=device)
    outputs[1], lse[1] = math.nan, -math.inf
    outputs[2, 0], lse[2, 0] = math.inf, -math.inf
    output, total = combine(outputs, lse, implementation=implementation)
    expected = [combine(outputs[kept, b : b + 1], lse[kept, b : b + 1]) for b, kept in ((0, [0, 3]), (1, [0, 2, 3]))]
    assert_close(output, torch.cat([part for part, _ in expected]))
    assert_close(total, torch.cat([part for _, part in expected]))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_nothing_seen_at_all_gives_zeros(parts, implementation, device):
    outputs = torch.full((parts, 1, 2, 3, 16), math.nan, device=device)
    lse = torch.full((parts, 1, 2, 3), -math.inf, device=device)
    output, total = combine(outputs, lse, implementation=implementation)
    assert torch.equal(output, torch.zeros_like(output))
    assert torch.equal(total, lse[0])


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_large_logits_do_not_overflow(implementation, device, assert_close):
    outputs = torch.randn(2, 1, 1, 2, 16, device=device)
    lse = torch.tensor([[1e4, -1e4], [1e4, -2e4]], device=device).view(2, 1, 1, 2)
    output, total = combine(outputs, lse, implementation=implementation)
    assert_close(output[..., 0, :], outputs.mean(0)[..., 0, :])
    assert_close(output[..., 1, :], outputs[0, ..., 1, :])
    assert_close(total, lse[0] + torch.tensor([math.log(2), 0.0], device=device))


def test_the_reference_computes_float64_exactly(device, assert_close):
    outputs = torch.randn(3, 1, 2, 3, 32, dtype=torch.float64, device=device)
    lse = torch.randn(3, 1, 2, 3, dtype=torch.float64, device=device)
    output, total = combine(outputs, lse)
    weights = lse.softmax(0)
    assert_close(output, torch.einsum("nbhs,nbhsd->bhsd", weights, outputs), tolerance=1e-14)
    assert_close(total, lse.exp().sum(0).log(), tolerance=1e-14)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_no_queries_give_nothing(implementation, device):
    output, lse = combine(
        torch.zeros(2, 1, 2, 0, 16, device=device),
        torch.zeros(2, 1, 2, 0, device=device),
        implementation=implementation,
    )
    assert output.shape == (1, 2, 0, 16)
    assert lse.shape == (1, 2, 0)


@pytest.mark.parametrize(
    ("outputs", "lse", "options", "message"),
    [
        (torch.zeros(2, 1, 4, 32), torch.zeros(2, 1, 4), {}, "outputs must be [N, B, Hq, S, D], found [2, 1, 4, 32]"),
        (
            torch.zeros(2, 1, 4, 3, 32),
            torch.zeros(3, 1, 4, 3),
            {},
            "lse must be [N, B, Hq, S] with N=2, B=1, Hq=4, S=3, found [3, 1, 4, 3]",
        ),
        (
            torch.zeros(2, 1, 4, 3, 32).half(),
            torch.zeros(2, 1, 4, 3).half(),
            {},
            "lse must be of float32, found float16",
        ),
        (torch.zeros(2, 1, 4, 3, 32).int(), torch.zeros(2, 1, 4, 3), {}, "outputs must be of float16, bfloat16, "),
        (torch.zeros(0, 1, 4, 3, 32), torch.zeros(0, 1, 4, 3), {}, "outputs must be of at least one part, found 0"),
        (torch.zeros(2, 1, 4, 32, 3).mT, torch.zeros(2, 1, 4, 3), {}, "outputs must be contiguous, found strides"),
        (torch.zeros(2, 1, 4, 3, 32), torch.zeros(2, 1, 4, 3, device="meta"), {}, "lse must be on cpu like outputs"),
        (
            torch.zeros(2, 1, 4, 3, 32),
            torch.zeros(2, 1, 4, 3),
            {"implementation": "sdpa"},
            "implementation must be one of triton, reference, found 'sdpa'",
        ),
    ],
)
def test_a_bad_call_is_refused(outputs, lse, options, message):
    with pytest.raises(ValueError, match=re.escape(f"combine: {message}")):
        combine(outputs, lse, **options)
