"""Questions that need no flow run: counts in an index."""

from __future__ import annotations

from pathlib import Path

from longloom.storage.store import Store


def newest_index(store: Store) -> Path:
    """The folder of the index that was built last.

    Raises:
        ValueError: there is none.
    """
    found = [manifest for manifest in store.manifests() if manifest.kind == "index"]
    if not found:
        raise ValueError(f"store {store.root}: holds no index; build one with `longloom index SOURCE`")
    return store.open(found[-1].ref())


def count_texts(texts: list[str], index: str | None, store: str) -> dict[str, int]:
    """How often each text stands in an indexed corpus.

    Args:
        texts: each one is encoded by the index's tokenizer.
        index: folder of an index artifact; the newest one of the store by default.
        store: the store's folder.

    Raises:
        ValueError: no index, a damaged one, an empty text.
    """
    from longloom.tasks.ngrams.query import open_index

    engine = open_index(Path(index) if index else newest_index(Store(store)))
    return {text: engine.count(text) for text in texts}
