"""Data sets of the Hugging Face hub as sources: `hub:allenai/c4?config=en&split=train`.

A data set is pinned to the commit that its revision stands for, so that its identity can enter a cache key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from datasets import load_dataset
from huggingface_hub import HfApi

from longloom.tasks.corpus.files import HUB_PREFIX, SourceFile
from longloom.tasks.corpus.records import Record

OPTIONS = ("config", "split", "revision")


@dataclass(frozen=True)
class HubSource:
    """A parsed `hub:` source.

    Attributes:
        name: the data set, `owner/name`.
        config: the configuration, None for the data set's only one.
        split: the split.
        revision: branch, tag or commit; None for the main branch.
    """

    name: str
    config: str | None
    split: str
    revision: str | None


def parse(source: str) -> HubSource:
    """Reads `hub:<owner/name>?config=...&split=...&revision=...` (only split is required).

    Raises:
        ValueError: anything else.
    """
    name, _, query = source.removeprefix(HUB_PREFIX).partition("?")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"{source}: {name!r} is no data set's name, expected hub:owner/name?split=train")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in OPTIONS:
            raise ValueError(f"{source}: unknown option {option!r}, expected some of {', '.join(OPTIONS)}")
    if not options.get("split"):
        raise ValueError(f"{source}: names no split, expected hub:{name}?split=train or the like")
    return HubSource(name, options.get("config") or None, options["split"], options.get("revision") or None)


def pin(source: str) -> str:
    """The same source with the commit that its revision stands for now: both an identity and a source to read.

    Raises:
        ValueError: the hub does not answer or does not know the data set.
    """
    hub = parse(source)
    try:
        commit = HfApi().dataset_info(hub.name, revision=hub.revision).sha
    except Exception as error:  # the client's errors share no base class (httpx, OSError, RuntimeError)
        raise ValueError(
            f"{source}: the hub did not tell the data set's revision ({_first_line(error)}); "
            "it needs the network, and a name that exists"
        ) from None
    options = {"config": hub.config, "split": hub.split, "revision": commit}
    return f"{HUB_PREFIX}{hub.name}?{urlencode({key: value for key, value in options.items() if value})}"


def rows(source: str) -> Iterator[Record]:
    """Streams the rows of a data set.

    Raises:
        ValueError: the data set cannot be opened or read.
    """
    hub = parse(source)
    file = SourceFile(Path(source), hub.name, hub.name, "hub")
    try:
        dataset = load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision, streaming=True)
        for number, value in enumerate(dataset, start=1):
            yield Record(dict(value), number, file, "row")
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{source}: cannot be read from the hub ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
