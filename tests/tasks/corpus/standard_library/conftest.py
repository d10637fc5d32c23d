"""Two libraries for the tests: a made one, whose every module has words of its own, and a part of the real one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from longloom.tasks.corpus.standard_library.modules import held_out, library_root, split

VERBS = ("open", "close", "merge", "filter", "render", "collect", "verify", "repeat")
NOUNS = ("stream", "packet", "header", "buffer", "record", "margin", "socket", "folder")


def own_word(number: int) -> str:
    """A word that stands in the made module of this number and in no other."""
    return "mod" + "".join(chr(ord("a") + int(digit)) for digit in f"{number:04d}") + "x"


def made_module(number: int) -> str:
    """A module with constants, two classes and functions; every statement's name holds the module's own word."""
    word = own_word(number)
    parts = [
        f'"""Helpers of {word}.\n\nThey exist for tests only.\n"""\n\nimport os\nimport sys\n',
        f"{word}_limit = {1000 + number}\n{word}_label = 'label-{word}'\n",
        f"class {word.capitalize()}Store:\n    # Keeps what {word} finds.\n",
    ]
    for verb, noun in zip(VERBS, NOUNS, strict=True):
        parts.append(
            f"    def {verb}_{word}_{noun}(self, value, default=None):\n"
            f'        """{verb.capitalize()} the {noun} of {word}.\n\n        The {noun} may be missing.\n        """\n'
            f"        {word}_{noun}_total = len(value)\n"
            f"        if {word}_{noun}_total == 0:\n"
            f"            return default\n"
            f"        elif value is self:\n"
            f"            raise ValueError('{verb} without {noun}')\n"
            f"        return self.{noun}_of(value, {word}_{noun}_total)\n"
        )
    parts.append("")
    for turn, (verb, noun) in enumerate(zip(VERBS, reversed(NOUNS), strict=True)):
        checks = [f"    if first is {name}:\n        return {name}_{word}\n" for name in ("None", *NOUNS)]
        parts.append(
            f"def {noun}_{word}_{verb}(first, second):\n"
            f'    """Return the {noun} to {verb} for {word}."""\n'
            + "".join(checks[: turn % 4])
            + f"    {verb}_{word}_pair = (first, second)\n"
            f"    return sorted({verb}_{word}_pair)\n"
        )
    return "\n".join(parts)


@pytest.fixture(scope="session")
def made_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 modules for training and 6 held out, in a package of two folders."""
    root = tmp_path_factory.mktemp("made_library")
    (root / "pack" / "inner").mkdir(parents=True)
    left = {True: 6, False: 60}
    number = 0
    while any(left.values()):
        module = f"pack/inner/m{number}.py" if number % 2 else f"pack/m{number}.py"
        if left[held_out(module)]:
            left[held_out(module)] -= 1
            (root / module).write_text(made_module(number), encoding="utf-8")
        number += 1
    return root


@pytest.fixture(scope="session")
def real_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some real modules: every ninth for training and all that are held out, the library's own tests left out."""
    root = tmp_path_factory.mktemp("real_library")
    sides = [[name for name in side if "test" not in name and "encodings" not in name] for side in split()]
    for module in [*sides[0][::9], *sides[1]]:
        (root / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library_root() / module, root / module)
    return root
