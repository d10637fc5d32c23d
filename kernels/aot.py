"""Compile every Triton kernel ahead of time for GPUs that are not there; print registers, shared memory and spills.

    python -m longloom.kernels.aot            every kernel, for sm_80 and sm_90
    python -m longloom.kernels.aot decode     one of them

What is compiled is what a launch at the default configurations compiles: each kernel's `specimen` is called with small
tensors, its launches are caught (`launch.compile_launches`). Exits with 1 if a kernel spills or asks for more shared
memory than the GPU has.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

#: The modules with kernels: each has `specimen(dtype, head_dim)`.
MODULES = {
    "append": "longloom.kernels.attention.triton.append",
    "combine": "longloom.kernels.attention.triton.combine",
    "compress": "longloom.kernels.attention.triton.compress",
    "decode": "longloom.kernels.attention.triton.decode",
    "gather": "longloom.kernels.attention.triton.gather",
    "prefill": "longloom.kernels.attention.triton.prefill",
    "head_probe": "longloom.kernels.attention.triton.head_probe",
    "topk": "longloom.kernels.attention.triton.topk",
    "spans": "longloom.kernels.attention.triton.spans",
    "linear_cross_entropy": "longloom.kernels.minisequence.triton.linear_cross_entropy",
}

#: Compute capability -> shared memory of a block, bytes.
SHARED_MEMORY = {80: 166_912, 90: 232_448}

_SHAPES = (
    (torch.bfloat16, 128),
    (torch.float16, 64),
    (torch.bfloat16, 256),
    (torch.float32, 128),
    (torch.float32, 256),
)


class Kernel(NamedTuple):
    """What the compiler made of one launch.

    Attributes:
        spills: bytes of registers spilled to local memory, stores and loads.
    """

    operation: str
    function: str
    dtype: str
    head_dim: int
    capability: int
    registers: int
    shared: int
    spills: int


def compile_all(operations: list[str]) -> Iterator[Kernel]:
    """Compile in processes of their own, one an operation and GPU: Triton keeps the GPU for a process's whole life."""
    jobs = [(operation, capability) for operation in operations for capability in SHARED_MEMORY]
    with ProcessPoolExecutor(max_tasks_per_child=1, mp_context=get_context("spawn")) as pool:
        for kernels in pool.map(_compile, jobs):
            yield from kernels


def _compile(job: tuple[str, int]) -> list[Kernel]:
    os.environ.pop("TRITON_INTERPRET", None)
    from longloom.kernels.launch import compile_launches

    operation, capability = job
    module = importlib.import_module(MODULES[operation])
    found = []
    for dtype, head_dim in _SHAPES:
        with compile_launches(capability) as compiled:
            module.specimen(dtype, head_dim)
        for kernel in compiled.kernels.values():
            registers, spills = _resources(kernel, capability)
            name = kernel.metadata.name.lstrip("_")
            kind = str(dtype).removeprefix("torch.")
            found.append(Kernel(operation, name, kind, head_dim, capability, registers, kernel.metadata.shared, spills))
    return found


def _resources(kernel: Any, capability: int) -> tuple[int, int]:
    """Registers a thread, and bytes spilled, as the assembler tells them."""
    import triton

    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    target = re.search(r"^\.target (\w+)", kernel.asm["ptx"], re.MULTILINE)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(kernel.asm["ptx"])
        told = subprocess.run(
            [assembler, "-v", f"-arch={target[1]}", source, "-o", Path(folder, "kernel.cubin")],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", told)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", told)
    assert registers is not None, told
    return int(registers[1]), sum(map(int, spills))


def main(operations: list[str]) -> int:
    """Print a table; the exit status."""
    unknown = [operation for operation in operations if operation not in MODULES]
    if unknown:
        print(f"unknown kernel {unknown[0]!r}: known are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    print(f"{'kernel':<28} {'dtype':<9} {'D':>4} {'GPU':>6} {'registers':>9} {'shared':>8} {'spills':>7}")
    failed = False
    for kernel in compile_all(operations or list(MODULES)):
        print(
            f"{kernel.operation + '.' + kernel.function:<28} {kernel.dtype:<9} {kernel.head_dim:>4} "
            f"sm_{kernel.capability:<3} {kernel.registers:>9} {kernel.shared:>8} {kernel.spills:>7}",
            flush=True,
        )
        failed |= kernel.spills > 0 or kernel.shared > SHARED_MEMORY[kernel.capability]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
