"""What a reward model reads: prompt, context and response as one conversation of tokens, the end token its last one.

The score is read at the last token, so every text ends with the same one, and padding is another one: transformers
finds the end as the last token that is not padding, and with pad = eos would read the score before the end token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longloom.evals.jsonl import NUMBER, TEXT, Field, check_fields
from longloom.storage.atomic import write_atomic
from longloom.storage.json_text import read_json
from longloom.tasks.corpus.messages import Message
from longloom.tasks.preference import template as templates
from longloom.tasks.training.sft import opening, render

#: What stands beside a reward model's weights.
FILE = "reward.json"
#: Of a tokenizer without a padding token of its own; as in the repository's tokenizers.
PAD = "<|pad|>"


_FIELDS = {
    "template": TEXT,
    "max_length": Field("a number of tokens above zero", lambda value: NUMBER.fits(value) and 0 < value < 2**63),
}
_SWITCHES = ("ends", "opens")


class Asked(NamedTuple):
    """A response to be scored.

    Attributes:
        prompt: the conversation so far, its last turn not the assistant's.
        context: in which it is to be good; None: no context.
        response: to the prompt.
    """

    prompt: list[Message]
    context: str | None
    response: str


@dataclass(frozen=True)
class Reading:
    """How a reward model wants to be asked; `reward.json` of its folder.

    Attributes:
        template: how the context is put into the prompt's last turn (template.py).
        max_length: tokens that it reads; what is longer is refused, never cut.
        ends: whether each text is made to end with the tokenizer's end token; else it is as the chat template gives it.
        opens: whether each text begins with what the tokenizer puts before a text (its bos token, as a rule), where no
            chat template says how a conversation begins.
    """

    template: str
    max_length: int
    ends: bool = True
    opens: bool = True

    def write(self, folder: Path) -> None:
        """Writes `reward.json`."""
        write_atomic(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")


def reading_of(folder: Path, *, window: int) -> Reading:
    """The `reward.json` of a model's folder.

    A reward model from elsewhere has none: it is asked as its chat template says, with the default template of contexts
    and its whole window. A `reward.json` that does not tell of `opens` is of a model that was trained without.

    Args:
        folder: of the model.
        window: tokens that the model itself can read.

    Raises:
        ValueError: the file does not hold what it should.
    """
    path = folder / FILE
    if not path.is_file():
        return Reading(templates.DEFAULT, window, ends=False)
    held = read_json(path, expected="an object of template, max_length, ends and opens")
    check_fields(held if isinstance(held, dict) else {}, _FIELDS, str(path))
    if odd := sorted(held.keys() - {*_FIELDS, *_SWITCHES}):
        raise ValueError(f"{path}: has the field {odd[0]!r:.60}, expected template, max_length, ends and opens")
    found = Reading(**{"opens": False, **held})
    for name in _SWITCHES:
        if type(getattr(found, name)) is not bool:
            raise ValueError(f"{path}: {name} is {getattr(found, name)!r:.60}, expected true or false")
    try:
        templates.check(found.template)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def encode(tokenizer: PreTrainedTokenizerBase, asked: Asked, reading: Reading) -> list[int]:
    """The token ids of prompt, context and response, the beginning not cut.

    Raises:
        ValueError: the chat template refuses the conversation.
    """
    turns = [
        *templates.with_context(asked.prompt, asked.context, reading.template),
        {"role": "assistant", "content": asked.response},
    ]
    text = render(tokenizer, turns, prompt=False)
    begin = opening(tokenizer) if reading.opens and not tokenizer.chat_template else []
    if not reading.ends:
        return [*begin, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    end = tokenizer.eos_token_id
    ids = [*begin, *tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]]
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def encode_all(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked], reading: Reading, *, names: Sequence[str]
) -> list[list[int]]:
    """`encode` of each; a ValueError of one begins with its name."""
    found = []
    for name, each in zip(names, asked, strict=True):
        try:
            found.append(encode(tokenizer, each, reading))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def set_apart_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> bool:
    """Gives tokenizer and model a padding token that is not the end token; a new one where there is none.

    The new token's embedding is 0, and never read, since padding is masked.

    Returns:
        Whether a token was added.
    """
    added = tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id
    if added:
        tokenizer.add_special_tokens({"pad_token": PAD})
        if len(tokenizer) > len(_embeddings(model)):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # type: ignore[operator]
            with torch.no_grad():
                _embeddings(model)[tokenizer.pad_token_id] = 0
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return added


def _embeddings(model: PreTrainedModel) -> torch.Tensor:
    """[V, d]."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight
