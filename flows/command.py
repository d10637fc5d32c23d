"""What every command shares: its common options, how a flow is begun, how a result is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

Store = Annotated[str, Parameter(help="Folder of the artifacts, or an address of object storage: s3://BUCKET/PREFIX.")]
Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print one JSON object.")]
Flat = Parameter(name="*")


def _whole(kind: type, tokens: Sequence[Token]) -> int:
    """A whole number as it is written: cyclopts rounds 0.4 to 0, with which `longloom gc --keep` would keep no run."""
    (token,) = tokens
    if not _WHOLE.fullmatch(token.value):
        raise ValueError(f"found {token.value[:80]!r}, expected a whole number of at most 15 digits")
    return int(token.value)


_WHOLE = re.compile(r"[+-]?\d{1,15}", re.ASCII)
#: A whole number that is no field of parameters, which pydantic would read.
Whole = Annotated[int, Parameter(converter=_whole)]


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


def check_file(option: str, place: str | None) -> None:
    """Raises ValueError if a file is to be written where none can be; before the work that it is written after."""
    if place is None:
        return
    if Path(place).is_dir():
        raise ValueError(f"{option} {place or repr(place)}: is a folder, expected a file to write")
    _check_writable(option, place, Path(place).absolute().parent)


def check_folder(option: str, place: str | None) -> None:
    """The same of a folder."""
    if place is None:
        return
    if not place:
        raise ValueError(f"{option} '': is empty, expected a folder")
    _check_writable(option, place, Path(place).absolute())


def _check_writable(option: str, place: str, folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{option} {place}: {there} is a file, expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {place}: the folder {there} cannot be written")


def show(value: object, as_json: bool) -> None:
    """Prints a result that has no form of its own."""
    from longloom.flows import show as shown

    shown.show(value, as_json=as_json)
