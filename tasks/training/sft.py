"""Instruction examples as token ids with the loss on the assistant's content only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from longloom.evals.protocol import chat_text
from longloom.storage.parquet import read_table
from longloom.tasks.training.mix import IGNORE

#: For tokenizers that bring no chat template: the turns of ChatQA's prompts (arXiv 2407.14482, section 3.3). The prompt
#: ends before the blank, which many vocabularies hold in one token with the answer's first word.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].capitalize() }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, prompt: bool) -> str:
    """The conversation as text, by the tokenizer's chat template or the plain one.

    Args:
        tokenizer: of the model.
        messages: role and content of each turn.
        prompt: end where the assistant's answer begins.

    Raises:
        ValueError: the chat template refuses the conversation.
    """
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    try:
        return chat_text(tokenizer, messages, prompt=prompt, template=template)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the conversation: {error}") from None


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text at inference: its bos token, for most that put something, or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    places = range(len(whole) - len(bare) + 1)
    return whole[: next((place for place in places if whole[place : place + len(bare)] == bare), 0)]


def with_opening(tokenizer: PreTrainedTokenizerBase, template: str, *, beginning: str) -> str:
    """A chat template with `opening` in front of it, for rendered text is tokenised without additions.

    Args:
        tokenizer: of the model.
        template: prints no bos token itself.
        beginning: of a text that it makes, two words at least.

    Raises:
        ValueError: the tokenizer does not read its own opening back from text.
    """
    first = opening(tokenizer)
    if not first:
        return template
    text = "".join(tokenizer.convert_ids_to_tokens(first))
    expected = first + tokenizer(beginning, add_special_tokens=False)["input_ids"]
    # Some vocabularies put a blank before a text's first word alone (Llama 2, Mistral): behind a token it must be said.
    for joint in ("", " "):
        if tokenizer(f"{text}{joint}{beginning}", add_special_tokens=False)["input_ids"] == expected:
            return f"{{{{ {json.dumps(text + joint, ensure_ascii=False)} }}}}{template}"
    raise ValueError(f"tokenizer: puts {text!r} before a text, and reads it back as other tokens, expected the same")


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, max_length: int
) -> tuple[list[int], list[int]]:
    """One example.

    The whole text is tokenised once, so the ids are those the model meets at inference; the offsets tell which of
    them belong to an answer. A chat template says itself how a conversation begins; without one it begins with what the
    tokenizer puts before every text. Longer examples lose their beginning, since the answers stand at the end, but
    keep what the tokenizer puts before every text, or the bos token that the template prints there.

    Args:
        tokenizer: a fast tokenizer.
        messages: role and content of each turn.
        max_length: tokens to keep.

    Returns:
        input ids; labels, equal to the ids within the assistant's content and its end token, where the template has
        one, and -100 elsewhere; an assistant's turn that opens the conversation answers nothing and has none.

    Raises:
        ValueError: the chat template refuses the conversation, or changes earlier turns when later ones are added.
    """
    text = render(tokenizer, messages, prompt=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index == 0:  # an answer to nothing
            continue
        before = render(tokenizer, messages[:index], prompt=True)
        upto = render(tokenizer, messages[: index + 1], prompt=False)
        if tokenizer.eos_token and not text.startswith(upto):  # a template that ends the last answer alone
            upto = upto.removesuffix(tokenizer.eos_token)
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
    if tokenizer.chat_template:
        kept = int(bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token)))
    else:
        first = opening(tokenizer)
        ids, labels, kept = first + ids, [IGNORE] * len(first) + labels, len(first)
    kept = min(kept, max_length)
    tail = max(kept, len(ids) - max_length + kept)
    return ids[:kept] + ids[tail:], labels[:kept] + labels[tail:]


def encode_named(
    tokenizer: PreTrainedTokenizerBase, name: str, messages: Sequence[dict[str, str]], *, max_length: int
) -> tuple[list[int], list[int]]:
    """`encode`, whose errors begin with the example's id."""
    try:
        return encode(tokenizer, messages, max_length=max_length)
    except ValueError as error:
        raise ValueError(f"example {name!r:.200}: {error}") from None


def load_examples(instructions: Path, indices: Sequence[int] | None = None) -> list[tuple[str, list[dict[str, str]]]]:
    """Id and conversation of each example of an instructions artifact, or of those at `indices`, in that order."""
    table = read_table(instructions, "instructions", columns=["id", "messages"])
    if indices is not None:
        table = table.take(list(indices))
    return list(zip(table["id"].to_pylist(), table["messages"].to_pylist(), strict=True))


def encode_all(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[tuple[str, Sequence[dict[str, str]]]], *, max_length: int
) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Every example that has a label left.

    Args:
        tokenizer: a fast tokenizer.
        examples: id and conversation of each.
        max_length: tokens to keep.

    Returns:
        (ids, labels) pairs; how many examples had no label and were left out.

    Raises:
        ValueError: as `encode`; it begins with the example's id.
    """
    encoded = [encode_named(tokenizer, name, messages, max_length=max_length) for name, messages in examples]
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
