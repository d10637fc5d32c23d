"""What a benchmark asks of the model for one sample, and how that becomes tokens: truncation, then the chat template.

The order is LongBench's: the prompt is cut *before* the template is put around it, so that the template always stays
whole. What a model's window leaves is respected in the same way, after the protocol's own limit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a suite's options are asked for without a second's import
    from transformers import PreTrainedTokenizerBase

#: Rounds in which a cut prompt may shrink until it fits the window.
_ROUNDS = 16

#: In place of today's date, which transformers gives to templates: that of Llama 3.1's template where none is given.
#: A macro, since transformers' own function cannot be replaced by an argument; `+` keeps the line end behind it.
_DATED = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro +%}"


@dataclass(frozen=True)
class Request:
    """One generation.

    Attributes:
        document: the part of the prompt that may be cut.
        before, after: what stands around it and is never cut.
        cut: how a document that is too long is cut, one of CUTS, or "never".
        chat: put the model's chat template (if it has one) around the prompt.
        prefix: the beginning of the answer, after the template.
        newline_stops: generate at least one token, and stop at a line end (LongBench's samsum).
        context: begin and end, in characters of `document`, of the text that a retriever may search and replace; None:
            there is none.
        query: what a retriever searches for.
    """

    document: str
    before: str = ""
    after: str = ""
    cut: str = "middle"
    chat: bool = True
    prefix: str = ""
    newline_stops: bool = False
    context: tuple[int, int] | None = None
    query: str = ""

    @property
    def prompt(self) -> str:
        """The whole prompt, uncut and without template."""
        return self.before + self.document + self.after

    def to_dict(self) -> dict[str, Any]:
        """As a column of a record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Request:
        """The inverse of `to_dict`."""
        span = fields["context"]
        return cls(**{**fields, "context": None if span is None else (span[0], span[1])})

    def with_context(self, text: str) -> Request:
        """The same request about another text: what was retrieved in place of the whole context.

        Raises:
            ValueError: this request has no context.
        """
        if self.context is None:
            raise ValueError("the request has no context that could be replaced")
        begin, end = self.context
        document = self.document[:begin] + text + self.document[end:]
        return replace(self, document=document, context=(begin, begin + len(text)))


class Failure(str):
    """The reply to a request that failed: an empty text for the harness, with what went wrong."""

    error: str

    def __new__(cls, error: str) -> Failure:
        failure = super().__new__(cls, "")
        failure.error = error
        return failure


class DoesNotFit(ValueError):
    """The window is too small for a request even with nothing left of its document."""


class Prepared(NamedTuple):
    """Attributes: ids: the model's input [N]. truncated: whether the document was cut."""

    ids: list[int]
    truncated: bool


def _middle(tokenizer: PreTrainedTokenizerBase, document: str, ids: list[int], limit: int) -> str:
    """The first and the last half of the tokens (LongBench's and InfiniteBench's protocol)."""
    half = limit // 2
    return "".join(str(tokenizer.decode(part, skip_special_tokens=True)) for part in (ids[:half], ids[-half:]))


def _left(tokenizer: PreTrainedTokenizerBase, document: str, ids: list[int], limit: int) -> str:
    """The last tokens (lm-eval's protocol)."""
    return str(tokenizer.decode(ids[-limit:], skip_special_tokens=True))


def _right(tokenizer: PreTrainedTokenizerBase, document: str, ids: list[int], limit: int) -> str:
    """The first tokens (ChatRAG-Bench's protocol)."""
    return str(tokenizer.decode(ids[:limit], skip_special_tokens=True))


def _words_right(tokenizer: PreTrainedTokenizerBase, document: str, ids: list[int], limit: int) -> str:
    """The first words (L-Eval's protocol: `limit` words, then 250 fewer each time until the tokens fit).

    Below a limit of 2,000 tokens the steps are smaller, an eighth of it: official ones would empty short documents.
    """
    return _cut_words(tokenizer, document, limit, lambda words, keep: words[:keep])


def _words_left(tokenizer: PreTrainedTokenizerBase, document: str, ids: list[int], limit: int) -> str:
    """The last words, in the same steps (L-Eval's codeU)."""
    return _cut_words(tokenizer, document, limit, lambda words, keep: words[-keep:])


def _cut_words(
    tokenizer: PreTrainedTokenizerBase, document: str, limit: int, choose: Callable[[list[str], int], list[str]]
) -> str:
    step = min(250, max(1, limit // 8))
    keep = limit
    while len(encode(tokenizer, document)) > limit:
        if keep <= 0:
            return ""
        document = " ".join(choose(document.split(" "), keep))
        keep -= step
    return document


CUTS: dict[str, Callable[[PreTrainedTokenizerBase, str, list[int], int], str]] = {
    "middle": _middle,
    "left": _left,
    "right": _right,
    "words_right": _words_right,
    "words_left": _words_left,
}


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool | None = True) -> list[int]:
    """Token ids of a text of any length.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        special: with the tokenizer's own additions (a bos token); None: unless the text begins with bos already, as a
            prompt does that lm-eval has put into a chat template.
    """
    if special is None:
        bos = tokenizer.bos_token
        special = not (bos and text.startswith(str(bos)))
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping[str, str]],
    *,
    prompt: bool,
    template: str | None = None,
) -> str:
    """A conversation as text, by a chat template.

    Templates that print today's date (`strftime_now`: Llama 3.2, SmolLM3) print 26 Jul 2024, the date that Llama 3.1's
    template takes where none is given: equal inputs give equal text on every day.

    Args:
        tokenizer: of the model.
        turns: role and content of each.
        prompt: end where the assistant's answer begins.
        template: in place of the tokenizer's own.

    Raises:
        jinja2.TemplateError: the template refuses the conversation.
    """
    if "strftime_now" in (found := tokenizer.get_chat_template(template)):
        template = _DATED + found
    return str(
        tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
    )


def render(request: Request, tokenizer: PreTrainedTokenizerBase, document: str) -> list[int]:
    """The model's input [N] for a request whose document was replaced: prompt, chat template, prefix.

    Without a chat template (a base model) the prompt stands as it is.
    """
    prompt = request.before + document + request.after
    if request.chat and tokenizer.chat_template:
        text = chat_text(tokenizer, [{"role": "user", "content": prompt}], prompt=True)
        return encode(tokenizer, text + request.prefix, special=False)
    return encode(tokenizer, prompt + request.prefix, special=None)


#: Questions on one document come one after another, and its cutting takes longer than all else.
_remembered = lru_cache(maxsize=4)


@_remembered
def _encoded(tokenizer: PreTrainedTokenizerBase, document: str) -> list[int]:
    return encode(tokenizer, document)


@_remembered
def _cut(tokenizer: PreTrainedTokenizerBase, cut: str, document: str, limit: int) -> str:
    return CUTS[cut](tokenizer, document, _encoded(tokenizer, document), limit)


def prepare(request: Request, tokenizer: PreTrainedTokenizerBase, *, room: int | None, limit: int | None) -> Prepared:
    """Cuts and renders a request.

    Args:
        request: the request.
        tokenizer: the model's.
        room: tokens that the model's window leaves for the whole input; None: no window is known.
        limit: the protocol's limit on the document, in tokens before the template; None: what the window leaves.

    Raises:
        ValueError: a request that must not be cut is too long.
        DoesNotFit: nothing of the document would be left.
    """
    document_ids = _encoded(tokenizer, request.document)
    room = sys.maxsize if room is None else room
    target = len(document_ids) if limit is None else limit
    if len(document_ids) <= target and len(document_ids) <= room:
        ids = render(request, tokenizer, request.document)
        if len(ids) <= room:
            return Prepared(ids, truncated=False)
    if request.cut == "never":
        raise ValueError(
            f"a prompt of {len(render(request, tokenizer, request.document))} tokens must not be cut, and "
            f"{min(room, target)} are allowed"
        )
    target = min(target, room - len(render(request, tokenizer, "")))
    for _ in range(_ROUNDS):
        if target < 2:
            break
        # Tokens do not always survive decoding and encoding, so the first try can be some tokens too long.
        document = _cut(tokenizer, request.cut, request.document, target)
        if not document:
            break
        ids = render(request, tokenizer, document)
        if len(ids) <= room:
            return Prepared(ids, truncated=True)
        target -= len(ids) - room
    allowed = f"the model's window leaves {room}" if room < sys.maxsize else f"max_length leaves {limit}"
    raise DoesNotFit(
        f"{allowed} tokens for the prompt, and nothing of the document fits into them beside "
        f"{len(render(request, tokenizer, ''))} tokens of instructions"
    )
