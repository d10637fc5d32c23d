"""Held-out loss against a loop over single tokens; in any batch the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from longloom.kernels.huggingface.load import load_model
from longloom.tasks.training import heldout
from longloom.tasks.training.mix import IGNORE
from longloom.tasks.training.sft import encode, load_examples


def plain_loss(network: torch.nn.Module, ids: list[int], labels: list[int]) -> float:
    """One token at a time, in float64, from the whole logits of one example."""
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([ids])).logits[0].double()
    lost = [
        float(torch.logsumexp(logits[t - 1], 0) - logits[t - 1, labels[t]])
        for t in range(1, len(ids))
        if labels[t] != IGNORE
    ]
    return sum(lost) / len(lost)


def test_losses_equal_the_plain_loop_and_are_told_in_the_pools_order(
    model_folder: Path, pool: Path, tmp_path: Path
) -> None:
    stats = heldout.build(model_folder, pool, tmp_path, max_length=48)
    table = pq.read_table(tmp_path / "heldout.parquet")
    assert table.schema.equals(heldout.SCHEMA)
    network, tokenizer = load_model(model_folder, dtype="float32")
    encoded = [encode(tokenizer, messages, max_length=48) for _, messages in load_examples(pool)]
    kept = [i for i, (_, labels) in enumerate(encoded) if any(label != IGNORE for label in labels[1:])]
    assert table["id"].to_pylist() == [str(i) for i in kept]
    assert "3" not in table["id"].to_pylist()  # has no answer
    expected = [plain_loss(network, *encoded[i]) for i in kept]
    np.testing.assert_allclose(table["loss"].to_numpy(), expected, rtol=2e-6)
    tokens = [sum(label != IGNORE for label in encoded[i][1][1:]) for i in kept]
    assert table["tokens"].to_pylist() == tokens
    assert stats.counts == {"examples": len(kept), "tokens": sum(tokens)}
    assert stats.values["without_label"] == 26 - len(kept)
    assert stats.values["loss_over_tokens"] == pytest.approx(np.average(expected, weights=tokens))


@pytest.mark.parametrize("batch_tokens", [1, 60, 300, 10_000])
def test_losses_do_not_depend_on_batches_and_padding(model_folder: Path, pool: Path, batch_tokens: int) -> None:
    network, tokenizer = load_model(model_folder, dtype="float32")
    examples = [encode(tokenizer, messages, max_length=48) for _, messages in load_examples(pool)]
    examples = [(ids, labels) for ids, labels in examples if any(label != IGNORE for label in labels[1:])]
    found = heldout.losses(network, examples, pad_id=tokenizer.pad_token_id, batch_tokens=batch_tokens)
    single = [plain_loss(network, *example) for example in examples]
    np.testing.assert_allclose(found, single, rtol=2e-6)
    backwards = heldout.losses(network, examples[::-1], pad_id=0, batch_tokens=batch_tokens)
    np.testing.assert_allclose(backwards[::-1], single, rtol=2e-6)


def test_a_model_without_narrow_logits_gives_the_same(model_folder: Path, pool: Path) -> None:
    network, tokenizer = load_model(model_folder, dtype="float32")
    examples = [encode(tokenizer, messages, max_length=48) for _, messages in load_examples(pool)[10:]]
    expected = heldout.losses(network, examples, pad_id=3)
    whole = network.forward

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> object:
        return whole(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    network.forward = forward  # type: ignore[assignment]
    np.testing.assert_allclose(heldout.losses(network, examples, pad_id=3), expected, rtol=2e-6)


def test_batches_hold_every_row_once_within_the_tokens() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 100).tolist()
    batches = heldout.batches_by_length(lengths, 64)
    assert sorted(row for rows in batches for row in rows) == list(range(100))
    for rows in batches:
        assert len(rows) == 1 or max(lengths[row] for row in rows) * len(rows) <= 64


def test_progress_ends_at_all_tokens_and_equal_inputs_give_equal_bytes(
    model_folder: Path, pool: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    told: list[tuple[int, int | None]] = []
    for name in "ab":
        (tmp_path / name).mkdir()
        heldout.build(model_folder, pool, tmp_path / name, max_length=48, progress=lambda *at: told.append(at))
    assert told[-1][0] == told[-1][1]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_averages_over_sources_and_over_tokens() -> None:
    by_source, over_tokens = heldout.averages(["b", "a", "b"], np.array([1, 5, 3]), np.array([2.0, 1.0, 4.0]))
    assert by_source == {"a": 1.0, "b": 3.5}
    assert over_tokens == pytest.approx((2 + 5 + 12) / 9)


def test_nothing_to_predict_and_a_broken_model_are_said(model_folder: Path, pool: Path, tmp_path: Path) -> None:
    table = pq.read_table(pool / "instructions.parquet")
    (tmp_path / "empty").mkdir()
    pq.write_table(table.slice(3, 1), tmp_path / "empty" / "instructions.parquet")
    with pytest.raises(ValueError, match="none of 1 examples has an answer within 48 tokens"):
        heldout.build(model_folder, tmp_path / "empty", tmp_path, max_length=48)
    network, tokenizer = load_model(model_folder, dtype="float32")
    with torch.no_grad():
        network.get_output_embeddings().weight.fill_(float("nan"))
    network.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match="not finite on example '0'"):
        heldout.build(tmp_path / "broken", pool, tmp_path, max_length=48)
    assert not (tmp_path / "heldout.parquet").exists()


def test_an_example_that_the_chat_template_refuses_is_named(model_folder: Path, refused: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^example '12': the tokenizer's chat template refuses the conversation"):
        heldout.build(model_folder, refused, tmp_path, max_length=48)
