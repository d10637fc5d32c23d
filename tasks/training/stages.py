"""A stage of instruction tuning on a blend of conversations, all weights or adapters, the loss on answers alone.

ChatQA 2 (arXiv 2407.14482, section 3.2) has three: instructions, conversations with a context, the latter with long
documents among them. Each is a part here: one part is a stage; all three as parts of one training are the all-in-one
that they are compared with: the same examples, cut alike, in one random order.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from longloom.kernels.huggingface.load import load_model
from longloom.kernels.huggingface.minisequence import minisequence
from longloom.storage.parquet import count_rows, iter_batches
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.blend import draw
from longloom.tasks.training.chatqa_prompt import Encoded, chat_template, encode
from longloom.tasks.training.checkpoints import leave_kept
from longloom.tasks.training.conversations import NAME, SCHEMA
from longloom.tasks.training.finetune import ROWS, SAVES, WARMUP_SHARE, with_lora
from longloom.tasks.training.loop import Batch, linear, train, write_rows
from longloom.tasks.training.mix import IGNORE
from longloom.tasks.training.sft import epoch_batches, pad
from longloom.tasks.training.stored import dtype_of, save, window_of
from longloom.tasks.training.watched import keep_speed

_READ_ROWS = 64

#: What was trained on, a row a part and set: tokens are those of all its examples, answer_tokens have the loss; cut:
#: examples whose context or dialogue lost something; left_out: those that do not fit at all.
BLEND = pa.schema(
    [
        ("stage", pa.string()),
        ("set", pa.string()),
        ("share", pa.float64()),
        ("size", pa.int64()),
        ("examples", pa.int64()),
        ("tokens", pa.int64()),
        ("answer_tokens", pa.int64()),
        ("cut", pa.int64()),
        ("left_out", pa.int64()),
    ]
)


def build(
    model: Path | str,
    sets: Mapping[str, Path],
    out: Path,
    *,
    parts: Sequence[Mapping[str, Any]],
    batch: int,
    accumulate: int,
    learning_rate: float,
    recompute: bool,
    offload: bool,
    seed: int,
    lora: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Stats:
    """Trains and writes a model folder with `training.parquet` and `blend.parquet`.

    The tokenizer gets ChatQA's prompt as its chat template. Weights are trained in float32 and saved in the type in
    which the model is stored.

    Args:
        model: a model folder or a hub name; of a later stage, what the one before wrote.
        sets: conversations artifacts by name.
        out: the artifact's folder; checkpoints in it are resumed from.
        parts: of each, `stage` (its name), `shares` (set -> share of one), `examples` and `max_length` in tokens.
        batch: examples a step, of like lengths.
        accumulate: parts that a step's examples are read in; a last batch of fewer examples is left out.
        learning_rate: peak; linear warm-up over 3% of the steps, linear to 0.
        recompute: gradient checkpointing, MLPs and loss in tiles: exact, for sequences that need the memory.
        offload: with it, what is kept of the layers waits in host memory.
        seed: of draws, order and adapters.
        lora: `rank`, `alpha` and `dropout` of adapters on the attention, trained in place of the weights and merged
            into them at the end; None trains all weights.
        progress: real tokens seen.

    Raises:
        ValueError: a length beyond the model's window; no example that fits; adapters for projections of unknown names.
    """
    stored = dtype_of(model)
    network, tokenizer = load_model(model, dtype="float32")
    tokenizer.chat_template = chat_template(tokenizer)
    check_window(window_of(network.config), {part["stage"]: part["max_length"] for part in parts})
    examples, table = _examples(tokenizer, sets, parts, seed)
    if not examples:
        raise ValueError(f"stages: none of {sum(part['examples'] for part in parts)} examples fits its max_length")
    batches = epoch_batches([len(example.ids) for example in examples], batch=batch, epochs=1, seed=seed)
    batches = [rows for rows in batches if len(rows) >= accumulate]
    if not batches:
        raise ValueError(
            f"stages: accumulate is {accumulate}, expected at most the number of examples that fit, {len(examples)}"
        )

    def make(number: int) -> Batch:
        step, place = divmod(number, accumulate)
        return pad(
            [_labelled(examples[row]) for row in batches[step][place::accumulate]], pad_id=tokenizer.pad_token_id
        )

    torch.manual_seed(seed)
    trained = network if lora is None else with_lora(network, **lora)
    steps = len(batches)
    with ExitStack() as stack:
        if recompute:
            network.activation_checkpointing_enable({"use_reentrant": False})
            stack.enter_context(minisequence(network, offload=offload))
        logged = train(
            trained,
            make,
            [0, *itertools.accumulate(sum(len(examples[row].ids) for row in rows) for rows in batches)],
            linear(steps, peak=learning_rate, final=0.0, warmup=max(1, round(WARMUP_SHARE * steps))),
            out,
            seed=seed,
            save_every=max(1, steps // SAVES),
            log_every=max(1, steps // ROWS),
            weight_decay=0.0,
            betas=(0.9, 0.999),
            accumulate=accumulate,
            tokenizer=tokenizer,
            progress=progress,
        )
    merged = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
    save(merged, out, dtype=stored)
    tokenizer.save_pretrained(out)
    write_rows(logged, out)
    pq.write_table(pa.Table.from_pylist(table, BLEND), out / "blend.parquet", compression="zstd")
    speed = keep_speed(out)
    leave_kept(out)
    counted = {name: sum(row[name] for row in table) for name in ("tokens", "cut", "left_out")}
    return Stats(
        counts={"examples": sum(map(len, batches)), "steps": steps, **counted},
        values={"final_loss": logged[-1]["loss"]},
        volatile=speed,
    )


def check_window(window: int, lengths: Mapping[str, int]) -> None:
    """Raises a ValueError for the first stage whose examples are longer than the model's window."""
    for stage, length in lengths.items():
        if length > window:
            raise ValueError(
                f"stage {stage}: max_length is {length}, expected at most {window}, the model's window; extend it first"
                " (longloom extend)"
            )


def _examples(
    tokenizer: PreTrainedTokenizerBase, sets: Mapping[str, Path], parts: Sequence[Mapping[str, Any]], seed: int
) -> tuple[list[Encoded], list[dict[str, Any]]]:
    """Every example that the parts draw, and what to tell of them."""
    found: list[Encoded] = []
    table: list[dict[str, Any]] = []
    sizes = {name: count_rows(folder, NAME) for name, folder in sets.items()}
    for part in parts:
        shares: Mapping[str, float] = part["shares"]
        drawn = draw(shares, sizes, part["examples"], seed=seed, stage=part["stage"])
        for name, share in shares.items():
            rows = [row for of, row in drawn if of == name]
            mine = _encoded(tokenizer, sets[name], rows, part["max_length"])
            kept = [example for example in mine if example is not None]
            found += kept
            table.append(
                {
                    "stage": part["stage"],
                    "set": name,
                    "share": share,
                    "size": sizes[name],
                    "examples": len(kept),
                    "tokens": sum(len(example.ids) for example in kept),
                    "answer_tokens": sum(len(example.ids) - example.answer for example in kept),
                    "cut": sum(example.cut for example in kept),
                    "left_out": len(mine) - len(kept),
                }
            )
    return found, table


def _encoded(
    tokenizer: PreTrainedTokenizerBase, folder: Path, drawn: Sequence[int], max_length: int
) -> list[Encoded | None]:
    """Of every row that is drawn; one that is drawn several times is encoded once, and no other is kept in memory."""
    wanted, known, start = set(drawn), dict[int, Encoded | None](), 0
    for batch in iter_batches(folder, NAME, SCHEMA.names, _READ_ROWS):
        places = [place for place in range(batch.num_rows) if start + place in wanted]
        for place, row in zip(places, batch.take(pa.array(places, pa.int64())).to_pylist(), strict=True):
            known[start + place] = encode(tokenizer, row, max_length=max_length)
        start += batch.num_rows
    return [known[row] for row in drawn]


def _labelled(example: Encoded) -> tuple[list[int], list[int]]:
    ids = example.ids.tolist()
    return ids, [IGNORE] * example.answer + ids[example.answer :]
