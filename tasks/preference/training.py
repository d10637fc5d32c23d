"""Trains a reward model on comparisons that tell their context: trl's RewardTrainer, Bradley-Terry.

The loss of a pair is -log sigmoid(r(x, z, y+) - r(x, z, y-) - margin) + centre (r(x, z, y+) + r(x, z, y-))^2, for
prompt x, context z and responses y (arXiv 2407.14916; the centring of arXiv 2312.09244, equation 2). As in every
training here batch i depends on i alone, so a run that was killed ends with the bytes of one that was not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from longloom.storage.parquet import FileWriter, read_table
from longloom.storage.stats import Stats
from longloom.tasks.preference import template as templates
from longloom.tasks.preference.encoding import Asked, Reading, encode, set_apart_padding
from longloom.tasks.preference.pairs import NAME
from longloom.tasks.preference.reward_model import TUNINGS, start, with_adapters
from longloom.tasks.preference.reward_trainer import SCHEMA, Batches, Pair, train
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.checkpoints import leave_kept
from longloom.tasks.training.sft import epoch_batches
from longloom.tasks.training.stored import window_of
from longloom.tasks.training.watched import keep_speed

#: Share of the steps that warm up.
WARMUP_SHARE = 0.03
ON_TOO_LONG = ("stop", "skip")
ROWS = 100
SAVES = 8


def build(
    model: Path | str,
    comparisons: Path,
    out: Path,
    *,
    tuning: str,
    epochs: int,
    batch: int,
    learning_rate: float,
    rank: int,
    alpha: int,
    margin: float,
    centre: float,
    template: str,
    max_length: int,
    on_too_long: str,
    seed: int,
    progress: Progress = silent,
) -> Stats:
    """Trains and writes a folder that AutoModelForSequenceClassification loads (adapters merged), its tokenizer,
    `reward.json` (encoding.py) and `training.parquet`.

    Ties teach no order and are left out. A comparison without a context shows its prompt alone.

    Args:
        model: a model folder or a hub name; a language model gets a new head, a reward model keeps its own.
        comparisons: a comparisons artifact.
        out: the artifact's folder; checkpoints in it are resumed from.
        tuning: `lora` or `full`.
        epochs: passes over the comparisons.
        batch: comparisons a step; see `together`.
        learning_rate: peak; linear warm-up over 3% of the steps, linear to 0.
        rank, alpha: of LoRA.
        margin: by which a chosen response is to be better, in units of the score.
        centre: weight of the pair's squared sum, which keeps scores around 0.
        template: how the context is put into the prompt.
        max_length: tokens of a text, no more than the model's window; none is cut.
        on_too_long: `stop` at a comparison with a longer text, or `skip` and count them and the others of the same two
            responses, so that a reversal goes whole.
        seed: of the head, the adapters and the order.
        progress: tokens read, and in all.

    Returns:
        Counts of the comparisons trained on, of those without a context among them, of steps, ties and those too long.
        Values: loss, accuracy and margin of the last row, trainable parameters, whether a padding token was added, the
        longest text.

    Raises:
        ValueError: an unknown tuning, nothing to train on, a text too long, a loss or gradient that is not finite.
    """
    for name, value, known in (("tuning", tuning, TUNINGS), ("on_too_long", on_too_long, ON_TOO_LONG)):
        if value not in known:
            raise ValueError(f"{name} {value!r}: unknown, expected one of {', '.join(known)}")
    templates.check(template)
    network, tokenizer = start(model, seed=seed)
    added = set_apart_padding(tokenizer, network)
    reading = Reading(template, min(max_length, window_of(network.config)))
    pairs, told = read_pairs(comparisons, tokenizer, reading, on_too_long=on_too_long)
    batches = together(pairs, batch=batch, epochs=epochs, seed=seed)
    steps = len(batches)
    torch.manual_seed(seed)
    trained = with_adapters(network, rank=rank, alpha=alpha) if tuning == "lora" else network
    sizes = (sum(len(pairs[row].chosen) + len(pairs[row].rejected) for row in rows) for rows in batches)
    rows = train(
        trained,
        tokenizer,
        Batches(pairs, batches, margin=margin, pad_id=int(tokenizer.pad_token_id)),
        [0, *itertools.accumulate(sizes)],
        out,
        learning_rate=learning_rate,
        warmup=int(WARMUP_SHARE * steps),
        centre=centre,
        seed=seed,
        save_every=max(1, steps // SAVES),
        log_every=max(1, steps // ROWS),
        progress=progress,
    )
    trainable = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    merged: Any = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
    merged.save_pretrained(out)
    tokenizer.save_pretrained(out)
    reading.write(out)
    with FileWriter(out / "training.parquet", SCHEMA) as writer:
        writer.write(rows)
    volatile = keep_speed(out)
    leave_kept(out)
    return Stats(
        counts={"comparisons": len(pairs), "steps": steps, **told},
        values={
            **{f"final_{name}": rows[-1][name] for name in ("loss", "accuracy", "margin")},
            "trainable": trainable,
            "padding_added": added,
            "longest": max(max(len(pair.chosen), len(pair.rejected)) for pair in pairs),
        },
        volatile=volatile,
    )


def together(pairs: Sequence[Pair], *, batch: int, epochs: int, seed: int) -> list[list[int]]:
    """Batches of comparisons by their numbers, those of the same two responses always in one batch.

    A reversal's two comparisons have opposite gradients but for what the context tells. Apart, what is no matter of the
    context would drown it; together it cancels in every step.

    Args:
        pairs: what is trained on.
        batch: comparisons a step, on average where some belong together.
        epochs: passes.
        seed: of the order.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        groups.setdefault(pair.of, []).append(number)
    units = list(groups.values())
    lengths = [sum(len(pairs[number].chosen) + len(pairs[number].rejected) for number in unit) for unit in units]
    a_step = max(1, round(batch * len(units) / len(pairs)))
    found = epoch_batches(lengths, batch=a_step, epochs=epochs, seed=seed)
    return [[number for unit in batch for number in units[unit]] for batch in found]


def read_pairs(
    comparisons: Path, tokenizer: PreTrainedTokenizerBase, reading: Reading, *, on_too_long: str
) -> tuple[list[Pair], dict[str, int]]:
    """The comparisons that teach an order, encoded; how many are `without_context`, `ties`, `too_long`.

    With one that is too long go the others of the same two responses; `too_long` counts all of them.

    Raises:
        ValueError: a chat template that refuses a conversation, a text too long, nothing left; named by the row's id.
    """
    pairs: list[Pair] = []
    contexts: list[str | None] = []
    too_long: set[tuple[str, ...]] = set()
    ties = 0
    table = read_table(comparisons, NAME)
    for row in table.to_pylist():
        if row["tie"]:
            ties += 1
            continue
        try:
            chosen, rejected = (
                encode(tokenizer, Asked(row["prompt"], row["context"], row[side]), reading)
                for side in ("chosen", "rejected")
            )
        except ValueError as error:
            raise ValueError(f"comparison {row['id']!r}: {error}") from None
        turns = (part for turn in row["prompt"] for part in (turn["role"], turn["content"]))
        of = (*turns, *sorted((row["chosen"], row["rejected"])))
        if (longest := max(len(chosen), len(rejected))) > reading.max_length:
            if on_too_long == "stop":
                raise ValueError(
                    f"comparison {row['id']!r}: {longest} tokens with its prompt, expected at most"
                    f" {reading.max_length}; raise max_length as far as the model's window goes, or skip such ones"
                )
            too_long.add(of)
        pairs.append(Pair(chosen, rejected, of))
        contexts.append(row["context"])
    # One order of a reversal without the other would teach a preference that needs no context.
    kept = [place for place, pair in enumerate(pairs) if pair.of not in too_long]
    told = {
        "without_context": sum(contexts[place] is None for place in kept),
        "ties": ties,
        "too_long": len(pairs) - len(kept),
    }
    if not kept:
        raise ValueError(
            f"comparisons: none of {len(table)} is left to train on ({ties} ties, {told['too_long']} longer than"
            f" {reading.max_length} tokens, or of the same responses as one that is)"
        )
    return [pairs[place] for place in kept], told
