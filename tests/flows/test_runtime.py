"""What a command finds out about Prefect's server without asking Prefect, and its answer to what that refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from longloom.flows import cli, runtime


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and nothing that tells Prefect anything."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_SERVER_EPHEMERAL_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_user_without_a_prefect_of_their_own(plain: Path) -> None:
    (plain / "pyproject.toml").write_text('[project]\ndependencies = ["prefect"]\n')
    assert not runtime._may_be_configured()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PREFECT_API_URL", "http://127.0.0.1:4200/api"),
        ("PREFECT_PROFILE", "team"),
        ("PREFECT_SERVER_EPHEMERAL_ENABLED", "false"),
    ],
)
def test_an_environment_that_tells_of_one(plain: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert runtime._may_be_configured()


@pytest.mark.parametrize("name", ["prefect.toml", ".env", "pyproject.toml", "home/profiles.toml"])
def test_files_that_may_tell_of_one(plain: Path, name: str) -> None:
    (plain / name).write_text("[tool.prefect.api]\nurl = 'http://127.0.0.1:4200/api'\n")
    assert runtime._may_be_configured()


def test_parameters_that_the_server_refuses_are_one_line() -> None:
    long = "Flow run parameters must be less than 524,288 bytes when serialized (got 1,080,214 bytes)." + "a" * 10_000
    text, code = cli.describe(RuntimeError(f"Client error '422 Unprocessable Entity': {long}"))
    assert code == 2
    assert text.startswith("the parameters are larger than 512 KB")
    assert len(text) < 200


def test_a_cluster_that_comes_and_goes_says_nothing() -> None:
    script = (
        "import logging; from longloom.flows.runtime import quiet; quiet(); import distributed;"
        " print(logging.getLogger('distributed.scheduler').isEnabledFor(logging.ERROR))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
