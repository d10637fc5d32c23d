"""How a reward model is shown the context: within the prompt's last turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longloom.tasks.corpus.messages import Message

#: Ours; the paper's is not known here.
DEFAULT = "{prompt}\n\n[criteria] {context}"
FIELDS = ("{prompt}", "{context}")


def check(template: str) -> None:
    """Raises a ValueError for a template that does not hold `{prompt}` and `{context}` once each."""
    for name in FIELDS:
        if (times := template.count(name)) != 1:
            raise ValueError(f"template {template!r:.100}: found {name} {times} times, expected it once")


def with_context(prompt: Sequence[Mapping[str, str]], context: str | None, template: str) -> list[Message]:
    """The conversation with its last turn put into the template; as it is without a context.

    Braces in the texts stay: a prompt may be code.

    Args:
        prompt: turns, the last of which asks for the response.
        context: None: no context.
        template: see `check`.
    """
    turns = [dict(turn) for turn in prompt]
    if context is not None:
        before, behind = (part.replace("{context}", context) for part in template.split("{prompt}"))
        turns[-1]["content"] = f"{before}{turns[-1]['content']}{behind}"
    return turns
