"""An MLP, or a norm, over tiles of rows: no tile's intermediates outlive it; each is computed once more in backward.

    y_i = mlp(x_i)   for tiles x_i of the rows of x;   in backward, tile by tile: mlp(x_i) again, dx_i and dW += dW_i

(Mini-Sequence Transformer, arXiv 2407.15892, section 3.1, whose code tiles the forward pass alone and so keeps every
intermediate for backward.) Two autograd nodes do it. The first keeps x and works in backward; the second makes y and
keeps nothing. So under `torch.utils.checkpoint` without reentrance, which stops recomputing a layer once it has all
that was kept, y is not made again where nothing after it is kept: the MLP runs twice in a step, as if it were not
tiled. Where a norm follows the MLP (Gemma 2 and 3), and under reentrant checkpointing, it runs three times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longloom.kernels.checks import FLOATS, Arguments

#: Bytes of a tile's intermediates where nobody says otherwise: Llama-3-8B in bfloat16 reaches its 4,096 rows by the
#: rule that a tile has as many rows as a row has features, smaller models stay below it.
BUDGET = 256 * 2**20

Run = Callable[[Tensor], Tensor]


def tile_rows(hidden: int, intermediate: int, dtype: torch.dtype, budget: int = BUDGET) -> int:
    """Rows of a tile whose intermediates fit into a budget, but no fewer than `hidden`.

    In backward a row of a gated MLP holds six vectors of the intermediate size at once: gate, activation and up, and
    the gradients of their product and of two of them; input and output are `hidden` wide. Adapters, and activations of
    several operations, take more. A tile of fewer rows than `hidden` reads and writes the weights' gradients for longer
    than it computes (the paper's guidance): the budget yields to it. What a tile needs whatever its rows, the
    gradients of the weights and their float32 sums, is not counted.

    Args:
        hidden: features of a row.
        intermediate: features within the MLP, of one of the two halves of a gated one.
        dtype: that it computes in.
        budget: bytes.

    Raises:
        ValueError: a size or budget that is not positive.
    """
    check = Arguments("tile_rows")
    for name, value in (("hidden", hidden), ("intermediate", intermediate), ("budget", budget)):
        check.require(value > 0, name, "positive", value)
    return max(budget // (dtype.itemsize * (6 * intermediate + 2 * hidden)), hidden)


def norm_rows(hidden: int, budget: int = BUDGET) -> int:
    """Rows of a norm's tile, which in backward holds some four vectors of float32 a row; no fewer than `hidden`.

    Raises:
        ValueError: a size or budget that is not positive.
    """
    check = Arguments("norm_rows")
    for name, value in (("hidden", hidden), ("budget", budget)):
        check.require(value > 0, name, "positive", value)
    return max(budget // (16 * hidden), hidden)


def tiled_mlp(x: Tensor, run: Run, parameters: Sequence[Tensor], *, rows: int) -> Tensor:
    """run(x), in tiles of at most `rows` rows of about equal size; with no more rows than that, run(x) itself.

    Each tile's gradients of the parameters are added up in float32 (float64 for float64) and rounded once. Only
    gradients that are asked for are computed; what does not require them costs nothing. Backward runs under the
    autocast settings and from the random state of the forward pass, so dropout drops the same. Gradients cannot be
    differentiated again.

    Args:
        x: [..., d], any floating type.
        run: maps each row [d] to a row [d] by itself, here tiles [1, ..., rows, d] with as many dimensions as x.
        parameters: all tensors besides x that `run` differentiates through.
        rows: of a tile, at least 1; see `tile_rows`.

    Returns:
        [..., d] of the type that `run` returns.

    Raises:
        ValueError: no floating x, no rows, or a `run` that changes the shape.
        RuntimeError: in backward, if a parameter, frozen or not, was changed since the forward pass.
    """
    check = Arguments("tiled_mlp")
    check.require(x.dtype in FLOATS and x.ndim > 0, "x", "floating [..., d]", f"{x.dtype} {list(x.shape)}")
    check.require(rows >= 1, "rows", "at least 1", rows)
    tokens = math.prod(x.shape[:-1])
    if tokens <= rows:
        return run(x)
    even = math.ceil(tokens / math.ceil(tokens / rows))
    if not (torch.is_grad_enabled() and any(part.requires_grad for part in (x, *parameters))):
        with torch.no_grad():
            return _tiles(x, run, even)
    made: Tensor = _Make.apply(_Keep.apply(x, run, even, *parameters), run, even)  # type: ignore[no-untyped-call]
    return made


class _Keep(torch.autograd.Function):
    """x as it is. What comes back is the gradient of the MLP's output, which has x's shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Run, rows: int, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # Not saved for backward: hooks that offload or count what is saved have no business with weights.
        ctx.parameters, ctx.versions = parameters, [part._version for part in parameters]
        ctx.run, ctx.rows, ctx.surroundings = run, rows, _Surroundings(x.device)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if [part._version for part in ctx.parameters] != ctx.versions:
            raise RuntimeError("tiled_mlp: a parameter was changed in place between forward and backward")
        needed = ctx.needs_input_grad
        wanted = [part for part, need in zip(ctx.parameters, needed[3:], strict=True) if need]
        with ctx.surroundings.again():
            dx, gradients = _gradients(x, ctx.run, ctx.rows, wanted, gradient, needed[0])
        found = iter(gradients)
        return dx, None, None, *(next(found) if need else None for need in needed[3:])


class _Make(torch.autograd.Function):
    """The output, of which nothing is kept; backward hands its gradient on to `_Keep`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Run, rows: int) -> Tensor:
        return _tiles(x, run, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None


def _tiles(x: Tensor, run: Run, rows: int) -> Tensor:
    """The output, without gradients."""
    flat = _flat(x)
    output: Tensor | None = None
    for begin in range(0, flat.shape[-2], rows):
        piece = flat[..., begin : begin + rows, :]
        part = run(piece)
        if part.shape != piece.shape:
            raise ValueError(f"tiled_mlp: run must keep the shape {list(piece.shape)}, found {list(part.shape)}")
        if output is None:
            # Of x's shape from the start: an autograd node's output that is a view takes no addition in place (Falcon).
            output = torch.empty(x.shape, dtype=part.dtype, device=part.device)
        output.view(flat.shape)[..., begin : begin + rows, :] = part
    assert output is not None
    return output


def _gradients(
    x: Tensor, run: Run, rows: int, parameters: Sequence[Tensor], gradient: Tensor, wants_x: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """dx and those of the parameters, None where a parameter took no part."""
    flat, incoming = _flat(x), _flat(gradient)
    dx = torch.empty_like(flat, memory_format=torch.contiguous_format) if wants_x else None
    sums: list[Tensor | None] = [None] * len(parameters)
    for begin in range(0, flat.shape[-2], rows):
        chosen = (..., slice(begin, begin + rows), slice(None))
        piece = flat[chosen].detach().requires_grad_(wants_x)
        with torch.enable_grad():
            part = run(piece)
        asked = [piece, *parameters] if wants_x else list(parameters)
        own, *found = torch.autograd.grad(part, asked, incoming[chosen].to(part.dtype), allow_unused=True)
        del part
        if dx is None:
            found = [own, *found]
        else:
            dx[chosen] = 0 if own is None else own
        for place, (parameter, own) in enumerate(zip(parameters, found, strict=True)):
            if own is None:
                continue
            if (total := sums[place]) is None:
                exact = torch.promote_types(parameter.dtype, torch.float32)
                total = sums[place] = torch.zeros(parameter.shape, dtype=exact, device=parameter.device)
            total += own
        del found, own
    for place, (parameter, total) in enumerate(zip(parameters, sums, strict=True)):
        sums[place] = None if total is None else total.to(parameter.dtype)
    return None if dx is None else dx.view(x.shape), sums


def _flat(x: Tensor) -> Tensor:
    """[..., d] as [1, ..., rows, d] of as many dimensions, two at least."""
    return x.reshape(*[1] * (x.ndim - 2), -1, x.shape[-1])


class _Surroundings:
    """The autocast settings and the random state of a forward pass, for its repetition."""

    def __init__(self, device: torch.device) -> None:
        kind = device.type
        self.device = device
        self.autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        self.random = torch.get_rng_state()
        self.random_there = torch.get_device_module(device).get_rng_state(device) if kind != "cpu" else None

    @contextmanager
    def again(self) -> Iterator[None]:
        """As it was, within the block; the random state is put back behind it."""
        kind = self.device.type
        there = [] if self.random_there is None else [self.device]
        forked = torch.random.fork_rng(there, device_type="cuda" if kind == "cpu" else kind)
        enabled, dtype = self.autocast
        with forked, torch.autocast(kind, dtype, enabled):
            torch.set_rng_state(self.random)
            if self.random_there is not None:
                torch.get_device_module(self.device).set_rng_state(self.random_there, self.device)
            yield
