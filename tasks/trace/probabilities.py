"""What a language model gives each token of a text, and so P_LLM(y | x) of an n-gram (arXiv 2407.14985, section 3).

    P_LLM(s | x) = product over the tokens t of s of P_LLM(t | prompt, x and what stands before t in y)

One teacher-forced pass over prompt and output gives every token's probability, so that n-grams of every n, gamma and
embedding are sums over its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from longloom.kernels.huggingface.load import window_of
from longloom.tasks.progress import Progress, silent

#: Tokens that go through a model at once: their logits are what fills the memory.
CHUNK = 1024


@dataclass(frozen=True)
class TokenScores:
    """The tokens of one text.

    Attributes:
        begins, ends: in characters of the text, int64 [tokens].
        logs: natural logarithms of their probabilities, float64 [tokens]; NaN for what nothing stands before.
        cut: whether the text had more tokens than the model's window, so that its beginning was left out.
    """

    begins: np.ndarray
    ends: np.ndarray
    logs: np.ndarray
    cut: bool

    def log_probability(self, begin: int, end: int | None) -> float | None:
        """The sum over the tokens that have a character within [begin, end); None without a token or a probability.

        Args:
            begin: in characters of the text.
            end: likewise; None: to the text's end.
        """
        inside = self.ends > begin
        if end is not None:
            inside &= self.begins < end
        logs = self.logs[inside & (self.ends > self.begins)]
        return None if not len(logs) or np.isnan(logs).any() else float(logs.sum())


@torch.inference_mode()
def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch: int,
    progress: Progress = silent,
) -> list[TokenScores]:
    """The scores of every token of every text, with the tokenizer's own special tokens before it.

    Args:
        model: causal.
        tokenizer: a fast one, which tells where its tokens stand.
        texts: not empty; of those longer than the model's window the end is read.
        batch: texts at once, while together they have no more than CHUNK tokens with padding.
        progress: called with texts done and in all.

    Raises:
        ValueError: a tokenizer in Python, which does not tell that.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__}: does not tell where its tokens stand, expected a fast one"
        )
    window = window_of(model.config)
    ids: list[list[int]] = []
    offsets: list[np.ndarray] = []
    cut: list[bool] = []
    for text in texts:
        encoded: Any = tokenizer(text, return_offsets_mapping=True, verbose=False)
        first = 0 if window is None else max(0, len(encoded["input_ids"]) - window)
        ids.append(encoded["input_ids"][first:])
        offsets.append(np.array(encoded["offset_mapping"][first:], np.int64).reshape(-1, 2))
        cut.append(first > 0)
    logs: list[np.ndarray] = [np.zeros(0)] * len(texts)
    done = 0
    for group in _groups([len(row) for row in ids], batch):
        for number, row in zip(group, _logs(model, [ids[number] for number in group]), strict=True):
            logs[number] = row
        done += len(group)
        progress(done, len(texts))
    return [
        TokenScores(places[:, 0], places[:, 1], row, short)
        for places, row, short in zip(offsets, logs, cut, strict=True)
    ]


def _groups(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Texts of about one length, the longest ones first."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        room = groups and len(groups[-1]) < batch and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= CHUNK
        if room:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _logs(model: PreTrainedModel, rows: Sequence[list[int]]) -> list[np.ndarray]:
    """Log-probabilities float64 [tokens] of each row, NaN for the first token; a long row is read in chunks."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)  # the padding at the end is never looked at
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    ids = ids.to(model.device)
    found = torch.full(ids.shape, torch.nan, dtype=torch.float64)
    cache = DynamicCache(config=model.config) if longest > CHUNK else None
    for begin in range(0, longest, CHUNK):
        piece = ids[:, begin : begin + CHUNK]
        logits = model(input_ids=piece, past_key_values=cache, use_cache=cache is not None).logits.float()
        targets = ids[:, begin + 1 : begin + 1 + piece.shape[1]]
        logits = logits[:, : targets.shape[1]]
        chosen = logits.gather(2, targets[:, :, None])[:, :, 0] - logits.logsumexp(dim=2)
        found[:, begin + 1 : begin + 1 + targets.shape[1]] = chosen.double().cpu()
    return [row[: len(tokens)].numpy() for row, tokens in zip(found, rows, strict=True)]
