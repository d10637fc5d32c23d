"""Flow `delete`: an n-gram index without some of its documents."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from longloom.flows.params import DEFAULT_STORE
from longloom.flows.sources import index_of
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.ngrams.task import delete_documents


def read_ids(path: str) -> list[str]:
    """The document ids in a file, one a line; empty lines do not count.

    Raises:
        ValueError: it cannot be read, or holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    ids = [line for line in lines if line.strip()]
    if not ids:
        raise ValueError(f"{path}: holds no ids, expected one a line")
    return ids


@flow(name="delete", flow_run_name="delete-{ids}")
def delete(ids: str, index: str | None = None, store: str = DEFAULT_STORE) -> ArtifactRef:
    """Deletes documents from an n-gram index.

    Args:
        ids: a file of document ids, one a line.
        index: `run:ID:LABEL` or the folder of an index in the store; that of the newest run with one by default.
        store: the store's folder.
    """
    place = Store(store)
    wanted = read_ids(ids)
    with RunLog(place, "delete", {"ids": ids, "index": index}) as log:
        found = index_of(place, index)
        if isinstance(found, str):
            raise ValueError(f"{found}: is no index of the store {store}, expected one that `longloom index` built")
        log.add("index", found)
        return log.add("deletion", delete_documents(place, found, ids=wanted))
