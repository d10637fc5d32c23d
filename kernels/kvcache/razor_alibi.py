"""RazorAttention on ALiBi models (arXiv 2407.15891): each head keeps as many last tokens as it can see, by its weights.

ALiBi lowers the logit of a token at distance t by l_h * t. So where logits are bounded, everything beyond a distance
has a negligible weight, for any input: it may go, without a token that stands for it and without sinks.

The paper's distance is L_h = (2 ||W_Q W_K^T||_2 (||gamma||^2 + ||b||^2) - log eps) / l_h, with gamma and b of the norm
before attention. Its first term bounds logits only if no output x of the norm has ||x||^2 > ||gamma||^2 + ||b||^2,
which is not so where gamma is uneven, and it knows neither the projections' biases nor the factor 1 / sqrt(D), both of
which BLOOM has. So that term gives way to what `logit_bounds` proves. With gamma = 1, and no biases or factor, it is
2 ||W_Q W_K^T||_2 d by either, but for what a norm's subtraction of the mean takes away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.pages import UNLIMITED, RaggedKV
from longloom.kernels.kvcache.base import Alibi
from longloom.kernels.kvcache.compressed import CompressedPolicy
from longloom.kernels.kvcache.prompt import PromptState


@dataclass(frozen=True)
class RazorAlibiPolicy(CompressedPolicy):
    """A head keeps a prompt's last ceil(L_h) tokens, L_h = (bound_h - log eps) / l_h, or all if there are fewer.

    Whatever the text, a query's weight on any token at a distance of L_h or more is at most eps, and on all of them
    together at most p = eps / (1 - exp(-l_h)): dropping them changes a head's output by at most 2 p max ||v||.

    Attributes:
        eps: weight that a dropped token may have had (the paper: 1e-3 to 1e-5).
    """

    name: ClassVar[str] = "razor-alibi"
    encodings: ClassVar[tuple[type, ...]] = (Alibi,)
    bounded: ClassVar[bool] = True

    eps: float = 1e-5

    def __post_init__(self) -> None:
        if type(self.eps) is not float or not 0 < self.eps < 1:
            raise ValueError(f"KV policy 'razor-alibi': eps must be a number between 0 and 1, found {self.eps!r}")

    def windows(self, alibi: Alibi, layer: int) -> Tensor:
        """ceil(L_h) of each query head of a layer: [Hq] int32 on the CPU, at least 1."""
        assert alibi.bounds is not None
        scope = (alibi.bounds[layer] - math.log(self.eps)) / alibi.slopes.double().cpu()
        return scope.ceil().clamp(1, UNLIMITED).int()

    def compress(self, prompt: PromptState, rope: Alibi) -> RaggedKV:
        assert prompt.keys is not None
        assert prompt.values is not None
        rows, kv_heads = prompt.keys.shape[:2]
        window = self.windows(rope, prompt.layer).view(kv_heads, -1).amax(dim=1)  # what any head of a group sees
        return compress(
            prompt.keys[:, :, : prompt.seen],
            prompt.values[:, :, : prompt.seen],
            window.repeat(rows, 1),
            sink=0,
            start=None if prompt.start is None else prompt.start.to("cpu", torch.int32),
            compensate=False,
        )


def logit_bounds(
    gamma: Tensor, beta: Tensor, query: Tensor, query_bias: Tensor, key: Tensor, *, scaling: float
) -> Tensor:
    """By how much a token's logit can exceed that of the query's own token, ALiBi's biases left aside.

    A layer norm's output is x = gamma * z + beta, where z sums to 0 and ||z||^2 <= d. Of query m and key n the logit is
    s_n = scaling * (W_Q x_m + b_Q) . (W_K x_n + b_K). In s_n - s_m the terms with b_K and with beta in x_n cancel:

        s_n - s_m = scaling * (W_Q (gamma * z_m) + c) . W_K (gamma * (z_n - z_m)),   c = W_Q beta + b_Q
                 <= 2 scaling * (d ||A^T B||_2 + sqrt(d) ||B^T c||) =: bound

    with A and B = W_Q and W_K, columns times gamma, and then rows without their mean, which z does not see. The norms
    are those of the d x d matrix and a vector of d. With R_A, R_B of the QR decompositions of A^T and B^T the former is
    ||R_A R_B^T||_2, of a D x D matrix. As the softmax's denominator holds the query's own token, whose bias is 0, the
    weight of n is at most exp(s_n - s_m - l_h (m - n)) <= exp(bound - l_h (m - n)).

    Args:
        gamma, beta: [d], of the layer norm whose output is projected.
        query: [H, D, d], W_Q of each head.
        query_bias: [H, D], b_Q.
        key: [H, D, d], W_K.
        scaling: factor on the scores, positive.

    Returns:
        [H] float64.
    """
    gamma, beta, query, query_bias, key = (part.double() for part in (gamma, beta, query, query_bias, key))
    size = gamma.shape[0]
    fixed = query @ beta + query_bias  # [H, D]
    query, key = (part - part.mean(dim=-1, keepdim=True) for part in (query * gamma, key * gamma))
    left, right = (torch.linalg.qr(part.mT, mode="r").R for part in (query, key))
    product = torch.linalg.matrix_norm(left @ right.mT, ord=2)
    shift = torch.linalg.vector_norm(fixed[:, None] @ key, dim=(1, 2))
    bounds: Tensor = 2 * scaling * (size * product + math.sqrt(size) * shift)
    return bounds
