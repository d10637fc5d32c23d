"""Questions that need no flow run: counts, matches and co-occurrence in an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from longloom.flows.sources import index_of
from longloom.storage.store import Store

if TYPE_CHECKING:
    from longloom.tasks.ngrams.query import Index


def _open(index: str | None, store: str) -> Index:
    from longloom.tasks.ngrams.query import open_index

    place = Store(store)
    found = index_of(place, index)
    return open_index(Path(found) if isinstance(found, str) else place.open(found))


def count_texts(texts: list[str], index: str | None, store: str) -> dict[str, int]:
    """How often each text stands in an indexed corpus.

    Args:
        texts: each one is encoded by the index's tokenizer.
        index: `run:ID:LABEL` or the folder of an index; that of the newest run with one by default.
        store: the store's folder.

    Raises:
        ValueError: no index, a damaged one, an empty text.
    """
    opened = _open(index, store)
    return {text: opened.count(text) for text in texts}


def count_behind_blanks(texts: list[str], index: str | None, store: str) -> dict[str, int]:
    """Counts of " text" for the texts that are other tokens there, as a word within a line is to most tokenizers."""
    opened = _open(index, store)
    found = {}
    for text in texts:
        try:
            alone, behind = opened.encode(text), opened.encode(f" {text}")
        except ValueError:  # a vocabulary without blanks
            continue
        if behind[-len(alone) :] != alone and (count := opened.count(behind)):
            found[f" {text}"] = count
    return found


def search_text(text: str, index: str | None, store: str, *, limit: int) -> dict[str, Any]:
    """The documents that hold a text, with the match in context (tasks/ngrams/matches.py).

    Args:
        text: as for `count_texts`.
        index: as for `count_texts`.
        store: the store's folder.
        limit: documents to show.

    Raises:
        ValueError: as `count_texts`; a limit below 1.
    """
    from longloom.tasks.ngrams.matches import search

    return search(_open(index, store), text, limit=limit)


def cooccur(
    pairs: str,
    index: str | None,
    store: str,
    *,
    within: int | None,
    sample: int | None,
    seed: int,
    memory_gib: float,
    out: str | None,
    limit: int | None,
) -> dict[str, Any]:
    """In how many documents of an indexed corpus both texts of each pair stand (tasks/ngrams/pairs.py).

    Args:
        pairs: file of the pairs.
        index: as for `count_texts`.
        store: the store's folder.
        within: at most so many tokens between the two; None: anywhere in the document.
        sample: estimate from so many documents; None: exact.
        seed: of the sample.
        memory_gib: memory that occurrences may take.
        out: also write the table to this Parquet file.
        limit: rows to return; None: all.

    Returns:
        Rows of the table, how many pairs there are and how many never stand together (as far as was looked), and what
        was asked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `count_texts`; a file that holds something else; a bad bound.
    """
    for name, value, least in (("within", within, "0 tokens"), ("sample", sample, "1 document"), ("seed", seed, "0")):
        if value is not None and value < int(least.partition(" ")[0]):
            raise ValueError(f"{name} is {value}, expected at least {least}")
    if not 0 < memory_gib < float("inf"):
        raise ValueError(f"memory_gib is {memory_gib}, expected more than 0")
    from longloom.tasks.ngrams import pairs as module

    read = module.read_pairs(Path(pairs))
    table = module.cooccurrence_table(
        _open(index, store), read, within=within, sample=sample, seed=seed, memory_gib=memory_gib
    )
    if out is not None:
        module.write_table(table, Path(out))
    together = table.column("both" if sample is None else "both_estimate").to_numpy()
    return {
        "pairs": table.num_rows,
        "never": int((together == 0).sum()),
        "within": within,
        "sample": sample,
        "out": out,
        "rows": table.slice(0, limit).to_pylist(),
    }
