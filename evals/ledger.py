"""Generations on disk as they come, so that a killed evaluation repeats none: JSON Lines, one generation a line.

A first line tells what the generations depend on; a file with another first line is begun anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longloom.storage.json_text import well_formed


class Ledger:
    """Finished generations by key.

    Args:
        path: the file; created, or continued where a killed run left it (a torn last line is dropped).
        identity: what all of its generations depend on: model, KV policy, ... JSON only.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        header = json.dumps(identity, sort_keys=True).encode() + b"\n"
        content = path.read_bytes() if path.exists() else b""
        if not content.startswith(header):
            path.write_bytes(header)
            return
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines()[1:]:
            row = json.loads(line)
            if b"\\ud" in line:  # an earlier version kept lone surrogates, which no table holds
                row = {name: well_formed(value) if isinstance(value, str) else value for name, value in row.items()}
            self._rows[row["key"]] = row
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def get(self, key: str) -> dict[str, Any] | None:
        """The generation of this key, if it is there."""
        return self._rows.get(key)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends generations, each with its `key`."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        with self._path.open("ab") as file:
            file.write(lines.encode())
        self._rows.update((row["key"], dict(row)) for row in rows)

    def remove(self) -> None:
        """Deletes the file: the evaluation is complete."""
        self._path.unlink()
