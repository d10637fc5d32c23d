"""The corpus stage: counts, unique ids, determinism, identities for the cache key; and the shared real data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longloom.storage.parquet import read_table
from longloom.storage.stats import Stats
from longloom.tasks.corpus import build as corpus_build
from longloom.tasks.corpus import hub
from longloom.tasks.corpus.build import build, resolve

DATA = Path(__file__).resolve().parents[3] / "../shared/data/corpus"


def run(out: Path, *sources: Path, on_bad_record: str = "stop") -> Stats:
    out.mkdir(exist_ok=True)
    return build(
        [str(source) for source in sources], out, text_field="text", id_field="id", on_bad_record=on_bad_record
    )


def json_file(path: Path, *records: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_counts_and_bytes(tmp_path: Path) -> None:
    source = json_file(tmp_path / "a.jsonl", {"text": "añ"}, {"text": 3}, {"id": "x", "text": "bcd"})
    stats = run(tmp_path / "one", source, on_bad_record="skip")
    assert stats.counts == {"documents": 2, "characters": 5, "skipped": 1}
    assert stats.values["skipped_examples"] == ["a.jsonl:2: found a number in the field 'text', expected text"]
    assert read_table(tmp_path / "one", "documents").to_pylist() == [
        {"id": "a.jsonl:1", "source": "a.jsonl", "text": "añ"},
        {"id": "x", "source": "a.jsonl", "text": "bcd"},
    ]
    run(tmp_path / "two", source, on_bad_record="skip")
    files = [path.name for path in (tmp_path / "one").iterdir()]
    assert files == ["documents-00000.parquet"]
    assert (tmp_path / "one" / files[0]).read_bytes() == (tmp_path / "two" / files[0]).read_bytes()


def test_an_id_used_twice_stops_and_both_places_are_named(tmp_path: Path) -> None:
    first = json_file(tmp_path / "a.jsonl", {"id": "u", "text": "1"}, {"id": "v", "text": "2"})
    second = json_file(tmp_path / "b.jsonl", {"id": "w", "text": "3"}, {"id": "v", "text": "4"})
    with pytest.raises(ValueError, match=r"b\.jsonl, line 2: found the id 'v', which .*a\.jsonl, line 2 has"):
        run(tmp_path / "out", first, second)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ids=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30), per_shard=st.integers(1, 7))
def test_skipping_repeated_ids_keeps_the_first_of_each(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    source = json_file(folder / "a.jsonl", *({"id": name, "text": f"{index:03d}"} for index, name in enumerate(ids)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_build, "SHARD_ROWS", per_shard)
        stats = run(folder / "out", source, on_bad_record="skip")
    kept = [{"id": name, "source": "a.jsonl", "text": f"{ids.index(name):03d}"} for name in dict.fromkeys(ids)]
    assert read_table(folder / "out", "documents").to_pylist() == kept
    assert stats.counts == {"documents": len(kept), "characters": 3 * len(kept), "skipped": len(ids) - len(kept)}
    assert {path.suffix for path in (folder / "out").iterdir()} == {".parquet"}  # the scratch folder is gone


def test_a_corpus_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: no documents found$"):
        run(tmp_path / "out", tmp_path / "a.jsonl")
    bad = json_file(tmp_path / "b.jsonl", {"text": ""})
    with pytest.raises(
        ValueError, match=r"no documents found \(1 bad records were skipped, the first: b\.jsonl:1: found"
    ):
        run(tmp_path / "out2", bad, on_bad_record="skip")


def test_identities_tell_names_order_and_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def dataset_info(self, name: str, revision: str | None) -> object:
            return type("Info", (), {"sha": f"{name}@{revision}"})()

    monkeypatch.setattr(hub, "HfApi", Api)
    one, two = json_file(tmp_path / "x/a.jsonl", {"text": "1"}), json_file(tmp_path / "x/b.jsonl", {"text": "2"})
    files, identities = resolve([str(tmp_path / "x")])
    assert files == [one, two]
    assert len(identities) == 1
    assert resolve([str(one), str(two)])[0] == files
    assert resolve([str(two), str(one)])[0] == [two, one]
    names = {resolve(sources)[1][0] for sources in ([str(tmp_path / "x")], [str(one), str(two)], [str(two), str(one)])}
    assert len(names) == 3
    assert resolve(["hub:a/b?split=s"])[1][1:] == ["hub:a/b?split=s&revision=a%2Fb%40None"]
    elsewhere = json_file(tmp_path / "elsewhere/x/a.jsonl", {"text": "1"})
    json_file(tmp_path / "elsewhere/x/b.jsonl", {"text": "2"})
    assert resolve([str(elsewhere.parent)])[1] == identities


def test_an_unknown_revision_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def dataset_info(self, name: str, revision: str | None) -> object:
            raise OSError("offline")

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(
        ValueError, match=r"did not tell the data set's revision \(OSError: offline\); it needs the network"
    ):
        resolve(["hub:a/b?split=s"])


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the checkout")
@pytest.mark.parametrize(
    ("source", "documents", "characters"),
    [
        ("c4", 1000, 2163590),
        ("LLaMA-Factory/c4_demo.jsonl", 300, 737161),
        ("LLaMA-Factory/wiki_demo.txt", 1, 1026454),
        ("dolma_tests/provided", 10, 58436),
        ("classic-books-markdown/Jane Austen", 3, None),
        ("tinyshakespeare", 1, 1115393),
    ],
)
def test_shared_data(tmp_path: Path, source: str, documents: int, characters: int | None) -> None:
    counts = run(tmp_path / "out", DATA / source).counts
    assert counts["documents"] == documents
    assert characters is None or counts["characters"] == characters
    assert counts["skipped"] == 0


def test_as_many_corpora_at_once_as_arrow_has_threads(tmp_path: Path) -> None:
    """With one thread for reading in pyarrow's pool one corpus is as many: none may wait for another thread."""
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "text": "b"}\n{"id": "c", "text": "d"}\n')
    (tmp_path / "out").mkdir()
    code = f"""
import pyarrow
pyarrow.set_io_thread_count(1)
from pathlib import Path
from longloom.tasks.corpus.build import build
place = Path({str(tmp_path)!r})
stats = build([str(place / "rows.jsonl")], place / "out", text_field="text", id_field="id", on_bad_record="stop")
assert stats.counts["documents"] == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
