"""The deletion stage: an index without some of its documents, in the files of the one that it is made of.

Nothing is sorted again: `deleted.npy` names the documents, and every query leaves them out. Their text stays on disk
until the corpus is indexed without them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np

from longloom.storage.manifest import MANIFEST
from longloom.storage.stats import Stats
from longloom.tasks.ngrams.layout import (
    DELETED_FILE,
    METADATA,
    OFFSETS,
    TOKENS,
    Layout,
    read_deleted,
    read_layout,
    shard_file,
)
from longloom.tasks.ngrams.shard import metadata_of

#: Unknown ids that an error names.
NAMED = 5


def build(index: Path, out: Path, *, ids: Collection[str]) -> Stats:
    """Deletes documents by id, beside those that are deleted already.

    Args:
        index: folder of an index.
        out: an empty folder; gets hard links to the files of `index` (copies where links are not possible).
        ids: of the documents.

    Returns:
        Counts of the documents, tokens and shards that remain, and of the deleted documents.

    Raises:
        ValueError: no ids; one that no document has; an index that is damaged.
        FileNotFoundError: no index there.
    """
    layout = read_layout(index)
    if not ids:
        raise ValueError("there are no ids to delete, expected at least one")
    deleted = np.union1d(read_deleted(index, layout), ordinals(index, layout, ids))
    for path in sorted(index.rglob("*")):
        name = path.relative_to(index)
        if path.is_file() and name.parts[0] not in (MANIFEST, DELETED_FILE):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, out / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, out / name)
    np.save(out / DELETED_FILE, deleted)
    return Stats(
        counts={
            "documents": layout.documents - len(deleted),
            "tokens": layout.tokens - int(_lengths(index, layout)[deleted].sum()),
            "shards": len(layout.shards),
            "deleted": len(deleted),
        },
        values={"token_dtype": layout.token_dtype},
    )


def ordinals(index: Path, layout: Layout, ids: Collection[str]) -> np.ndarray:
    """The documents of some ids, by one pass over the metadata.

    Returns:
        int64 [documents], sorted.

    Raises:
        ValueError: an id that no document has.
    """
    wanted, found, ordinal = set(ids), set(), 0
    places = []
    for number in range(len(layout.shards)):
        path = shard_file(index, METADATA, number)
        with path.open("rb") as lines:
            for line in lines:
                identifier = metadata_of(line, path)["id"]
                if identifier in wanted:
                    found.add(identifier)
                    places.append(ordinal)
                ordinal += 1
    unknown = sorted(wanted - found)
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise ValueError(
            f"{index}: {len(unknown)} of {len(wanted)} ids are of no document there: "
            f"{', '.join(map(repr, unknown[:NAMED]))}{more}"
        )
    return np.array(places, dtype=np.int64)


def _lengths(index: Path, layout: Layout) -> np.ndarray:
    """Tokens of each document, int64 [documents]."""
    lengths = []
    for number in range(len(layout.shards)):
        starts = np.fromfile(shard_file(index, OFFSETS, number), dtype="<i8")
        size = shard_file(index, TOKENS, number).stat().st_size
        lengths.append(np.diff(starts, append=size) // layout.dtype.itemsize - 1)
    return np.concatenate(lengths)
