"""Hashes of files, remembered with the files' stamps, so that a file is read again only when it may have changed."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from longloom.storage.atomic import write_atomic
from longloom.storage.manifest import hash_file

#: A stamp is believed only if the file had been at rest for so long when it was taken: two writes within one tick of a
#: file system's clock (up to 2 s) give the same stamp. git's index has the same rule.
SETTLED_NS = 2_000_000_000


def file_stamp(path: Path) -> list[int]:
    """[size, mtime, ctime, inode]: changes with every ordinary write, as in git's index."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class Stamps:
    """The remembered hashes of one group of files.

    Args:
        place: the JSON file that keeps them; one that is missing or damaged counts as empty.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        try:
            known = json.loads(place.read_bytes())
        except (OSError, ValueError, RecursionError):
            known = {}
        self._known: dict[str, object] = known if isinstance(known, dict) else {}
        self._fresh: dict[str, object] = {}

    def digest(self, path: Path, name: str) -> str:
        """sha256 of a file's bytes.

        Args:
            path: the file.
            name: under which its hash is remembered.

        Raises:
            OSError: it cannot be read.
        """
        now = time.time_ns()
        stamp = file_stamp(path)  # before the bytes are read: what is written meanwhile gets a later one
        entry = self._known.get(name)
        if isinstance(entry, list) and entry[:-1] == stamp:
            self._fresh[name] = entry
            return str(entry[-1])
        digest = hash_file(path)
        if stamp[2] + SETTLED_NS <= now:
            self._fresh[name] = [*stamp, digest]
        return digest

    def save(self) -> None:
        """Keeps the hashes asked for since the beginning; a place that cannot be written costs time only."""
        if self._fresh != self._known:
            with contextlib.suppress(OSError):
                write_atomic(self._place, json.dumps(self._fresh))
