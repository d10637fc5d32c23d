"""A store on S3: visible only when whole, and of two builders the first stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from longloom.storage.refs import ArtifactRef
from longloom.storage.remote import StoreUnreachable
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, _Plan, _run

from .conftest import FILES, Publish
from .s3_bucket import ADDRESS, Host, content, failing, objects
from .s3_server import S3Server

# ---- publishing and reading


def test_what_one_host_publishes_another_opens(host: Host, publish: Publish, s3: S3Server) -> None:
    ours = host("a")
    ref = publish(ours)
    theirs = host("b")
    assert theirs.root != ours.root
    assert theirs.address == ADDRESS
    assert theirs.manifest(ref) == ours.manifest(ref)
    assert not list(theirs.root.glob("artifacts/*/*")), "a manifest alone needs no download"
    assert theirs.find("thing", "k1") == ref
    assert content(theirs.open(ref)) == FILES
    s3.heal()
    theirs.open(ref)
    assert s3.requests == [], "what is here and whole needs no request"
    theirs.find("thing", "k1")
    assert s3.requests == ["GET /shelf/team/store/artifacts/thing/k1/manifest.json"]
    assert [manifest.ref() for manifest in theirs.manifests()] == [ref]


def test_nothing_is_visible_before_it_is_whole(host: Host, publish: Publish, s3: S3Server) -> None:
    ours, theirs = host("a"), host("b")
    seen = []

    def look(method: str, path: str) -> None:
        if method == "PUT":
            seen.append((path.rsplit("/", 1)[-1], list(theirs.manifests())))

    s3.before = look
    publish(ours)
    assert sorted(name for name, _ in seen[:-1]) == ["data.bin", "page.html", "text.txt"]
    assert seen[-1][0] == "manifest.json"
    assert all(manifests == [] for _, manifests in seen)
    assert len(list(theirs.manifests())) == 1


def test_an_upload_cut_off_shows_nothing_and_is_gone_on_with(host: Host, publish: Publish, s3: S3Server) -> None:
    ours = host("a")
    s3.before = failing("/files/", "text.txt")
    with pytest.raises(StoreUnreachable, match="does not answer as it should"):
        publish(ours)
    s3.heal()
    assert host("b").find("thing", "k1") is None
    before = set(objects())
    assert before, "what was uploaded stays for the next time"
    found = ours.find("thing", "k1")  # not built again
    assert found is not None
    uploaded = [line.rsplit("/", 1)[-1] for line in s3.requests if line.startswith("PUT")]
    assert uploaded[-1] == "manifest.json"
    assert len(uploaded) == 1 + len(FILES) - len(before)
    assert content(host("b").open(found)) == FILES


KILLED = """
import sys
from longloom.storage.stats import Stats
from longloom.storage.store import Store

store = Store(sys.argv[1])
with store.lock("thing", "k1"):
    work = store.begin("thing", "k1", resume=False)
    for name in "ab":
        (work / name).write_text(name)
    store.publish(work, Stats(counts={}), stage="make", version=1, kind="thing", key="k1", parameters={}, parents={},
                  runtime={}, seconds=0.0, code="", environment={})
"""


def test_a_builder_killed_in_its_upload_leaves_nothing_visible(host: Host, s3: S3Server, tmp_path: Path) -> None:
    ours = host("a")
    arrived, go_on = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("manifest.json"):
            arrived.set()
            go_on.wait(30)

    builder = subprocess.Popen([sys.executable, "-c", KILLED, ADDRESS])
    s3.before = hold
    assert arrived.wait(60)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert host("b").find("thing", "k1") is None
    go_on.set()
    s3.heal()
    ref = ours.find("thing", "k1")
    assert ref is not None
    assert content(host("b").open(ref)) == {"a": b"a", "b": b"b"}


# ---- two builders


def test_of_two_builders_the_first_stays_and_nothing_mixes(host: Host, publish: Publish, s3: S3Server) -> None:
    slow, quick = host("a"), host("b")
    mine = {"x": b"of the slow one", "only-mine": b"?"}
    others = {"x": b"of the quick one"}
    refs: list[ArtifactRef] = []

    def overtake(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("manifest.json") and not refs:
            refs.append(None)  # type: ignore[arg-type]  # the other one's own requests are let through
            refs[0] = publish(quick, files=others, volatile=())

    s3.before = overtake
    ref = publish(slow, files=mine, volatile=())
    assert ref == refs[0]
    for store in (slow, quick, host("c")):
        assert content(store.open(ref)) == others


def test_equal_results_of_two_builders_are_one(host: Host, publish: Publish) -> None:
    first, second = host("a"), host("b")
    with second.lock("thing", "k1"):
        pass
    one, other = publish(first), publish(second)
    assert one == other
    assert content(second.open(other)) == FILES
    assert len(list(second.manifests())) == 1


def test_an_answer_lost_on_its_way_is_no_conflict(host: Host, publish: Publish, s3: S3Server) -> None:
    lost: list[str] = []

    def lose(method: str, path: str, body: bytes) -> int | None:
        if method == "PUT" and path.endswith("manifest.json") and not lost:
            lost.append(path)
            return 500  # written, and then refused by our own condition when tried again
        return None

    s3.fault = lose
    ref = publish(host("a"))
    assert lost
    assert content(host("b").open(ref)) == FILES


def test_what_failed_in_part_is_replaced_by_what_found_it(host: Host, publish: Publish) -> None:
    ours = host("a")
    first = publish(ours, files={"x": b"half"}, volatile=())
    assert ours.find("thing", "k1") == first
    second = publish(ours, files={"x": b"whole"}, volatile=())
    assert second.digest != first.digest
    assert host("b").find("thing", "k1") == second


# ---- stages


def test_a_stage_built_on_one_host_is_unchanged_on_another(
    host: Host, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGLOOM_QUIET", "1")
    runs: list[str] = []

    def build(store: Store, name: str, inputs: dict[str, ArtifactRef]) -> ArtifactRef:
        def body(work: Work) -> Stats:
            runs.append(name)
            (work.out / "out").write_text(name + "".join((path / "out").read_text() for path in work.inputs.values()))
            return Stats(counts={})

        return _run(_Plan(body, name, name, 1, frozenset(), False), store, inputs, name, {}, {})

    ours = host("a")
    first = build(ours, "first", {})
    s3.before = failing("/artifacts/second/")
    with pytest.raises(StoreUnreachable):
        build(ours, "second", {"in": first})
    s3.heal()
    second = build(ours, "second", {"in": first})
    assert runs == ["first", "second"], "what was built and not uploaded is not built again"

    theirs = host("b")
    theirs.frozen = True
    assert build(theirs, "second", {"in": first}) == second
    with pytest.raises(ValueError, match=f"third: not in the store {ADDRESS}"):
        build(theirs, "third", {"in": second})
    theirs.frozen = False
    third = build(theirs, "third", {"in": second})
    assert runs == ["first", "second", "third"]
    assert (ours.open(third) / "out").read_text() == "thirdsecondfirst"
