"""Scores of a reward model: batches of like length, the same score whatever else is in the batch.

A score depends on nothing but the text that is read: padding stands behind it, is masked, and is not where the score is
read. Batches change it by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longloom.kernels.huggingface.load import load_reward_model
from longloom.tasks.preference.encoding import Asked as Asked
from longloom.tasks.preference.encoding import Reading, encode_all, reading_of, set_apart_padding
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.heldout import batches_by_length
from longloom.tasks.training.stored import window_of

#: Tokens of a batch with its padding. Of a small model on a CPU more would not stay in a core's cache.
BATCH_TOKENS = {"cpu": 512, "cuda": 16384}


class Scorer(Protocol):
    """Gives each response a score; higher is better, alone their differences mean something."""

    def __call__(self, asked: Sequence[Asked], *, progress: Progress = silent) -> np.ndarray:
        """float64 [n], in the order asked; progress: tokens read and in all."""
        ...


class TooLongError(ValueError):
    """A text that is longer than the reward model can read."""


class RewardScorer:
    """A reward model as a Scorer.

    Args:
        model: a sequence classifier with one output, in evaluation mode.
        tokenizer: its own.
        reading: how it is asked.
        batch_tokens: of a batch with its padding, at most, but one text at least.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reading: Reading, *, batch_tokens: int
    ) -> None:
        self.model, self.tokenizer, self.reading, self.batch_tokens = model, tokenizer, reading, batch_tokens
        self.pad_id = int(model.config.get_text_config().pad_token_id)

    def __call__(self, asked: Sequence[Asked], *, progress: Progress = silent) -> np.ndarray:
        """Scores each response.

        Args:
            asked: what is scored; the same text twice is read once.
            progress: tokens read, and in all.

        Returns:
            float64 [n].

        Raises:
            TooLongError: a text of more than `reading.max_length` tokens; its number from 0 is named.
            ValueError: the chat template refuses a conversation; a score that is not finite.
        """
        texts = self.encode(asked)
        for row, ids in enumerate(texts):
            if len(ids) > self.reading.max_length:
                raise TooLongError(
                    f"response {row}: {len(ids)} tokens with its prompt, expected at most {self.reading.max_length},"
                    " the reward model's max_length"
                )
        return self.score(texts, progress=progress)

    def encode(self, asked: Sequence[Asked]) -> list[list[int]]:
        """The token ids of each, however long."""
        return encode_all(self.tokenizer, asked, self.reading, names=[f"response {row}" for row in range(len(asked))])

    def fits(self, asked: Sequence[Asked]) -> list[bool]:
        """Which of them the model can read whole."""
        return [len(ids) <= self.reading.max_length for ids in self.encode(asked)]

    def score(self, texts: Sequence[Sequence[int]], *, progress: Progress = silent) -> np.ndarray:
        """The scores of encoded texts, float64 [n] (ValueError: one is not finite)."""
        numbers: dict[tuple[int, ...], int] = {}
        of = np.array([numbers.setdefault(tuple(ids), len(numbers)) for ids in texts], np.int64)
        distinct = list(numbers)
        found = np.empty(len(distinct))
        done, total = 0, sum(map(len, distinct))
        batches = self.batches(distinct)
        with ThreadPoolExecutor(self._workers(), initializer=torch.set_num_threads, initargs=(1,)) as workers:
            scored = workers.map(self.forward, ([distinct[row] for row in rows] for rows in batches))
            for rows, each in zip(batches, scored, strict=True):
                found[rows] = each
                done += sum(len(distinct[row]) for row in rows)
                progress(done, total)
        scores = found[of]
        if not np.isfinite(scores).all():
            row = int(np.argmin(np.isfinite(scores)))
            raise ValueError(f"response {row}: its score is {scores[row]}, expected a number; is the model sound?")
        return scores

    def _workers(self) -> int:
        """On a CPU whole batches run on single threads, so that scores are the same on any number of them."""
        return torch.get_num_threads() if self.model.device.type == "cpu" else 1

    def batches(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Numbers of texts by length, the longest first, cut at `batch_tokens`."""
        return batches_by_length([len(ids) for ids in texts], self.batch_tokens)

    @torch.inference_mode()
    def forward(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """The scores of one batch, float64 [B]."""
        longest = max(map(len, texts))
        ids = torch.full((len(texts), longest), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(texts), longest), dtype=torch.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        device = self.model.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        logits = self.model(**inputs).logits  # [B, 1]
        return np.asarray(logits[:, 0].double().cpu().numpy())


def load_scorer(model: Path, *, batch_tokens: int | None = None, device: str | None = None) -> RewardScorer:
    """The Scorer of a reward model's folder: one that `longloom prefer train` made, or any sequence classifier with one
    output.

    Args:
        model: a folder, or a hub name.
        batch_tokens: of a batch with its padding, at most; None: as suits the device.
        device: a torch device; None: cuda where there is one, else cpu.

    Raises:
        ValueError: no such model, or one without a reward head.
    """
    network, tokenizer, new = load_reward_model(model, device=device, dtype="float32")
    if new:
        raise ValueError(f"model {model}: has no reward head ({', '.join(new)}), expected a trained reward model")
    if network.config.get_text_config().pad_token_id is None:
        set_apart_padding(tokenizer, network)
    reading = reading_of(Path(model), window=window_of(network.config))
    most = batch_tokens or BATCH_TOKENS.get(network.device.type, BATCH_TOKENS["cpu"])
    return RewardScorer(network, tokenizer, reading, batch_tokens=most)
