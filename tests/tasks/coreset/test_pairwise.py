"""Gradients of pairs of responses: batches against each pair alone, and that against finite differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from longloom.storage.parquet import FileWriter, read_table
from longloom.tasks.coreset import features, select
from longloom.tasks.coreset.batched import unsupported
from longloom.tasks.coreset.checkpoints import read_checkpoints
from longloom.tasks.coreset.gradients import trainable
from longloom.tasks.coreset.pairwise import PerPair, pair_gradient
from longloom.tasks.coreset.pool import answer_lengths
from longloom.tasks.coreset.store import open_features
from longloom.tasks.preference.pairs import SCHEMA
from longloom.tasks.preference.reward_model import with_adapters
from longloom.tasks.preference.warmup import build as warm_up

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "num_labels": 1,
}
MODELS = {
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForSequenceClassification(Qwen2Config(**SHAPE)),
}


def adapted(name: str) -> PeftModel:
    torch.manual_seed(0)
    model = with_adapters(MODELS[name](), rank=3, alpha=6)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(0, 0.2)
    return model.double().eval()


def pool() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Odd ones: texts of one token, one much longer than the other, equal lengths, the same texts turned round."""
    made = torch.Generator().manual_seed(0)
    examples = []
    for chosen, rejected in ((1, 1), (9, 2), (2, 14), (7, 7), (1, 12)):
        ids = torch.randint(1, 40, (chosen + rejected,), generator=made)
        examples.append((ids, torch.tensor([0] * chosen + [1] * rejected)))
    ids, _ = examples[1]
    return [*examples, (torch.cat([ids[9:], ids[:9]]), torch.tensor([0, 0] + [1] * 9))]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_equals_one_by_one_in_float64(name):
    model, examples = adapted(name), pool()
    parameters = trainable(model)
    assert any("score" in key for key in parameters)  # the head is trained, and has a gradient
    assert unsupported(model, parameters) is None
    found: dict[str, torch.Tensor] = {}
    with PerPair(model, parameters) as take:
        losses = take(examples, found.__setitem__)
    gradients = torch.cat([found[key] for key in parameters], 1)
    for example, loss, gradient in zip(examples, losses, gradients, strict=True):
        expected_loss, expected = pair_gradient(model, parameters, *example)
        torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-6)  # norms compute in float32
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert expected.abs().max() > 1e-3


def test_the_reference_equals_finite_differences():
    model = adapted("llama")
    parameters = trainable(model)
    ids, labels = pool()[1]
    _, gradient = pair_gradient(model, parameters, ids, labels)

    def loss() -> float:
        with torch.no_grad():
            scores = [model(input_ids=ids[labels == side][None]).logits.item() for side in (0, 1)]
        return float(np.log1p(np.exp(scores[1] - scores[0])))

    flat = 0
    for parameter in parameters.values():
        values = parameter.data.view(-1)
        place = len(values) // 2
        before = values[place].item()
        sides = []
        for step in (1e-3, -1e-3):  # the norms' float32 blurs a smaller one
            values[place] = before + step
            sides.append(loss())
        values[place] = before
        assert gradient[flat + place] == pytest.approx((sides[0] - sides[1]) / 2e-3, abs=1e-3, rel=2e-2)
        flat += len(values)


def row(number: int, chosen: str, rejected: str, *, tie: bool = False, context: str | None = "be good") -> dict:
    prompt = [{"role": "user", "content": f"say {'abcdefghij'[number]}"}]
    told = {"id": f"c{number}", "source": f"s{number % 2}", "prompt": prompt, "chosen": chosen, "rejected": rejected}
    return told | {"context": context, "category": None, "tie": tie}


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory) -> Path:
    """Ten: a tie, one too long for 60 tokens, one without a context, a reversal pair."""
    folder = tmp_path_factory.mktemp("comparisons")
    rows = [row(number, "ab" * (number % 4 + 1), "cd") for number in range(10)]
    rows[3] = row(3, "same", "like", tie=True)
    rows[5] = row(5, "long " * 20, "cd")
    rows[6] = row(6, "a", "b", context=None)
    rows[8] = row(7, "cd", "ab" * 4) | {"id": "c8"}
    with FileWriter(folder / "comparisons.parquet", SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return folder


@pytest.fixture(scope="module")
def warmup(toy, comparisons, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("warmup")
    stats = warm_up(
        toy.model,
        comparisons,
        out,
        share=0.9,
        checkpoints=2,
        epochs=2,
        batch=2,
        learning_rate=1e-2,
        rank=2,
        alpha=4,
        max_length=60,
        seed=0,
    )
    assert stats.counts | {"steps": 0} == {
        "examples": 7,
        "steps": 0,
        "checkpoints": 2,
        "ties": 1,
        "too_long": 1,
        "without_context": 1,
    }
    return out


def make(toy, comparisons, warmup, out: Path, **changes):
    options = {"dimension": 32, "seed": 0, "max_length": 60, "adam": True, "bias_correction": False, "threads": 1}
    out.mkdir()
    stats = features.build(toy.model, comparisons, warmup, out, device="cpu", workers="threads", **options | changes)
    return stats, open_features(out)


def test_a_warm_up_keeps_heads_moments_and_mean_rates(warmup):
    first, last = read_checkpoints(warmup)
    assert first.step < last.step
    assert first.mean_learning_rate > last.mean_learning_rate > 0  # it falls from the first steps on
    weights = load_file(first.folder / "adapter_model.safetensors")
    moments = load_file(first.folder / "optimizer.safetensors")
    assert any("score" in name for name in weights)
    assert len(moments) == 2 * len(weights)
    assert any(tensor.any() for tensor in moments.values())
    assert not (warmup / "checkpoints").exists()


def test_features_of_pairs(toy, comparisons, warmup, tmp_path: Path):
    """A tie and a long text have no row; the same two texts turned round point elsewhere; threads change nothing."""
    stats, made = make(toy, comparisons, warmup, tmp_path / "one")
    rows = made.rows(0, 10)
    assert stats.counts == {"examples": 10, "dimension": 32, "zero_gradient": 2}
    assert np.flatnonzero(~rows.any(axis=1)).tolist() == [3, 5]
    assert np.isnan(made.losses()[[3, 5]]).all()
    assert np.isfinite(np.delete(made.losses(), [3, 5], 0)).all()
    _, plain = make(toy, comparisons, warmup, tmp_path / "plain", adam=False)
    turned = plain.checkpoint(0, 0, 10)
    assert turned[7] @ turned[8] == pytest.approx(-1, abs=1e-2)  # one gradient is the other's opposite
    _, again = make(toy, comparisons, warmup, tmp_path / "two", threads=3)
    assert np.array_equal(rows, again.rows(0, 10))


def test_a_coreset_of_pairs(toy, comparisons, warmup, tmp_path: Path):
    _, _ = make(toy, comparisons, warmup, tmp_path / "features")
    for method in ("tagcos", "random", "longest", "k-center", "perplexity"):
        out = tmp_path / method
        out.mkdir()
        stats = select.build(
            comparisons,
            tmp_path / "features",
            out,
            targets=None,
            target_features=None,
            method=method,
            share=None,
            count=4,
            clusters=2,
            mode="default",
            side="highest",
            seed=0,
            threads=1,
            workers="threads",
        )
        chosen = read_table(out, "coreset").to_pylist()
        assert stats.counts["examples"] == len(chosen) == 4
        assert all(one["id"] == f"c{one['index']}" for one in chosen)
        if method == "longest":
            assert 5 in [one["index"] for one in chosen]
    assert answer_lengths(comparisons)[[0, 5]].tolist() == [4, 102]
