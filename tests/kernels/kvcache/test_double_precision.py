"""Every policy of the matrix in float64: what hides padding must be a number there too, and nothing is rounded.

In float32 the lowest float64 is -inf: a softmax over a row of it is NaN, and NaN at padding reaches a model's real
tokens by its next layer.
"""

from __future__ import annotations

import pytest
import torch

from longloom.kernels.kvcache.registry import get_policy

from .test_kv_policies import Case, cases, close, run
from .tokens import Tokens, random_tokens

PADDING, PIECES = [0, 13, 29], [30, 1, 1, 8]


def wide(seed: int = 0) -> Tokens:
    drawn = random_tokens(sum(PIECES), batch=len(PADDING), seed=seed)
    return Tokens(drawn.query.double(), drawn.key.double(), drawn.value.double())


@cases
@pytest.mark.parametrize("options", ["keep_all", "tight"])
def test_padding_is_finite(case: Case, options: str) -> None:
    policy, tokens = get_policy(case.name, **getattr(case, options)), wide()
    output = run(policy, tokens, PIECES, PADDING)[0]
    assert output.dtype == torch.float64
    assert output.isfinite().all()


def test_streaming_is_not_rounded() -> None:
    """As long as its window holds everything it rotates as full attention does, to the same float32 angles."""
    tokens = wide()
    ours = run(get_policy("streaming", sink=0, window=40), tokens, PIECES, PADDING)[0]
    expected = run(get_policy("full"), tokens, PIECES, PADDING)[0]
    for row, pad in enumerate(PADDING):
        close(ours[row, :, pad:], expected[row, :, pad:], 1e-12)
