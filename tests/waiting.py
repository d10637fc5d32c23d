"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: The machine may be busy: for giving up, nothing waits for it.
SECONDS = 300


def wait_until(done: Callable[[], Any], message: Callable[[], str], seconds: float = SECONDS) -> Any:
    """What `done` answers once that is something; an AssertionError with the message after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := done():
            return found
        time.sleep(0.5)
    raise AssertionError(message())
