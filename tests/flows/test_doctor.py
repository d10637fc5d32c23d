"""What `longloom doctor` tells of a server."""

from __future__ import annotations

import pytest

from longloom.flows.doctor import check_machine
from longloom.storage.store import Store


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:p@ss@prefect.example.org:4200/api", "prefect.example.org:4200/api"),
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200/api"),
        (None, "none set: flows start one of their own"),
    ],
)
def test_no_password_of_a_server_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch, address: str | None, shown: str
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    if address is not None:
        monkeypatch.setenv("PREFECT_API_URL", address)
    (found,) = [finding.detail for finding in check_machine(store) if finding.name == "prefect server"]
    assert found == shown
