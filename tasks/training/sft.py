"""Instruction examples as token ids with the loss on the assistant's content only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from longloom.storage.parquet import read_table
from longloom.tasks.training.mix import IGNORE

#: For tokenizers that bring no chat template: the turns of ChatQA's prompts (arXiv 2407.14482, section 3.3). The prompt
#: ends before the blank, which many vocabularies hold in one token with the answer's first word.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].capitalize() }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, prompt: bool) -> str:
    """The conversation as text, by the tokenizer's chat template or the plain one.

    Args:
        tokenizer: of the model.
        messages: role and content of each turn.
        prompt: end where the assistant's answer begins.
    """
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    text = tokenizer.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    assert isinstance(text, str)
    return text


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, max_length: int
) -> tuple[list[int], list[int]]:
    """One example.

    The whole text is tokenised once, so the ids are those the model meets at inference; the offsets tell which of
    them belong to an answer. Longer examples lose their beginning: the answers stand at the end.

    Args:
        tokenizer: a fast tokenizer.
        messages: role and content of each turn.
        max_length: tokens to keep.

    Returns:
        input ids; labels, equal to the ids within the assistant's content and its end token and -100 elsewhere;
        an assistant's turn that opens the conversation answers nothing and has none.

    Raises:
        ValueError: the chat template changes earlier turns when later ones are added.
    """
    text = render(tokenizer, messages, prompt=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index == 0:  # an answer to nothing
            continue
        before = render(tokenizer, messages[:index], prompt=True)
        upto = render(tokenizer, messages[: index + 1], prompt=False)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise ValueError("chat template: rewrites earlier turns, expected one that only appends")
        end = upto.rfind(tokenizer.eos_token, len(before)) if tokenizer.eos_token else -1
        # Templates may break the line after the end token, which is not the eos token everywhere.
        spans.append((len(before), end + len(tokenizer.eos_token) if end >= 0 else len(upto.rstrip())))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    labels = [
        token if any(start <= left and right <= end for start, end in spans) else IGNORE
        for token, (left, right) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return ids[-max_length:], labels[-max_length:]


def load_messages(instructions: Path, indices: Sequence[int] | None = None) -> list[list[dict[str, str]]]:
    """The conversations of an instructions artifact, all or those at `indices`, in that order."""
    column = read_table(instructions, "instructions", columns=["messages"]).column("messages")
    if indices is not None:
        column = column.take(list(indices))
    conversations: list[list[dict[str, str]]] = column.to_pylist()
    return conversations


def encode_all(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[dict[str, str]]], *, max_length: int
) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Every example that has a label left.

    Returns:
        (ids, labels) pairs; how many examples had no label and were left out.
    """
    encoded = [encode(tokenizer, messages, max_length=max_length) for messages in conversations]
    kept = [(ids, labels) for ids, labels in encoded if any(label != IGNORE for label in labels[1:])]
    return kept, len(encoded) - len(kept)


def pad(examples: Sequence[tuple[list[int], list[int]]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded tensors input_ids, attention_mask and labels, each [examples, longest] int64."""
    longest = max(len(ids) for ids, _ in examples)
    ids = np.full((len(examples), longest), pad_id, np.int64)
    labels = np.full((len(examples), longest), IGNORE, np.int64)
    mask = np.zeros((len(examples), longest), np.int64)
    for row, (example_ids, example_labels) in enumerate(examples):
        ids[row, : len(example_ids)] = example_ids
        labels[row, : len(example_ids)] = example_labels
        mask[row, : len(example_ids)] = 1
    arrays: dict[str, Any] = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def epoch_batches(lengths: Sequence[int], *, batch: int, epochs: int, seed: int) -> list[list[int]]:
    """Batches of example numbers: each epoch in a new order, examples of like length together to spare padding.

    Args:
        lengths: tokens of each example.
        batch: examples a step; the last one of an epoch may be smaller.
        epochs: passes over the examples.
        seed: of the order.
    """
    batches = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(lengths))
        mine = []
        for start in range(0, len(order), 16 * batch):  # sorted within 16 batches only, to stay random over all
            block = sorted(order[start : start + 16 * batch].tolist(), key=lambda row: lengths[row])
            mine += [block[i : i + batch] for i in range(0, len(block), batch)]
        batches += [mine[i] for i in rng.permutation(len(mine))]
    return batches
