"""Digests of files that lie outside the store: the identity of a corpus, a data folder or a local model.

Hashing a large corpus at every start would cost as much as reading it, so a file is hashed again only when its
stamp (size, times, inode) changed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
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
    """The fingerprint of every file below a folder (hidden ones left out, links followed), or of one file.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a link in the folder leads back to a folder that it lies in.
    """
    if folder.is_file():
        return fingerprint(store, [folder])
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such file or folder")
    return fingerprint(store, sorted(_walk(folder)), base=folder)


def _walk(folder: Path) -> Iterator[Path]:
    """The files that a reader may come upon; whoever opens `folder/name` does not see that it is a link."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = Path(parent)
        # The folder itself and every one on the way down from it.
        above = {os.path.realpath(one) for one in (here, *here.parents) if one.is_relative_to(folder)}
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.realpath(here / name) in above:
                raise ValueError(f"{here / name}: leads back to a folder that it lies in, expected no such link")
        for name in names:
            if not name.startswith(".") and (here / name).is_file():
                yield here / name
