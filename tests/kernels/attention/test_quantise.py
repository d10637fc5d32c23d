"""Keys in 8 bits: how far codes and scales are from the keys, and the keys that make trouble."""

import re

import pytest
import torch

from longloom.kernels.attention.quantise import quantise

BOTH = pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])


@BOTH
def test_every_number_is_as_close_as_its_code_allows(codes, dtype, device):
    key = (torch.randn(2, 3, 50, 33) * torch.logspace(-4, 4, 50)[:, None]).clamp(-6e4, 6e4).to(dtype).to(device)
    found, scales = quantise(key, codes)
    assert (found.dtype, scales.dtype) == (codes, torch.float32)
    assert (found.shape, scales.shape) == (key.shape, key.shape[:3])
    exact, scale = key.double(), scales.double()[..., None]
    error = (found.double() * scale - exact).abs()
    if codes == torch.int8:
        allowed = scale / 2
    else:
        allowed = torch.maximum(exact.abs() / 16, scale / 1024)
    assert (error <= allowed * (1 + 1e-4)).all()
    largest = 127 if codes == torch.int8 else 448
    assert (found.double().abs().amax(-1) == largest).all()


@BOTH
def test_rounding_is_to_the_nearest_code(codes, device):
    key = torch.tensor([127.0, 1.4, 1.6, -1.4, -1.6, 126.6], device=device).view(1, 1, 1, 6)
    if codes == torch.int8:
        expected = [127, 1, 2, -1, -2, 127]
    else:  # the steps are 1/8 of a power of two
        key[..., 0] = 448.0
        expected = [448, 1.375, 1.625, -1.375, -1.625, 128]
    found, scales = quantise(key, codes)
    assert scales.item() == 1
    assert found.flatten().tolist() == expected


@BOTH
def test_zeros_and_the_smallest_numbers(codes, device):
    key = torch.zeros(1, 1, 3, 16, device=device)
    key[0, 0, 1] = 1e-44
    key[0, 0, 2, 5] = -1e-30
    found, scales = quantise(key, codes)
    assert found.float().isfinite().all()
    assert found[0, 0, 0].float().tolist() == [0.0] * 16
    assert scales[0, 0, 0] == 0
    assert torch.allclose(found.double() * scales.double()[..., None], key.double(), atol=1e-44)


@BOTH
def test_a_score_errs_as_the_docstring_says(codes, device):
    """Against float64, on normally distributed numbers."""
    key, query = torch.randn(1, 1, 4000, 128, device=device), torch.randn(1, 1, 64, 128, device=device)
    found, scales = quantise(key, codes)
    exact = query.double() @ key.double().mT
    error = query.double() @ (found.double() * scales.double()[..., None]).mT - exact
    share = float(error.std() / exact.std())
    assert share == pytest.approx(0.0065 if codes == torch.int8 else 0.026, rel=0.1)
    if codes == torch.int8:
        bound = query.double().abs().sum(-1)[..., None] * scales.double()[:, :, None] / 2
        assert (error.abs() <= bound * (1 + 1e-6)).all()


@BOTH
def test_no_keys_and_strided_keys(codes, device):
    found, scales = quantise(torch.zeros(1, 2, 0, 16, device=device), codes)
    assert (found.shape, scales.shape) == ((1, 2, 0, 16), (1, 2, 0))
    cache = torch.randn(2, 30, 3, 16, device=device).transpose(1, 2)
    found, scales = quantise(cache, codes)
    alone = quantise(cache.contiguous(), codes)
    assert torch.equal(found.view(torch.int8), alone[0].view(torch.int8))
    assert torch.equal(scales, alone[1])
    assert found.is_contiguous()
    assert scales.is_contiguous()


BAD = {
    "key must be of float16, bfloat16, float32, float64, found int32": (torch.zeros(1, 1, 2, 16).int(), torch.int8),
    "key must be [B, Hkv, N, D], found [2, 16]": (torch.zeros(2, 16), torch.int8),
    "dtype must be int8 or float8_e4m3fn, found float8_e5m2": (torch.zeros(1, 1, 2, 16), torch.float8_e5m2),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_call_is_refused(message):
    with pytest.raises(ValueError, match=f"^quantise: {re.escape(message)}$"):
        quantise(*BAD[message])
