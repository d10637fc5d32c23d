"""Generations that survive a kill."""

from __future__ import annotations

from pathlib import Path

from longloom.evals.ledger import Ledger


def test_rows_come_back_and_a_torn_line_does_not(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    ledger = Ledger(path, {"model": "m"})
    ledger.add([{"key": "a", "text": "één\r\n\u2028"}, {"key": "b", "text": "two"}])
    assert ledger.get("a") == {"key": "a", "text": "één\r\n\u2028"}
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "c", "te')
    again = Ledger(path, {"model": "m"})
    assert again.get("a") == {"key": "a", "text": "één\r\n\u2028"}
    assert again.get("c") is None
    assert path.read_bytes() == whole
    again.add([{"key": "c", "text": "three"}])
    assert Ledger(path, {"model": "m"}).get("c") == {"key": "c", "text": "three"}


def test_a_ledger_of_an_earlier_version_may_hold_half_a_character(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    Ledger(path, {"model": "m"}).add(
        [{"key": "a", "text": "x\ud83d", "seconds": 1.5}, {"key": "b", "text": "\U0001f600"}]
    )
    again = Ledger(path, {"model": "m"})
    assert again.get("a") == {"key": "a", "text": "x\ufffd", "seconds": 1.5}
    assert again.get("b") == {"key": "b", "text": "\U0001f600"}


def test_another_identity_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    Ledger(path, {"model": "m"}).add([{"key": "a"}])
    other = Ledger(path, {"model": "n"})
    assert other.get("a") is None
    assert Ledger(path, {"model": "n"}).get("a") is None
    other.remove()
    assert not path.exists()


def test_a_torn_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    path.write_bytes(b'{"mod')
    ledger = Ledger(path, {"model": "m"})
    ledger.add([{"key": "a"}])
    assert Ledger(path, {"model": "m"}).get("a") == {"key": "a"}
