"""What a person sees of a stage: one line in the terminal and one progress artifact in the Prefect UI."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from longloom.storage.refs import ArtifactRef

#: Between two updates of the Prefect artifact: each one is a request to the server.
SECONDS_BETWEEN_UPDATES = 3.0


def console() -> Console:
    """The terminal's error stream: standard output belongs to results (`--json`)."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True, quiet=bool(os.environ.get("LONGLOOM_QUIET")))


def counts_text(ref: ArtifactRef) -> str:
    """`1,700 documents, 30,011,223 characters`."""
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in ref.counts.items())


def in_flow() -> bool:
    """Whether Prefect runs a flow around this; it is not imported to find out."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def in_task() -> bool:
    """Whether Prefect runs a task around this."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import TaskRunContext

    return TaskRunContext.get() is not None


class StageLine:
    """A context manager that shows progress while a stage is being built, and the `Progress` of its pure function."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._name = escape(f"{label:<28}")
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._artifact: object | None = None
        self._last_update = 0.0
        self._told = ""

    def unchanged(self, ref: ArtifactRef) -> None:
        """Says that nothing had to be done."""
        console().print(f"[dim]= {self._name} unchanged  {ref.digest[:12]}  {counts_text(ref)}[/dim]")

    def waiting(self) -> None:
        """Says that another process builds the same."""
        console().print(f"[dim]~ {self._name} waits for another process that builds it[/dim]")

    def built(self, ref: ArtifactRef, seconds: float) -> None:
        """Says what was built."""
        console().print(f"[green]+[/green] {self._name} {seconds:7.1f} s  {ref.digest[:12]}  {counts_text(ref)}")

    def __enter__(self) -> StageLine:
        out = console()
        if out.is_terminal and not out.quiet:
            columns = (
                TextColumn("  {task.description:<28}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("[dim]{task.fields[told]}[/dim]"),
            )
            self._bar = Progress(*columns, console=out, transient=True)
            self._bar.start()
            self._row = self._bar.add_task(escape(self.label), total=None, told="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._artifact is not None and error is None:
            self._show(100.0, self._told and f"{self.label}: {self._told}")

    def tell(self, text: str) -> None:
        """Words behind the bar, in the artifact with its next update, and a line in the task run's log."""
        self._told = text
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, told=escape(text))
        if in_task():
            from prefect.logging import get_run_logger

            get_run_logger().info(f"{self.label}: {text}")

    def __call__(self, done: int, total: int | None) -> None:
        """So many units are done."""
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, completed=done, total=total)
        now = time.monotonic()
        if not total or now - self._last_update < SECONDS_BETWEEN_UPDATES or not in_task():
            return
        self._last_update = now
        self._show(round(min(100.0, 100.0 * done / total), 1), f"{self.label}: {self._told or f'{total:,} in all'}")

    def _show(self, percent: float, description: str) -> None:
        with contextlib.suppress(Exception):  # a server that is away must not end hours of work
            from prefect.artifacts import create_progress_artifact, update_progress_artifact

            if self._artifact is None:
                self._artifact = create_progress_artifact(progress=percent, description=description)
            else:
                update_progress_artifact(self._artifact, percent, description or None)  # type: ignore[arg-type]
