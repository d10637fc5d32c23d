"""Pretrains a small Llama on a corpus, from random weights or from a base checkpoint."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from longloom.kernels.huggingface.probes import copy_accuracy, induction_scores
from longloom.storage.stats import Stats
from longloom.tasks.corpus.standard_library import wording
from longloom.tasks.corpus.tokenizer import ASSISTANT, END, USER
from longloom.tasks.ngrams.encode import TokenizerEncoder
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.checkpoints import keeper, leave_kept, spaced
from longloom.tasks.training.facts import Facts
from longloom.tasks.training.loop import Batch, linear, train, write_rows
from longloom.tasks.training.mix import Phase, Turns, batch_of
from longloom.tasks.training.recipe import RECIPES, SHAPES
from longloom.tasks.training.seeding import seed_induction
from longloom.tasks.training.tokens import write_tokens
from longloom.tasks.training.watched import keep_speed

#: (length, gap) of the random sequences whose copying is measured, where they fit the window.
COPIES = ((64, 0), (64, 256), (64, 832))
WARMUP = 50
ROWS = 200
SAVES = 20


def build(
    corpus: Path,
    start: Path,
    out: Path,
    *,
    recipe: str,
    size: str,
    tokens: int | None,
    seed: int,
    checkpoints: int = 0,
    progress: Progress = silent,
) -> Stats:
    """Trains and writes a transformers folder with its tokenizer, `training.parquet` and `probes.json`.

    Args:
        corpus: a corpus artifact.
        start: a tokenizer folder for recipe `scratch`, a model folder with its tokenizer for `continue`.
        out: the artifact's folder; checkpoints in it are resumed from.
        recipe: `scratch` or `continue` (tasks/training/recipe.py).
        size: shape of the model: `1m`; `short`, with a window of 512; or `tiny`, a seventh of the parameters.
        tokens: scales the recipe to about this many tokens; None takes it as it stands.
        seed: of weights and batches.
        checkpoints: so many are kept at equal distances, the last one at the end (tasks/training/checkpoints.py).
        progress: tokens seen.

    Raises:
        ValueError: an unknown recipe or size; a tokenizer without eos or turn tokens; a corpus shorter than one window.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r}: unknown, expected one of {sorted(RECIPES)}")
    if size not in RECIPES[recipe]:
        raise ValueError(f"model size {size!r}: unknown for {recipe!r}, expected one of {sorted(RECIPES[recipe])}")
    tokenizer = AutoTokenizer.from_pretrained(start)
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer: has no eos token, expected one to put between documents")
    if recipe == "scratch":
        model: PreTrainedModel = _fresh(size, tokenizer, seed)
    else:
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    stream_file = out / "tokens.bin"
    stream = write_tokens(corpus, TokenizerEncoder(start), stream_file, end=tokenizer.eos_token_id)
    phases = _scaled(RECIPES[recipe][size], tokens)
    longest = max(phase.length for phase in phases)
    if model.config.max_position_embeddings < longest:
        window = model.config.max_position_embeddings
        raise ValueError(f"model: has a window of {window}, expected at least the {longest} of the size {size!r}")
    if len(stream) <= longest:
        raise ValueError(f"corpus: {len(stream):,} tokens, expected more than one window of {longest:,}")
    first = len(tokenizer.all_special_ids)
    turns = _turns(tokenizer)
    facts = Facts(
        partial(tokenizer.encode, add_special_tokens=False), wording.passkey_names(held_out=False), wording.PASSKEY
    )
    ends = list(itertools.accumulate(phase.steps for phase in phases))

    def make(step: int) -> Batch:
        index = bisect.bisect_right(ends, step)
        inside = step - (ends[index - 1] if index else 0)
        ids, labels = batch_of(
            phases[index],
            inside,
            seed=seed,
            corpus=stream,
            vocab=len(tokenizer),
            first=first,
            turns=turns,
            facts=facts,
        )
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    seen = [0, *itertools.accumulate(phase.batch * phase.length for phase in phases for _ in range(phase.steps))]
    rates = [
        rate
        for phase in phases
        for rate in linear(phase.steps, peak=phase.learning_rate, final=phase.final_learning_rate, warmup=WARMUP)
    ]
    kept = spaced(len(rates), checkpoints)
    model.config.use_cache = False
    rows = train(
        model,
        make,
        seen,
        rates,
        out,
        seed=seed,
        save_every=max(1, len(rates) // SAVES),
        log_every=max(1, len(rates) // ROWS),
        after_step=keeper(kept, rates, out),
        tokenizer=tokenizer,
        progress=progress,
    )
    model.config.use_cache = True
    model.save_pretrained(out)
    if not SHAPES[size].chat:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(out)
    write_rows(rows, out)
    probes = measure(model, tokenizer, seed=seed)
    (out / "probes.json").write_text(json.dumps(probes, indent=1) + "\n")
    stream_file.unlink()
    speed = keep_speed(out)
    leave_kept(out)
    return Stats(
        counts={"parameters": model.num_parameters(), "training_tokens": seen[-1]}
        | ({"checkpoints": len(kept)} if kept else {}),
        values={
            "phases": [dataclasses.asdict(phase) for phase in phases],
            "final_loss": rows[-1]["loss"],
            "copy_accuracy": probes["copy_accuracy"],
        },
        volatile=speed,
    )


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> dict[str, Any]:
    """Copy accuracy, and the induction and echo scores of every head, rounded to 4 places.

    Args:
        model: any causal LM.
        tokenizer: its special tokens are not drawn.
        seed: of the random sequences.
    """
    model.eval()
    window = model.config.max_position_embeddings
    common = {"bos": tokenizer.bos_token_id, "special": tokenizer.all_special_ids, "seed": seed}
    copies = [
        {"length": length, "gap": gap, "accuracy": round(copy_accuracy(model, length=length, gap=gap, **common), 4)}
        for length, gap in COPIES
        if 1 + 2 * length + gap <= window
    ]
    scores = induction_scores(model, length=64, repeats=4, **common)
    return {
        "copy_accuracy": copies,
        "induction": np.round(scores.induction.double().numpy(), 4).tolist(),
        "echo": np.round(scores.echo.double().numpy(), 4).tolist(),
        "copying": np.round(scores.at.amax(dim=-1).double().numpy(), 4).tolist(),
        "displacement": scores.at.argmax(dim=-1).tolist(),
    }


def _fresh(size: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = dataclasses.asdict(SHAPES[size])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": shape.pop("rope_theta")},
        **{name: value for name, value in shape.items() if name != "chat"},
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).float()
    seed_induction(model, seed=seed)
    return model


def _turns(tokenizer: PreTrainedTokenizerBase) -> Turns:
    ids = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    assert isinstance(ids, list)
    if any(found in (None, tokenizer.unk_token_id) for found in ids):
        raise ValueError(f"tokenizer: lacks one of {USER} {ASSISTANT} {END}, expected one trained by this project")
    blank = tokenizer.encode("x\n\nx", add_special_tokens=False)[1:-1]  # between words: alone it may be another token
    user, assistant, end = ids
    return Turns(user, assistant, end, tuple(blank))


def _scaled(phases: tuple[Phase, ...], tokens: int | None) -> tuple[Phase, ...]:
    if tokens is None:
        return phases
    factor = tokens / sum(phase.tokens for phase in phases)
    return tuple(dataclasses.replace(phase, tokens=int(phase.tokens * factor)) for phase in phases)
