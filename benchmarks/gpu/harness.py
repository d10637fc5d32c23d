"""What a kernel's benchmark gets, the device, the meter and the ceilings; and what it leaves, rows and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpu.ceilings import Ceilings
from gpu.timing import Call, Meter

#: Relative errors allowed against float64, by the results' type.
TOLERANCE = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float64: 1e-12}


@dataclass(frozen=True)
class Row:
    """One way of doing one piece of work, measured.

    Attributes:
        part: the kernel.
        case: the work.
        way: who does it: ours or a named peer.
        seconds: of one call.
        noise: spread of two medians as a share of `seconds`; None: it ran once.
        bytes: that must move, each input read once and each output written once; 0: not counted.
        flops: that must be computed; 0: not counted.
        share: the floor of bytes and flops at the measured ceilings over `seconds`; None: nothing was counted.
        extra_bytes: memory taken at the peak beyond the inputs, results included; None: not measured.
    """

    part: str
    case: str
    way: str
    seconds: float
    noise: float | None
    bytes: int = 0
    flops: int = 0
    share: float | None = None
    extra_bytes: int | None = None


@dataclass(frozen=True)
class Target:
    """A bound and what was found; `found` None: it could not be measured, so it is not met."""

    part: str
    what: str
    found: float | None
    bound: float
    most: bool

    @property
    def met(self) -> bool:
        if self.found is None or math.isnan(self.found):
            return False
        return self.found <= self.bound if self.most else self.found >= self.bound


@dataclass
class Run:
    """One run of checks and benchmarks on one device.

    Attributes:
        implementation: ours, as the kernels call it: "triton"; tests without a GPU take "reference".
        cache: bytes of the device's L2 cache: inputs rotate beyond three times that.
        room: bytes that the inputs of one case may take; what needs more is skipped, and the skip noted.
        part: the kernel whose turn it is.
        notes: what was skipped, and why.
    """

    device: torch.device
    meter: Meter
    ceilings: Ceilings
    implementation: str
    cache: int
    room: int
    say: Callable[[str], None]
    part: str = ""
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Normal random numbers on the device."""
        return torch.randn(shape, dtype=dtype, device=self.device)

    def copies(self, size: int) -> int:
        """How many inputs of so many bytes to rotate among, so that none is still in the cache at its turn."""
        return max(1, min(64, math.ceil(3 * self.cache / max(size, 1))))

    def fits(self, case: str, size: int) -> bool:
        """Whether there is room for inputs of so many bytes; if not, the skip is noted."""
        if size > self.room:
            self.note(f"{case}: skipped, it takes {size / 1e9:.1f} GB of {self.room / 1e9:.1f}")
        return size <= self.room

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Make it an error to wait for the device within, as a step of a model must not."""
        if self.device.type != "cuda":
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def note(self, text: str) -> None:
        """Keep and print a remark, once."""
        if f"{self.part}: {text}" not in self.notes:
            self.notes.append(f"{self.part}: {text}")
            self.say(f"  note: {text}")

    def time(
        self,
        case: str,
        way: str,
        calls: Sequence[Call],
        *,
        moved: int = 0,
        flops: int = 0,
        graph: bool = False,
        peak: bool = False,
    ) -> Row:
        """Time the calls, equal work on inputs of their own; the row is kept and printed.

        Args:
            case, way, moved, flops: see `Row`; of one call.
            graph: through a CUDA graph.
            peak: measure the extra memory of the first call too.
        """
        timing = self.meter.seconds(calls, graph=graph)
        extra = self.meter.extra_bytes(calls[0]) if peak else None
        share = self.ceilings.floor(moved, flops) / timing.seconds if moved or flops else None
        row = Row(self.part, case, way, timing.seconds, timing.noise, moved, flops, share, extra)
        self.rows.append(row)
        self.say(line(row))
        return row

    def once(self, case: str, way: str, call: Call, *, moved: int = 0, flops: int = 0, held: int = 0) -> Row:
        """Time one run of work that cannot be repeated, for it changes what it starts from.

        Args:
            case, way, moved, flops: see `Row`.
            call: it should have run before at another size, where there is something to compile.
            held: bytes that do not count as its memory, of all that is held at the peak.
        """
        taken = self.meter.once(call)
        share = self.ceilings.floor(moved, flops) / taken.seconds if moved or flops else None
        row = Row(self.part, case, way, taken.seconds, None, moved, flops, share, taken.peak_bytes - held)
        self.rows.append(row)
        self.say(line(row))
        return row

    def fastest(
        self,
        case: str,
        peers: dict[str, Callable[[], Sequence[Call]]],
        *,
        moved: int = 0,
        flops: int = 0,
        graph: bool = False,
        peak: bool = False,
    ) -> Row | None:
        """Time peers; one that cannot do the work is noted and left out. The fastest's row; None: none could."""
        rows = []
        for way, calls in peers.items():
            try:
                rows.append(self.time(case, way, calls(), moved=moved, flops=flops, graph=graph, peak=peak))
            except Exception as error:  # a peer may fail in any way; ours may not
                self.note(f"no {way}: {reason(error)}")
        return min(rows, key=lambda row: row.seconds, default=None)

    def target(self, what: str, found: float | None, bound: float, *, most: bool = False) -> None:
        """Hold a figure to its bound: at least, or at most."""
        self.targets.append(Target(self.part, what, found, bound, most))


def reason(error: BaseException) -> str:
    """An exception in one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


#: Above the rows that `line` makes.
HEADER = f"{'time':>14} {'noise':>5} {'share':>6} {'needed bytes and operations':>27} {'memory':>11}  work: who"


def line(row: Row) -> str:
    """A row of the table, the widest last."""
    rate = ""
    if row.bytes or row.flops:
        rate = f"{row.bytes / row.seconds / 1e9:7.0f} GB/s {row.flops / row.seconds / 1e12:6.0f} TFLOP/s"
    share = "" if row.share is None else f"{row.share:6.1%}"
    extra = "" if row.extra_bytes is None else f"{row.extra_bytes / 1e6:8.1f} MB"
    noise = "" if row.noise is None else f"{row.noise:.1%}"
    time = f"{row.seconds * 1e6:11.1f} us {noise:>5}"
    return f"{time} {share:>6} {rate:>27} {extra:>11}  {row.case}: {row.way}"


def close(found: Tensor, expected: Tensor, *, tolerance: float | None = None) -> None:
    """Hold ||found - expected|| / ||expected|| to the type's tolerance; no NaN, and infinities in the same places.

    Raises:
        AssertionError: with the error found.
    """
    limit = TOLERANCE[found.dtype] if tolerance is None else tolerance
    if found.shape != expected.shape:
        raise AssertionError(f"shape {list(found.shape)}, expected {list(expected.shape)}")
    exact, wanted = found.double(), expected.double()
    infinite = wanted.isinf()
    if exact.isnan().any() or not torch.equal(exact[infinite], wanted[infinite]):
        raise AssertionError(f"{int(exact.isnan().sum())} NaN, or infinities in other places")
    difference = torch.linalg.vector_norm(torch.where(infinite, 0.0, exact - wanted))
    error = float(difference / torch.linalg.vector_norm(torch.where(infinite, 0.0, wanted)).clamp(min=1e-30))
    if not error <= limit:
        raise AssertionError(f"relative error {error:.2e}, allowed {limit:.0e}")


def same(found: Sequence[Tensor], again: Sequence[Tensor]) -> None:
    """Hold results to be bitwise alike.

    Raises:
        AssertionError: naming the first that is not.
    """
    for number, (one, two) in enumerate(zip(found, again, strict=True)):
        if not torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8)):
            raise AssertionError(f"result {number} differs, first {one.flatten()[:3].tolist()}")
