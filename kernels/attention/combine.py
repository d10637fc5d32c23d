"""Merge parts of one softmax, each computed over keys of its own, by the logarithms of their denominators.

    lse = log sum_n e^{lse_n},   o = sum_n e^{lse_n - lse} o_n

With it retrieval and stream heads' parts, selected and local keys, or splits of one long row become exactly the
attention over all their keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal


@torch.no_grad()
def combine(outputs: Tensor, lse: Tensor, *, implementation: str | None = None) -> tuple[Tensor, Tensor]:
    """Attention over the keys of all parts. Not differentiable.

    Args:
        outputs: [N, B, Hq, S, D], the parts' outputs, of the queries' dtype or float32; at least one part.
        lse: [N, B, Hq, S] float32 (float64 for float64). A part with -inf has seen nothing and adds nothing, whatever
            its output is.
        implementation: "triton" or "reference"; None: the fastest that can.

    Returns:
        Output [B, Hq, S, D] of the parts' dtype, zeros where no part has seen anything, and lse [B, Hq, S] of the
        parts', -inf there.

    Raises:
        ValueError: shapes, types or devices that do not fit, or an implementation that cannot do this.
    """
    check = Arguments("combine")
    check.tensor("outputs", outputs, "N B Hq S D", FLOATS)
    check.tensor("lse", lse, "N B Hq S", torch.promote_types(outputs.dtype, torch.float32))
    check.require(len(outputs) > 0, "outputs", "of at least one part", 0)
    candidates = {
        "triton": triton_refusal(outputs, asked=implementation == "triton", head_dim=outputs.shape[-1]),
        "reference": None,
    }
    if choose("combine", candidates, implementation) == "triton":
        from longloom.kernels.attention.triton.combine import combine as run
    else:
        run = reference
    return run(outputs, lse, outputs.dtype)


def reference(outputs: Tensor, lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One part after the other; float32, or float64 for float64."""
    peak = lse.amax(dim=0).clamp(min=torch.finfo(lse.dtype).min)
    weights = (lse - peak).exp_()  # [N, B, Hq, S]
    sums = weights.sum(dim=0)
    merged = torch.zeros(outputs.shape[1:], dtype=lse.dtype, device=lse.device)
    for part, weight in zip(outputs, weights, strict=True):
        merged += (part * weight[..., None]).masked_fill_((weight == 0)[..., None], 0)
    return (merged / sums.clamp(min=1)[..., None]).to(dtype), peak + sums.log()
