"""Keys and values in pages, of a length of its own for each row of the batch and each KV head.

    keys, values  [P, page, D]      a pool; a page belongs to one row and one KV head
    table         [B, Hkv, maxp]    int32, the pages of each, in order of their slots; -1: no page
    kv_len        [B, Hkv]          int32, slots in use
    mean_key, mean_value [B, Hkv, D] float32, dropped [B, Hkv] int32
                                    one more slot: the mean of `dropped` tokens that are not kept (compensation)

A *slot* is a place for one token of one head. Keys are rotated to their positions, so the slots' order means nothing
but for the newest: where nothing is folded, the last slots hold the last tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from longloom.kernels.checks import FLOATS, Arguments

#: Tokens a page. A page of one head is contiguous, so a page is also what a kernel reads at once.
PAGE = 64

#: More slots than any head has: where there is no limit.
UNLIMITED = 2**30


@dataclass(eq=False)
class RaggedKV:
    """Keys and values of one layer, truly ragged: what is not kept takes no memory.

    The constructor checks the values of the integer tensors (one wait for the device) and keeps copies of them on the
    host. Afterwards they change by `append` alone, which keeps both alike: no step waits for the device again.
    `compress` builds its caches by `from_host`, which does not even wait once.

    Attributes:
        keys, values: [P, page, D], page a power of two >= 16. Keys are rotated.
        table: [B, Hkv, maxp] int32, -1 .. P - 1; whoever has slots in use has pages for them.
        kv_len: [B, Hkv] int32, 0 .. maxp * page.
        mean_key, mean_value: [B, Hkv, D] float32, means of what was dropped; None, all three, where nothing ever is.
        dropped: [B, Hkv] int32, N_d >= 0; 0: that head has no compensation slot.
        limit: [B, Hkv] int32 or None. A head with limit > 0 keeps at most so many slots: the ones from `sink` on are
            then a ring, where a new token takes the oldest one's place, which is folded into the mean. 0: no limit.
        turn: [B, Hkv] int32 with `limit`: which of the ring's slots is the oldest, 0 .. limit - sink - 1.
        sink: slots at the beginning that are never folded.

    Raises:
        ValueError: shapes, types or devices do not fit, or a value is out of range.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    kv_len: Tensor
    mean_key: Tensor | None = None
    mean_value: Tensor | None = None
    dropped: Tensor | None = None
    limit: Tensor | None = None
    turn: Tensor | None = None
    sink: int = 0

    #: The host's copies: kv_len, limit (0 where there is none) and table.
    host_len: Tensor = field(init=False, repr=False)
    host_limit: Tensor = field(init=False, repr=False)
    host_table: Tensor = field(init=False, repr=False)
    #: Tokens that every head can take on the pages it has, known to be there; less than that may be true.
    room: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        check = Arguments("ragged KV")
        check.tensor("keys", self.keys, "P page D", FLOATS)
        check.tensor("values", self.values, "P page D", self.keys.dtype)
        check.tensor("table", self.table, "B Hkv maxp", torch.int32)
        check.tensor("kv_len", self.kv_len, "B Hkv", torch.int32)
        page = self.page
        check.require(page >= 16 and page & (page - 1) == 0, "keys", "of a power of two >= 16 tokens a page", page)
        self.host_len, self.host_table = self.kv_len.cpu().clone(), self.table.cpu().clone()
        self.host_limit = torch.zeros_like(self.host_len)
        _within(check, "kv_len", self.host_len, 0, check.sizes["maxp"] * page)
        _within(check, "table", self.host_table, -1, check.sizes["P"] - 1)
        used = torch.arange(check.sizes["maxp"]) * page < self.host_len[..., None]
        check.require(bool((self.host_table[used] >= 0).all()), "table", "a page for every slot in use", "-1")

        owned = self.host_table[self.host_table >= 0]
        uses = torch.bincount(owned, minlength=1)
        often = f"page {int(uses.argmax())} {int(uses.max())} times"
        check.require(int(uses.max()) <= 1, "table", "pages of one row and head each", often)

        means = (self.mean_key, self.mean_value, self.dropped)
        if any(part is not None for part in means):
            mean_key, mean_value, dropped = (_given(check, "mean_key, mean_value and dropped", part) for part in means)
            check.tensor("mean_key", mean_key, "B Hkv D", torch.float32)
            check.tensor("mean_value", mean_value, "B Hkv D", torch.float32)
            check.tensor("dropped", dropped, "B Hkv", torch.int32)
            _within(check, "dropped", dropped.cpu(), 0, None)
        if self.limit is not None or self.turn is not None:
            limit, turn = (_given(check, "limit and turn", part) for part in (self.limit, self.turn))
            check.require(self.dropped is not None, "dropped", "given where limit is", None)
            check.require(self.sink >= 0, "sink", "at least 0", self.sink)
            check.tensor("limit", limit, "B Hkv", torch.int32)
            check.tensor("turn", turn, "B Hkv", torch.int32)
            self.host_limit = limit.cpu().clone()
            limited = self.host_limit != 0
            _within(check, "limit where it is not 0", self.host_limit[limited], self.sink + 1, None)
            _within(check, "kv_len of a head with a limit", self.host_len[limited], 0, self.host_limit[limited])
            ring = (self.host_limit - self.sink).where(limited, UNLIMITED)
            _within(check, "turn", turn.cpu(), 0, ring - 1)

    @property
    def page(self) -> int:
        """Tokens a page."""
        return self.keys.shape[1]

    @classmethod
    def from_host(
        cls, keys: Tensor, values: Tensor, table: Tensor, kv_len: Tensor, *, limit: Tensor | None = None, **rest: Any
    ) -> Self:
        """A cache whose integers the host knows: nothing is read back from the device, and nothing checked.

        Args:
            keys, values: on the device.
            table, kv_len, limit: on the host; copied to the device without a wait. `turn` begins with 0.
            rest: the other attributes, on the device.
        """
        cache = cls.__new__(cls)
        vars(cache).update(rest, keys=keys, values=values, host_table=table, host_len=kv_len)
        cache.host_limit = torch.zeros_like(kv_len) if limit is None else limit
        cache.table, cache.kv_len = upload(table, keys.device), upload(kv_len, keys.device)
        if limit is not None:
            cache.limit, cache.turn = upload(limit, keys.device), torch.zeros_like(cache.kv_len)
        return cache

    def grow(self, tokens: int) -> None:
        """Make sure that every head has pages for so many tokens more; a head at its limit needs none.

        All heads take tokens at the same pace. So when pages run out the pool grows by 1/32, at least by a page a
        head, shared evenly among the heads that still grow: they run out together, and until then neither the pool
        nor the table on the device changes. The one copy lays each head's pages side by side again; pages that belong
        to nobody are dropped.
        """
        if tokens <= self.room:
            return
        page, length = self.page, self.host_len.long()
        most = self.host_limit.long().masked_fill(self.host_limit == 0, UNLIMITED)
        pages = (self.host_table >= 0).cumprod(-1).sum(-1)  # [B, Hkv]
        if bool((-(-torch.minimum(length + tokens, most) // page) > pages).any()):
            growing = int((pages * page < most).sum())
            ahead = max(page, int(pages.sum()) * page // (32 * growing))
            pages = torch.maximum(pages, -(-torch.minimum(length + tokens + ahead, most) // page))
            self._lay_out(pages)
        room = (pages * page - length).masked_fill(pages * page >= most, UNLIMITED)
        self.room = min(room.flatten().tolist(), default=tokens)

    def advance(self, tokens: int) -> None:
        """Note on the host that every head has taken so many tokens, for which there was room."""
        self.host_len = self.host_len + tokens
        if self.limit is not None:
            full = (self.host_limit > 0) & (self.host_len > self.host_limit)
            self.host_len = torch.where(full, self.host_limit, self.host_len)
        self.room -= tokens

    def _lay_out(self, pages: Tensor) -> None:
        """Move to a new pool of so many pages a head [B, Hkv] int64, no less than now."""
        table = side_by_side(pages)
        before = pad(self.host_table, (0, table.shape[2] - self.host_table.shape[2]), value=-1)
        source = upload(before[table >= 0].clamp(min=0), self.keys.device)  # new pages get what they never show
        self.keys, self.values = _moved(self.keys, source), _moved(self.values, source)
        self.host_table, self.table = table, upload(table, self.keys.device)

    def bytes(self) -> int:
        """Memory held on the device: all tensors, pages without a token included."""
        held = (self.keys, self.values, self.table, self.kv_len, self.mean_key, self.mean_value, self.dropped)
        return sum(part.untyped_storage().nbytes() for part in (*held, self.limit, self.turn) if part is not None)


def side_by_side(pages: Tensor) -> Tensor:
    """The table [B, Hkv, maxp] int32 of a pool in which each head has so many neighbouring pages [B, Hkv] int64."""
    first = (pages.flatten().cumsum(0) - pages.flatten()).view_as(pages)
    place = torch.arange(max(1, int(pages.max()) if pages.numel() else 0))
    return (first[..., None] + place).masked_fill(place >= pages[..., None], -1).int()


def upload(host: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, of its own there also where that is the host; nobody waits."""
    return host.to(device, non_blocking=True, copy=True)


def _moved(pool: Tensor, source: Tensor) -> Tensor:
    """A pool [len(source), page, D] with these pages of the other one."""
    moved = pool.new_empty(len(source), *pool.shape[1:])
    if len(pool):
        torch.index_select(pool, 0, source, out=moved)
    return moved


def _given(check: Arguments, names: str, value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError(f"{check.operation}: {names} must be given together, found None among them")
    return value


def _within(check: Arguments, name: str, values: Tensor, least: int, most: int | Tensor | None) -> None:
    """Raise a ValueError with the first value out of least .. most."""
    wrong = values < least if most is None else (values < least) | (values > most)
    if bool(wrong.any()):
        bound = f"at least {least}"
        if most is not None:
            bound = f"{least} to {int(torch.as_tensor(most).expand_as(values)[wrong][0])}"
        check.require(False, name, bound, int(values[wrong][0]))
