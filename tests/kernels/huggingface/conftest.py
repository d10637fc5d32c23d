"""The model of this folder's tests."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from .models import random_model


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A Llama in float32 of two layers and two query heads a KV head, with transformers' usual attention."""
    return random_model(attention="sdpa")
