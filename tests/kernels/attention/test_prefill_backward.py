"""Gradients of prefill: Triton and the reference against float64 autograd of dense attention."""

import pytest
import torch
from torch import Tensor

from longloom.kernels.attention.prefill import prefill, prefill_lse

from .test_prefill import CASES, SCALE, Case, Inputs, Largest, dense, draw

#: Rounded twice on the way: probabilities and the logits' gradients.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def gradients(inputs: Inputs, implementation: str, d_output: Tensor) -> tuple[Tensor, ...]:
    parts = [part.requires_grad_() for part in (inputs.query, inputs.key, inputs.value)]
    output, lse = inputs.run(implementation)
    assert not lse.requires_grad
    return torch.autograd.grad(output, parts, d_output)


def expected_gradients(inputs: Inputs, d_output: Tensor) -> tuple[Tensor, ...]:
    parts = [part.requires_grad_() for part in (inputs.query, inputs.key, inputs.value)]
    output = dense(inputs)[0]
    return torch.autograd.grad(output, parts, d_output.to(output))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_equal_float64_autograd(case, implementation, dtype, device, assert_close):
    inputs = draw(CASES[case], dtype, device)
    d_output = torch.randn_like(inputs.query)
    found = gradients(inputs, implementation, d_output)
    for gradient, part, expected in zip(
        found, (inputs.query, inputs.key, inputs.value), expected_gradients(inputs.exactly(), d_output), strict=True
    ):
        assert gradient.dtype == part.dtype
        assert_close(gradient, expected, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (64, 16), (16, 64)])
def test_any_tiles(block_m, block_n, device, assert_close, monkeypatch):
    """Tiles of rows with and without a mask, before, in and behind windows of several tiles."""
    from longloom.kernels.attention.triton import prefill as kernels
    from longloom.kernels.attention.triton import prefill_backward

    for name in ("configuration", "configuration_keys"):
        monkeypatch.setattr(prefill_backward, name, lambda *_: kernels.tiles_of(block_m, block_n))
    case = Case([(100, 140), (17, 17), (0, 3)], group=3, head_dim=16, window=[-1, 60, 8], sink=[0, 40, 1])
    inputs = draw(case, torch.float32, device)
    d_output = torch.randn_like(inputs.query)
    found = gradients(inputs, "triton", d_output)
    for gradient, expected in zip(found, expected_gradients(inputs.exactly(), d_output), strict=True):
        assert_close(gradient, expected, tolerance=TOLERANCE[torch.float32])


@pytest.mark.parametrize("head_dim", [96, 256])
def test_head_sizes(head_dim, dtype, device, assert_close):
    inputs = draw(Case([(20, 40)], group=2, head_dim=head_dim, window=[-1, 9], sink=[0, 2]), dtype, device)
    d_output = torch.randn_like(inputs.query)
    found = gradients(inputs, "triton", d_output)
    for gradient, expected in zip(found, expected_gradients(inputs.exactly(), d_output), strict=True):
        assert_close(gradient, expected, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("case", ["full and windowed", "nothing to see", "alibi in windows"])
def test_the_reference_by_finite_differences(case):
    small = Case([(5, 7), (1, 3)], 2, 4, CASES[case].window[:2], CASES[case].sink[:2], CASES[case].alibi)
    inputs = draw(small, torch.float64, torch.device("cpu"))

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return prefill(query, key, value, inputs.cu_q, inputs.cu_k, scale=SCALE, **inputs.options)

    parts = [part.requires_grad_() for part in (inputs.query, inputs.key, inputs.value)]
    assert torch.autograd.gradcheck(run, parts)


@pytest.mark.parametrize("implementation", ["sdpa", "reference", "triton"])
def test_views_and_a_gradient_of_one_number(implementation, device, assert_close):
    """Queries, keys and values as views [T, H, D] of one projection; the sum's gradient has strides of 0."""
    heads = 2 if implementation == "sdpa" else 4  # on CUDA torch has no fused kernel for two a KV head in float32
    projected = torch.randn(50, (heads + 2 + 2) * 32, device=device, requires_grad=True)
    cu = torch.tensor([0, 20, 50], dtype=torch.int32)

    def loss(of: Tensor, implementation: str) -> Tensor:
        query, key, value = of.unflatten(1, (-1, 32)).split((heads, 2, 2), dim=1)
        return prefill(query, key, value, cu, cu, scale=SCALE, implementation=implementation).sum()

    exact = projected.detach().double().cpu().requires_grad_()
    (expected,) = torch.autograd.grad(loss(exact, "reference"), exact)
    (found,) = torch.autograd.grad(loss(projected, implementation), projected)
    assert_close(found, expected, tolerance=TOLERANCE[torch.float32])


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_equal_calls_have_equal_bits(implementation, device):
    inputs = draw(CASES["alibi in windows"], torch.float32, device)
    d_output = torch.randn_like(inputs.query)
    first, second = (gradients(inputs, implementation, d_output) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_keys_that_nobody_sees_get_zeros(implementation, device):
    inputs = draw(Case([(10, 90)], group=2, head_dim=16, window=[4, 3], sink=[2, 0]), torch.float32, device)
    _, *found = gradients(inputs, implementation, torch.randn_like(inputs.query))
    seen = torch.zeros(90, 2, dtype=torch.bool, device=device)
    seen[[0, 1], 0] = seen[77:, 0] = seen[78:, 1] = True
    for gradient in found:
        assert torch.equal(gradient.abs().sum(dim=-1) > 0, seen)


@pytest.mark.parametrize("window", [-1, 64])
def test_the_reference_keeps_no_square_for_the_gradients(window):
    inputs = draw(Case([(2000, 2000)], group=1, head_dim=16, window=[window]), torch.float32, torch.device("cpu"))
    kept = []
    inputs.query.requires_grad_()
    with (
        Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part.numel()) or part, lambda part: part),
    ):
        output, _ = prefill_lse(
            inputs.query, inputs.key, inputs.value, inputs.cu_q, inputs.cu_k, scale=SCALE, **inputs.options
        )
        output.sum().backward()
    assert largest.elements <= 1 << 21
    assert max(kept) <= 2000 * 16  # beside checkpoints nothing but what is of the inputs' size


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_queries_that_see_nothing_take_no_gradient_whatever_comes_in(implementation, device):
    inputs = draw(Case([(5, 9)], group=2, head_dim=16, window=[0, 3], sink=[0, 0]), torch.float32, device)
    d_query, d_key, d_value = gradients(inputs, implementation, torch.full_like(inputs.query, 1e30))
    assert d_query.isfinite().all()
    assert d_key.isfinite().all()
    assert d_value.isfinite().all()
    assert not d_query[:, :2].any()
    assert not d_value[:, 0].any()
