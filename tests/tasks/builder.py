"""Run by test_stage.py as a process: builds one artifact with `_run`, stops or dies where it is told to.

python builder.py build STORE plain|resumable        builds; on "<" waits in mid-build for a line of standard input
python builder.py matrix FOLDER kill|full            one store below FOLDER for every step at which a build can end
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path

from longloom.storage.manifest import code_commit
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, _Plan, _run

PARTS = 3


def body(work: Work, *, pause: bool = False, threads: int = 1) -> Stats:
    """Writes PARTS files, each of which it keeps when a killed run left it whole, and a volatile one."""
    kept = sorted(path.name for path in work.out.glob("part-*"))
    for number in range(PARTS):
        part = work.out / f"part-{number}"
        if part.name not in kept:
            half = work.out / "half"
            half.write_text("half")
            if pause and number == 1:
                print("<", flush=True)
                sys.stdin.readline()
            half.write_text(f"part {number}" * 100)
            half.rename(part)
    (work.out / "times").write_text(str(os.getpid()))
    return Stats(counts={"parts": PARTS}, values={"loss": 0.5}, volatile=("times",))


def plan(name: str) -> _Plan:
    return _Plan(body, "make", "thing", 1, frozenset({"pause", "threads"}), name == "resumable")


def build(store: Store, name: str, *, pause: bool = False) -> str:
    return _run(plan(name), store, {}, "make", {}, {"pause": pause}).digest


def damaged(store: Store) -> None:
    """Publishes the artifact and flips a byte of it, so that the next build must replace it."""
    build(store, "plain")
    part = next(store.root.glob("artifacts/*/*/part-0"))
    part.write_text(part.read_text().swapcase())


def fail_at(step: int, root: Path, mode: str) -> list[str]:
    """From now on, the step-th change below `root` kills the process or finds the disk full; returns where it did."""
    steps = count(1)
    failed: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            changes = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if not changes or not isinstance(arguments[0], str | os.PathLike):
            return
        place = os.fspath(arguments[0])
        if place.startswith("/") and not place.startswith(str(root)):  # rmtree's names are relative
            return
        if next(steps) == step:
            if mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            failed.append(place)
            raise OSError(errno.ENOSPC, "No space left on device", place)

    sys.addaudithook(hook)
    return failed


def matrix(folder: Path, mode: str) -> None:
    """Forks a build for every step of every scenario; the stores that they leave are judged by the test."""
    code_commit()  # cached: git is none of the steps
    for name in ("plain", "resumable", "damaged"):
        for step in count(1):
            store = Store(folder / f"{name}-{step:02d}")
            if name == "damaged":
                damaged(store)
            child = os.fork()
            if child == 0:
                failed = fail_at(step, store.root, mode)
                try:
                    build(store, name)
                except OSError as error:
                    os._exit(3 if error.errno == errno.ENOSPC else 4)
                except BaseException:
                    os._exit(4)
                os._exit(2 if failed else 0)  # 2: the step was none that matters
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == 0:  # there was no such step
                shutil.rmtree(store.root)
                break
            print(store.root.name, status, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "build":
        print(build(Store(sys.argv[2]), sys.argv[3], pause=True), flush=True)
    else:
        matrix(Path(sys.argv[2]), sys.argv[3])
