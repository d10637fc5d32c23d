"""ChatQA's prompt for training: the evaluation's (evals/chatrag/prompt.py), an answer behind it, cut to a length.

What is cut is the context at its right end, as in ChatQA's evaluation. Where the question alone is too long (rows of
ChatQA 2's long_sft hold whole documents in it), the dialogue loses its beginning: question, cue and answer stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from longloom.evals.chatrag.prompt import INSTRUCTIONS, SYSTEM, Instruction, assemble
from longloom.tasks.training.sft import opening, with_opening

#: Kind of answer -> instruction: those of the evaluation, and two that training sets have besides: arithmetic
#: (arXiv 2401.10225, appendix A: TAT-QA), and none for plain instructions, which say themselves what they want.
KINDS = {
    **INSTRUCTIONS,
    "number": Instruction(
        "Answer the following question with a number from context or the math arithmetic using +, -, *, or /. ", -1
    ),
    "none": Instruction("", -1),
}

#: The kind of ChatQA's own sets, by their names (the card of nvidia/ChatQA-Training-Data on the hub).
KIND_OF_SET = {
    **dict.fromkeys(("drop", "narrativeqa", "quoref", "ropes", "squad1.1", "squad2.0", "newsqa"), "span"),
    "tatqa-arithmetic": "number",
    "tatqa-others": "span_or_full",
    "synthetic_convqa": "full",
    "sft": "none",
    "long_sft": "none",
    "NarrativeQA_131072": "span",
}

#: A system message stands where the context does, what tools say is told by the user, and the last answer alone ends.
_TEMPLATE = (
    f'{{{{ "{SYSTEM}\\n\\n" }}}}'
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}Assistant: {{ message['content'] }}"
    "{% else %}User: {{ message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' and loop.last and not add_generation_prompt %}{{ eos_token }}"
    "{% else %}{{ '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

#: Rounds in which a cut context may shrink: text cut between two tokens can be split into other tokens.
_ROUNDS = 8


class Encoded(NamedTuple):
    """One example.

    Attributes:
        ids: int32 [n].
        answer: where the answer begins in `ids`; all from there on has a loss.
        cut: whether something of context or dialogue was cut.
    """

    ids: npt.NDArray[np.int32]
    answer: int
    cut: bool


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """For the tuned model's tokenizer, so that whatever asks it in turns asks as it was trained.

    Rendered and tokenised without additions, a conversation of at most seven turns has the ids of `encode`.

    Raises:
        ValueError: the tokenizer does not read what it puts before a text back from text.
    """
    return with_opening(tokenizer, _TEMPLATE, beginning=SYSTEM)


class _Parts(NamedTuple):
    """Token ids of an example and where its parts begin: context, dialogue, cue ("Assistant:"), answer, in `ids`."""

    ids: list[int]
    context: int
    dialogue: int
    cue: int
    answer: int


def encode(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], *, max_length: int) -> Encoded | None:
    """One conversation with its last answer; None where system line, cue and answer do not fit, and nothing asked.

    Args:
        tokenizer: a fast tokenizer.
        row: of a conversations artifact: context, kind, messages, answer.
        max_length: tokens to keep.
    """
    context: str = row["context"]
    instruction = KINDS[row["kind"]]
    parts = _encode(tokenizer, row["messages"], context, row["answer"], instruction)
    cut = False
    for _ in range(_ROUNDS):
        excess = len(parts.ids) - max_length
        if excess <= 0 or not context:
            break
        cut = True
        keep = parts.dialogue - parts.context - excess
        context = _first_tokens(tokenizer, context, keep) if keep > 0 else ""
        parts = _encode(tokenizer, row["messages"], context, row["answer"], instruction)
    excess = len(parts.ids) - max_length
    if excess <= 0:
        return Encoded(np.array(parts.ids, np.int32), parts.answer, cut)
    # The context is gone (or shrinks too slowly): the dialogue's beginning goes; a token of the question must stay.
    if excess >= parts.cue - parts.context:
        return None
    ids = parts.ids[: parts.context] + parts.ids[parts.context + excess :]
    return Encoded(np.array(ids, np.int32), parts.answer - excess, True)


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    context: str,
    answer: str,
    instruction: Instruction,
) -> _Parts:
    """The whole text tokenised once, as at inference, where the prompt ends with the cue and the blank comes after."""
    prompt = assemble(messages, context, instruction)
    dialogue = prompt.dialogue if context else prompt.dialogue.lstrip("\n")
    before, asked = len(prompt.system) + len(context), len(prompt.system) + len(context) + len(dialogue)
    text = f"{prompt.system}{context}{dialogue} {answer}{tokenizer.eos_token or ''}"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    ends = [right for _, right in encoded["offset_mapping"]]
    # A token that reaches from one part into the next belongs to the next.
    first = np.searchsorted(ends, [len(prompt.system), before, asked - len("Assistant:"), asked], side="right").tolist()
    begun = opening(tokenizer)
    return _Parts(begun + ids, *(place + len(begun) for place in first))


def _first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> str:
    """The text of the first tokens, without a character that the next one is a part of: always less than the whole."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text[: offsets[min(count, len(offsets) - 1)][0]] if offsets else ""
