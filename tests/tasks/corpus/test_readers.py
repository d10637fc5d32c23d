"""Every source format gives its documents, and every bad record is named or counted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longloom.tasks.corpus import hub
from longloom.tasks.corpus.files import find_files
from longloom.tasks.corpus.readers import FORMATS, Document, read
from longloom.tasks.corpus.records import BadRecords


def documents(*sources: Path | str, policy: str = "stop", bad: BadRecords | None = None) -> list[Document]:
    bad = bad or BadRecords(policy)
    found = find_files([str(source) for source in sources], FORMATS)
    return list(read(found, text_field="text", id_field="id", bad=bad))


def compressed(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return pa.Codec("zstd").compress(content, asbytes=True) if suffix == ".zst" else content


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=8),
    suffix=st.sampled_from(["", ".gz", ".zst"]),
    ascii_only=st.booleans(),
)
def test_any_text_survives_json_lines(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], suffix: str, ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("json") / f"a.jsonl{suffix}"
    lines = "\n\n".join(json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts)
    path.write_bytes(compressed(lines.encode(), suffix))
    got = documents(path)
    assert [document.text for document in got] == texts
    assert [document.id for document in got] == [f"a.jsonl{suffix}:{2 * index + 1}" for index in range(len(texts))]


def test_ids_sources_and_places(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records = [
        {"id": "x", "source": "web", "text": "1"},
        {"id": 7, "text": "2"},
        {"id": None, "source": 3, "text": "3"},
    ]
    path.write_text("\ufeff" + "\r\n".join(map(json.dumps, records)), encoding="utf-8")
    assert documents(path) == [
        Document("x", "web", "1", f"{path}, line 1"),
        Document("7", "a.json", "2", f"{path}, line 2"),
        Document("a.json:3", "a.json", "3", f"{path}, line 3"),
    ]


def test_a_folder_is_read_in_the_order_of_names_without_foreign_files(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    for name, content in {
        "b.py": "b\r\n",
        "a/c.txt": "\ufeffc",
        "a/b/d.MD": "d",
        "empty.py": "",
        "__pycache__/e.py": "e",
        "site-packages/f.py": "f",
        ".git/g.txt": "g",
        ".hidden.txt": "h",
        "i.png": "i",
        "LICENSE": "j",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    (folder / "k.py.gz").write_bytes(gzip.compress(b"k"))
    assert [(document.id, document.source, document.text) for document in documents(folder)] == [
        ("lib/a/b/d.MD", "lib", "d"),
        ("lib/a/c.txt", "lib", "c"),
        ("lib/b.py", "lib", "b\r\n"),
        ("lib/k.py.gz", "lib", "k"),
    ]
    assert find_files([str(folder)], FORMATS).ignored == {".png": 1, "(no suffix)": 1}


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    wrong = pa.Array.from_buffers(  # the third string is no UTF-8
        pa.string(), 4, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"ab\xffd")]
    )
    pq.write_table(pa.table({"text": wrong, "id": ["i", None, "k", "l"], "other": [1, 2, 3, 4]}), path)
    bad = BadRecords("skip")
    got = documents(path, bad=bad)
    assert [(document.id, document.text) for document in got] == [("i", "a"), ("a.parquet:2", "b"), ("l", "d")]
    assert bad.examples == ["a.parquet:3: found byte 0xff in a string, expected UTF-8"]
    with pytest.raises(ValueError, match="row 3: found byte 0xff"):
        documents(path)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"text": "a"', "broken JSON"),
        (b"[1, 2]", "found a list, expected a JSON object"),
        (b'["a"', "an array must be written as one object a line"),
        (b'"a"', "found the string 'a', expected a JSON object"),
        (b'{"body": "a"}', r"no field 'text' \(fields: body\)"),
        (b'{"text": ""}', "found an empty string in the field 'text'"),
        (b'{"text": null}', "found null in the field 'text'"),
        (b'{"text": ["a"]}', "found a list in the field 'text'"),
        (b'{"text": "a", "id": ""}', "found an empty string in the field 'id'"),
        (b'{"text": "a", "id": true}', "found a boolean in the field 'id'"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b'{"text": "\xe9"}', "found byte 0xe9 at 10, expected UTF-8"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
    ],
)
def test_a_bad_line_stops_with_its_place_or_is_counted(tmp_path: Path, line: bytes, fault: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "good too"}\n')
    with pytest.raises(ValueError, match=fault) as caught:
        documents(path)
    assert str(caught.value).startswith(f"{path}, line 2: found ")
    assert "\n" not in str(caught.value)
    bad = BadRecords("skip")
    assert [document.text for document in documents(path, bad=bad)] == ["good", "good too"]
    assert bad.skipped == 1
    assert bad.examples[0].startswith("a.jsonl:2: ")


def test_text_that_is_not_utf8_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xe9\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 2: found byte 0xe9, expected UTF-8"):
        documents(tmp_path)
    bad = BadRecords("skip")
    assert documents(tmp_path, bad=bad) == []
    assert bad.skipped == 1


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_damaged_files_stop_under_either_policy(tmp_path: Path, policy: str) -> None:
    whole = b'{"text": "a"}\n' * 1000
    zipped = gzip.compress(whole)
    pq.write_table(pa.table({"text": [f"{index * 7919 % 1000}" for index in range(1000)]}), tmp_path / "whole.parquet")
    parquet = (tmp_path / "whole.parquet").read_bytes()
    contents = {
        "cut.jsonl.gz": zipped[:-12],
        "not.jsonl.gz": b"plain",
        "cut.jsonl.zst": compressed(whole, ".zst")[:-4],
        "not.txt.zst": b"plain text",
        "not.parquet": b"plain",
        "cut.parquet": parquet[: len(parquet) // 2],
        "bent.parquet": parquet[:100] + bytes(100) + parquet[200:],
        "bent.jsonl.gz": zipped[:20] + bytes(20) + zipped[40:],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            documents(tmp_path / name, policy=policy)


def test_sources_that_stand_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"unknown format '\.warc', expected \.jsonl.*source code"):
        documents(tmp_path / "a.warc.gz")
    with pytest.raises(ValueError, match=r"no file of a known format, only \.warc; expected \.jsonl"):
        documents(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no files"):
        documents(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        documents(tmp_path / "absent")
    with pytest.raises(ValueError, match="no sources given"):
        documents()
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(ValueError, match=r"b\.txt: is given 2 times"):
        documents(tmp_path, tmp_path / "b.txt")
    with pytest.raises(ValueError, match="on_bad_record is 'ignore', expected one of stop, skip"):
        BadRecords("ignore")


def test_hub_rows_are_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def load(*arguments: object, **options: object) -> Iterator[dict[str, object]]:
        calls.append((arguments, options))
        return iter([{"text": "a", "id": "x"}, {"text": "b"}])

    monkeypatch.setattr(hub, "load_dataset", load)
    source = "hub:allenai/c4?config=en&split=train&revision=abc"
    got = [(item.id, item.source, item.text, item.place) for item in documents(source)]
    assert got == [
        ("x", "allenai/c4", "a", f"{source}, row 1"),
        ("allenai/c4:2", "allenai/c4", "b", f"{source}, row 2"),
    ]
    assert calls == [(("allenai/c4", "en"), {"split": "train", "revision": "abc", "streaming": True})]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("hub:a/b", "names no split"),
        ("hub:a/b/c?split=train", "is no data set's name"),
        ("hub:?split=train", "is no data set's name"),
        ("hub:a/b?split=train&streaming=1", "unknown option 'streaming', expected some of config, split, revision"),
    ],
)
def test_malformed_hub_sources(source: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        documents(source)


def test_a_hub_that_does_not_answer_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setattr(hub, "load_dataset", fail)
    with pytest.raises(
        ValueError, match=r"^hub:a/b\?split=train: cannot be read from the hub \(ConnectionError: no network\)$"
    ):
        documents("hub:a/b?split=train")
