"""What a run found, as JSON and as a table of its targets."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gpu.ceilings import Ceilings
from gpu.harness import Run, Target


def slug(name: str) -> str:
    """A device's name as a file's: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit(root: Path) -> str:
    """The checkout's commit, "+" behind it where files differ from it; "unknown" where there is no git."""
    try:
        told = [
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told[0] + ("+" if told[1] else "")


def machine(device: torch.device) -> dict[str, Any]:
    """The device, its driver, and the versions of what runs on it."""
    import triton

    properties = torch.cuda.get_device_properties(device)
    try:
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {
        "device": properties.name,
        "driver": driver,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def table(targets: Sequence[Target]) -> str:
    """A line a target, whether it is met last but for what it is about."""
    lines = []
    for target in targets:
        found = "-" if target.found is None else f"{target.found:.3g}"
        bound = f"{'<=' if target.most else '>='} {target.bound:g}"
        lines.append(f"{found:>9} {bound:>9} {'met' if target.met else 'NOT MET':>8}  {target.part}: {target.what}")
    return "\n".join(lines)


def write(path: Path, run: Run, ceilings: Ceilings, about: Mapping[str, Any]) -> None:
    """All figures as JSON."""
    found = {
        **about,
        "ceilings": {"copy_bytes_per_s": ceilings.copy, "matmul_flops": ceilings.matmul},
        "targets": [asdict(target) | {"met": target.met} for target in run.targets],
        "rows": [asdict(row) for row in run.rows],
        "notes": run.notes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
