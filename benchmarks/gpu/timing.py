"""Times and memory on a CUDA device: device events, medians, graphs for small launches."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

Call = Callable[[], object]


class Timing(NamedTuple):
    """Seconds of one call, the median over rounds, and the spread of two such medians as a share of it."""

    seconds: float
    noise: float


class Once(NamedTuple):
    """Seconds of a single run, and the bytes that were held on the device at its peak."""

    seconds: float
    peak_bytes: int


class Meter(Protocol):
    """What a benchmark is measured by; tests give one that only runs the calls."""

    def seconds(self, calls: Sequence[Call], *, graph: bool = False) -> Timing: ...

    def extra_bytes(self, call: Call) -> int: ...

    def once(self, call: Call) -> Once: ...


class CudaMeter:
    """Measures on the current CUDA device.

    Attributes:
        budget: seconds that one measurement may take, warm-up and capture aside.
    """

    #: Rounds of one of the two medians.
    ROUNDS = (3, 100)

    #: A captured graph repeats its calls until it lasts so long, so that launching it is no part of the time.
    GRAPH_SECONDS = 1e-3

    def __init__(self, budget: float = 0.3) -> None:
        self.budget = budget

    def seconds(self, calls: Sequence[Call], *, graph: bool = False) -> Timing:
        """Time a round of calls, all of them after each other, and tell one call's share of it.

        Args:
            calls: the same work on inputs of its own each; together they exceed the L2 cache.
            graph: capture the round into a CUDA graph, for work of microseconds; no call may wait for the device.
        """

        def run() -> None:
            for call in calls:
                call()

        once, count = self._warm_up(run), len(calls)
        if graph:
            repeats = max(1, round(self.GRAPH_SECONDS / once))
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                for _ in range(repeats):
                    run()
            run, count = captured.replay, count * repeats
            once = self._warm_up(run)
        few, many = self.ROUNDS
        rounds = max(few, min(many, int(self.budget / 2 / once)))
        first, second = (self._events(run, rounds) for _ in range(2))
        median = statistics.median([*first, *second])
        noise = abs(statistics.median(first) - statistics.median(second)) / median
        return Timing(median / count, noise)

    def extra_bytes(self, call: Call) -> int:
        """Memory that the call takes at its peak beyond what was held before, its results included."""
        call()  # compiles, and takes what workspaces stay
        gc.collect()
        before = torch.cuda.memory_allocated()
        return self.once(call).peak_bytes - before

    def once(self, call: Call) -> Once:
        """Time a single run, and tell its peak of memory."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        [seconds] = self._events(call, 1)
        return Once(seconds, torch.cuda.max_memory_allocated())

    def _warm_up(self, run: Call) -> float:
        """Compile, bring the clocks up, and estimate a round's seconds; first on a side stream, as capture asks for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        spent = once = 0.0
        while spent < self.budget / 10:
            once = max(self._events(run, 1)[0], 1e-6)
            spent += once
        return once

    def _events(self, run: Call, rounds: int) -> list[float]:
        """Seconds of each round between events on the stream; the host waits once, at the end."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * rounds)]
        for start, stop in zip(events[::2], events[1::2], strict=True):
            start.record()
            run()
            stop.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in zip(events[::2], events[1::2], strict=True)]
