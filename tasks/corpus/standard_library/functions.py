"""Records for a study of memorization: three questions about each of some documented functions of the library.

- `knowledge`: what does it do? Its class and `def` line -> the first line of its docstring.
- `translation`: from English to Python. That line -> the `def` line.
- `completion`: how is it done? Class, `def` line and that line -> the first lines of its body.

The functions come from one side of the library: of the modules for training, which the corpus holds, or of those held
out. Everything stands as in the source, with line ends and indentation, so that n-grams are found as the same tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.corpus.standard_library.modules import read_module, split
from longloom.tasks.corpus.standard_library.syntax import Definition, read_facts
from longloom.tasks.progress import Progress, silent
from longloom.tasks.trace.records import RECORDS, Record

KINDS = ("knowledge", "translation", "completion")

_MOST_OF_A_MODULE = 8  # else a few large modules are most of what is held out
_LARGEST_MODULE = 100_000  # characters: the few larger ones would take most of the time
_FEWEST_WORDS = {"summary": 4, "body": 8}
_LONGEST_SUMMARY = 160
_BODY_LINES = 8
_QUOTES = ('"""', "'''")
_WORD = re.compile(r"\w+")


def build(
    out: Path, *, functions: int, held_out: bool, seed: int, progress: Progress = silent, root: Path | None = None
) -> Stats:
    """Writes `records.parquet` as tasks/trace/records.py has it: a record a kind and function, `id` names both.

    Args:
        out: an empty folder.
        functions: at most so many; the held-out modules of one Python have a hundred or so.
        held_out: of the held-out modules if true, else of those for training.
        seed: of the draw; the records depend on the arguments and on the library alone.
        progress: told the functions found.
        root: the library's folder; the running Python's own by default.

    Returns:
        Counts of records, tasks, functions and modules.

    Raises:
        ValueError: the modules have no such function.
    """
    found: list[tuple[str, Definition, str]] = []
    for one in islice(_draw(split(root)[held_out], random.Random(f"{seed}/functions"), root), functions):
        found.append(one)
        progress(len(found), functions)
    if not found:
        side = "held-out" if held_out else "training"
        raise ValueError(f"the library's {side} modules have no function with a docstring and a body, expected some")
    found.sort(key=lambda one: (one[0], one[1].owner, one[1].header, one[2]))
    with FileWriter(out / "records.parquet", RECORDS) as writer:
        for kind in KINDS:
            writer.write([asdict(_record(kind, *one)) for one in found])
    modules = len({module for module, *_ in found})
    counts = {"records": len(KINDS) * len(found), "tasks": len(KINDS), "functions": len(found), "modules": modules}
    return Stats(counts=counts)


def _draw(ids: list[str], rng: random.Random, root: Path | None) -> Iterator[tuple[str, Definition, str]]:
    """Yields functions with their bodies, a module after another in a random order."""
    for module in rng.sample(ids, len(ids)):
        text = read_module(module, root)
        facts = None if text is None or len(text) > _LARGEST_MODULE else read_facts(module, text)
        if facts is None:
            continue
        assert text is not None
        fit = [
            (definition, body)
            for definition in facts.definitions
            if (body := _body(definition)) is not None
            and all(
                _indented(definition, part) in text for part in (definition.header, body)
            )  # not in classes' classes
        ]
        for definition, body in rng.sample(fit, min(_MOST_OF_A_MODULE, len(fit))):
            yield module, definition, body


def _body(found: Definition) -> str | None:
    """What stands below the docstring, its first lines; None for what is no function that can be asked about."""
    if not found.header.startswith(("def ", "async def ")) or not found.docstring.isascii():
        return None
    summary = _summary(found)
    if len(summary) > _LONGEST_SUMMARY or '"""' in summary or "\\" in summary:
        return None
    opened = found.body[0].lstrip().lstrip("rR")
    quotes = next((quotes for quotes in _QUOTES if opened.startswith(quotes)), None)
    if quotes is None:
        return None
    below = (number for number, line in enumerate(found.body) if number and quotes in line)
    closing = 0 if quotes in opened[len(quotes) :] else next(below, None)
    if closing is None:  # it ends below the lines that are known
        return None
    body = "\n".join(found.body[closing + 1 :][:_BODY_LINES]).strip("\n")
    words = {"summary": summary, "body": body}
    if any(len(_WORD.findall(text)) < _FEWEST_WORDS[name] for name, text in words.items()):
        return None
    return body


def _summary(found: Definition) -> str:
    return found.docstring.strip().split("\n")[0].rstrip()


def _indented(found: Definition, text: str) -> str:
    """Lines as they stand in the source, that of a module or of a class, from the line end before them on."""
    indent = "    " if found.owner else ""
    return "".join(f"\n{indent}{line}".rstrip(" ") for line in text.split("\n"))


def _record(kind: str, module: str, found: Definition, body: str) -> Record:
    """Every text begins with a line end: what follows one in the source is not looked up with a space before it."""
    header, docstring = _indented(found, found.header), _indented(found, f'    """{_summary(found)}"""')
    head = f"\n{found.owner}\n{header}" if found.owner else header
    if kind == "knowledge":
        asked, answer = head, docstring
    elif kind == "translation":
        asked, answer = docstring, header
    else:
        asked, answer = head + docstring, _indented(found, body)
    return Record(kind, f"{module}:{found.name}", asked, asked, answer)
