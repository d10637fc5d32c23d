"""A copy of an artifact outside of its store: it replaces an earlier copy, and no other file."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from pydantic import ValidationError

from longloom.storage.atomic import write_atomic
from longloom.storage.manifest import MANIFEST, Manifest


def foreign_file(folder: Path, store: Path) -> str | None:
    """A file in the folder that is not of an artifact copied there, by its path below the folder; None: there is none.

    Other programs call a file of theirs `manifest.json` too: only one that reads as ours tells what is a copy.

    Args:
        folder: where a copy is to go; it may be missing.
        store: folder of the store, whose files do not count: it may lie in the other.
    """
    names = _names(folder)
    known = {MANIFEST, *names} if names else set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()) and not path.is_relative_to(store):
            return name
    return None


def copy_artifact(source: Path, target: Path) -> None:
    """Copies the files that the manifest names, and the manifest, in place of an earlier copy.

    Call it when `foreign_file` finds none in the target. The folder itself stays: it may be a mount point, or the one
    that the shell stands in.

    Args:
        source: folder of a verified artifact.
        target: made when missing.
    """
    target.mkdir(parents=True, exist_ok=True)
    emptied = set()
    for name in _names(target):
        (target / name).unlink(missing_ok=True)
        emptied |= {parent for parent in (target / name).parents if target in parent.parents}
    for folder in sorted(emptied, key=lambda folder: len(folder.parts), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    # Before the files: what a copy that is cut off leaves is then known as one, and the next replaces it.
    write_atomic(target / MANIFEST, (source / MANIFEST).read_text(encoding="utf-8"))
    for name in _names(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _names(folder: Path) -> list[str]:
    """Of the files that the manifest there names; an artifact has at least one."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return []
    return [entry.path for entry in manifest.files]
