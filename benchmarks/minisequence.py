"""What mini-sequences save and cost on a CPU: the fused loss, tiled MLPs, and whole training steps.

    python benchmarks/minisequence.py                       # minutes, on two idle cores
    python benchmarks/minisequence.py --json results.json --plot plot.png

(a) The loss at Llama-3's vocabulary and a quarter of it, fused against plain: peak memory and time.
(b) One MLP, tiled against whole, without and with checkpointing of the layer around it: time.
(c) A step of a model with the proportions of Llama-3-8B (width : MLP : vocabulary = 1 : 3.5 : 31): peak memory as the
    sequence grows, the longest sequence within a budget, and time at equal length.

Memory is a fresh process's resident set at its peak over that just before the step, the weights' gradients included.
Times are ratios of ways that ran in turns in one process; before one is told, losses and gradients must agree. Offload
has no column: on a CPU checkpoints are where it would put them. What it would give is arithmetic, from a token's bytes
with its checkpoints and without.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine
from random_llama import Shape, random_llama
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longloom.kernels.huggingface.minisequence import minisequence
from longloom.kernels.minisequence.linear_cross_entropy import linear_cross_entropy
from longloom.kernels.minisequence.tiled_mlp import tile_rows, tiled_mlp

MODEL = Shape(16, 128, 448, 4, 1, 32, 4096)
WAYS = ("plain", "checkpointing", "minisequence", "minisequence, checkpointing")
#: Bytes of a step's peak that the longest sequence may take, and of a tile's intermediates.
LIMIT, TILE = 64 * 2**20, 2 * 2**20
#: Freed memory goes back at once, so that a peak is one of tensors that lived at the same time.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

#: Patched models stay so.
HELD = ExitStack()

Step = Callable[[], float]


def loss_step(way: str, tokens: int, width: int, vocabulary: int) -> tuple[Step, list[Tensor]]:
    """A step of the loss alone; its leaves."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * width**-0.5).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,))

    def step() -> float:
        loss = (
            linear_cross_entropy(hidden, weight, labels)
            if way == "fused"
            else F.cross_entropy(hidden @ weight.T, labels)
        )
        loss.backward()
        return loss.item()

    return step, [hidden, weight]


class Gated(nn.Module):
    """Llama's MLP behind a norm, with the residual around both."""

    def __init__(self, width: int, within: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, within, bias=False), nn.Linear(width, within, bias=False)
        self.down = nn.Linear(within, width, bias=False)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def mlp_step(way: str, tokens: int, width: int, within: int, rows: int) -> tuple[Step, list[Tensor]]:
    """A step of one layer's MLP."""
    torch.manual_seed(0)
    layer = Gated(width, within)
    x = torch.randn(1, tokens, width, requires_grad=True)
    weights = [layer.gate.weight, layer.up.weight, layer.down.weight]

    def whole(h: Tensor) -> Tensor:
        return h + layer.mlp(layer.norm(h))

    def tiles(h: Tensor) -> Tensor:
        return h + tiled_mlp(layer.norm(h), layer.mlp, weights, rows=rows)

    run = tiles if way.startswith("tiled") else whole

    def step() -> float:
        y = checkpoint(run, x, use_reentrant=False) if way.endswith("checkpointing") else run(x)
        loss = y.square().mean()
        loss.backward()
        return loss.item()

    return step, [x, *layer.parameters()]


def model_step(way: str, tokens: int) -> tuple[Step, list[Tensor]]:
    """A step of the whole model."""
    torch.manual_seed(0)
    model = random_llama(MODEL, torch.float32, torch.device("cpu")).train()
    model.config.use_cache = False
    if way.endswith("checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(MODEL.vocabulary, (1, tokens))

    if "mini" in way:
        HELD.enter_context(minisequence(model, budget=TILE))

    def step() -> float:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return float(loss.detach())

    return step, list(model.parameters())


def status(name: str) -> int:
    """Bytes of an entry of this process's status: VmRSS, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def peak(kind: str, way: str, *sizes: int) -> int:
    """Of one step beyond what was held before; a small step has warmed the libraries up."""
    torch.set_num_threads(1)
    made, small = (loss_step, (8, 16, 32)) if kind == "loss" else (model_step, (64,))
    made(way, *small)[0]()
    step, _ = made(way, *sizes)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def fresh(*arguments: Any) -> int:
    """`peak` in a process of its own, forked from one that has only imported."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(peak, *arguments).result()


def in_turns(steps: dict[str, tuple[Step, list[Tensor]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round; the first round, which is not counted, shows that they agree."""
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    reference: list[Any] = []
    for number in range(rounds + 1):
        for way, (step, leaves) in steps.items():
            for leaf in leaves:
                leaf.grad = None
            began = time.perf_counter()
            loss = step()
            took = time.perf_counter() - began
            if number:
                seconds[way].append(took)
                continue
            found = [torch.tensor(loss), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
            reference = reference or found
            for ours, theirs in zip(found, reference, strict=True):
                if not (ours - theirs).norm() <= 1e-4 * theirs.norm():
                    raise SystemExit(f"{way}: another loss or gradient, so there is no speed to tell")
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> list[float]:
    """Time of ours over theirs: minimum, median and maximum over the rounds."""
    found = sorted(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))
    return [round(value, 3) for value in (found[0], statistics.median(found), found[-1])]


def losses(rounds: int) -> list[dict[str, Any]]:
    """(a)"""
    rows = []
    for vocabulary in (32_000, 64_000, 128_256):
        sizes = 1024, 128, vocabulary
        steps = {way: loss_step(way, *sizes) for way in ("plain", "fused")}
        rows.append(
            {
                "tokens": sizes[0],
                "width": sizes[1],
                "vocabulary": vocabulary,
                "peak_bytes": {way: fresh("loss", way, *sizes) for way in steps},
                "time_fused_over_plain": ratio(in_turns(steps, rounds), "fused", "plain"),
            }
        )
        print(rows[-1], flush=True)
    return rows


def mlps(rounds: int) -> list[dict[str, Any]]:
    """(b)"""
    rows = []
    for tokens, width, within in ((8192, 256, 896), (2048, 512, 1792)):
        tile = tile_rows(width, within, torch.float32, TILE)
        ways = ("whole", "tiled", "whole, checkpointing", "tiled, checkpointing")
        seconds = in_turns({way: mlp_step(way, tokens, width, within, tile) for way in ways}, rounds)
        rows.append(
            {
                "tokens": tokens,
                "width": width,
                "intermediate": within,
                "tile_rows": tile,
                "time_tiled_over_whole": ratio(seconds, "tiled", "whole"),
                "the_same_checkpointed": ratio(seconds, "tiled, checkpointing", "whole, checkpointing"),
            }
        )
        print(rows[-1], flush=True)
    return rows


def longest(way: str, peaks: dict[int, int]) -> dict[str, int]:
    """The longest sequence within LIMIT, to 10%: a line through the last two proposes, a fresh process disposes."""
    while True:
        (few, low), (many, high) = sorted(peaks.items())[-2:]
        fits = max((tokens for tokens, found in peaks.items() if found <= LIMIT), default=1)
        over = min((tokens for tokens, found in peaks.items() if found > LIMIT), default=None)
        if over is not None and over <= 1.1 * fits:
            return {"tokens": fits, "peak_bytes": peaks[fits]}
        guess = 0.98 * (many + (LIMIT - high) * (many - few) / (high - low))
        guess = max(guess, 1.05 * fits) if over is None else min(max(guess, 1.05 * fits), over / 1.04)
        peaks[int(guess)] = fresh("model", way, int(guess))


def memory() -> dict[str, Any]:
    """(c), bytes."""
    grown = {way: {tokens: fresh("model", way, tokens) for tokens in (256, 512, 1024, 2048)} for way in WAYS}
    most = {way: longest(way, dict(grown[way])) for way in WAYS}
    kept = 4 * MODEL.layers * MODEL.width
    last, reached = max(grown[WAYS[-1]].items()), most[WAYS[-1]]
    a_token = (reached["peak_bytes"] - last[1]) / (reached["tokens"] - last[0])
    beside = last[1] - a_token * last[0]
    found = {
        "shape": MODEL.__dict__,
        "tile_bytes": TILE,
        "checkpoint_bytes_a_token": kept,
        "bytes_a_token": round(a_token),
        "longest_if_offloaded": round((LIMIT - beside) / (a_token - kept)) if a_token > kept else None,
        "peak_bytes": grown,
        "limit_bytes": LIMIT,
        "longest": most,
        "longest_over_plain": {way: round(most[way]["tokens"] / most["plain"]["tokens"], 1) for way in WAYS},
    }
    print(found, flush=True)
    return found


def speed(rounds: int) -> dict[int, Any]:
    """(c), time: our speed over the others', at lengths that all can."""
    found = {}
    for tokens in (256, 2048):
        seconds = in_turns({way: model_step(way, tokens) for way in WAYS}, rounds)
        found[tokens] = {
            "tokens_a_second": {way: round(tokens / statistics.median(seconds[way])) for way in WAYS},
            "speed_over_checkpointing": ratio(seconds, "checkpointing", "minisequence, checkpointing"),
            "speed_over_plain": ratio(seconds, "plain", "minisequence, checkpointing"),
            "checkpointing_over_plain": ratio(seconds, "plain", "checkpointing"),
            "without_checkpointing_over_plain": ratio(seconds, "plain", "minisequence"),
        }
        print(tokens, found[tokens], flush=True)
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """Peak memory as the sequence grows, up to the longest within the limit; and the loss's, by vocabulary."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained", width_ratios=(3, 2))
    model = found["model"]
    for way, grown in model["peak_bytes"].items():
        most = model["longest"][way]
        reached = {int(n): b for n, b in grown.items()} | {most["tokens"]: most["peak_bytes"]}  # JSON's keys are texts
        points = sorted((n, b / 2**20) for n, b in reached.items())
        label = f"{way}: {most['tokens']:,} tokens"
        left.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    limit = model["limit_bytes"] / 2**20
    left.axhline(limit, color="black", linewidth=1, linestyle=":")
    left.set_xscale("log", base=2)
    left.set_yscale("log", base=2)
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    left.set(xlabel="tokens of the sequence", ylabel="peak of a step, MiB")
    title = f"peak memory of a step\n(dotted: limit of {limit:g} MiB; legend: longest sequence within it)"
    left.set_title(title, fontsize=11)
    left.set_ylim(top=4 * left.get_ylim()[1])  # room for the legend
    left.legend(fontsize=9, loc="upper left")
    for place, way in enumerate(("plain", "fused")):
        values = [row["peak_bytes"][way] / 2**20 for row in found["loss"]]
        bars = right.bar([number + 0.4 * place for number in range(len(values))], values, 0.38, label=way)
        right.bar_label(bars, fmt="{:,.0f}", fontsize=9)
    right.set_xticks([0.2 + number for number in range(len(found["loss"]))])
    right.set_xticklabels([f"{row['vocabulary']:,}" for row in found["loss"]])
    right.yaxis.set_major_formatter("{x:,.0f}")
    right.set(xlabel="vocabulary", ylabel="peak of the loss, MiB")
    right.set_title(f"peak memory of the loss,\n{found['loss'][0]['tokens']:,} tokens", fontsize=11)
    right.legend(fontsize=9)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--plot", type=Path, help="also draw the memory here, as PNG")
    options = parser.parse_args()
    os.environ |= RETURNED  # of the processes that are forked
    multiprocessing.set_forkserver_preload(["torch", "transformers.models.llama.modeling_llama", "__main__"])
    found = {
        "rounds": options.rounds,
        "machine": machine(),
        "loss": losses(options.rounds),
        "mlp": mlps(options.rounds),
        "model": memory() | {"at_equal_length": speed(options.rounds)},
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
