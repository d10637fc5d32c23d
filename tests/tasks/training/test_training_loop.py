"""The loop: learning rates, rows, what a kill leaves behind, losses that are no numbers."""

from __future__ import annotations

import functools
import itertools
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from longloom.kernels.huggingface.load import load_model
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training import loop, watched
from longloom.tasks.training.finetune import with_lora
from longloom.tasks.training.imported import build as build_imported
from longloom.tasks.training.loop import ROWS, Batch, linear, train, write_rows
from longloom.tasks.training.resume import LAST_GOOD, RUN, last_whole
from longloom.tasks.training.watch import SPEED, SPEED_ROWS
from longloom.tasks.training.watched import CHECKPOINTS, keep_speed


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


def test_no_autocast_stays_around_the_model(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU has it: what is measured after the training is measured in the weights' type."""

    def mixed(*given: Any, **options: Any) -> dict[str, Any]:
        return watched.arguments(*given, **options) | {"bf16": True}

    monkeypatch.setattr(loop, "arguments", mixed)
    run(model, tmp_path, [1e-3] * 2)
    ids = make(0)["input_ids"]
    model.save_pretrained(tmp_path / "saved")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits)


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
    assert [path.name for path in (tmp_path / CHECKPOINTS).glob("checkpoint-*")] == ["checkpoint-12"]


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
    assert [path.name for path in (out / CHECKPOINTS).glob("checkpoint-*")] == ["checkpoint-2"]
    if broken != "none":
        folder = out / CHECKPOINTS / "checkpoint-4"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        if broken == "half":
            (folder / "trainer_state.json").write_text('{"global_step": ')
    again = LlamaForCausalLM.from_pretrained(model_folder)
    assert run(again, out, rates, save_every=2) == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["model", "shards", "adapters"])
def test_a_half_removed_checkpoint_is_passed_over(model_folder: Path, tmp_path: Path, kind: str) -> None:
    """Whichever of the files that the Trainer reads is gone first."""
    network = LlamaForCausalLM.from_pretrained(model_folder)
    network = with_lora(network, rank=2, alpha=4, dropout=0.0) if kind == "adapters" else network
    run(network, tmp_path, [1e-3] * 2, save_every=2)
    folder = tmp_path / CHECKPOINTS
    saved = folder / "checkpoint-2"
    if kind == "shards":
        (saved / "model.safetensors").unlink()
        LlamaForCausalLM.from_pretrained(model_folder).save_pretrained(saved, max_shard_size="20KB")
        assert len(list(saved.glob("*.safetensors"))) > 1
    assert last_whole(folder) == saved
    whole = shutil.copytree(saved, tmp_path / "whole")
    lost = [path.name for path in whole.iterdir() if "safetensors" in path.name or path.name == "adapter_config.json"]
    for name in lost:
        (saved / name).unlink()
        assert last_whole(folder) is None, name
        shutil.copytree(whole, saved)
    assert last_whole(folder) == saved


def test_a_loss_that_is_no_number(model: LlamaForCausalLM, tmp_path: Path) -> None:
    message = r"^training: the (loss|gradient norm) is (nan|inf) at step \d; lower the learning rate$"
    with pytest.raises(ValueError, match=message):
        run(model, tmp_path, [1e30] * 6)
    assert not (tmp_path / CHECKPOINTS / LAST_GOOD).exists()


def test_weights_that_are_no_numbers_past_the_last_row(model: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training: weights are not finite after step 6; lower the learning rate$"):
        run(model, tmp_path, [1e-3] * 4 + [1e30] * 2, log_every=4)


def test_a_gradient_that_is_no_number(model: LlamaForCausalLM, tmp_path: Path) -> None:
    """The loss of that step was one still, and its weights are not saved."""
    poisoned = model.get_input_embeddings().weight
    calls = itertools.count(1)
    poisoned.register_hook(lambda gradient: gradient * torch.nan if next(calls) == 4 else gradient)
    with pytest.raises(ValueError, match=r"^training: the gradient norm is nan at step 4; the model of step 2 is kept"):
        run(model, tmp_path, [1e-3] * 6, save_every=2)
    assert [path.name for path in (tmp_path / CHECKPOINTS).glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("adapters", [False, True])
def test_the_last_good_model_is_kept(model_folder: Path, tmp_path: Path, adapters: bool) -> None:
    """What a training of as many steps as the checkpoint has gives: a whole model with its tokenizer."""
    trained = []
    for name, rates in (("short", [1e-3] * 2), ("long", [1e-3] * 2 + [1e35] * 4)):
        torch.manual_seed(0)
        network, tokenizer = load_model(model_folder, device="cpu", dtype="float32")
        adapted = with_lora(network, rank=2, alpha=4, dropout=0.0) if adapters else network
        out = tmp_path / name
        out.mkdir()
        asked = functools.partial(
            train, adapted, make, list(range(len(rates) + 1)), rates, out, seed=0, save_every=2, log_every=1
        )
        if name == "short":
            asked(tokenizer=tokenizer, progress=silent)
            merged = adapted.merge_and_unload() if adapters else adapted
            trained.append(merged.state_dict())
            continue
        place = out / CHECKPOINTS / LAST_GOOD
        with pytest.raises(ValueError, match="training: the ") as caught:
            asked(tokenizer=tokenizer, progress=silent)
        assert str(caught.value).endswith(f"; the model of step 2 is kept in {place}; lower the learning rate")
        trained.append(load_model(place, device="cpu", dtype="float32")[0].state_dict())
    short, long = trained
    assert short.keys() == long.keys()
    assert all(torch.equal(short[name], long[name]) for name in short)
    imported = tmp_path / "imported"
    imported.mkdir()
    build_imported(str(place), imported)
    assert not list(imported.glob("*adapter*"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rates": [1e-3] * 8}, "its steps is 6, expected 8"),
        ({"rates": [2e-3] * 6}, "its learning rates is "),
        ({"log_every": 2}, "its log every is 1, expected 2"),
        ({"frozen": True}, "its parameters is "),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    model_folder: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    def stop(done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    def once(progress: Progress, *, rates: Sequence[float] = (1e-3,) * 6, log_every: int = 1, frozen: bool = False):
        network = LlamaForCausalLM.from_pretrained(model_folder)
        network.get_input_embeddings().requires_grad_(not frozen)
        tokens = list(range(len(rates) + 1))
        train(
            network, make, tokens, list(rates), tmp_path, seed=0, save_every=2, log_every=log_every, progress=progress
        )

    with pytest.raises(KeyboardInterrupt):
        once(stop)
    place = tmp_path / CHECKPOINTS / "checkpoint-2"
    start = f"training: {place} is of another configuration: {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(start)}") as caught:
        once(silent, **changed)
    assert str(caught.value).endswith("; remove it to start anew")
    assert place.exists()
    (tmp_path / CHECKPOINTS / RUN).unlink()  # nobody can say what it is of: it is done again
    once(silent, **changed)


@pytest.mark.parametrize(("length", "labelled"), [(16, 0), (16, 1), (1, 1)])
def test_a_batch_without_labels_is_refused(model: LlamaForCausalLM, tmp_path: Path, length: int, labelled: int) -> None:
    """Nothing but -100, or a first token alone, which nothing comes before; so is a sequence of length 1."""

    def empty(step: int) -> Batch:
        ids = torch.ones(2, length, dtype=torch.int64)
        return {"input_ids": ids, "labels": torch.where(torch.arange(length) < labelled, ids, -100)}

    with pytest.raises(ValueError, match=rf"^training: batch 0 \[2, {length}\] has no label to learn from, expected"):
        train(model, empty, [0, 1], [1e-3], tmp_path, seed=0, save_every=0, log_every=1, progress=silent)


class Told:
    """A progress callable that knows words."""

    def __init__(self, until: int) -> None:
        self.until, self.words = until, list[str]()

    def __call__(self, done: int, total: int | None) -> None:
        if done == self.until:
            raise KeyboardInterrupt

    def tell(self, text: str) -> None:
        self.words.append(text)


def test_speed_is_kept_apart_and_survives_a_kill(model_folder: Path, tmp_path: Path) -> None:
    def once(told: Told) -> list[dict[str, float]]:
        network = LlamaForCausalLM.from_pretrained(model_folder)
        tokens = [32 * step for step in range(7)]
        return train(network, make, tokens, [1e-3] * 6, tmp_path, seed=0, save_every=2, log_every=2, progress=told)

    killed, whole = Told(until=5 * 32), Told(until=-1)
    with pytest.raises(KeyboardInterrupt):
        once(killed)
    rows = once(whole)
    assert [text.split(":")[0] for text in killed.words] == ["step 2 of 6", "step 4 of 6"]
    assert [text.split(":")[0] for text in whole.words] == ["step 6 of 6"]
    assert re.fullmatch(
        r"step 6 of 6: loss \d\.\d{3}, gradient norm \d+\.\d\d, learning rate 1\.0e-03, [\d,]+ tokens/s, \d+\.\d GB",
        whole.words[0],
    )
    assert set(rows[0]) == set(ROWS.names)
    assert keep_speed(tmp_path) == (SPEED,)
    table = pq.read_table(tmp_path / SPEED)
    assert table.schema.equals(SPEED_ROWS)
    assert table["step"].to_pylist() == [2, 4, 6]
    assert table["tokens"].to_pylist() == [64, 128, 192]
    for row in table.to_pylist():
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(64)
        assert row["memory_bytes"] > 1e6
