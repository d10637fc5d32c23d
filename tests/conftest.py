"""Triton kernels run under its interpreter, which must be chosen before triton is imported anywhere; on a GPU where
LONGLOOM_TEST_DEVICE names one (`make gpu-check`). And fixtures of several folders."""

import os

if "LONGLOOM_TEST_DEVICE" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.pop("COLUMNS", None)  # tests have a width of their own where one counts

from collections.abc import Iterator

import pytest

from .chat_server import ChatServer


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A stub of an OpenAI-compatible server."""
    running = ChatServer()
    yield running
    running.close()


@pytest.fixture(scope="session")
def harness() -> Iterator[None]:
    """Prefect's server and database, one for all modules that a process runs."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
