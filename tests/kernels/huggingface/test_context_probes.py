"""Probes of copying: exact on models whose copying is known, and equal to plain loops over eager attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from longloom.kernels.huggingface.attention import attention_function
from longloom.kernels.huggingface.probes import DISPLACEMENTS, copy_accuracy, induction_scores

from .models import random_model

VOCABULARY = 50


class Copier:
    """Predicts the token that followed `distance` tokens ago, and records what it is fed."""

    device = torch.device("cpu")
    config = PreTrainedConfig(vocab_size=VOCABULARY)

    def __init__(self, distance: int) -> None:
        self.distance = distance
        self.fed: list[Tensor] = []

    def __call__(self, *, input_ids: Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        self.fed.append(input_ids)
        nexts = torch.roll(input_ids, self.distance - 1, dims=1)
        logits = torch.nn.functional.one_hot(nexts, VOCABULARY).float()
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


@pytest.mark.parametrize(("length", "gap"), [(16, 0), (16, 5), (2, 3)])
def test_copying_is_measured_exactly(length: int, gap: int) -> None:
    options: dict[str, Any] = {"bos": 0, "special": {0, 1, 7}, "seed": 4, "length": length, "gap": gap, "samples": 11}
    copier = Copier(length + gap)
    assert copy_accuracy(copier, **options) == 1.0  # type: ignore[arg-type]
    fed = torch.cat(copier.fed)
    assert fed.shape == (11, 1 + 2 * length + gap)
    assert (fed[:, 0] == 0).all()
    assert torch.equal(fed[:, 1 : 1 + length], fed[:, -length:])
    assert not set(fed[:, 1:].flatten().tolist()) & {0, 1, 7}
    assert copy_accuracy(Copier(length + gap + 1), **options) < 0.3  # type: ignore[arg-type]


def test_draws_depend_on_the_seed_alone() -> None:
    fed = []
    for seed in (1, 1, 2):
        copier = Copier(64)
        copy_accuracy(copier, bos=0, special=[], seed=seed)  # type: ignore[arg-type]
        fed.append(torch.cat(copier.fed))
    assert torch.equal(fed[0], fed[1])
    assert not torch.equal(fed[0], fed[2])
    assert fed[0].shape == (32, 129)
    assert fed[0][:, 1:].min() == 0
    assert fed[0].max() == VOCABULARY - 1


def test_head_scores_equal_plain_loops_over_eager_attention() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config).eval()
    length, repeats = 5, 4
    scores = induction_scores(model, bos=0, special=[0, 1], length=length, repeats=repeats, seed=9)
    assert model.config._attn_implementation == "sdpa"

    generator = torch.Generator().manual_seed(9)
    drawn = torch.arange(2, VOCABULARY)[torch.randint(VOCABULARY - 2, (length,), generator=generator)]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(torch.cat((torch.zeros(1), *[drawn] * repeats)).long()[None], output_attentions=True).attentions
    for layer in range(2):
        for head in range(4):
            a = weights[layer][0, head, 1:, 1:]  # without bos
            induction, echo = [], []
            for i in range(length, length * repeats):
                earlier = [i % length + m * length for m in range(repeats) if i % length + m * length < i]
                echo.append(sum(float(a[i, j]) for j in earlier))
                induction.append(sum(float(a[i, j + 1]) for j in earlier))
            assert float(scores.induction[layer, head]) == pytest.approx(sum(induction) / len(induction), abs=1e-5)
            assert float(scores.echo[layer, head]) == pytest.approx(sum(echo) / len(echo), abs=1e-5)
    assert scores.induction.max() > 2 * scores.induction.min()  # the heads do differ


def dense_scores(query: Tensor, key: Tensor, length: int, scale: float) -> Tensor:
    """[Hq, displacements] from the whole matrix of weights, by masks: the formula this probe once ran."""
    rows = query.unflatten(0, (key.shape[0], -1))
    logits = (rows @ key[:, None].transpose(-1, -2)) * scale
    future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    weights = logits.masked_fill(future, -torch.inf).softmax(dim=-1).flatten(0, 1)[:, 1:, 1:]
    index = torch.arange(weights.shape[-1])
    ahead = index[:, None] - index  # how far a column's token lies before the row's
    scores = []
    for after in range(min(DISPLACEMENTS, length)):
        target = (index >= after) & (ahead >= 0) & (ahead + after > 0) & ((ahead + after) % length == 0)
        scores.append((weights * target).sum(dim=(1, 2)) / (len(index) - length))
    return torch.stack(scores, dim=-1)


@pytest.mark.parametrize(("length", "repeats", "displacements"), [(2, 2, 2), (11, 5, 11), (40, 3, 17)])
def test_every_displacement_equals_the_dense_formula(length: int, repeats: int, displacements: int) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config).eval()
    scores = induction_scores(model, bos=0, special=[0], length=length, repeats=repeats, seed=3)
    assert scores.at.shape == (2, 6, displacements)
    assert scores.at.dtype == torch.float32

    expected: list[Tensor] = []

    def record(
        module: Any, query: Tensor, key: Tensor, value: Tensor, start: None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        expected.append(dense_scores(query[0].double(), key[0].double(), length, scaling))
        rows = query.unflatten(1, (key.shape[1], -1))
        future = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).triu(1)
        logits = (rows @ key[:, :, None].transpose(-1, -2) * scaling).masked_fill(future, -torch.inf)
        return (logits.softmax(dim=-1) @ value[:, :, None]).flatten(1, 2).transpose(1, 2).contiguous(), None

    generator = torch.Generator().manual_seed(3)
    drawn = torch.arange(1, VOCABULARY)[torch.randint(VOCABULARY - 1, (length,), generator=generator)]
    with torch.no_grad(), attention_function(model, record):
        model.get_decoder()(input_ids=torch.cat((torch.zeros(1).long(), drawn.repeat(repeats)))[None], use_cache=False)
    assert (scores.at - torch.stack(expected)).abs().max() < 1e-5
    assert scores.at.max() > 0.05


@pytest.mark.parametrize("window", [3, 8, 100])
def test_layers_with_a_sliding_window_score_nothing_and_feed_the_others(window: int) -> None:
    model = random_model(
        "qwen2",
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    scores = induction_scores(model, bos=0, special=[0], length=7, repeats=3, seed=3)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.arange(1, 61)[torch.randint(60, (7,), generator=generator)]
    with torch.no_grad():
        ids = torch.cat((torch.zeros(1).long(), drawn.repeat(3)))[None]
        weights = model(ids, output_attentions=True).attentions[1][0, :, 1:, 1:]
    assert not scores.at[[0, 2]].any()
    for after in range(7):
        expected = (
            sum(weights[:, i, j + after] for i in range(7, 21) for j in range(i % 7, i, 7) if j + after <= i) / 14
        )
        assert (scores.at[1, :, after] - expected).abs().max() < 1e-5
    assert scores.at[1].max() > 0.05


def test_bad_requests() -> None:
    model: Any = Copier(3)
    with pytest.raises(ValueError, match="length >= 2"):
        copy_accuracy(model, bos=0, special=[], seed=0, length=1)
    with pytest.raises(ValueError, match="repeats >= 2, found 5 and 1"):
        induction_scores(model, bos=0, special=[], length=5, repeats=1, seed=0)
    with pytest.raises(ValueError, match="no token of the vocabulary of 50 is left"):
        copy_accuracy(model, bos=0, special=range(50), seed=0)
