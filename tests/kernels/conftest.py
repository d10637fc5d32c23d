"""What the kernels' tests share: the device, poisoned memory, and one measure of errors."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

#: Relative errors allowed against float64, by the inputs' type.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@pytest.fixture
def poison() -> Iterator[None]:
    """Memory that torch hands out holds NaN (integers their largest), so that what is not written shows; used by every
    test of attention/ and minisequence/ (their conftest.py)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The CPU, where Triton's kernels run under its interpreter; or the GPU that `make gpu-check` names."""
    return torch.device(os.environ.get("LONGLOOM_TEST_DEVICE", "cpu"))


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    """The kernels' types; the interpreter's bfloat16 arithmetic is wrong, so bfloat16 needs a GPU."""
    if request.param == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter computes bfloat16 wrongly")
    return request.param


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """assert_close(found, expected): ||found - expected|| / ||expected|| within the type's tolerance, and no NaN."""

    def check(found: Tensor, expected: Tensor, *, tolerance: float | None = None) -> None:
        assert found.shape == expected.shape
        assert not found.isnan().any()
        exact, wanted = found.double().cpu(), expected.double().cpu()
        infinite = wanted.isinf()
        assert torch.equal(exact[infinite], wanted[infinite])
        difference = torch.linalg.vector_norm((exact - wanted)[~infinite])
        size = torch.linalg.vector_norm(wanted[~infinite])
        limit = TOLERANCE[found.dtype] if tolerance is None else tolerance
        assert difference <= limit * size, f"relative error {difference / size:.2e}, allowed {limit:.0e}"

    return check
