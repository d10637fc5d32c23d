"""P_{n,D} against brute force and the real index; what has no probability; paper and released side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from longloom.storage.parquet import read_table
from longloom.storage.stats import Stats
from longloom.tasks.ngrams.query import Index
from longloom.tasks.trace import lookups, pairs
from longloom.tasks.trace.lookups import Corpus, infinity_grams, tokens_of
from longloom.tasks.trace.mining import Gram, Mined, mine, ngrams
from longloom.tasks.trace.pairs import build

from .conftest import Brute, letters

ROWS = [
    ("What is a red fox ?", "It is a sly animal"),
    ("Is the green frog sly ?", "No , a frog jumps"),
    ("Is the pink fox sly ?", "The red fox sleeps"),
]


def run(records: Path, index: Corpus, out: Path, **change: Any) -> tuple[Stats, list[dict[str, Any]]]:
    out.mkdir()
    settings: dict[str, Any] = {"n": 2, "gamma": 0.0, "mode": "paper", "least": 1, **change}
    stats = build(records, index, letters, out, **settings)
    return stats, read_table(out, "pairs").to_pylist()


def test_pairs_by_brute_force_and_by_the_index(
    make_records: Callable[..., Path], brute: Brute, index: Index, tmp_path: Path
) -> None:
    records = make_records(ROWS)
    stats, rows = run(records, brute, tmp_path / "brute")
    assert run(records, index, tmp_path / "real") == (stats, rows)
    texts = [bytes(row).decode() for row in brute.rows]
    assert rows
    for row in rows:
        assert row["x_count"] == sum(text.count(row["x"]) for text in texts)  # none of these overlaps itself
        assert row["y_count"] == sum(text.count(row["y"]) for text in texts)
        both = sum(row["x"] in text and row["y"] in text for text in texts)
        assert row["together"] == both
        if not row["x_count"]:
            assert (row["status"], row["log_p"]) == ("zero", None)
        elif not both:
            assert (row["status"], row["log_p"]) == ("unseen", -math.inf)
        else:
            assert (row["status"], row["log_p"]) == ("kept", pytest.approx(math.log(both / row["x_count"])))
        assert row["cosine"] > -0.1
        assert ROWS[row["record"]][1][row["begin"] : row["end"]] == row["y"].strip()
    above = [row for row in rows if row["cosine"] > 0]
    assert 0 < len(above) < len(rows)  # some are there for the sensitivity alone
    assert stats.counts["pairs"] == len(above)
    assert stats.counts["distinct"] == len({(row["x"].strip(), row["y"].strip()) for row in above})
    for status in ("kept", "unseen", "zero", "rare", "unknown"):
        assert stats.counts[status] == sum(row["status"] == status for row in above)
    assert {"kept", "unseen", "zero"} <= {row["status"] for row in rows}


def test_paper_and_released_on_one_pair(make_records: Callable[..., Path], brute: Brute, tmp_path: Path) -> None:
    """ " red fox" occurs 4 times, " sly animal" 4 times; together they stand in 2 documents."""
    records = make_records([("A red fox here", "a sly animal there")])
    found = {}
    for mode in ("paper", "released"):
        _, rows = run(records, brute, tmp_path / mode, gamma=-1.0, mode=mode)
        found[mode] = {(row["x"], row["y"]): row for row in rows}
    pair = (" red fox", " sly animal")
    assert [found["paper"][pair][name] for name in ("together", "x_count", "y_count")] == [2, 4, 4]
    assert found["paper"][pair]["log_p"] == pytest.approx(math.log(2 / 4))
    assert [found["released"][pair][name] for name in ("together", "x_count")] == [4, 4]
    assert found["released"][pair]["log_p"] == 0.0
    assert len(found["paper"]) == 9
    assert set(found["released"]) == {
        (x, y) for x in (" A red", pair[0]) for y in (" a sly", pair[1])
    }  # the last is lost


def test_released_has_no_gamma(make_records: Callable[..., Path], brute: Brute, tmp_path: Path) -> None:
    records = make_records(ROWS)
    low, high = (run(records, brute, tmp_path / str(gamma), mode="released", gamma=gamma) for gamma in (-0.5, 0.99))
    assert [row["x"] for row in low[1]] == [row["x"] for row in high[1]]
    assert low[0] == high[0]
    assert run(records, brute, tmp_path / "paper", gamma=0.99)[0].counts["pairs"] < low[0].counts["pairs"]


def test_rare_and_unknown_are_counted(make_records: Callable[..., Path], brute: Brute, tmp_path: Path) -> None:
    records = make_records([("red fox \N{SNOWMAN}", "sly animal")])  # the snowman is no word: between two it is
    _, rows = run(records, brute, tmp_path / "a", gamma=-1.0, least=5)
    assert [(row["status"], row["log_p"]) for row in rows] == [("rare", None)]
    records = make_records([("red\N{SNOWMAN}fox", "sly animal")], "unknown")
    stats, rows = run(records, brute, tmp_path / "b", gamma=-1.0)
    assert [(row["status"], row["log_p"], row["together"]) for row in rows] == [("unknown", None, 0)]
    assert stats.counts["unknown"] == 1


def test_infinity_grams_leave_zeros_out_unless_all_are(
    brute: Brute, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "_PIECES", 2)
    pieces = [("The", " green frog"), ("The red fox", " zq"), ("fox", "\N{EURO SIGN}"), ("", "The")]
    probabilities = steps(brute, "The red fox", " zq")
    assert [p > 0 for p in probabilities] == [True, False, False]
    for corpus in (brute, index):
        # After " gree" only "n" comes; after "green f" in the corpus only "r".
        assert infinity_grams(corpus, pieces, zero_as_one=False) == [
            (pytest.approx(sum(map(math.log, steps(brute, "The", " green frog")))), 0, 11),
            (pytest.approx(math.log(probabilities[0])), 2, 3),
            (None, 3, 3),
            (pytest.approx(sum(map(math.log, steps(brute, "", "The")))), 0, 3),
        ]
        assert infinity_grams(corpus, pieces[2:3], zero_as_one=True) == [(0.0, 3, 3)]
        assert infinity_grams(corpus, [], zero_as_one=True) == []
    unknown = [("fox", "\N{SNOWMAN}"), ("\N{SNOWMAN}", "fox"), ("", "The")]
    assert [found is None for found in infinity_grams(brute, unknown, zero_as_one=False)] == [True, True, False]


def steps(brute: Brute, before: str, piece: str) -> list[float]:
    whole = (before + piece).encode()
    return [
        brute.infgram_probability(list(whole[:place]), whole[place]).probability
        for place in range(len(before.encode()), len(whole))
    ]


def test_lookups_take_the_tokens_of_running_text(token_index: Index) -> None:
    for surface in (" red fox", "red fox"):
        tokens = tokens_of(token_index, surface)
        assert tokens is not None
        assert token_index.decode(tokens) == surface
    assert token_index.count(tokens_of(token_index, " red fox") or ()) == 4
    assert token_index.count(tokens_of(token_index, "red fox") or ()) == 0


def test_lookups_of_a_tokenizer_that_drops_white_space() -> None:
    class Dropping:
        def encode(self, text: str) -> list[int]:
            if not text.strip():
                raise ValueError("has no tokens")
            return list(text.strip().encode())

    dropping = cast(Corpus, Dropping())
    assert tokens_of(dropping, " the cat") == tuple(b"the cat")
    assert tokens_of(dropping, " ") is None


def test_vectors_are_held_of_a_few_records_only(
    make_records: Callable[..., Path], brute: Brute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_records([*ROWS, ("only", "an output of words"), *ROWS])
    expected = run(records, brute, tmp_path / "at-once")
    sizes: list[int] = []

    def spy(xs: Sequence[Gram], ys: Sequence[Gram], vectors: Mapping[str, np.ndarray], **options: Any) -> list[Mined]:
        sizes.append(len(vectors))
        return mine(xs, ys, vectors, **options)

    monkeypatch.setattr(pairs, "mine", spy)
    largest = max(len({gram.text for side in row for gram in ngrams(side, 2)}) for row in ROWS)
    for batch, held in ((1, 0), (1, 100), (3, 4), (9, 2)):
        monkeypatch.setattr(pairs, "_BATCH", batch)
        monkeypatch.setattr(pairs, "_HELD", held)
        assert run(records, brute, tmp_path / f"{batch}-{held}") == expected
        assert max(sizes) < batch + largest
        sizes.clear()


def test_an_ngram_is_embedded_once_while_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_HELD", 3)
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return letters(texts)

    vectors = pairs._Vectors(embed)
    for texts, new in (("abc", "abc"), ("ad", "d"), ("bd", "b"), ("cd", "c"), ("", ""), ("ad", "a"), ("abcd", "b")):
        found = vectors.of(set(texts))
        assert "".join(asked) == new, texts
        assert found.keys() == set(texts)
        assert all((row == letters([text])).all() for text, row in found.items())
        assert all(row.base is None for row in found.values())  # or a vector would hold those of its batch
        asked.clear()


def test_bad_input(make_records: Callable[..., Path], brute: Brute, tmp_path: Path) -> None:
    records = make_records([("one", "two words here")])
    with pytest.raises(ValueError, match="records: none of 1 has 3 words in its input and in its output"):
        run(records, brute, tmp_path / "a", n=3)
    with pytest.raises(ValueError, match="mode 'mine': unknown, expected paper or released"):
        run(records, brute, tmp_path / "b", mode="mine")
    with pytest.raises(ValueError, match=r"gamma 1.5.*expected n >= 1, -1 to 1"):
        run(records, brute, tmp_path / "c", gamma=1.5)
