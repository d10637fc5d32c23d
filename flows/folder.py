"""The folder that relative paths mean in a run of a deployment: LONGLOOM_FOLDER, which infra/bootstrap.py sets.

A worker starts such a run in an empty folder, since Python and Prefect look for modules in the one that they start in:
beside corpora, a text called random.py would be run. Only once a flow is imported does its run come here.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "LONGLOOM_FOLDER"


def check_folder() -> None:
    """Raises ValueError if a folder is named that is not there."""
    folder = os.environ.get(VARIABLE)
    if folder and not os.path.isdir(os.path.expanduser(folder)):
        raise _refusal(folder, "no such folder")


def enter_folder() -> None:
    """Changes into the folder, and takes the current one off the places where modules are looked for.

    Does nothing in a process that is no run of a deployment, or where no folder is named.

    Raises:
        ValueError: the folder cannot be entered.
    """
    folder = os.environ.get(VARIABLE)
    if not folder or "PREFECT__FLOW_RUN_ID" not in os.environ:
        return
    sys.path[:] = [place for place in sys.path if place not in ("", ".")]
    check_folder()
    try:
        os.chdir(os.path.expanduser(folder))
    except OSError as error:
        raise _refusal(folder, str(error.strerror)) from None


def _refusal(folder: str, why: str) -> ValueError:
    return ValueError(f"{VARIABLE} is {folder!r}: {why}, expected the folder that relative paths of runs refer to")
