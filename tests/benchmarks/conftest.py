"""The benchmarks' modules import each other as the scripts do that lie beside them."""

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from gpu.ceilings import Ceilings
from gpu.harness import Run

from .tiny import NoMeter


@pytest.fixture
def run():
    random.seed(0)
    torch.manual_seed(0)
    return Run(torch.device("cpu"), NoMeter(), Ceilings(1e12, 1e13), "reference", 1000, 1 << 30, lambda text: None)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
