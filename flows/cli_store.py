"""The commands of a store and its runs, and of the servers over them, registered by cli.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from longloom.flows.command import Json, Store, Whole, begin, check_file, show
from longloom.flows.params import DEFAULT_STORE


def report(run: str = "latest", *, out: str | None = None, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Make or find the page of a run.

    Args:
        run: Its id, the beginning of one, or latest.
        out: Also copy the page to this file.
    """
    check_file("--out", out)
    begin(store)
    from longloom.flows.report import report as flow
    from longloom.flows.show import show_report

    show_report(flow(run, store=store), store, out, as_json=json)


def compare(first: str, second: str = "latest", *, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Compare the scores, parameters and inputs of two runs.

    Args:
        first: Id of a run, the beginning of one, or latest: the newest with a report or an evaluation.
        second: The same of the other.
    """
    from longloom.flows.compared import compared
    from longloom.flows.show import show_comparison
    from longloom.storage.store import Store

    ref, ids = compared(Store(store), first, second)
    show_comparison(ref, ids, store, as_json=json)


def runs(
    *,
    limit: Whole = 20,
    html: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """List the runs of a store, newest first.

    Args:
        limit: Runs to list.
        html: Also write the store's start page, as longloom pipeline and longloom report do, and say where it lies.
    """
    from longloom.flows.show import show_runs

    if limit < 1:
        raise ValueError(f"--limit {limit}: too small, expected at least 1 run")
    show_runs(store, limit, html=html, as_json=json)


def gc(*, keep: Whole, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Forget all but the newest runs, and delete the artifacts and leftovers that no kept run needs.

    Half-done work that can go on stays, if it was in use since the oldest kept run that failed or was interrupted.

    Args:
        keep: Runs to keep.
    """
    from longloom.flows.show import collect

    if keep < 0:
        raise ValueError(f"--keep {keep}: negative, expected a number of runs")
    show(collect(store, keep), json)


def ui(*, port: Whole = 4200, store: Store = DEFAULT_STORE) -> None:
    """Serve Prefect's UI over the store's runs, with the deployments of prefect.yaml and a worker, until Ctrl-C.

    Args:
        port: Of the server, on the loopback interface.
    """
    from longloom.flows.runtime import prepare

    prepare(store)  # not quiet: a run's page lives on its log lines
    from longloom.flows.ui import serve

    serve(store, port=port)


def serve(*, queues: list[str] | None = None, store: Store = DEFAULT_STORE) -> None:
    """Work for the Prefect server that PREFECT_API_URL names, with the deployments of prefect.yaml, until Ctrl-C.

    Args:
        queues: Work queues to take runs from: default, compute, gpu; all of them by default.
    """
    from longloom.flows.runtime import prepare

    prepare(store)
    from longloom.flows.serve import serve as work

    work(store, queues=queues or [])


def doctor(*, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Check the installation, and read every byte of the store."""
    from longloom.flows.doctor import examine

    healthy = examine(store, as_json=json)
    if not healthy:
        sys.exit(1)


COMMANDS: tuple[Callable[..., None], ...] = (report, compare, runs, gc, ui, serve, doctor)
