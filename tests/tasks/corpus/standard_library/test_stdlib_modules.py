from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from longloom.storage.parquet import read_table
from longloom.tasks.corpus.standard_library import modules


def documents(out: Path) -> list[dict[str, str]]:
    return read_table(out, "documents").to_pylist()


def test_ids_are_relative_sorted_and_the_librarys_own(tmp_path):
    for name in (
        "b.py",
        "a/z.py",
        "a.py",
        "a/__pycache__/z.py",
        "site-packages/x.py",
        "dist-packages/y.py",
        "config-3.11-linux/z.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "_sysconfigdata__linux_.py").write_text("prefix = '/machine/path'\n")
    (tmp_path / "a" / "notes.txt").write_text("no module")
    assert modules.module_ids(tmp_path) == ["a.py", "a/z.py", "b.py"]
    assert modules.module_files(tmp_path) == [tmp_path / "a.py", tmp_path / "a" / "z.py", tmp_path / "b.py"]


def test_a_library_without_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"found 0 \.py files, expected hundreds"):
        modules.module_ids(tmp_path)


def test_one_module_in_twenty_is_held_out_by_its_path():
    ids = [f"pack/module_{number}.py" for number in range(4000)]
    found = [name for name in ids if modules.held_out(name)]
    expected = [name for name in ids if int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 20 == 0]
    assert found == expected
    assert 150 < len(found) < 250
    # Known ones: a change of the rule would move modules between training and evaluation.
    assert [modules.held_out(name) for name in ("runpy.py", "asyncio/locks.py", "json/decoder.py")] == [
        True,
        True,
        False,
    ]


def test_text_is_decoded_as_declared_and_broken_modules_are_none(tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\r\nname = '\xe9'\r\n")
    (tmp_path / "bad.py").write_bytes(b"name = '\xff\xfe'\n")
    (tmp_path / "unknown.py").write_bytes(b"# coding: no-such-codec\n")
    assert modules.read_module("latin.py", tmp_path) == "# -*- coding: latin-1 -*-\nname = 'é'\n"
    assert modules.read_module("bad.py", tmp_path) is None
    assert modules.read_module("unknown.py", tmp_path) is None


def test_documents_of_both_sides_are_the_whole_library_once(made_library, tmp_path):
    sides = {}
    for held_out in (False, True):
        out = tmp_path / str(held_out)
        out.mkdir()
        seen = []
        stats = modules.build_documents(
            out,
            held_out=held_out,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
            root=made_library,
        )
        sides[held_out] = documents(out)
        assert stats.counts["documents"] == len(sides[held_out]) == seen[-1][0] == seen[-1][1]
        assert all(modules.held_out(row["id"]) is held_out for row in sides[held_out])
    rows = sorted(sides[False] + sides[True], key=lambda row: row["id"])
    assert [row["id"] for row in rows] == modules.module_ids(made_library)
    assert {row["source"] for row in rows} == {"pack"}
    assert all(row["text"] == (made_library / row["id"]).read_text() for row in rows)
    assert (len(sides[False]), len(sides[True])) == (60, 6)


def test_a_module_at_the_top_is_its_own_source_and_blank_ones_are_counted(tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    named = [name for name in (f"mod{number}.py" for number in range(99)) if not modules.held_out(name)][:3]
    for name, content in zip(named, (b"x = 1\n", b"\n \n", b"'\xff'"), strict=True):
        (library / name).write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    stats = modules.build_documents(out, held_out=False, root=library)
    assert documents(out) == [{"id": named[0], "source": named[0].removesuffix(".py"), "text": "x = 1\n"}]
    assert stats.values == {"undecodable_or_blank": 2}


def test_two_builds_have_the_same_bytes(made_library, tmp_path):
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        modules.build_documents(tmp_path / name, held_out=False, root=made_library)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert list(contents[0]) == ["documents-00000.parquet"]
