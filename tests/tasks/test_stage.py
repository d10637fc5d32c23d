"""A stage is built once, found again, and survives every way in which a build can end; without Prefect."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from longloom.storage.manifest import MANIFEST
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import DamagedArtifact, Store
from longloom.tasks.stage import Work, _Plan, _run

SCRIPT = Path(__file__).with_name("builder.py")
STATUS_FULL = 3


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("builder", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builder = _load()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGLOOM_QUIET", "1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class Counter:
    """A body that counts how often it ran and writes its parameters and inputs."""

    def __init__(self) -> None:
        self.runs = 0
        self.found: list[str] = []

    def __call__(self, work: Work, *, fail: BaseException | None = None, loss: float = 0.5, **rest: Any) -> Stats:
        self.runs += 1
        self.found = sorted(path.name for path in work.out.iterdir())
        (work.out / f"kept-{self.runs}").write_text("left by a run")
        if fail is not None:
            raise fail
        for path in work.out.glob("kept-*"):
            path.unlink()
        inputs = [(name, (folder / "out").read_text()) for name, folder in sorted(work.inputs.items())]
        (work.out / "out").write_text(f"{inputs} {sorted(rest.items())}")
        return Stats(counts={"n": 1}, values={"loss": loss})


def plan(body: Counter, *, name: str = "make", version: int = 1, resumable: bool = False) -> _Plan:
    return _Plan(body, name, "thing", version, frozenset({"threads", "fail"}), resumable)


def run(
    plan: _Plan,
    store: Store,
    inputs: dict[str, ArtifactRef] | None = None,
    identity: dict[str, str] | None = None,
    **parameters: Any,
) -> ArtifactRef:
    return _run(plan, store, inputs or {}, "make", identity or {}, parameters)


# ---- the key


def test_what_counts_for_the_key(store: Store) -> None:
    body = Counter()
    first = run(plan(body), store, sizes={"a": 1, "b": 2}, threads=1)
    assert run(plan(body), store, threads=8, sizes={"b": 2, "a": 1}) == first
    assert body.runs == 1
    others = [
        run(plan(body), store, sizes={"a": 1, "b": 3}, threads=1),
        run(plan(body, version=2), store, sizes={"a": 1, "b": 2}),
        run(plan(body, name="maker"), store, sizes={"a": 1, "b": 2}),
        run(plan(body), store, {"input": first}, sizes={"a": 1, "b": 2}),
        run(plan(body), store, identity={"data": "1"}, sizes={"a": 1, "b": 2}),
    ]
    assert body.runs == 6
    assert len({first.key, *(ref.key for ref in others)}) == 6


def test_places_do_not_count(store: Store, tmp_path: Path) -> None:
    body = Counter()
    first = run(plan(body), store, identity={"source": "sha"}, source=str(tmp_path / "here"))
    assert run(plan(body), store, identity={"source": "sha"}, source=str(tmp_path / "there")) == first
    other = run(plan(body), Store(tmp_path / "other"), identity={"source": "sha"}, source=str(tmp_path / "here"))
    assert other == first
    assert str(tmp_path) not in (store.open(first) / MANIFEST).read_text()


def test_equal_inputs_of_other_stages_give_the_same_key(store: Store) -> None:
    """What a stage works on counts, not who made it."""
    body = Counter()
    one, two = run(plan(body, name="one"), store), run(plan(body, name="two"), store)
    assert one.key != two.key
    assert one.digest == two.digest
    assert run(plan(body), store, {"input": one}) == run(plan(body), store, {"input": two})
    assert body.runs == 3


def test_an_input_and_an_identity_of_one_name_are_a_mistake(store: Store) -> None:
    body = Counter()
    first = run(plan(body), store)
    with pytest.raises(AssertionError):
        run(plan(body), store, {"data": first}, identity={"data": "x"})


# ---- building


def test_the_manifest_tells_how_it_came_about(store: Store) -> None:
    body = Counter()
    first = run(plan(body), store)
    ref = run(plan(body), store, {"input": first}, identity={"data": "sha"}, size=3, threads=2, data="/else/where")
    manifest = store.manifest(ref)
    assert manifest.parameters == {"size": 3}
    assert manifest.runtime == {"threads": 2}
    assert manifest.parents == {"input": first.digest, "data": "sha"}
    assert manifest.values == {"loss": 0.5}
    assert (manifest.stage, manifest.version, manifest.kind, manifest.key) == ("make", 1, "thing", ref.key)
    assert manifest.code
    assert manifest.environment["python"]


def test_a_damaged_artifact_is_rebuilt(store: Store) -> None:
    body = Counter()
    first = run(plan(body), store)
    (store.open(first) / "out").write_text("something else")
    assert run(plan(body), store) == first
    (store.open(first) / MANIFEST).write_text("{}")
    assert run(plan(body), store) == first
    assert body.runs == 3
    store.open(first)


def test_a_damaged_input_is_not_used(store: Store) -> None:
    body = Counter()
    first = run(plan(body), store)
    (store.open(first) / "out").write_text("something else")
    with pytest.raises(DamagedArtifact, match="out was changed"):
        run(plan(body), store, {"input": first})
    assert body.runs == 1


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_a_plain_stage_begins_anew(store: Store, error: BaseException) -> None:
    body = Counter()
    with pytest.raises(type(error)):
        run(plan(body), store, fail=error)
    assert not list((store.root / "work").iterdir())
    expected = run(plan(Counter()), Store(store.root.with_name("other")))
    assert run(plan(body), store).digest == expected.digest
    assert (body.runs, body.found) == (2, [])


def test_a_resumable_stage_gets_its_work_back(store: Store) -> None:
    body = Counter()
    for _ in range(2):
        with pytest.raises(ValueError, match="bad"):
            run(plan(body, resumable=True), store, fail=ValueError("bad"))
    ref = run(plan(body, resumable=True), store)
    assert (body.runs, body.found) == (3, ["kept-1", "kept-2"])
    assert [path.name for path in sorted(store.open(ref).iterdir())] == [MANIFEST, "out"]
    assert not list((store.root / "work").iterdir())


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_finding_that_is_no_number_is_refused(store: Store, loss: float) -> None:
    with pytest.raises(ValueError, match="stage make: the finding loss is"):
        _run(
            _Plan(lambda work: Counter()(work, loss=loss), "make", "thing", 1, frozenset(), False),
            store,
            {},
            "",
            {},
            {},
        )
    assert not list(store.root.glob("artifacts/*/*"))


def test_a_frozen_store_finds_but_does_not_build(store: Store) -> None:
    body = Counter()
    frozen = Store(store.root, frozen=True)
    with pytest.raises(ValueError, match="make: not in the store"):
        run(plan(body), frozen)
    ref = run(plan(body), store)
    assert run(plan(body), frozen) == ref
    (store.open(ref) / "out").write_text("something else")
    with pytest.raises(ValueError, match="make: not in the store"):
        run(plan(body), frozen)
    assert body.runs == 1


# ---- how a build can end


def expect_whole(store: Store, expected: str, name: str) -> None:
    """Nothing half-published; the next build ends with the same digest, and leaves the files it should."""
    for folder in store.root.glob("artifacts/*/*"):
        try:
            manifest = store.verify(folder)
        except DamagedArtifact:
            assert name == "damaged", f"{store.root.name}: half-published"
            assert "PART 0" in (folder / "part-0").read_text(), f"{store.root.name}: not the old one"
        else:
            assert manifest.digest == expected
    assert builder.build(store, "resumable" if name == "resumable" else "plain") == expected
    (folder,) = store.root.glob("artifacts/*/*")
    assert {path.name for path in folder.iterdir()} == {MANIFEST, "part-0", "part-1", "part-2", "times"}
    assert not list(store.root.glob("work/thing-*"))
    store.gc({expected})
    assert not list((store.root / "work").iterdir())
    assert store.find("thing", folder.name) is not None


@pytest.mark.parametrize("mode", ["kill", "full"])
def test_a_build_may_end_at_any_step(tmp_path: Path, mode: str) -> None:
    """SIGKILL or a full disk before every change of the store, of a fresh, a resumed and a replacing build."""
    expected = builder.build(Store(tmp_path / "whole"), "plain")
    ended = tmp_path / mode
    done = subprocess.run(
        [sys.executable, SCRIPT, "matrix", ended, mode], capture_output=True, text=True, check=True, timeout=120
    )
    stores = [line.split() for line in done.stdout.splitlines()]
    assert {name.split("-")[0] for name, _ in stores} == {"plain", "resumable", "damaged"}
    assert len(stores) > 60
    statuses = {int(status) for _, status in stores}
    assert statuses == ({-signal.SIGKILL} if mode == "kill" else {2, STATUS_FULL})
    for name, status in stores:
        store = Store(ended / name)
        if int(status) == STATUS_FULL and not name.startswith("resumable"):
            assert not list(store.root.glob("work/thing-*")), f"{name}: keeps the room that it took"
        expect_whole(store, expected, name.split("-")[0])


@pytest.mark.parametrize("name", ["plain", "resumable"])
def test_a_build_killed_in_its_middle(store: Store, name: str) -> None:
    expected = builder.build(Store(store.root.with_name("whole")), "plain")
    with _start(store, name) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "<\n"
        os.kill(process.pid, signal.SIGKILL)
    (work,) = (store.root / "work").iterdir()
    assert {path.name for path in work.iterdir()} == {"part-0", "half"}
    if name == "resumable":
        (work / "part-0").write_text("kept by the killed run")
        assert builder.build(store, name) != expected
        (part,) = store.root.glob("artifacts/*/*/part-0")
        assert part.read_text() == "kept by the killed run"
    else:
        expect_whole(store, expected, name)


def test_two_processes_build_one_key_once(store: Store) -> None:
    with _start(store, "plain") as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "<\n"
        assert store.gc(set()) == []  # a folder that is being built stays
        with _start(store, "plain") as second:
            assert second.stderr is not None
            assert second.stdout is not None
            assert "waits for another process" in second.stderr.readline()
            first.stdin.write("\n")
            first.stdin.flush()
            digest = first.stdout.readline()
            assert second.stdout.read() == digest  # no "<": its body did not run
            assert "unchanged" in second.stderr.read()
    (folder,) = store.root.glob("artifacts/*/*")
    assert (folder / "times").read_text() == str(first.pid)


def _start(store: Store, name: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {key: value for key, value in os.environ.items() if key != "LONGLOOM_QUIET"}
    return subprocess.Popen(
        [sys.executable, SCRIPT, "build", store.root, name], text=True, env=environment, bufsize=1, **pipes
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "longloom-test", place]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    store = Store(small_disk / "store")

    def body(work: Work, *, size: int) -> Stats:
        (work.out / "data").write_bytes(b"x" * size)
        return Stats(counts={"bytes": size})

    def build(size: int) -> ArtifactRef:
        return _run(_Plan(body, "make", "thing", 1, frozenset(), False), store, {}, "make", {}, {"size": size})

    with pytest.raises(OSError, match="No space left on device") as raised:
        build(4 * 2**20)
    assert raised.value.errno == errno.ENOSPC
    assert not list(store.root.glob("artifacts/*/*"))
    assert not list((store.root / "work").iterdir())
    store.open(build(700_000))  # the room is there again


class Limits:
    """Stands for Prefect's: notes what is asked for, and whether the body ran meanwhile."""

    def __init__(self, body: Counter) -> None:
        self.body = body
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.ran: list[int] = []

    @contextlib.contextmanager
    def __call__(self, name: str, **options: Any) -> Iterator[None]:
        self.asked.append((name, options))
        before = self.body.runs
        yield
        self.ran.append(self.body.runs - before)


def test_a_stage_that_uses_a_gpu_waits_for_its_place_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finds its artifact, one that needs no GPU, and all where no limit is named ask for nothing."""
    import prefect.concurrency.sync

    body = Counter()
    limits = Limits(body)
    monkeypatch.setattr(prefect.concurrency.sync, "concurrency", limits)

    def run(key: int, *, gpu: bool) -> None:
        plan = _Plan(body, "count", "count", 1, frozenset(), False, gpu=gpu)
        _run(plan, store, {}, "count", {}, {"loss": float(key)})

    monkeypatch.delenv("LONGLOOM_GPU_LIMIT", raising=False)
    run(1, gpu=True)
    monkeypatch.setenv("LONGLOOM_GPU_LIMIT", "longloom-gpu")
    run(2, gpu=False)
    run(1, gpu=True)  # unchanged
    assert limits.asked == []
    run(3, gpu=True)
    assert limits.asked == [
        ("longloom-gpu", {"occupy": 1, "strict": True, "raise_on_lease_renewal_failure": False}),
    ]
    assert limits.ran == [1]
    assert body.runs == 3


def test_stages_that_use_a_gpu_say_so() -> None:
    """By what they have in common: they train or ask a model."""
    root = Path(__file__).resolve().parents[2] / "tasks"
    lines = [line for path in root.glob("*/*task.py") for line in path.read_text().splitlines() if "@stage(" in line]
    names = {line.split('"')[1] for line in lines if "gpu=True" in line}
    assert {"pretrain", "finetune", "extend", "tune", "reward-model", "evaluation", "heads", "features"} <= names
    assert {"preference-evaluation", "best-of", "reward-scores", "trace-pairs", "trace-novelty"} <= names
    assert not names & {"corpus", "index", "tokenizer", "instructions", "coreset", "report", "judge"}
