"""Every Triton kernel compiles for sm_80 and sm_90 without a GPU, and none spills at its default configuration."""

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest

from longloom.kernels import aot


def test_every_kernel_compiles_and_none_spills(capfd):
    """In a process of its own, for Triton must not be in its interpreter's mode there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "longloom.kernels.aot"], env=environment, capture_output=True, text=True, check=False
    )
    with capfd.disabled():
        print("\n" + run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line.split() for line in run.stdout.splitlines()[1:]]
    compiled = {(row[0].split(".")[0], row[1], row[2], row[3]) for row in rows}
    shapes = {("bfloat16", "128"), ("float16", "64"), ("bfloat16", "256"), ("float32", "128"), ("float32", "256")}
    assert compiled == {
        (operation, *shape, gpu) for operation in aot.MODULES for shape in shapes for gpu in ("sm_80", "sm_90")
    }
    assert all(0 < int(row[4]) <= 255 and row[6] == "0" for row in rows)


@pytest.mark.parametrize("package", ["longloom.kernels.attention.triton", "longloom.kernels.minisequence.triton"])
def test_every_module_of_kernels_is_compiled(package):
    parts = importlib.import_module(package)
    modules = {f"{package}.{module.name}" for module in pkgutil.iter_modules(parts.__path__)}
    with_kernels = {name for name in modules if hasattr(importlib.import_module(name), "specimen")}
    assert with_kernels == {name for name in aot.MODULES.values() if name.startswith(package)}


@pytest.mark.parametrize(
    ("spills", "shared", "status"), [(0, 232_448, 0), (8, 1024, 1), (0, 232_449, 1)], ids=["fits", "spills", "too much"]
)
def test_a_spill_or_too_much_shared_memory_fails(spills, shared, status, monkeypatch, capsys):
    kernel = aot.Kernel("decode", "combine", "float16", 64, 90, 40, shared, spills)
    monkeypatch.setattr(aot, "compile_all", lambda operations: iter([kernel]))
    assert aot.main(["decode"]) == status
    assert f"{shared:>8} {spills:>7}" in capsys.readouterr().out


def test_an_unknown_kernel_is_named(capsys):
    assert aot.main(["decodes"]) == 2
    assert capsys.readouterr().err.startswith("unknown kernel 'decodes': known are append, combine,")
