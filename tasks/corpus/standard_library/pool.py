"""The demo's instruction pool: short tasks on the training modules, uneven in kind, length and quality on purpose.

The look-ups (constant, definition, passkey, copy) have the form of the evaluation's records; the others are what a
pool is mostly made of. The shares stand here and in `flaws.py`; what came out is told in the stats.
"""

from __future__ import annotations

import math
import platform
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.corpus.standard_library.flaws import EXACT_DUPLICATES, NEAR_DUPLICATES, Example, reword, spoil
from longloom.tasks.corpus.standard_library.kinds import SMALLEST_CHARACTERS, example_streams
from longloom.tasks.corpus.standard_library.modules import read_module, split
from longloom.tasks.corpus.standard_library.syntax import Facts, read_facts
from longloom.tasks.progress import Progress, silent

#: Kind of task -> its share of the pool's originals.
SHARES = {
    "next_line": 0.24,
    "docstring": 0.19,
    "signature": 0.15,
    "constant": 0.13,
    "definition": 0.11,
    "copy": 0.10,
    "passkey": 0.08,
}

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("messages", pa.list_(_MESSAGE))])

_FEWEST_MODULES = 60
_EXAMPLES_PER_MODULE = 5
_LARGEST_MODULE = 100_000  # characters: the few larger ones would take a third of the time
_TRIES_PER_EXAMPLE = 20


def build(
    out: Path, *, examples: int, seed: int, characters: int, progress: Progress = silent, root: Path | None = None
) -> Stats:
    """Writes `instructions.parquet`: id, source (the kind of task), messages (user, assistant).

    Args:
        out: an empty folder.
        examples: how many, duplicates included.
        seed: of all chance here; the pool depends on the arguments and on the library alone.
        characters: the most characters of an example, both turns together.
        progress: told the examples made.
        root: the library's folder; the running Python's own by default.

    Returns:
        Counts of examples and modules; values: how many of each kind, flaw and sort of duplicate, and the lengths.

    Raises:
        ValueError: if a parameter is out of range, or the library too small for as many examples.
    """
    if examples < 1:
        raise ValueError(f"examples is {examples}, expected at least 1")
    if characters < SMALLEST_CHARACTERS:
        raise ValueError(f"characters is {characters}, expected at least {SMALLEST_CHARACTERS}")
    modules = _sample_modules(seed, max(_FEWEST_MODULES, examples // _EXAMPLES_PER_MODULE), root)
    near = round(NEAR_DUPLICATES * examples)
    exact = round(EXACT_DUPLICATES * examples)
    originals = _originals(modules, examples - near - exact, seed, characters, lambda done: progress(done, examples))
    rng = random.Random(f"{seed}/duplicates")
    pool = [*originals, *reword(originals, near, rng), *rng.choices(originals, k=exact)]
    rng.shuffle(pool)
    with FileWriter(out / "instructions.parquet", SCHEMA) as writer:
        writer.write([_row(index, example) for index, example in enumerate(pool)])
    progress(examples, examples)
    lengths = sorted(len(example.user) + len(example.answer) for example in pool)
    return Stats(
        counts={"examples": len(pool), "modules": len(modules)},
        values={
            "kinds": dict(sorted(Counter(example.kind for example in pool).items())),
            "flawed": dict(sorted(Counter(example.flaw for example in pool if example.flaw).items())),
            "exact_duplicates": exact,
            "near_duplicates": near,
            "characters": {
                "mean": round(statistics.fmean(lengths), 1),
                "median": lengths[len(lengths) // 2],
                "ninth_decile": lengths[9 * len(lengths) // 10],
                "most": lengths[-1],
            },
            "python": platform.python_version(),
        },
    )


def _sample_modules(seed: int, count: int, root: Path | None) -> list[Facts]:
    ids, _ = split(root)
    random.Random(f"{seed}/modules").shuffle(ids)
    modules: list[Facts] = []
    for module in ids:
        if len(modules) == count:
            break
        text = read_module(module, root)
        facts = read_facts(module, text) if text is not None and len(text) <= _LARGEST_MODULE else None
        if facts is not None and facts.starts:
            modules.append(facts)
    return modules


def _originals(
    modules: Sequence[Facts], count: int, seed: int, characters: int, told: Callable[[int], None]
) -> list[Example]:
    """Examples of every kind, no two with the same context and name, some of them flawed."""
    streams = example_streams(modules, seed=seed, characters=characters)
    seen: set[tuple[str, str, str]] = set()
    originals: list[Example] = []
    for kind, portion in _portions(count).items():
        fresh: list[Example] = []
        tries = islice(streams[kind], _TRIES_PER_EXAMPLE * portion)
        while len(fresh) < portion:
            example = next(tries, None)
            if example is None:
                raise ValueError(
                    f"the library offers too few examples of the kind {kind!r}: found {len(fresh)} in {len(modules)} "
                    f"modules, expected {portion}; ask for fewer examples"
                )
            key = (kind, example.context, example.name)
            if key not in seen and example.characters <= characters:
                seen.add(key)
                fresh.append(example)
                told(len(originals) + len(fresh))
        originals += spoil(fresh, random.Random(f"{seed}/{kind}/flaws"))
    return originals


def _portions(count: int) -> dict[str, int]:
    """Splits a count by `SHARES`: the floors, and one more for the largest remainders."""
    portions = {kind: math.floor(share * count) for kind, share in SHARES.items()}
    by_remainder = sorted(SHARES, key=lambda kind: portions[kind] - SHARES[kind] * count)
    for kind in by_remainder[: count - sum(portions.values())]:
        portions[kind] += 1
    return portions


def _row(index: int, example: Example) -> dict[str, object]:
    turns = (("user", example.user), ("assistant", example.answer))
    return {
        "id": f"{example.kind}-{index:06d}",
        "source": example.kind,
        "messages": [{"role": role, "content": content} for role, content in turns],
    }
