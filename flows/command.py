"""What every command shares: its common options, how a flow is begun, how a result is shown."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Store = Annotated[str, Parameter(help="Folder of the artifacts, or an address of object storage: s3://BUCKET/PREFIX.")]
Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print one JSON object.")]
Flat = Parameter(name="*")


class Tracebacks:
    """Whether errors are shown with theirs (`--debug`)."""

    shown = False


def begin(store: str, *imports: str) -> None:
    """Makes ready for flows; must come before the first import of one.

    Args:
        store: of the command.
        imports: slow modules that the flow will need, for the time that Prefect's server takes to start.
    """
    from longloom.flows.runtime import prepare, quiet, start_server
    from longloom.storage.store import Store

    Store(store)  # says so if it cannot be one
    prepare(store)
    if not Tracebacks.shown:
        quiet()
    start_server(*imports)


def show(value: object, as_json: bool) -> None:
    """Prints a result that has no form of its own."""
    from longloom.flows import show as shown

    shown.show(value, as_json=as_json)
