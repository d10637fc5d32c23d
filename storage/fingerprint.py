"""Digests of files that lie outside the store: the identity of a corpus, a data folder or a local model.

Hashing a large corpus at every start would cost as much as reading it, so a file is hashed again only when its
stamp (size, times, inode) changed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from longloom.storage.stamps import Stamps
from longloom.storage.store import Store


def fingerprint(store: Store, paths: Iterable[Path], *, base: Path | None = None) -> str:
    """sha256 over the names and contents of files; the same wherever they lie.

    Args:
        store: keeps the stamps (in `<root>/verified/fingerprints/`).
        paths: files, in an order that means something.
        base: names are taken relative to it; else only each file's own name counts.

    Returns:
        64 hex digits.

    Raises:
        FileNotFoundError: one of the files is missing.
    """
    files = [path.absolute() for path in paths]
    listing = hashlib.sha256(b"\n".join(map(os.fsencode, files))).hexdigest()[:32]
    stamps = Stamps(store.root / "verified" / "fingerprints" / f"{listing}.json")
    total = hashlib.sha256()
    for path in files:
        name = path.relative_to(base.absolute()).as_posix() if base else path.name
        total.update(os.fsencode(f"{stamps.digest(path, str(path))}  {name}\n"))
    stamps.save()
    return total.hexdigest()


def fingerprint_folder(store: Store, folder: Path) -> str:
    """The fingerprint of every file below a folder (hidden ones left out), or of one file."""
    if folder.is_file():
        return fingerprint(store, [folder])
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such file or folder")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return fingerprint(store, files, base=folder)
