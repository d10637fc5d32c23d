"""Files of data sets on the Hugging Face hub: fetched, or out of its local cache where the hub does not answer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal


def fetch(repository: str, name: str) -> Path:
    """A file of a data set (HF_HUB_OFFLINE=1: of the hub's local cache).

    Args:
        repository: of the data set, OWNER/NAME.
        name: the file's path in it.

    Raises:
        ValueError: it can neither be fetched nor found in the cache.
    """
    from huggingface_hub import hf_hub_download  # here, for local data needs no hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", revision=_pinned(repository)))
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot fetch {name} of the hub's data set {repository} ({reason}); expected a reachable hub, or a folder "
            "of the official files as data"
        ) from None


@cache
def _pinned(repository: str) -> str | None:
    """The commit that results are filed under; None: unknown, and then the download says what is wrong."""
    try:
        return revision(repository)
    except ValueError:
        return None


def newest_commit(repository: str, *, kind: Literal["model", "dataset"]) -> str:
    """The hub's newest commit of a repository; where the hub does not answer, that of the local cache.

    Raises:
        Exception: the hub's answer, or of whichever HTTP library is used, where the cache does not know it either.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        return str(ask(repository, timeout=10).sha)
    except HFValidationError:  # no name of a repository
        raise
    except Exception:
        place = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=kind) / "refs" / "main"
        if not place.is_file():
            raise
        return place.read_text(encoding="utf-8").strip()


def revision(repository: str) -> str:
    """The commit of a data set that `fetch` would take: the hub's newest; where it does not answer, the local cache's.

    Raises:
        ValueError: neither knows the data set.
    """
    try:
        return newest_commit(repository, kind="dataset")
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the hub's data set {repository} is not in its local cache, and the hub does not answer ({reason}); "
            "expected a reachable hub, or a folder of the official files as data"
        ) from None
