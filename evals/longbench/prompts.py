"""LongBench's prompts, each checked against the sha256 of the official one: white space in them is load-bearing.

They are the benchmark's data, not ours, so they are taken from a folder with the official config, or else from the
installed lm_eval package. There `{{question}}` stands for the official `{input}`, and some white space was lost; a rule
puts it back, and the hash tells which rule is right for which prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

#: The ways in which lm_eval's prompts lost white space, undone.
_MENDS: tuple[Callable[[str], str], ...] = (
    lambda prompt: prompt,
    lambda prompt: prompt + " ",
    lambda prompt: prompt + "\n",
    lambda prompt: prompt.replace("{context}\n{input}", "{context}\n\n{input}"),
)


def fill(template: str, record: Mapping[str, Any]) -> tuple[str, tuple[int, int] | None]:
    """A template's prompt for a record, as `str.format` makes it.

    Returns:
        The prompt, and where in it the record's context begins and ends; None if it does not stand there just once.

    Raises:
        KeyError, IndexError, ValueError, AttributeError, TypeError: as `str.format`.
    """
    parts: list[str] = []
    spans = []
    length = 0
    for literal, name, form, conversion in Formatter().parse(template):
        parts.append(literal)
        length += len(literal)
        if name is None:
            continue
        field = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        text = f"{{{field}}}".format(**record)
        if name == "context":
            spans.append((length, length + len(text)))
        parts.append(text)
        length += len(text)
    return "".join(parts), spans[0] if len(spans) == 1 else None


@cache
def official_hashes() -> dict[str, str]:
    """Task -> sha256 (hex) of the official prompt's UTF-8 bytes."""
    lines = files(__package__).joinpath("prompts.sha256").read_text(encoding="utf-8").splitlines()
    pairs = (line.split() for line in lines)
    return {task: digest for digest, task in pairs}


def is_official(task: str, prompt: str) -> bool:
    """Whether this is the task's official prompt, to the byte."""
    return hashlib.sha256(prompt.encode()).hexdigest() == official_hashes()[task]


def packaged_prompt(task: str) -> str:
    """The official prompt of a task out of the installed lm_eval package, with `{context}` and `{input}`.

    Raises:
        ValueError: this version of lm_eval has no prompt from which the official one can be had.
    """
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "tasks" / "longbench" / f"{task}.yaml"
    try:
        text = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)["doc_to_text"]
    except (OSError, yaml.YAMLError, KeyError) as error:
        raise ValueError(f"lm_eval's task file {path} has no prompt for LongBench's {task} ({error})") from None
    prompt: str = (
        text.replace("{{context}}", "{context}").replace("{{question}}", "{input}").replace("{{input}}", "{input}")
    )
    for mend in _MENDS:
        mended = mend(prompt)
        if is_official(task, mended):
            return mended
    raise ValueError(
        f"lm_eval's prompt for LongBench's {task} is not the official one, and none of the known mends makes it so; "
        "expected a data folder with the official config/dataset2prompt.json"
    )


class _Loader(yaml.SafeLoader):
    """Reads lm_eval's task files without importing what their `!function` tags name."""


_Loader.add_constructor("!function", lambda loader, node: None)
