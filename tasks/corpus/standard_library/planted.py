"""A small evaluation set to try a test for contamination on: one function out of the corpus among held-out ones.

planted.jsonl   a function a line: `id` (module and name), `planted`, `text`; the planted one first

What counts as clean was looked for: none of its windows of eight words stands in a module for training.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from longloom.storage.stats import Stats
from longloom.tasks.corpus.standard_library.modules import read_module, split
from longloom.tasks.corpus.standard_library.syntax import read_facts
from longloom.tasks.progress import Progress, silent

PLANTED = "planted.jsonl"

_WINDOW = 8  # words, as in the measure that flags a record of an index of tokens
_FEWEST_WORDS = 32  # of fewer than 25 windows a share says little
_LARGEST_MODULE = 100_000  # characters, as for the other records


def build(out: Path, *, clean: int, seed: int, progress: Progress = silent, root: Path | None = None) -> Stats:
    """Writes `planted.jsonl`.

    Args:
        out: an empty folder.
        clean: records of held-out modules, each of another module; the planted record comes on top of them.
        seed: of the draw; the records depend on the arguments and on the library alone.
        progress: told the records found.
        root: the library's folder; the running Python's own by default.

    Returns:
        Counts of records, and of the planted ones.

    Raises:
        ValueError: the library has no function to plant, or too few clean ones.
    """
    training, held_out = split(root)
    rng = random.Random(f"{seed}/planted")
    rows: list[dict[str, object]] = []
    for name, text in islice(_functions(training, rng, root), 1):
        rows.append({"id": name, "planted": True, "text": text})
    corpus = [read_module(module, root) or "" for module in training]
    fresh = (
        (name, text)
        for name, text in _functions(held_out, rng, root)
        if not any(window in module for window in _windows(text) for module in corpus)
    )
    for name, text in islice(fresh, clean):
        rows.append({"id": name, "planted": False, "text": text})
        progress(len(rows), clean + 1)
    if len(rows) < clean + 1:
        raise ValueError(
            f"the library has {len(rows)} functions of {_FEWEST_WORDS} words or more, one of a training module and the"
            f" others clean, each of its own module; expected {clean + 1}"
        )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (out / PLANTED).write_text("".join(lines), encoding="utf-8", newline="\n")
    return Stats(counts={"records": len(rows), "planted": 1})


def _functions(ids: list[str], rng: random.Random, root: Path | None) -> Iterator[tuple[str, str]]:
    """Yields name and text of a function that is long enough, one a module, modules in a random order."""
    for module in rng.sample(ids, len(ids)):
        text = read_module(module, root)
        facts = None if text is None or len(text) > _LARGEST_MODULE else read_facts(module, text)
        found = [
            (f"{module}:{definition.name}", body)
            for definition in (facts.definitions if facts else ())
            if not definition.owner  # what stands in a class has lost its indentation, and is no longer verbatim
            and len((body := "\n".join((definition.header, *definition.body)).rstrip()).split()) >= _FEWEST_WORDS
        ]
        if found:
            yield rng.choice(found)


def _windows(text: str) -> list[str]:
    """Every run of eight words as it stands."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    return [text[words[i][0] : words[i + _WINDOW - 1][1]] for i in range(len(words) - _WINDOW + 1)]
