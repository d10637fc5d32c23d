"""Faults tried on whole processes, a row each: what was done, the state found, what was lost. `make faults`.

    python benchmarks/faults.py --out benchmarks/results/faults.md [--only disk clock]

What tests/ tries already (every step of a build killed or without room, the stack of compose.yaml with parts killed) is
run from there and told of; the rest is tried here on stores of its own, with the command line as a user has it. A row
whose expectation fails says FAILED and why, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from fault import processes, servers, storage
from fault.commands import Row
from machine import machine

FAULTS: dict[str, Callable[[Path], Row]] = {
    "flow": processes.flow_killed,
    "builds": processes.builds,
    "stack": processes.stack,
    "twice": processes.twice_at_once,
    "clock": processes.clock,
    "parameter": processes.big_parameter,
    "disk": storage.disk_full,
    "bit": storage.bit_flipped,
    "thousands": storage.thousands,
    "fifty": servers.fifty_runs,
    "postgres": servers.fifty_on_postgres,
    "shards": servers.five_hundred_shards,
}


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| fault | what was done | state found | lost |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in (row.fault, row.done, row.found, row.lost))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the table goes too")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    options = parser.parse_args()
    rows, failed = [], 0
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix=f"longloom-faults-{name}-") as folder:
            try:
                rows.append(FAULTS[name](Path(folder)))
            except Exception as error:
                traceback.print_exc()
                failed += 1
                text = " ".join(str(error).split())[:200]
                rows.append(Row(name, (FAULTS[name].__doc__ or "").strip(), f"FAILED: {text}", "unknown"))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    found = machine()
    day = datetime.date.today().isoformat()
    heading = (
        "# Faults tried\n\nWritten by `make faults` (`benchmarks/faults.py`), "
        f"{day}, {found['cores']} cores, {found['processor']}.\n\n"
    )
    if options.out is not None:
        options.out.write_text(heading + table(rows), encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
