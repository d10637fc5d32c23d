"""Pack chosen tokens of each row and KV head into pages: what is not chosen takes no memory."""

from __future__ import annotations

import torch
from torch import Tensor

from longloom.kernels.attention.pages import PAGE, RaggedKV, side_by_side, upload
from longloom.kernels.checks import FLOATS, Arguments


@torch.no_grad()
def pack(key: Tensor, value: Tensor, chosen: Tensor, count: Tensor, *, page: int = PAGE) -> RaggedKV:
    """A cache of the chosen tokens, as many as each row and KV head has. Not differentiable.

    Args:
        key: [B, Hkv, N, D], rotated; any strides but for the last dimension's, which is 1.
        value: [B, Hkv, N, D], likewise.
        chosen: [B, Hkv, M] int64 on the keys' device, 0 .. N - 1: of each head the first `count` are kept, in this
            order; what follows them is not looked at.
        count: [B, Hkv] int32 on the CPU, 0 .. M.
        page: tokens a page, a power of two >= 16.

    Returns:
        A cache on exactly the pages it needs, each head's side by side, which shares no memory with `key` and `value`.

    Raises:
        ValueError: shapes, types or devices that do not fit, or a count out of range.
    """
    check = Arguments("pack")
    check.tensor("key", key, "B Hkv N D", FLOATS, strided=True)
    check.tensor("value", value, "B Hkv N D", key.dtype, strided=True)
    check.tensor("chosen", chosen, "B Hkv M", torch.int64, strided=True)
    check.require(page >= 16 and page & (page - 1) == 0, "page", "a power of two >= 16", page)
    rows, heads, most = chosen.shape
    check.require(count.device.type == "cpu", "count", "on the CPU", count.device)
    expected = (count.dtype, tuple(count.shape)) == (torch.int32, (rows, heads))
    check.require(expected, "count", f"int32 [{rows}, {heads}]", f"{count.dtype} {list(count.shape)}")
    wrong = (count < 0) | (count > most)
    check.require(not bool(wrong.any()), "count", f"0 to {most}", int(count[wrong][0]) if bool(wrong.any()) else 0)

    pages = -(-count.long() // page)
    table = side_by_side(pages)
    room = pages.flatten() * page  # slots of each line (a row and a head)
    line = torch.arange(rows * heads).repeat_interleave(room)
    slot = torch.arange(int(room.sum())) - (room.cumsum(0) - room)[line]
    line = upload(line, key.device)
    # Places beyond a head's count repeat some token of its own, which nobody sees.
    place = upload(slot.clamp(max=max(0, most - 1)), key.device)
    token = chosen.reshape(rows * heads, most)[line, place] if len(line) else line
    token = token.clamp(0, max(0, key.shape[2] - 1))
    where = line // heads, line % heads, token
    pools = [source[where].view(-1, page, key.shape[3]) for source in (key, value)]
    return RaggedKV.from_host(pools[0], pools[1], table, count.clone())
