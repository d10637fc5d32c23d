"""The comparison of training steps with and without mini-sequences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longloom.tasks.replicate import memory

BASE = Path(__file__).resolve().parents[3] / "tasks/training/base"


def test_steps_are_compared_on_the_cpu_where_there_is_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LENGTHS", (70, 100))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = memory._errors(BASE, 0)
    assert found["loss"] < 1e-6
    assert found["gradient"] < 1e-5
