"""Held-out loss: a causal LM's cross-entropy on instruction examples, over the assistant's content alone.

Each example's loss is kept, so that two models can be compared in pairs. Examples of like length share a batch; the
result is told in the pool's order and does not depend on the batches beyond rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from longloom.kernels.huggingface.load import load_model
from longloom.storage.parquet import FileWriter, read_table
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.mix import IGNORE
from longloom.tasks.training.sft import encode_named, pad
from longloom.tasks.training.stored import window_of

#: A row an example: tokens is how many are predicted, loss their mean cross-entropy in nats.
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("tokens", pa.int64()), ("loss", pa.float64())])
#: Tokens of a batch with its padding: small enough that a large vocabulary's logits fit.
BATCH_TOKENS = 4096

Example = tuple[list[int], list[int]]


def build(model: Path | str, instructions: Path, out: Path, *, max_length: int, progress: Progress = silent) -> Stats:
    """Writes `heldout.parquet`, a row for each example of which a token is predicted, in the pool's order.

    Args:
        model: a model folder or a hub name.
        instructions: an instructions artifact that the model was not trained on.
        out: the artifact's folder.
        max_length: tokens of an example; longer ones lose their beginning, as in training.
        progress: tokens read, and in all.

    Returns:
        Counts of examples and predicted tokens; values: the loss averaged over sources and over tokens, and the number
        of examples of which nothing is predicted.

    Raises:
        ValueError: no example with a label; one that the chat template refuses; a loss that is not finite.
    """
    network, tokenizer = load_model(model, dtype="float32")
    max_length = min(max_length, window_of(network.config))
    pool = read_table(instructions, "instructions", columns=["id", "source", "messages"])
    examples = zip(pool["id"].to_pylist(), pool["messages"].to_pylist(), strict=True)
    encoded = [encode_named(tokenizer, name, messages, max_length=max_length) for name, messages in examples]
    kept = [row for row, (_, labels) in enumerate(encoded) if any(label != IGNORE for label in labels[1:])]
    if not kept:
        raise ValueError(f"instructions: none of {len(encoded)} examples has an answer within {max_length} tokens")
    found = losses(network, [encoded[row] for row in kept], pad_id=tokenizer.pad_token_id, progress=progress)
    if not np.isfinite(found).all():
        name = pool["id"][kept[int(np.argmin(np.isfinite(found)))]].as_py()
        raise ValueError(f"held-out loss: not finite on example {name!r}, expected a number; is the model sound?")
    tokens = [sum(label != IGNORE for label in encoded[row][1][1:]) for row in kept]
    table = pool.take(kept).select(["id", "source"])
    table = table.append_column("tokens", pa.array(tokens, pa.int64())).append_column("loss", pa.array(found))
    with FileWriter(out / "heldout.parquet", SCHEMA) as writer:
        writer.write_table(table.cast(SCHEMA))
    by_source, over_tokens = averages(table["source"].to_pylist(), np.array(tokens), found)
    return Stats(
        counts={"examples": len(kept), "tokens": sum(tokens)},
        values={
            "loss": float(np.mean(list(by_source.values()))),
            "loss_over_tokens": over_tokens,
            "without_label": len(encoded) - len(kept),
        },
    )


def averages(sources: Sequence[str], tokens: np.ndarray, loss: np.ndarray) -> tuple[dict[str, float], float]:
    """Mean cross-entropy over the tokens of each source, by its name in sorted order, and over all tokens.

    Args:
        sources: of each example.
        tokens: int [n], predicted.
        loss: float64 [n], the mean over each example's tokens.
    """
    names = np.array([source or "" for source in sources])
    by_source = {
        str(name): float(np.average(loss[names == name], weights=tokens[names == name])) for name in np.unique(names)
    }
    return by_source, float(np.average(loss, weights=tokens))


@torch.inference_mode()
def losses(
    network: PreTrainedModel,
    examples: Sequence[Example],
    *,
    pad_id: int,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = silent,
) -> np.ndarray:
    """Mean cross-entropy in nats over each example's labelled tokens.

    Args:
        network: in evaluation mode.
        examples: ids and labels of each, -100 where nothing is predicted; each has a label after its first token.
        pad_id: what fills a batch up, on the right; masked.
        batch_tokens: of a batch with its padding, at most, but one example at least.
        progress: real tokens read, and in all.

    Returns:
        float64 [n], in the examples' order.
    """
    # Most of a small model's work is the vocabulary head: ask for positions that predict something, where it can.
    narrow = "logits_to_keep" in inspect.signature(network.forward).parameters
    result = np.empty(len(examples))
    done, total = 0, sum(len(ids) for ids, _ in examples)
    for rows in batches_by_length([len(ids) for ids, _ in examples], batch_tokens):
        batch = {
            name: tensor.to(network.device) for name, tensor in pad([examples[i] for i in rows], pad_id=pad_id).items()
        }
        targets = batch.pop("labels")[:, 1:]  # [B, T - 1]: token t is predicted from position t - 1
        positions = (targets != IGNORE).any(dim=0).nonzero().squeeze(1)
        options = {"logits_to_keep": positions} if narrow else {}
        logits = network(**batch, use_cache=False, **options).logits
        logits = logits if narrow else logits[:, positions]
        targets = targets[:, positions]
        at = targets != IGNORE
        each = torch.zeros(at.shape, dtype=torch.float64, device=at.device)
        each[at] = F.cross_entropy(logits[at].float(), targets[at], reduction="none").double()
        result[rows] = (each.sum(dim=1) / at.sum(dim=1)).cpu().numpy()
        done += sum(len(examples[i][0]) for i in rows)
        progress(done, total)
    return result


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Rows by length, the longest first (what does not fit into memory shows at once), cut at `batch_tokens`."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches
