"""Influence of corpus documents on a model's answer (TracIn, arXiv 2002.08484; arXiv 2407.14985, section 6).

    influence(d) = sum over checkpoints of eta * grad loss(s^y in d) . grad loss(s^y in the test example)

Documents that hold a pair (s^x, s^y) are set against documents that hold the output n-gram without the input's. eta is
the mean learning rate of the steps that led to a checkpoint, which our trainings tell (TracInCP of the former paper);
where it is not told it is 1, as in the latter, which leaves it out. Gradients of all weights are held at once: this is
for small models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from longloom.kernels.huggingface.load import load_model, window_of
from longloom.storage.parquet import FileWriter, read_table
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.trace.lookups import Corpus, Tokens, tokens_of
from longloom.tasks.trace.pairs import KEPT
from longloom.tasks.trace.records import Record, load
from longloom.tasks.training.checkpoints import STEP, TOLD
from longloom.tasks.training.watched import CHECKPOINTS

#: Which documents: those that hold both n-grams, and those that hold the output's alone.
PAIR, OUTPUT = GROUPS = ("pair", "output")
#: One row a document, pair and checkpoint; `product` is the gradients', times eta.
INFLUENCE = pa.schema(
    [
        *(("task", pa.string()), ("record", pa.int64()), ("x", pa.string()), ("y", pa.string())),
        *(("group", pa.string()), ("document", pa.int64()), ("id", pa.string())),
        *(("checkpoint", pa.string()), ("product", pa.float64())),
    ]
)
#: Tokens of a document that are read, up to the n-gram; the released code's.
LONGEST = 1024
#: What transformers' Trainer and our trainings call their checkpoints; below a model's folder, or below this one in it.
NAMES, FOLDER = ("checkpoint-*", f"{STEP}*"), CHECKPOINTS


def checkpoints_of(model: Path) -> list[Path]:
    """The checkpoints beside or below a model's weights in the order of their steps; the folder itself without any."""
    places = ((place, name) for place in (model, model / FOLDER) for name in NAMES)
    found = [path for place, name in places for path in place.glob(name) if path.is_dir()]
    numbered = [path for path in found if path.name.rpartition("-")[2].isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.rpartition("-")[2])) or [model]


def learning_rate_of(checkpoint: Path) -> float:
    """eta of a checkpoint that tells it; 1 of others."""
    told = checkpoint / TOLD
    return float(json.loads(told.read_text(encoding="utf-8"))["mean_learning_rate"]) if told.is_file() else 1.0


def build(
    model: Path,
    checkpoints: Sequence[Path],
    records: Path,
    pairs: Path,
    index: Corpus,
    out: Path,
    *,
    gamma: float,
    count: int,
    documents: int,
    seed: int,
    device: str | None,
    progress: Progress = silent,
) -> Stats:
    """Writes `influence.parquet`.

    Args:
        model: a folder with the tokenizer.
        checkpoints: folders with weights, at least one.
        records, pairs: from `records.build` and `pairs.build` (mode paper).
        index: over the corpus.
        out: an empty folder.
        gamma: pairs at or below it are left out.
        count: the most pairs that are looked at, drawn at random of those with documents of both groups.
        documents: the most documents a group, drawn at random.
        seed: of the draws.
        device: of torch; None: cuda where there is one.
        progress: called with gradients done and in all.

    Returns:
        Counts of pairs, of gradients, and of documents whose text the model's tokenizer leaves nothing of.

    Raises:
        ValueError: weights that cannot be loaded.
    """
    examples = load(records)
    rng = np.random.default_rng(seed)
    chosen = list(_chosen(index, pairs, gamma=gamma, count=count, documents=documents, rng=rng))
    total = len(checkpoints) * sum(1 + sum(map(len, groups.values())) for _, _, groups in chosen)
    done = lost = 0
    network, tokenizer = load_model(model, device=device, dtype="float32")
    with FileWriter(out / "influence.parquet", INFLUENCE) as writer:
        for checkpoint in checkpoints:
            if checkpoint != model:
                network = _weights(checkpoint, network.device)
            eta = learning_rate_of(checkpoint)
            for row, tokens, groups in chosen:
                example = _example(examples[row["record"]], row)
                target = gradient(network, tokenizer, *example)
                done += 1
                rows = []
                for group, ordinals in groups.items():
                    for ordinal in ordinals:
                        document = index.document(ordinal)
                        found = gradient(network, tokenizer, *_passage(index, document.tokens, tokens))
                        done += 1
                        progress(done, total)
                        if target is None or found is None:
                            lost += 1
                            continue
                        place = {"group": group, "document": ordinal, "id": document.id}
                        name = "" if checkpoint == model else checkpoint.name
                        rows.append({**row, **place, "checkpoint": name, "product": eta * _dot(target, found)})
                writer.write([{name: entry[name] for name in INFLUENCE.names} for entry in rows])
    return Stats(
        counts={"pairs": len(chosen), "gradients": done, "lost": lost, "checkpoints": len(checkpoints)},
        values={"parameters": sum(parameter.numel() for parameter in network.parameters())},
    )


def gradient(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, begin: int
) -> tuple[Tensor, ...] | None:
    """Of the mean loss on the tokens from a place to the end of a text, by every trainable parameter.

    Args:
        model: causal.
        tokenizer: a fast one.
        text: its last LONGEST tokens are read, or as many as the model's window holds.
        begin: in characters of the text.

    Returns:
        None if no token is left there that something stands before.
    """
    encoded: Any = tokenizer(text, return_offsets_mapping=True, verbose=False)
    kept = min(LONGEST, window_of(model.config) or LONGEST)
    ids = torch.tensor(encoded["input_ids"][-kept:], device=model.device)
    inside = torch.tensor([end > max(first, begin) for first, end in encoded["offset_mapping"][-kept:]])
    labelled = inside[1:].nonzero()[:, 0]
    if not len(labelled):
        return None
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        logits = model(input_ids=ids[None]).logits[0, labelled.to(model.device)]
        loss = torch.nn.functional.cross_entropy(logits, ids[1:][labelled.to(model.device)])
        found: tuple[Tensor, ...] = torch.autograd.grad(loss, parameters)
    return found


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return sum(float((one.double() * other.double()).sum()) for one, other in zip(left, right, strict=True))


def _chosen(
    index: Corpus, pairs: Path, *, gamma: float, count: int, documents: int, rng: np.random.Generator
) -> Iterator[tuple[dict[str, Any], Tokens, dict[str, list[int]]]]:
    """Pairs that have documents of both groups: row, the tokens of its output n-gram, group -> ordinals."""
    rows = read_table(pairs, "pairs").to_pylist()
    fit = [row for row in rows if row["status"] == KEPT and row["cosine"] > gamma]
    left = count
    for place in rng.permutation(len(fit)).tolist():
        if not left:
            return
        row = fit[place]
        x, y = tokens_of(index, row["x"]), tokens_of(index, row["y"])
        assert x, "a kept pair has been looked up"
        assert y, "a kept pair has been looked up"
        with_x, with_y = index.documents(x), index.documents(y)
        both, alone = np.intersect1d(with_x, with_y), np.setdiff1d(with_y, with_x)
        if len(both) and len(alone):
            groups = {group: _drawn(found, documents, rng) for group, found in ((PAIR, both), (OUTPUT, alone))}
            left -= 1
            yield row, y, groups


def _drawn(ordinals: np.ndarray, most: int, rng: np.random.Generator) -> list[int]:
    if len(ordinals) > most:
        ordinals = np.sort(rng.choice(ordinals, most, replace=False))
    return [int(ordinal) for ordinal in ordinals]


def _example(record: Record, row: dict[str, Any]) -> tuple[str, int]:
    return record.prompt + record.output[: row["end"]], len(record.prompt) + row["begin"]


def _passage(index: Corpus, document: np.ndarray, gram: Tokens) -> tuple[str, int]:
    """A document's text up to the end of its first such n-gram, and where that begins."""
    tokens = document.tolist()
    size = len(gram)
    place = next(start for start in range(len(tokens)) if tuple(tokens[start : start + size]) == gram)
    # Decoded from one beginning, for some tokenizers drop the space that a text begins with.
    text = index.decode(tokens[: place + size])
    begin = len(index.decode(tokens[:place]))
    piece = text[begin:]
    return text, begin + len(piece) - len(piece.lstrip(" "))


def _weights(checkpoint: Path, device: torch.device) -> PreTrainedModel:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of transformers, safetensors, json
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"checkpoint {checkpoint}: cannot be loaded ({reason}), expected a model's weights") from error
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded
