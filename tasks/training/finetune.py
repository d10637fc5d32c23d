"""Fine-tunes a causal LM on instructions, all of them or a coreset, with LoRA (peft) or in full."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow.parquet as pq
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from longloom.kernels.huggingface.load import load_model
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.checkpoints import keeper, leave_kept, spaced
from longloom.tasks.training.loop import Batch, linear, train, write_rows
from longloom.tasks.training.sft import PLAIN_TEMPLATE, encode_all, epoch_batches, load_examples, pad, with_opening
from longloom.tasks.training.stored import dtype_of, save, window_of
from longloom.tasks.training.watched import keep_speed

#: Share of the steps that warm up, as LESS and TAGCOS train (arXiv 2407.15235, section 4.1).
WARMUP_SHARE = 0.03
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
#: All of an attention's projections by the ends of their names; a model's are the first whole set that it has.
ATTENTION = (
    LORA_TARGETS,
    ["qkv_proj", "o_proj"],  # Phi 3
    ["query_key_value", "dense"],  # GPT NeoX, BLOOM, Falcon
    ["q_proj", "k_proj", "v_proj", "dense"],  # Phi
    ["q_proj", "k_proj", "v_proj", "out_proj"],  # OPT, GPT-J
    ["qkv_proj", "out_proj"],  # CodeGen
    ["Wqkv", "out_proj"],  # MPT
    ["attn.c_attn", "attn.c_proj"],  # GPT-2, whose MLP has a c_proj too
)
ROWS = 100
SAVES = 8


def with_lora(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float) -> PeftModel:
    """Adapters on the attention projections.

    Raises:
        ValueError: the model's projections have other names, or some of them have.
    """
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_projections(model), task_type="CAUSAL_LM"
    )
    peft_model = get_peft_model(model, config)
    assert isinstance(peft_model, PeftModel)
    return peft_model


def _projections(model: PreTrainedModel) -> list[str]:
    """The set of `ATTENTION` that the model has whole: of a set in part, peft would adapt that part and say nothing."""
    names = [name for name, _ in model.named_modules()]
    for wanted in ATTENTION:
        if all(any(name.endswith(f".{end}") for name in names) for end in wanted):
            return wanted
    found = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    raise ValueError(
        f"model: {model.config.model_type} has the linear layers {', '.join(sorted(found))}, expected all attention"
        f" projections of one kind: {'; '.join(' '.join(wanted) for wanted in ATTENTION)}"
    )


def build(
    model: Path | str,
    instructions: Path,
    coreset: Path | None,
    out: Path,
    *,
    tuning: str,
    epochs: int,
    batch: int,
    learning_rate: float,
    rank: int,
    alpha: int,
    dropout: float,
    max_length: int,
    seed: int,
    checkpoints: int = 0,
    progress: Progress = silent,
) -> Stats:
    """Trains and writes a whole model folder (adapters merged) with `training.parquet`.

    Weights are trained in float32 and saved in the type in which the model is stored. A tokenizer without a chat
    template gets the plain one that the examples were rendered by, so that the model is asked as it was trained.

    Args:
        model: a model folder or a hub name.
        instructions: an instructions artifact.
        coreset: a coreset artifact; None trains on everything.
        out: the artifact's folder; checkpoints in it are resumed from.
        tuning: `lora` or `full`.
        epochs: passes over the examples.
        batch: examples a step.
        learning_rate: peak; linear warm-up over 3% of the steps, linear to 0.
        rank, alpha, dropout: of LoRA.
        max_length: tokens of an example; longer ones lose their beginning.
        seed: of the order, dropout and the adapters.
        checkpoints: so many are kept at equal distances, the last one at the end, their adapters merged
            (tasks/training/checkpoints.py).
        progress: real tokens seen.

    Raises:
        ValueError: an unknown tuning; no example with a label; one that the chat template refuses; adapters for
            projections of unknown names.
    """
    if tuning not in ("lora", "full"):
        raise ValueError(f"tuning {tuning!r}: unknown, expected 'lora' or 'full'")
    stored = dtype_of(model)
    network, tokenizer = load_model(model, dtype="float32")
    indices = (
        None if coreset is None else pq.read_table(coreset / "coreset.parquet", columns=["index"]).column(0).to_pylist()
    )
    pool = load_examples(instructions, indices)
    max_length = min(max_length, window_of(network.config))
    examples, without = encode_all(tokenizer, pool, max_length=max_length)
    if not examples:
        raise ValueError(f"instructions: none of {len(pool)} examples has an answer within {max_length} tokens")
    if not tokenizer.chat_template:
        tokenizer.chat_template = with_opening(tokenizer, PLAIN_TEMPLATE, beginning="User: a")
    batches = epoch_batches([len(ids) for ids, _ in examples], batch=batch, epochs=epochs, seed=seed)

    def make(step: int) -> Batch:
        return pad([examples[row] for row in batches[step]], pad_id=tokenizer.pad_token_id)

    torch.manual_seed(seed)
    trained = with_lora(network, rank=rank, alpha=alpha, dropout=dropout) if tuning == "lora" else network
    steps = len(batches)
    rates = linear(steps, peak=learning_rate, final=0.0, warmup=max(1, round(WARMUP_SHARE * steps)))
    kept = spaced(steps, checkpoints)
    rows = train(
        trained,
        make,
        [0, *itertools.accumulate(sum(len(examples[row][0]) for row in rows) for rows in batches)],
        rates,
        out,
        seed=seed,
        save_every=max(1, steps // SAVES),
        log_every=max(1, steps // ROWS),
        weight_decay=0.0,
        betas=(0.9, 0.999),
        after_step=keeper(kept, rates, out),
        tokenizer=tokenizer,
        progress=progress,
    )
    trainable = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    merged = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
    save(merged, out, dtype=stored)
    tokenizer.save_pretrained(out)
    write_rows(rows, out)
    speed = keep_speed(out)
    leave_kept(out)
    return Stats(
        counts={"examples": len(examples), "steps": steps} | ({"checkpoints": len(kept)} if kept else {}),
        values={"without_label": without, "final_loss": rows[-1]["loss"], "trainable": trainable},
        volatile=speed,
    )
