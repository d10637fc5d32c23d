"""`longloom doctor`: is the installation one that works, and is every byte of the store what its manifest says?"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass

from longloom.flows.show import console, show
from longloom.storage.store import Store

#: package -> (first version that breaks, what happens then); docs/platform.md has the story of each.
BROKEN_FROM = {
    "fastapi": ((0, 151), "Prefect answers 422 on null fields, or does not start"),
    "sqlalchemy": ((2, 1), "Prefect's schedules never fire"),
    "duckdb": ((2, 0), "results lose fetchone() and arrow()"),
}
REQUIRED = ("prefect", "torch", "transformers", "peft", "lm_eval", "infini-gram", "polars", "dask")
LEAST_FREE_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """One check."""

    name: str
    good: bool
    detail: str


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())


def check_packages() -> list[Finding]:
    """Every needed package is there, and none is of a version known to break."""
    findings = []
    for name in REQUIRED:
        try:
            findings.append(Finding(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, False, "missing: pip install -e . -c constraints.txt"))
    for name, (first, harm) in BROKEN_FROM.items():
        version = importlib.metadata.version(name)
        good = _version(version) < first
        limit = ".".join(map(str, first))
        findings.append(Finding(name, good, version if good else f"{version}: {harm}; expected below {limit}"))
    return findings


def check_machine(store: Store) -> list[Finding]:
    """Python, disk, accelerator."""
    free = shutil.disk_usage(store.root).free / 2**30
    python = sys.version.split()[0]
    server = os.environ.get("PREFECT_API_URL", "none set: flows start one of their own")
    findings = [
        Finding("python", sys.version_info >= (3, 11), python),
        Finding("disk", free >= LEAST_FREE_GIB, f"{free:.1f} GiB free, {LEAST_FREE_GIB:.0f} GiB are needed"),
        Finding("prefect server", True, server.rpartition("@")[2]),  # no password of an address
    ]
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: stages run on the CPU"
    return [*findings, Finding("accelerator", True, gpu)]


def check_store(store: Store) -> list[Finding]:
    """Hashes every file of every artifact, whatever its stamp says."""
    good = 0
    damaged = []
    for _, error in store.check():
        if error is None:
            good += 1
        else:
            damaged.append(Finding("artifact", False, f"{error}; the next run that needs it rebuilds it"))
    return [
        Finding("store", not damaged, f"{store.address}: {good} artifacts are whole, {len(damaged)} damaged"),
        *damaged,
    ]


def examine(store: str, *, as_json: bool) -> bool:
    """Prints the findings; true if all are good."""
    place = Store(store)
    findings = [*check_packages(), *check_machine(place), *check_store(place)]
    if as_json:
        show({"findings": [vars(finding) for finding in findings]}, as_json=True)
    else:
        for finding in findings:
            console().print(f"{'ok  ' if finding.good else 'BAD '} {finding.name:<16} {finding.detail}")
    return all(finding.good for finding in findings)
