"""Every test here runs on poisoned memory."""

import pytest


@pytest.fixture(autouse=True)
def poisoned(poison: None) -> None:
    """See tests/kernels/conftest.py."""
