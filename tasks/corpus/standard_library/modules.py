"""The modules of the running Python's standard library: text that every machine has, so the demo downloads nothing.

About one module in twenty is held out by a hash of its path: the same ones on every machine, known without a list.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tokenize
from pathlib import Path

import pyarrow as pa

from longloom.storage.parquet import ShardWriter
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent

HELD_OUT_ONE_IN = 20
ROWS_PER_SHARD = 512
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string())])

_OTHER_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}
# Folders and modules that the build of this Python wrote: they hold the paths of its machine.
_BUILD = ("config-", "_sysconfigdata")
_ROWS_PER_WRITE = 64


def library_root() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def module_ids(root: Path | None = None) -> list[str]:
    """The ids of all modules: POSIX paths relative to the library, sorted.

    Args:
        root: the library's folder; the running Python's own by default.

    Raises:
        ValueError: if there is no Python source (some distributions ship compiled files only).
    """
    root = root or library_root()
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _OTHER_FOLDERS and not name.startswith(_BUILD)]
        below = Path(folder).relative_to(root)
        found += [(below / name).as_posix() for name in files if name.endswith(".py") and not name.startswith(_BUILD)]
    if not found:
        raise ValueError(f"the standard library in {root} holds no source: found 0 .py files, expected hundreds")
    return sorted(found)


def module_files(root: Path | None = None) -> list[Path]:
    """The files of all modules, in the order of their ids."""
    root = root or library_root()
    return [root / module_id for module_id in module_ids(root)]


def held_out(module_id: str) -> bool:
    """Whether a module is kept away from training: about one in `HELD_OUT_ONE_IN`, by SHA-256 of its id."""
    return int.from_bytes(hashlib.sha256(module_id.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def read_module(module_id: str, root: Path | None = None) -> str | None:
    """A module's text in the encoding it declares, lines ended by a line feed; None where it does not decode."""
    try:
        with tokenize.open((root or library_root()) / module_id) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):  # some files of the library's own tests are broken on purpose
        return None


def split(root: Path | None = None) -> tuple[list[str], list[str]]:
    """The ids of the modules for training, and of those held out, both sorted."""
    ids = module_ids(root)
    return [name for name in ids if not held_out(name)], [name for name in ids if held_out(name)]


def build_documents(out: Path, *, held_out: bool, progress: Progress = silent, root: Path | None = None) -> Stats:
    """Writes one side of the library as a corpus: `documents-*.parquet` with columns id, source, text.

    Modules that do not decode or are blank are left out and counted.

    Args:
        out: an empty folder.
        held_out: the held-out modules if true, else those for training.
        progress: told the modules looked at.
        root: the library's folder; the running Python's own by default.
    """
    ids = split(root)[held_out]
    documents = characters = 0
    rows: list[dict[str, object]] = []
    with ShardWriter(out, "documents", SCHEMA, rows_per_shard=ROWS_PER_SHARD) as writer:
        for done, module_id in enumerate(ids, 1):
            text = read_module(module_id, root)
            if text and not text.isspace():
                source = module_id.split("/")[0].removesuffix(".py")
                rows.append({"id": module_id, "source": source, "text": text})
                documents += 1
                characters += len(text)
            if len(rows) == _ROWS_PER_WRITE or done == len(ids):
                writer.write(rows)
                rows = []
            progress(done, len(ids))
    return Stats(
        counts={"documents": documents, "characters": characters},
        values={"undecodable_or_blank": len(ids) - documents},
    )
