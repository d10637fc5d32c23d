"""Perplexity by position against the dense log-softmax of the model's own forward pass."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import longloom.tasks.longcontext.perplexity as module
from longloom.kernels.huggingface.attention import policy_attention
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.registry import get_policy
from longloom.tasks.longcontext.perplexity import perplexity_at


@pytest.fixture(scope="module")
def model(model_folder: Path) -> PreTrainedModel:
    return load_model(model_folder, device="cpu")[0].double()


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(4, 300, (3, 410), generator=generator).tolist()


def dense(logits: torch.Tensor, ids: list[int], begin: int, end: int) -> float:
    """The summed log-likelihood of the tokens begin .. end - 1."""
    scores = logits.log_softmax(-1)
    return sum(float(scores[at - 1, ids[at]]) for at in range(begin, end))


@pytest.mark.parametrize("chunk", [512, 64, 7, 1])
def test_full_attention_is_the_models_own(
    model: PreTrainedModel, documents: list[list[int]], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    lengths, tokens = [300, 12, 410, 305], 11  # in any order, overlapping, and with a context of one token
    found = perplexity_at(model, documents, lengths, tokens=tokens, policy=get_policy("full"))
    for length, perplexity in zip(lengths, found, strict=True):
        total = 0.0
        for ids in documents:
            with torch.no_grad():
                total += dense(model(torch.tensor([ids[:length]])).logits[0], ids, length - tokens, length)
        assert perplexity == pytest.approx(math.exp(-total / (tokens * len(documents))), rel=1e-5)
    assert len(set(found)) == len(lengths)


@pytest.mark.parametrize(
    ("name", "options"),
    [("streaming", {"sink": 3, "window": 40}), ("longcache", {"sink": 4, "local": 32, "chunk": 16, "spans": 2})],
)
def test_a_document_is_read_as_a_prompt_is(
    model: PreTrainedModel,
    documents: list[list[int]],
    name: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK", 64)
    policy = get_policy(name, **options)
    lengths, tokens = [50, 200, 401], 20
    done: list[tuple[int, int | None]] = []
    found = perplexity_at(
        model, documents, lengths, tokens=tokens, policy=policy, progress=lambda *counts: done.append(counts)
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    totals = [0.0] * 3
    for ids in documents:
        with policy_attention(model, policy) as cache, torch.no_grad():
            pieces = [
                model(torch.tensor([ids[begin : begin + 64]]), past_key_values=cache, use_cache=True).logits[0]
                for begin in range(0, 400, 64)
            ]
        for number, length in enumerate(lengths):
            totals[number] += dense(torch.cat(pieces), ids, length - tokens, length)
    expected = [math.exp(-total / (3 * tokens)) for total in totals]
    assert found == pytest.approx(expected, rel=1e-5)
    full = perplexity_at(model, documents, lengths, tokens=tokens, policy=get_policy("full"))
    assert found[2] != pytest.approx(full[2], rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": []}, "found 0 documents and 1 lengths, expected at least one of each"),
        ({"lengths": []}, "found 3 documents and 0 lengths, expected at least one of each"),
        ({"tokens": 0}, "tokens is 0, expected at least 1"),
        ({"lengths": [100, 20]}, "length 20 leaves no context for 20 tokens, expected 21 at least"),
        ({"lengths": [411]}, "document 0 has 410 tokens, expected 411 at least"),
        (
            {"policy": get_policy("recent", budget=9)},
            "KV policy 'recent' reads texts with full attention: ask for the perplexity of 'full'",
        ),
    ],
)
def test_bad_input(model: PreTrainedModel, documents: list[list[int]], change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"documents": documents, "lengths": [100], "tokens": 20, "policy": get_policy("full")}
    given |= change
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        perplexity_at(model, given["documents"], given["lengths"], tokens=given["tokens"], policy=given["policy"])
