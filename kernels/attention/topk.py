"""Score and top-k: the keys that each query head and query would see most of, whatever their positions.

    s = q . k  over the un-rotated keys begin <= j < end of the query's own KV head

with no scale, no softmax and no causal mask (LongCache / ReAttention, arXiv 2407.15176). Of equal scores the later
position wins: un-rotated keys of equal tokens are equal in the first layer, so that happens. `block` is the authors'
approximate rule: only the best of each block of so many keys, counted from begin, competes.

Keys may come in pieces, which may lie on the host while the query is on a GPU, and as 8-bit codes with a scale each
(`quantise`), whose score is s = (q . code) * scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longloom.kernels.attention.quantise import CODES
from longloom.kernels.attention.topk_reference import reference, reference_votes
from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal

#: Largest k of the Triton kernel, which holds the best k of each row in registers.
TRITON_K = 32


@torch.no_grad()
def topk_indices(
    query: Tensor,
    key: Tensor | Sequence[Tensor],
    k: int,
    *,
    begin: Tensor | None = None,
    end: Tensor | None = None,
    block: int | None = None,
    scales: Tensor | Sequence[Tensor] | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Positions of the k keys with the highest scores.

    Keys in pieces give what they give side by side. Pieces on the host come to the query's GPU one after the other, at
    most two at a time and each whole, the next while one is searched if their memory is pinned; until all has come, the
    host must not write to them. Beside them the device holds k int64 a row, piece and split of a piece.

    Args:
        query: [B, Hq, Sq, D], not rotated.
        key: [B, Hkv, N, D], not rotated, of the query's dtype, or int8 or float8_e4m3fn codes; or pieces
            [B, Hkv, n, D] of it in order. Any strides but for the last dimension's.
        k: how many, at least 1.
        begin, end: [B] int32 or None: row b's keys are begin[b] .. end[b] - 1 of all; None: 0, N. On a GPU their values
            are not checked but cut to 0 .. N.
        block: None: exact. A power of two from 32: only the best of each block of so many keys from begin competes;
            of keys in one piece alone, for the end of a piece would cut a block.
        scales: [B, Hkv, N] float32 of codes, a key's number for a code of 1; in pieces if the keys are. What codes
            cost in exactness: see `quantise`.
        implementation: "triton" or "reference" (which waits for begin and end where they lie on a GPU); None: the
            fastest that can.

    Returns:
        [B, Hq, Sq, k] int32, the best first, -1 behind where there are fewer. Scores are float32 (float64 for float64
        queries).

    Raises:
        ValueError: shapes, types or devices that do not fit, a value out of range, or an implementation that cannot do
            this.
    """
    keys, weights = _pieces(key), None if scales is None else _pieces(scales)
    if _choose("topk_indices", query, keys, weights, k, begin, end, block, implementation) == "triton":
        from longloom.kernels.attention.triton.topk import topk_indices as run
    else:
        run = reference
    return run(query, keys, weights, k, begin, end, block)


@torch.no_grad()
def topk_votes(
    query: Tensor,
    key: Tensor | Sequence[Tensor],
    k: int,
    *,
    begin: Tensor | None = None,
    end: Tensor | None = None,
    block: int | None = None,
    scales: Tensor | Sequence[Tensor] | None = None,
    implementation: str | None = None,
) -> Tensor:
    """How often each key is among the k with the highest scores: `topk_indices` counted, without writing them.

    Args:
        query, key, k, begin, end, block, scales, implementation: see `topk_indices`.

    Returns:
        [B, N] int32, over the query heads and queries of the row.

    Raises:
        ValueError: see `topk_indices`.
    """
    keys, weights = _pieces(key), None if scales is None else _pieces(scales)
    if _choose("topk_votes", query, keys, weights, k, begin, end, block, implementation) == "triton":
        from longloom.kernels.attention.triton.topk import topk_votes as run
    else:
        run = reference_votes
    return run(query, keys, weights, k, begin, end, block)


def check_middle(check: Arguments, begin: Tensor | None, end: Tensor | None) -> None:
    """Check begin and end [B] int32 against N; their values where no device need be waited for."""
    tokens = check.sizes["N"]
    for name, value in (("begin", begin), ("end", end)):
        if value is not None:
            check.tensor(name, value, "B", torch.int32)
            if value.device.type == "cpu":
                wrong = [bound for bound in value.tolist() if not 0 <= bound <= tokens]
                check.require(not wrong, name, f"0 to N={tokens}", next(iter(wrong), None))
    if begin is not None and end is not None and begin.device.type == "cpu":
        crossed = [f"{low} and {high}" for low, high in zip(begin.tolist(), end.tolist(), strict=True) if low > high]
        check.require(not crossed, "begin", "at most end", next(iter(crossed), None))


def _pieces(key: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [key] if isinstance(key, Tensor) else list(key)


def _check_keys(check: Arguments, query: Tensor, keys: list[Tensor], scales: list[Tensor] | None) -> None:
    """Check all pieces; those of a query on a GPU may lie on the host."""
    check.require(bool(keys), "key", "a tensor or pieces", "no piece")
    codes = isinstance(keys[0], Tensor) and keys[0].dtype in CODES
    check.require(codes or scales is None, "scales", "None but for codes", "scales")
    check.require(not codes or scales is not None, "scales", "given for codes", None)
    if scales is not None:
        check.require(len(scales) == len(keys), "scales", f"{len(keys)} pieces like key", len(scales))
    tokens = 0
    for i, piece in enumerate(keys):
        at, dim = (f"[{i}]", "n") if len(keys) > 1 else ("", "N")
        sizes = {name: size for name, size in check.sizes.items() if name != "n"}
        on_host = isinstance(piece, Tensor) and piece.device.type == "cpu" and query.device.type == "cuda"
        here = Arguments(check.operation, sizes) if on_host else check
        here.sizes = sizes
        here.tensor(f"key{at}", piece, f"B Hkv {dim} D", keys[0].dtype if codes else query.dtype, strided=True)
        if scales is not None:
            here.tensor(f"scales{at}", scales[i], f"B Hkv {dim}", torch.float32, strided=True)
        check.sizes = here.sizes
        tokens += piece.shape[2]
    check.sizes["N"] = tokens


def _choose(
    operation: str,
    query: Tensor,
    keys: list[Tensor],
    scales: list[Tensor] | None,
    k: int,
    begin: Tensor | None,
    end: Tensor | None,
    block: int | None,
    implementation: str | None,
) -> str:
    """Check the arguments; the implementation to run."""
    check = Arguments(operation)
    check.tensor("query", query, "B Hq Sq D", FLOATS)
    _check_keys(check, query, keys, scales)
    check.groups()
    check.require(k >= 1, "k", "at least 1", k)
    check_middle(check, begin, end)
    power = block is None or (block >= 32 and block & (block - 1) == 0)
    check.require(power, "block", "None or a power of two of at least 32 keys", block)
    check.require(block is None or len(keys) == 1, "block", f"None for keys in {len(keys)} pieces", block)
    refusal = triton_refusal(query, asked=implementation == "triton", head_dim=query.shape[-1])
    if refusal is None and k > TRITON_K:
        refusal = f"it holds the best k of a row in registers, {TRITON_K} at most, found k = {k}"
    return choose(operation, {"triton": refusal, "reference": None}, implementation)
