"""From what a user names (a file, a folder, a hub data set) to files of known formats, opened and decompressed.

Every file has a name that says nothing of the machine: its path relative to the folder that holds the source
(`c4.jsonl.gz`, `books/Austen/Emma.md`). Document ids are made of these names.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

HUB_PREFIX = "hub:"

JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
TSV = (".tsv",)
TEXT = (".txt", ".text", ".md", ".markdown", ".rst")
CODE = (
    *(".py", ".pyi", ".pyx", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".cs", ".css", ".go", ".hs", ".html"),
    *(".java", ".jl", ".js", ".jsx", ".kt", ".lua", ".ml", ".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".sql"),
    *(".swift", ".tex", ".ts", ".tsx"),
)
COMPRESSED = (".gz", ".zst")

#: Never read when a folder is walked: not the author's own text. Hidden files and folders are left out too.
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "node_modules"})


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: where it lies.
        name: the path relative to the folder that holds the source, with forward slashes.
        source: the name of the source: of the file or folder that the user gave.
        suffix: the format's suffix in lower case, without that of the compression.
    """

    path: Path
    name: str
    source: str
    suffix: str


@dataclass
class Found:
    """What the sources stand for.

    Attributes:
        items: what to read, in the order of the sources: files (those of a folder sorted by name), and for a hub
            data set the string itself.
        ignored: suffix -> number of files of unknown formats in the folders.
    """

    items: list[SourceFile | str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def find_files(sources: list[str], suffixes: tuple[str, ...]) -> Found:
    """Finds the files that the sources stand for.

    Args:
        sources: paths of files or folders, or `hub:` data sets.
        suffixes: the formats wanted.

    Raises:
        FileNotFoundError: a source does not exist, or a folder holds no file.
        ValueError: no source; a file of an unknown format; a folder without any of a known one; a file given twice.
    """
    if not sources:
        raise ValueError("no sources given, expected at least one file, folder or hub: data set")
    found = Found()
    for source in sources:
        if source.startswith(HUB_PREFIX):
            found.items.append(source)
        else:
            found.items += _find(source, suffixes, found.ignored)
    paths = Counter(
        item if isinstance(item, str) else str(item.path.parent.resolve() / item.path.name) for item in found.items
    )
    for path, times in paths.items():
        if times > 1:
            raise ValueError(f"{path}: is given {times} times by the sources {', '.join(sources)}")
    return found


def _find(source: str, suffixes: tuple[str, ...], ignored: Counter[str]) -> list[SourceFile]:
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    source_name = _printable(Path(os.path.abspath(path)).name)
    if path.is_file():
        suffix = format_suffix(path)
        if suffix not in suffixes:
            raise ValueError(f"{source}: unknown format {suffix or path.name!r}, expected {_known(suffixes)}")
        return [SourceFile(path, source_name, source_name, suffix)]
    files: list[SourceFile] = []
    unknown: Counter[str] = Counter()
    for file in _walk(path):
        suffix = format_suffix(file)
        if suffix in suffixes:
            name = f"{source_name}/{_printable(file.relative_to(path).as_posix())}"
            files.append(SourceFile(file, name, source_name, suffix))
        else:
            unknown[suffix or "(no suffix)"] += 1
    if not files and unknown:
        seen = ", ".join(sorted(unknown)[:8])
        raise ValueError(f"{source}: no file of a known format, only {seen}; expected {_known(suffixes)}")
    if not files:
        raise FileNotFoundError(f"{source}: the folder holds no files")
    ignored.update(unknown)
    return sorted(files, key=lambda file: file.name)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def format_suffix(path: Path) -> str:
    """`.jsonl` for both `a.jsonl` and `A.JSONL.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSED and suffixes[-2] not in PARQUET:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def _printable(name: str) -> str:
    """A file's name as text that UTF-8 can hold; Linux allows any bytes in it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _known(suffixes: tuple[str, ...]) -> str:
    plain = [suffix for suffix in suffixes if suffix not in CODE]
    code = " or source code" if set(CODE) <= set(suffixes) else ""
    return f"{', '.join(plain)}{code} (all but Parquet also with {' or '.join(COMPRESSED)})"


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading, through gzip or zstd when its last suffix says so.

    Raises:
        ValueError: in the `with` body, when the compressed data is damaged or cut off.
    """
    compression = path.suffix.lower()
    if compression not in COMPRESSED:
        with path.open("rb") as file:
            yield file
        return
    try:
        if compression == ".gz":
            with gzip.open(path) as file:
                yield file  # type: ignore[misc]  # GzipFile is a BinaryIO in all but name
        else:
            with pa.input_stream(str(path), compression="zstd") as stream:
                yield io.BufferedReader(stream)  # type: ignore[arg-type, misc]
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the {compression} data cannot be read ({error})") from None
