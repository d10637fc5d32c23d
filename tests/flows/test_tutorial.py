"""The tutorial and the how-to pages do what they show: every command with output is run, in the order of the pages.

Figures, digests and quoted text may differ from what a page shows, `...` stands for anything, and all else must not.
"""

from __future__ import annotations

import doctest
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longloom.flows import runtime
from longloom.storage.runs import list_runs
from longloom.storage.store import Store
from tests.docs.pages import DOCS, Shown, blocks, commands, words

from .command import Run

#: The id of a run, in commands and in what they print.
RUN_ID = re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{4,6}\b")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like the checkout: docs/ in it, a store when commands have made one."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "docs").symlink_to(DOCS)
    (folder / "build").mkdir()
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def run(harness: None, longloom: Run, monkeypatch: pytest.MonkeyPatch, place: Path) -> Iterator[Run]:
    """Runs `longloom ...` in the place."""
    for name in ("prepare", "quiet", "start_server"):  # the harness is the server
        monkeypatch.setattr(runtime, name, lambda *store: None)
    monkeypatch.setenv("COLUMNS", "200")
    logging.disable()  # Prefect's lines, which a user does not see
    yield lambda *arguments: longloom(*arguments, *(() if arguments[0] == "score" else ("--store", ".longloom")))
    logging.disable(logging.NOTSET)


def shown(page: Path) -> list[Shown]:
    return [command for command in commands(page.read_text(encoding="utf-8")) if command.output is not None]


def masked(text: str, *, made: bool) -> str:
    """Without what differs from machine to machine; `made`: whether a stage was made or found matters."""
    lines = [line for line in text.replace(f"{Path.cwd()}/", "").splitlines() if "it/s]" not in line]  # bars
    lines = ["(quoted)" if re.match(r" {4,}\S", line) else line for line in lines]
    text = RUN_ID.sub("ID", "\n".join(lines))
    if not made:
        text = re.sub(r"^[+=] (\S+)\s+(?:[\d.]+ s|unchanged)", r"+ \1", text, flags=re.M)
    text = re.sub(r"\b[0-9a-f]{12}(?:[0-9a-f]{20})?\b", "DIGEST", text)
    return re.sub(r"[+-]?\d(?:[\d,.:T-]*\d)?", "N", text) + "\n"


def check(run: Run, command: Shown, *, made: bool) -> None:
    arguments = words(command.command)
    if RUN_ID.search(command.command):  # the run before the latest
        before = list_runs(Store(Path(".longloom")))[1].id
        arguments = [RUN_ID.sub(before, argument) for argument in arguments]
    done = run(*arguments)
    assert done.code == 0, done.err
    assert command.output is not None
    want = re.sub(r"\s*\.\.\.\s*", "...", masked("\n".join(command.output), made=made))  # for nothing but space, too
    got = masked(done.err + done.out, made=made)
    assert alike(want, got), f"{command.command}\n{want}\n--- printed\n{got}"


def alike(want: str, got: str) -> bool:
    """Whether a text is as another one has it, where dots stand for anything and white space for white space."""
    return doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


def test_the_tutorial(run: Run) -> None:
    page = DOCS / "tutorial.md"
    scripts = re.findall(
        r"<<'END'\n(.*?)\nEND$", "\n".join(map("\n".join, blocks(page.read_text("utf-8")))), re.M | re.S
    )
    for script in scripts:
        subprocess.run([sys.executable, "-c", script], check=True)
    assert len(scripts) == 1
    assert len(shown(page)) >= 8
    for command in shown(page):
        check(run, command, made=True)


@pytest.mark.parametrize("page", sorted((DOCS / "howto").glob("*.md")), ids=lambda page: page.stem)
def test_how_to(run: Run, page: Path) -> None:
    assert Path("build/pool.jsonl").exists(), "made by the tutorial"
    for command in shown(page):
        for name in re.findall(r"build/\w+\.jsonl", command.command):
            records = [line for block in blocks(page.read_text("utf-8")) for line in block if line.startswith("{")]
            if not Path(name).exists():
                Path(name).write_text("\n".join(records) + "\n")
            assert all(map(json.loads, Path(name).read_text("utf-8").splitlines()))
        check(run, command, made=False)


def test_what_may_differ_and_what_not() -> None:
    line, row = "+ index  {} s  {}  {} documents, 1 shards\n", "{}  index  {}  {}\n"
    page = line.format("0.1", "0245e7225e55", "25") + row.format("20261122-093318-2018", "2026-11-22T09:33:18", "22")
    other = line.format("9.0", "1245e7225e55", "9,925") + row.format("20270102-193318-a01b", "2027-01-02T19:33:18", "3")
    assert masked(page, made=True) == masked(other, made=True)
    assert masked(page, made=True) != masked(page.replace("shards", "parts"), made=True)
    unchanged = page.replace("+ index  0.1 s", "= index  unchanged")
    assert masked(page, made=True) != masked(unchanged, made=True)
    assert masked(page, made=False) == masked(unchanged, made=False)
