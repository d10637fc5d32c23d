"""Host memory on a GPU piece by piece: the next comes while one is worked on, and two are there at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def staged(pieces: Sequence[Sequence[Tensor]], device: torch.device) -> Iterator[Sequence[Tensor]]:
    """Each piece's tensors on the device, in order; those that are there already as they are.

    Nothing waits for the device, and copies overlap with work, if the host's memory is pinned; else a copy waits for
    its turn, and the results are the same. The host must not write to the pieces until the device has them.

    Args:
        pieces: of equally many tensors each, of equal types; dimensions 0 and 1 are lines, which go one by one where a
            tensor is not contiguous: that is as good if lines are.
        device: of the work, which is queued on its current stream before the next piece is asked for.

    Yields:
        A piece, in memory of two that take turns: valid until the next is asked for.
    """
    hosted = [piece for piece in pieces if any(part.device != device for part in piece)]
    if not hosted:
        yield from pieces
        return
    sizes = [max(part.numel() for part in parts) for parts in zip(*hosted, strict=True)]
    rooms = [
        [torch.empty(size, dtype=part.dtype, device=device) for size, part in zip(sizes, hosted[0], strict=True)]
        for _ in hosted[:2]
    ]
    work, copies = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    copies.wait_stream(work)  # what had the rooms' memory before may still be at work
    free: list[torch.cuda.Event | None] = [None for _ in rooms]
    turn = 0
    for piece in pieces:
        if all(part.device == device for part in piece):
            yield piece
            continue
        with torch.cuda.stream(copies):
            if (event := free[turn]) is not None:
                copies.wait_event(event)
            here = [_copy(part, room) for part, room in zip(piece, rooms[turn], strict=True)]
        work.wait_stream(copies)  # of every copy: so the rooms may be given back as the work's own
        yield here
        free[turn] = work.record_event()
        turn = (turn + 1) % len(rooms)


def _copy(source: Tensor, room: Tensor) -> Tensor:
    target = room[: source.numel()].view(source.shape)
    if source.is_contiguous():
        return target.copy_(source, non_blocking=True)
    for sources, targets in zip(source, target, strict=True):
        for line, place in zip(sources, targets, strict=True):
            place.copy_(line, non_blocking=True)
    return target
