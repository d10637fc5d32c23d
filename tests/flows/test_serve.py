"""`longloom serve` where it cannot; tests/infra/test_stack.py has it at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from longloom.flows import serve as module
from longloom.flows.serve import serve


def test_without_a_server_or_with_an_unknown_queue_it_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(ValueError, match="PREFECT_API_URL is not set"):
        serve(str(tmp_path / "store"), queues=[])
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ValueError, match="--queues gpus: no such queue, expected default, compute, gpu"):
        serve(str(tmp_path / "store"), queues=["default", "gpus"])
    monkeypatch.setattr(module, "BOOTSTRAP", tmp_path / "bootstrap.py")
    with pytest.raises(FileNotFoundError, match="from a checkout"):
        serve(str(tmp_path / "store"), queues=[])
    assert not (tmp_path / "store").exists()


def test_a_server_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(module.signal, "signal", lambda *handler: None)  # those of pytest stay
    with pytest.raises(RuntimeError, match="does not answer") as caught:
        serve(str(tmp_path / "store"), queues=[])
    assert len(str(caught.value).splitlines()) == 1


def test_each_machine_has_a_log_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that several of them see."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(module, "BOOTSTRAP", tmp_path / "bootstrap.py")
    (tmp_path / "bootstrap.py").touch()
    (tmp_path / "prefect.py").write_text("print('of this machine')")  # ends at once
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module.signal, "signal", lambda *handler: None)
    for name in ("loom", "spindle"):
        monkeypatch.setattr(module.socket, "gethostname", lambda name=name: name)
        with pytest.raises(RuntimeError, match=f"the worker-{name} ended with code 0: of this machine"):
            serve(str(tmp_path / "store"), queues=[])
    assert sorted(path.name for path in (tmp_path / "store" / "logs").iterdir()) == [
        "worker-loom.log",
        "worker-spindle.log",
    ]
