"""The secret block of S3's keys: what the bootstrap writes, a worker finds."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, patch

import pytest
from prefect.utilities.templating import apply_values, resolve_block_document_references

INFRA = Path(__file__).resolve().parents[2] / "infra"
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCY"


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(INFRA)
    import bootstrap

    yield bootstrap
    for name in ("bootstrap", "automations"):
        sys.modules.pop(name, None)


def test_a_run_finds_the_keys_that_the_bootstrap_had(bootstrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3:7070")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    saved = {}

    async def save(block: Any, name: str, **_: Any) -> None:
        saved[name] = {"value": block.get()}

    with patch.object(bootstrap.Secret, "save", save):
        environment = asyncio.run(bootstrap.ensure_keys(AsyncMock(), "longloom-s3"))
    assert list(saved) == ["longloom-s3"]
    template = bootstrap.job_template(Path("/data"), environment)
    assert SECRET not in str(template), "the pool is read by who may read the server"

    # As a worker does: the variables' defaults into the job, then the references to blocks.
    variables = {name: entry.get("default") for name, entry in template["variables"]["properties"].items()}
    job = apply_values(template["job_configuration"], variables)
    client = SimpleNamespace(
        read_block_document_by_name=AsyncMock(return_value=SimpleNamespace(data=saved["longloom-s3"]))
    )
    found: Any = asyncio.run(resolve_block_document_references(job, client=client))
    assert found["env"]["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert found["env"]["AWS_ENDPOINT_URL"] == "http://s3:7070"


def test_no_keys_are_an_error(bootstrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY is not set"):
        asyncio.run(bootstrap.ensure_keys(AsyncMock(), "longloom-s3"))


def test_without_a_block_a_run_has_its_workers_environment(bootstrap: Any) -> None:
    template = bootstrap.job_template(Path("/data"), {})["variables"]["properties"]
    assert template["env"]["default"] == {"LONGLOOM_FOLDER": "/data", "PYTHONSAFEPATH": "1"}
