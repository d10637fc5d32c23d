"""Check the kernels on a GPU, then measure them: `make gpu-check`, under ten minutes on an H200.

    python benchmarks/gpu_check.py                      # everything
    python benchmarks/gpu_check.py --part decode        # one kernel: its tests, its checks, its benchmark
    python benchmarks/gpu_check.py --part minisequence  # long training, some five minutes of its own
    python benchmarks/gpu_check.py --out FOLDER         # the results there too

Needs torch, triton, pytest and hypothesis; transformers for the parts "razor", "longcache" and "minisequence", models
end to end, and peft too for "gradients"; pytest-xdist, flash_attn, flashinfer, liger-kernel are used where installed. A
part whose tests or checks failed is not timed; the others are. The results are written after each part, so that a run
that is killed keeps what it has. Exits with 0; 1 if something failed; 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import importlib.util
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_ATTENTION = "tests/kernels/attention/test_{}.py"
#: The kernels in the order of their turns, each with its tests; last models with them end to end.
PARTS = {
    "decode": (_ATTENTION.format("decode"),),
    "topk": (_ATTENTION.format("topk"),),
    "prefill": (_ATTENTION.format("prefill"), _ATTENTION.format("prefill_backward")),
    "linear_cross_entropy": ("tests/kernels/minisequence",),
    "gather": (_ATTENTION.format("gather"),),
    "head_probe": (_ATTENTION.format("head_probe"),),
    "compress": (_ATTENTION.format("compress"),),
    "append": (_ATTENTION.format("append"),),
    "spans": (_ATTENTION.format("spans"),),
    "combine": (_ATTENTION.format("combine"),),
    "razor": (_ATTENTION.format("compress"), _ATTENTION.format("append"), _ATTENTION.format("decode")),
    "longcache": (_ATTENTION.format("topk"), _ATTENTION.format("spans"), _ATTENTION.format("gather")),
    "gradients": ("tests/tasks/coreset/test_batched.py",),
    "minisequence": ("tests/kernels/minisequence/test_tiled_mlp.py",),
}

#: Parts that are no part of everything, for they fill the device and take as long as all others together.
ALONE = ("minisequence",)

#: And all of them.
TESTS = ("tests/kernels/attention", "tests/kernels/minisequence")

#: Seconds for the tests, and for everything: a part whose turn comes later is left out, which is a failure.
TEST_LIMIT, LIMIT = 330.0, 510.0

#: Bytes of one case's inputs, and at most this share of the device's memory.
ROOM, SHARE = 60_000_000_000, 0.5


def importable(folder: Path) -> None:
    """Make this checkout's `longloom` importable, here and in processes started from here, without an install."""
    package = folder / "longloom"
    package.mkdir()
    for part in ("evals", "flows", "kernels", "storage", "tasks"):
        (package / part).symlink_to(ROOT / part, target_is_directory=True)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    os.environ.pop("TRITON_INTERPRET", None)


def missing() -> str | None:
    """Why nothing can be run here, in one line; None: it can."""
    for name in ("torch", "triton", "pytest", "hypothesis"):
        if importlib.util.find_spec(name) is None:
            return f"{sys.executable} has no {name}; PYTHON=... chooses another interpreter"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device; nvidia-smi shows what the driver finds"
    return None


def check(run: Any, modules: dict[str, ModuleType], sizes: dict[str, Any]) -> list[tuple[str, str]]:
    """Every module's checks at the sizes that the tests do not reach; what failed, and why."""
    from gpu.harness import reason

    failures = []
    for name, module in modules.items():
        run.part = name
        for title, function in module.CHECKS.items():
            began = time.monotonic()
            try:
                function(run, sizes[name])
                verdict = "passed"
            except Exception as error:  # all are to be seen, not the first alone
                verdict = reason(error)
                failures.append((f"{name}: {title}", verdict))
            free()
            run.say(f"{time.monotonic() - began:8.1f} s  {name}: {title}: {verdict}")
    return failures


def wrong(failures: Iterable[tuple[str, str]], names: Sequence[str]) -> set[str]:
    """The parts whose tests or checks failed; all, where a failure is of no part's tests."""
    found: set[str] = set()
    for failure, _ in failures:
        test = failure.partition("::")[0]
        of = [
            name
            for name in PARTS
            if failure.startswith(f"{name}: ")
            or any(test.startswith(path.removesuffix(".py").replace("/", ".")) for path in PARTS[name])
        ]
        found |= set(of or names)
    return found & set(names)


def measure(
    run: Any,
    modules: dict[str, ModuleType],
    sizes: dict[str, Any],
    late: Callable[[], bool],
    keep: Callable[[dict[str, float]], None],
) -> list[tuple[str, str]]:
    """Every module's benchmark; what failed. `keep` is told each one's seconds after every module."""
    from gpu.harness import HEADER, reason

    failures: list[tuple[str, str]] = []
    seconds: dict[str, float] = {}
    for name, module in modules.items():
        run.part = name
        if late():
            failures.append((name, "not measured: the time is up; --part measures it alone"))
            continue
        began = time.monotonic()
        run.say(f"\n{name}\n{HEADER}")
        try:
            module.measure(run, sizes[name])
        except Exception as error:  # the others' figures are worth having
            failures.append((name, reason(error)))
            run.say(f"  failed: {failures[-1][1]}")
        free()
        seconds[name] = round(time.monotonic() - began, 1)
        run.say(f"  {seconds[name]} s")
        keep(seconds)
    return failures


def free() -> None:
    """Give memory back to the device before the next big piece."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(failures: Iterable[tuple[str, str]]) -> None:
    """Print what failed and why."""
    for name, why in failures:
        print(f"failed: {name}\n    {why}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Everything in turn; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="this alone; may be repeated")
    parser.add_argument("--out", type=Path, help="also writes the results into this folder")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="of the inputs; a new one each time")
    options = parser.parse_args(arguments)
    if options.part and set(options.part) <= set(ALONE):  # what is freed in pieces is given out whole again
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with tempfile.TemporaryDirectory(prefix="longloom-") as folder:
        importable(Path(folder))
        if (why := missing()) is not None:
            print(f"gpu-check: {why}", file=sys.stderr)
            return 2
        import torch
        from gpu.report import machine
        from gpu.timing import CudaMeter

        device = torch.device("cuda", torch.cuda.current_device())
        return everything(options, Path(folder), machine(device), device, CudaMeter(), "triton")


def everything(
    options: argparse.Namespace, folder: Path, about: dict[str, Any], device: Any, meter: Any, implementation: str
) -> int:
    """The run proper; the exit status.

    Args:
        options: of the command line.
        folder: for what nobody needs afterwards.
        about: the machine, as `report.machine` tells it.
        device: where.
        meter: `gpu.timing.CudaMeter`, or a test's.
        implementation: which of the kernels' is checked and measured.
    """
    import torch
    from gpu import ceilings, correctness, report
    from gpu.harness import Run

    began = time.monotonic()
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    about |= {"commit": report.commit(ROOT), "seed": options.seed}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    found = ceilings.measure(device, meter)
    print(f"ceilings: copy {found.copy / 1e12:.2f} TB/s, bf16 matmul {found.matmul / 1e12:.0f} TFLOP/s", flush=True)
    free()

    names = options.part or [name for name in PARTS if name not in ALONE]
    tests = [*dict.fromkeys(test for name in options.part for test in PARTS[name])] if options.part else TESTS
    room = min(ROOM, int(SHARE * about["memory_bytes"]))
    run = Run(device, meter, found, implementation, about["cache_bytes"], room, functools.partial(print, flush=True))
    process = correctness.start(ROOT, tests, folder, device.type)
    try:
        modules = {name: importlib.import_module(f"gpu.{name}") for name in names}
        sizes = {name: module.Sizes() for name, module in modules.items()}
        failures = check(run, modules, sizes)
        outcome = correctness.finish(process, folder, TEST_LIMIT - (time.monotonic() - began))
    finally:
        process.kill()
    failures += outcome.failures
    print(f"{time.monotonic() - began:8.1f} s  tests: {outcome.passed} passed, {outcome.skipped} skipped", flush=True)
    about |= {"tests_passed": outcome.passed, "tests_skipped": outcome.skipped, "seconds": {}, "failures": failures}
    show(failures)
    untimed = wrong(failures, names)
    if untimed:
        print(f"not timed, since their tests or checks failed: {', '.join(sorted(untimed))}", flush=True)
    places = _places(options, names, report.slug(about["device"]))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "pytest.log", options.out / "pytest.log")

    def keep(seconds: dict[str, float]) -> None:
        about.update(seconds=seconds, elapsed_s=round(time.monotonic() - began, 1))
        for place in places:
            if run.rows or place.parent != RESULTS:  # no figures replace none of before
                report.write(place, run, found, about)

    keep({})
    timed = {name: module for name, module in modules.items() if name not in untimed}
    late = measure(run, timed, sizes, lambda: time.monotonic() - began > LIMIT, keep)
    failures += late
    keep(about["seconds"])
    print(f"\n{'found':>9} {'bound':>9} {'':>8}  target\n{report.table(run.targets)}")
    show(late)
    print(f"{about['elapsed_s']} s in all; results: {', '.join(map(str, places)) or 'printed alone'}")
    return 1 if failures else 0


def _places(options: argparse.Namespace, names: Sequence[str], device: str) -> list[Path]:
    """Where the results go: parts alone do not replace a whole run's figures, nor each other's."""
    whole = not options.part
    file = f"{device}.json" if whole else f"{'-'.join(names)}-{device}.json"
    places = [options.out / file] if options.out else []
    return [*places, RESULTS / file] if whole or set(names) <= set(ALONE) else places


if __name__ == "__main__":
    sys.exit(main())
