"""What results of lm-eval's tasks depend on beside the folder of the tasks: the installed lm-eval, the local files of
records that the tasks name, and the commits of their data sets on the hub.

Read off the YAML files alone: an unchanged run must not take the ten seconds that importing lm-eval does.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from longloom.storage.fingerprint import fingerprint
from longloom.storage.store import Store

#: Of one YAML file, its includes in it.
Config = dict[str, Any]


class _Loader(yaml.CSafeLoader):
    """Takes functions (`!function utils.f`) for nothing; none is run."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)  # type: ignore[no-untyped-call]


def harness_identity(store: Store, tasks: Sequence[str], folder: Path | None) -> dict[str, str]:
    """What the tasks depend on, for a stage's key.

    Of a task that a Python class makes, or whose data set neither the hub nor its local cache knows, less is told; what
    is wrong with a task is left to lm-eval.

    Args:
        store: remembers fingerprints.
        tasks: names of tasks, groups or tags, also patterns with *.
        folder: with tasks of one's own, which come before lm-eval's; None: there is none.

    Returns:
        `harness`: lm-eval's version; `records`: the fingerprint of the local files, and `datasets`: the hub's commits,
        where there are any.
    """
    from longloom.evals.hub import revision

    files: set[Path] = set()
    repositories: set[str] = set()
    for config in _configs(tasks, folder):
        local, repository = _sources(config)
        files |= local
        if repository:
            repositories.add(repository)
    found = {"harness": f"lm_eval {version('lm_eval')}"}
    if files:
        found["records"] = fingerprint(store, sorted(files))
    commits = []
    for repository in sorted(repositories):
        try:
            commits.append(f"hub:{repository}@{revision(repository)}")
        except ValueError:  # without a network and a cache; then lm-eval says so
            continue
    if commits:
        found["datasets"] = " ".join(commits)
    return found


def _sources(config: Config) -> tuple[set[Path], str | None]:
    """The local files of a task's records, and the data set on the hub whose newest commit it takes."""
    path, given = config.get("dataset_path"), config.get("dataset_kwargs")
    given = given if isinstance(given, dict) else {}
    if not isinstance(path, str):
        return set(), None
    here = Path(path).expanduser()
    builder = "/" not in path and bool(given.keys() & {"data_files", "data_dir"})  # of `datasets`: json, csv, ...
    if not (builder or here.exists()):
        return set(), None if "revision" in given else path
    files = _below(here)
    folder = Path(next(_texts(given.get("data_dir")), "")).expanduser()
    if "data_files" in given:
        files |= {file for pattern in _texts(given["data_files"]) for file in _matching(folder, pattern)}
    elif "data_dir" in given:
        files |= _below(folder)
    return files, None


def _below(place: Path) -> set[Path]:
    """A file, or those below a folder."""
    return {place} if place.is_file() else {path for path in place.rglob("*") if path.is_file()}


def _matching(base: Path, pattern: str) -> set[Path]:
    """Local files of a name or a pattern."""
    place = base / Path(pattern).expanduser()
    found = [place] if place.exists() else map(Path, glob.glob(str(place), recursive=True))
    return {path for path in found if path.is_file()}


def _texts(value: object) -> Iterator[str]:
    """What a text, a list of them or a mapping of splits holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, Sequence):
        for one in value:
            yield from _texts(one)


def _configs(names: Sequence[str], folder: Path | None) -> Iterator[Config]:
    """Of the tasks that names stand for; a name that is not known has none."""
    known = {} if folder is None else _index(folder)
    # As `evals.harness_suite` looks for them: a pattern may mean lm-eval's, too, and a group name some.
    if any(name not in known or "group" in known[name][0] for name in names):
        known = _own_index() | known
    matching = dict.fromkeys(found for name in names for found in known if fnmatchcase(found, name))
    seen: set[str] = set()
    for name in matching:
        yield from _tasks_of(name, known, seen)


def _tasks_of(item: object, known: Mapping[str, Sequence[Config]], seen: set[str]) -> Iterator[Config]:
    """The tasks of a name, or of an entry of a group that changes some settings; each name once."""
    if isinstance(item, str):
        if item not in seen:
            seen.add(item)
            for config in known.get(item, ()):
                yield from _members(config, known, seen)
    elif isinstance(item, dict):
        base = known.get(item["task"], ()) if isinstance(item.get("task"), str) and "group" not in item else ()
        yield from _members({**base[0], **item} if len(base) == 1 else item, known, seen)


def _members(config: Config, known: Mapping[str, Sequence[Config]], seen: set[str]) -> Iterator[Config]:
    if "group" not in config:
        yield config
        return
    members = config.get("task")
    for member in members if isinstance(members, list) else [members]:
        yield from _tasks_of(member, known, seen)


@cache
def _own_index() -> dict[str, list[Config]]:
    """Of lm-eval's own tasks, 14,000 files; found without importing it."""
    spec = find_spec("lm_eval")
    assert spec is not None, "is installed with longloom"
    assert spec.submodule_search_locations is not None
    return _index(Path(spec.submodule_search_locations[0]) / "tasks")


def _index(folder: Path) -> dict[str, list[Config]]:
    """Task or group -> its configuration; tag -> those of its tasks. Of two of a name the first counts."""
    read: dict[Path, Config] = {}
    found: dict[str, list[Config]] = {}
    tagged: dict[str, list[Config]] = {}
    for path in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        try:
            config = _read(path, read)
        except (OSError, ValueError, yaml.YAMLError):  # no task of anybody's, or lm-eval says what is wrong
            continue
        name = config.get("group") or config.get("task")
        if isinstance(name, str) and name not in found:
            found[name] = [config]
            for tag in _texts(config.get("tag")):
                tagged.setdefault(tag, []).append(config)
    return tagged | found


def _read(path: Path, read: dict[Path, Config], above: tuple[Path, ...] = ()) -> Config:
    """A YAML file over those that it includes; `read`: those that were read before."""
    path = path.resolve()
    if path in above:
        raise ValueError(f"{path}: includes itself")
    if path not in read:
        held = yaml.load(path.read_bytes(), Loader=_Loader)
        if not isinstance(held, dict):
            raise ValueError(f"{path}: found no mapping, expected one")
        merged: Config = {}
        for name in _texts(held.pop("include", None)):
            merged |= _read(path.parent / name, read, (*above, path))
        read[path] = merged | held
    return read[path]
