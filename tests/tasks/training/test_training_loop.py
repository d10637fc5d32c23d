"""The loop: learning rates, rows, what a kill leaves behind, losses that are no numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from longloom.tasks.progress import silent
from longloom.tasks.training.loop import CHECKPOINTS, ROWS, Batch, linear, train, write_rows


@pytest.fixture
def model(model_folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(model_folder)


def make(step: int) -> Batch:
    ids = torch.randint(4, 300, (2, 16), generator=torch.Generator().manual_seed(step))
    return {"input_ids": ids, "labels": ids.clone()}


def run(
    model: LlamaForCausalLM, out: Path, rates: list[float], *, log_every: int = 1, save_every: int = 0
) -> list[dict[str, float]]:
    tokens = [32 * step for step in range(len(rates) + 1)]
    return train(model, make, tokens, rates, out, seed=0, save_every=save_every, log_every=log_every, progress=silent)


def test_linear() -> None:
    rates = linear(100, peak=2.0, final=1.0, warmup=10)
    assert len(rates) == 100
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == pytest.approx(0.5 * (2 - 0.04))
    assert rates[9] == pytest.approx(2 - 0.09)
    assert rates[50] == pytest.approx(1.5)
    assert rates[-1] == pytest.approx(1.01)
    assert linear(4, peak=1.0, final=0.0, warmup=0) == [1.0, 0.75, 0.5, 0.25]


def test_rows_tell_what_happened(model_folder: Path, tmp_path: Path) -> None:
    """Against plain PyTorch: AdamW (betas .9/.95, decay .01), clipping at 1, mean loss over the labelled tokens."""
    rates = [1e-3, 3e-3, 2e-3, 5e-4]
    network, twin = (LlamaForCausalLM.from_pretrained(model_folder) for _ in range(2))
    rows = run(network, tmp_path, rates)
    decayed = [p for name, p in twin.named_parameters() if "norm" not in name]
    plain = [p for name, p in twin.named_parameters() if "norm" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = make(step)["input_ids"]
        logits = twin(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        row = rows[step]
        assert (row["step"], row["tokens"]) == (step + 1, 32 * (step + 1))
        assert row["learning_rate"] == pytest.approx(rate)
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_row_is_the_mean_of_its_steps(model_folder: Path, tmp_path: Path) -> None:
    single, double = (
        run(LlamaForCausalLM.from_pretrained(model_folder), tmp_path / str(every), [1e-3] * 5, log_every=every)
        for every in (1, 2)
        if (tmp_path / str(every)).mkdir() is None
    )
    assert [row["step"] for row in double] == [2, 4]
    for i, row in enumerate(double):
        assert row["loss"] == pytest.approx((single[2 * i]["loss"] + single[2 * i + 1]["loss"]) / 2)
    write_rows(double, tmp_path)
    table = pq.read_table(tmp_path / "training.parquet")
    assert table.schema.equals(ROWS)
    assert table.to_pylist() == double


def test_checkpoints_stand_at_the_ends_of_rows(model: LlamaForCausalLM, tmp_path: Path) -> None:
    saved: list[str] = []

    def note(done: int, total: int | None) -> None:
        saved.extend(path.name for path in (tmp_path / CHECKPOINTS).glob("checkpoint-*") if path.name not in saved)

    train(model, make, list(range(13)), [1e-3] * 12, tmp_path, seed=0, save_every=3, log_every=2, progress=note)
    assert saved == ["checkpoint-4", "checkpoint-8"]
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["checkpoint-12"]


@pytest.mark.parametrize("broken", ["none", "empty", "half"])
def test_a_half_written_checkpoint_is_passed_over(
    model_folder: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]], broken: str
) -> None:
    rates = [1e-3] * 6
    whole = LlamaForCausalLM.from_pretrained(model_folder)
    expected = run(whole, tmp_path, rates)
    again = LlamaForCausalLM.from_pretrained(model_folder)
    out = tmp_path / "out"
    out.mkdir()

    def stop(done: int, total: int | None) -> None:
        if done == 4 * 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(again, make, [32 * i for i in range(7)], rates, out, seed=0, save_every=2, log_every=1, progress=stop)
    assert [path.name for path in (out / CHECKPOINTS).iterdir()] == ["checkpoint-2"]
    if broken != "none":
        folder = out / CHECKPOINTS / "checkpoint-4"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        if broken == "half":
            (folder / "trainer_state.json").write_text('{"global_step": ')
    again = LlamaForCausalLM.from_pretrained(model_folder)
    assert run(again, out, rates, save_every=2) == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_loss_that_is_no_number(model: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training: the loss is nan at step \d; lower the learning rate$"):
        run(model, tmp_path, [1e30] * 6)


def test_weights_that_are_no_numbers_past_the_last_row(model: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training: weights are not finite after step 6; lower the learning rate$"):
        run(model, tmp_path, [1e-3] * 4 + [1e30] * 2, log_every=4)
