"""`minisequence` within what trains models: transformers' Trainer, trl's, and two processes over gloo."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from longloom.kernels.huggingface import minisequence as minisequence_module
from longloom.kernels.huggingface.minisequence import minisequence

from . import ddp_minisequence as worker
from .models import LAYERS, VOCABULARY, random_model

STEPS, ACCUMULATION, TOKENS = 3, 3, 13


class Rows(torch.utils.data.Dataset):
    """Rows whose labels count in very different numbers, which a mean of means would get wrong."""

    def __len__(self) -> int:
        return 2 * STEPS * ACCUMULATION

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        ids = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(row))
        labels = ids.clone()
        labels[: row % (TOKENS - 2)] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def arguments(folder: Path, kind: type[TrainingArguments] = TrainingArguments, **options) -> TrainingArguments:
    return kind(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=STEPS,
        learning_rate=1e-3,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **options,
    )


def trained(model: nn.Module, folder: Path, **options) -> tuple[list[float], list[float], float]:
    """Losses and gradient norms of every step, and the loss of an evaluation behind them."""
    trainer = Trainer(model=model, args=arguments(folder, **options), train_dataset=Rows(), eval_dataset=Rows())
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluation = trainer.evaluate()["eval_loss"]
    return [entry["loss"] for entry in history], [float(entry["grad_norm"]) for entry in history], evaluation


CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}


@pytest.mark.parametrize(
    ("options", "offload", "adapters"),
    [({}, False, False), (CHECKPOINTING, True, False), (CHECKPOINTING, False, True), (REENTRANT, False, True)],
    ids=["plain", "offloaded checkpoints", "lora, checkpoints", "lora, reentrant checkpoints"],
)
def test_the_trainer_trains_alike(options, offload, adapters, tmp_path):
    """Three batches a step: losses, gradient norms, weights and evaluation as without."""
    model = random_model().train()
    if adapters:
        config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        torch.manual_seed(1)
        model = get_peft_model(model, config)
    other = copy.deepcopy(model)
    expected = trained(other, tmp_path)
    with minisequence(model, rows=5, offload=offload) as patched:
        found = trained(model, tmp_path, **options)
        assert patched.loss
    assert len(found[0]) == STEPS
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(set(found[0])) == STEPS
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)


def test_the_trainer_in_bfloat16(tmp_path):
    """accelerate wraps the patched forward in autocast, and unwraps it."""
    model = random_model().train()
    expected = trained(copy.deepcopy(model), tmp_path, bf16=True)
    with minisequence(model, rows=5):
        found = trained(model, tmp_path, bf16=True)
    assert found[0] == pytest.approx(expected[0], rel=2e-2)
    assert model.train()(**{name: part[None] for name, part in Rows()[0].items()}).logits is not None


@pytest.mark.parametrize("made", ["before the block", "within the block"])
def test_sft_trainer_trains_alike(made, tmp_path, monkeypatch):
    """trl fuses the head itself when its trainer is made, and asks for that one: only the MLPs are ours."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")
    rows = [Rows()[number] for number in range(len(Rows()))]
    data = Dataset.from_dict(
        {
            "input_ids": [row["input_ids"].tolist() for row in rows],
            "completion_mask": [(row["labels"] >= 0).long().tolist() for row in rows],
        }
    )
    tiled = []
    own = minisequence_module.tiled_mlp
    monkeypatch.setattr(minisequence_module, "tiled_mlp", lambda *args, **all: tiled.append(1) or own(*args, **all))

    def trainer(model: nn.Module) -> SFTTrainer:
        config = arguments(tmp_path, SFTConfig, max_length=None, bf16=False)
        return SFTTrainer(model=model, args=config, train_dataset=data, eval_dataset=data, processing_class=tokenizer)

    def figures(run: SFTTrainer) -> list[float]:
        run.train()
        run.evaluate()
        kept = ("loss", "grad_norm", "mean_token_accuracy", "entropy", "eval_loss")
        return [entry[name] for entry in run.state.log_history for name in kept if name in entry]

    expected = figures(trainer(random_model().train()))
    assert len(expected) == 4 * STEPS + 1
    assert not tiled
    model = random_model().train()
    outside = trainer(model) if made == "before the block" else None
    with minisequence(model, rows=5) as patched:
        found = figures(outside or trainer(model))
    assert len(patched.tiles) == LAYERS
    # MLP and two norms a layer once a batch of the evaluation, twice one of training, for trl's default is gradient
    # checkpointing; the last norm once.
    training, evaluation = STEPS * ACCUMULATION, math.ceil(len(rows) / 8)
    assert len(tiled) == 3 * LAYERS * (2 * training + evaluation) + training + evaluation
    assert found == pytest.approx(expected, rel=1e-5)
    ids = rows[0]["input_ids"][None]
    assert model.train()(input_ids=ids, labels=ids).logits is not None  # behind the block the model's own


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """Means over both; the model, with and without checkpointing, and the fused loss alone."""
    batches = []
    for rank in range(2):
        rows = [Rows()[row] for row in (rank, rank + 2)]
        batches.append({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
        torch.save(batches[rank], tmp_path / f"inputs-{rank}.pt")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.kernels.huggingface.ddp_minisequence", str(tmp_path)],
        cwd=Path(__file__).parents[3],
        # A command that ran in this process before has set it, and the module is found by the folder.
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2)]
    model = random_model().double().train()
    for inputs in batches:
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].flatten(0, 1)
        (F.cross_entropy(logits, inputs["labels"][:, 1:].flatten()) / 2).backward()
    head = worker.Head()
    for rank in range(2):
        (F.cross_entropy(head.hidden @ head.weight.T, worker.labels_of(rank)) / 2).backward()
    whole = {name: part.grad for name, part in model.named_parameters()}
    expected = {f"model, checkpointing {on}": whole for on in (False, True)}
    expected["head"] = {name: part.grad for name, part in head.named_parameters()}
    for ours in found:
        assert set(ours) == set(expected)
        for way, parts in expected.items():
            for name, part in parts.items():
                assert (ours[way][name] - part).norm() <= 1e-10 * part.norm(), (way, name)
