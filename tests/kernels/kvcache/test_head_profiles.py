"""Head profiles: which heads are chosen, what a file keeps, and what is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longloom.kernels.kvcache.heads import HeadProfile, Scores

SMALL = ((0.1, 0.5, 0.3), (0.7, 0.2, 0.6))
ECHO = ((0.9, 0.0, 0.0), (0.0, 0.8, 0.0))
PROFILE = HeadProfile("probe", "0" * 64, SMALL, ECHO, (("length", 2500), ("seed", 3)))


def shaped(layers: int, heads: int) -> Scores:
    """Scores that differ from head to head, in no order."""
    count = layers * heads
    step = next(step for step in range(7 * count // 13 + 1, count + 7 * count) if math.gcd(step, count) == 1)
    return tuple(
        tuple((layer * heads + head) * step % count / count for head in range(heads)) for layer in range(layers)
    )


@pytest.mark.parametrize(
    ("layers", "heads", "induction", "echo"),
    [(32, 8, 36, 3), (40, 8, 45, 3), (80, 8, 90, 6), (4, 4, 2, 1), (2, 2, 1, 1), (1, 1, 1, 1)],
)
def test_the_papers_shares(layers: int, heads: int, induction: int, echo: int) -> None:
    """14% and 1%, rounded, of all KV heads, at least one of each: Llama-3-8B has 256, of which 36 and 3."""
    scores = shaped(layers, heads)
    profile = HeadProfile("test", "", scores, tuple(tuple(-value for value in row) for row in scores))
    assert len(profile.chosen(induction=0.14, echo=0)) == induction
    assert len(profile.chosen(induction=0, echo=0.01)) == echo
    assert len(profile.chosen(induction=0.14, echo=0.01)) == min(induction + echo, layers * heads)


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 0), (0.0, 0), (1e-9, 1), (0.24, 1), (0.26, 2), (0.5, 3), (0.99, 6), (1, 6), (1.0, 6)]
)
def test_a_share_is_rounded_and_none_is_none(share: float, expected: int) -> None:
    found = PROFILE.chosen(induction=share, echo=0)
    order = [(1, 0), (1, 2), (0, 1), (0, 2), (1, 1), (0, 0)]  # best first, over all layers
    assert found == frozenset(order[:expected])
    assert PROFILE.chosen(induction=0, echo=share) >= frozenset([(0, 0), (1, 1)][:expected])


def test_both_choices_are_united() -> None:
    assert PROFILE.chosen(induction=0.3, echo=0.1) == {(1, 0), (1, 2), (0, 0)}
    same = HeadProfile("probe", "", SMALL, SMALL)
    assert same.chosen(induction=0.3, echo=0.1) == {(1, 0), (1, 2)}
    assert PROFILE.chosen(induction=0, echo=0) == frozenset()


def test_of_equal_scores_the_first_are_chosen() -> None:
    flat = HeadProfile("probe", "", ((0.0, 0.5, 0.5), (0.5, 0.5, 0.0)))
    assert flat.chosen(induction=0.5, echo=0) == {(0, 1), (0, 2), (1, 0)}
    zeros = HeadProfile("probe", "", ((0.0, -0.0),) * 3)
    assert zeros.chosen(induction=0.5, echo=0) == {(0, 0), (0, 1), (1, 0)}


@given(
    scores=st.integers(1, 5).flatmap(
        lambda heads: st.lists(
            st.lists(st.sampled_from([-1.5, 0.0, 0.25, 0.5, 1e-300, 7.0]), min_size=heads, max_size=heads), min_size=1
        )
    ),
    share=st.floats(0, 1),
)
def test_no_head_left_is_better_than_one_chosen(scores: list[list[float]], share: float) -> None:
    profile = HeadProfile("test", "", tuple(map(tuple, scores)))
    chosen = profile.chosen(induction=share, echo=1.0)  # echo scores there are none
    places = [(layer, head) for layer, row in enumerate(scores) for head in range(len(row))]
    assert chosen <= set(places)
    assert len(chosen) == (max(1, round(share * len(places))) if share else 0)
    for layer, head in set(places) - chosen:
        assert all(scores[one][other] >= scores[layer][head] for one, other in chosen)
        assert all((one, other) < (layer, head) for one, other in chosen if scores[one][other] == scores[layer][head])


def test_a_file_keeps_all_of_it(tmp_path: Path) -> None:
    PROFILE.write(tmp_path / "heads.json")
    found = HeadProfile.read(tmp_path / "heads.json")
    assert found == PROFILE
    assert found.settings == PROFILE.settings
    assert found.shape == (2, 3)
    content = json.loads((tmp_path / "heads.json").read_text(encoding="utf-8"))
    assert (content["layers"], content["kv_heads"]) == (2, 3)
    found.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "heads.json").read_bytes()


@pytest.mark.parametrize("number", [0.1 + 0.2, 1e-300, -0.0, 3, 2.0**-1074, 1.7e308])
def test_numbers_come_back_as_they_were(number: float, tmp_path: Path) -> None:
    profile = HeadProfile("duoattention", "é", ((number, 1.0),), settings=(("file", "köpfe.tsv"), ("list", [1, [2]])))
    profile.write(tmp_path / "heads.json")
    found = HeadProfile.read(tmp_path / "heads.json")
    assert repr(found.induction) == repr(((float(number), 1.0),))
    assert found == profile
    assert found.echo is None
    assert dict(found.settings) == {"file": "köpfe.tsv", "list": [1, [2]]}


def test_equal_profiles_are_one_key(tmp_path: Path) -> None:
    """As part of a policy, which is frozen; how the scores were found does not count."""
    PROFILE.write(tmp_path / "heads.json")
    other = HeadProfile("probe", "0" * 64, SMALL, ECHO, (("list", [1]),))
    assert {PROFILE: 1, HeadProfile.read(tmp_path / "heads.json"): 2, other: 3} == {PROFILE: 3}
    for changed in (
        HeadProfile("import", "0" * 64, SMALL, ECHO),
        HeadProfile("probe", "1" * 64, SMALL, ECHO),
        HeadProfile("probe", "0" * 64, ECHO, ECHO),
        HeadProfile("probe", "0" * 64, SMALL, None),
    ):
        assert changed != PROFILE


@pytest.mark.parametrize(
    ("induction", "echo", "message"),
    [
        (
            ((0.1, 0.2), (0.3,)),
            None,
            "head profile: induction has rows of different lengths, expected [layers, KV heads]",
        ),
        (
            ((0.1,), (0.3, 0.2)),
            None,
            "head profile: induction has rows of different lengths, expected [layers, KV heads]",
        ),
        ((), None, "head profile: induction has rows of different lengths, expected [layers, KV heads]"),
        (((), ()), None, "head profile: induction has rows of different lengths, expected [layers, KV heads]"),
        (SMALL, SMALL[:1], "head profile: echo has rows of different lengths, expected [layers, KV heads]"),
        (SMALL, ((0.1, 0.2),) * 2, "head profile: echo has rows of different lengths, expected [layers, KV heads]"),
        (((0.1, math.nan),), None, "head profile: induction holds nan, expected finite scores"),
        (((0.1, -math.inf),), None, "head profile: induction holds -inf, expected finite scores"),
        (SMALL, ((0.0, 0.0, math.inf),) * 2, "head profile: echo holds inf, expected finite scores"),
    ],
)
def test_scores_that_are_none(induction: Scores, echo: Scores | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        HeadProfile("probe", "", induction, echo)


def refused(path: Path, message: str) -> None:
    expected = re.escape(f"head profile {path}: {message}")
    with pytest.raises(ValueError, match=f"^{expected}$"):
        HeadProfile.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "retrieval heads"}, "found another kind of file, expected one that `longloom heads` wrote"),
        ({"format": None}, "found another kind of file, expected one that `longloom heads` wrote"),
        ({"version": 2}, "version is 2, expected 1"),
        ({"version": None}, "version is None, expected 1"),
        ({"induction": None}, "TypeError: 'NoneType' object is not iterable, expected it whole"),
        ({"induction": [1, 2]}, "TypeError: 'int' object is not iterable, expected it whole"),
        ({"settings": [1]}, "AttributeError: 'list' object has no attribute 'items', expected it whole"),
        ({"induction": [[0.1, math.nan]]}, "induction holds nan, expected finite scores"),
        ({"induction": [[0.1, 0.2], [1]]}, "induction has rows of different lengths, expected [layers, KV heads]"),
        ({"echo": [[1, 2, 3]]}, "echo has rows of different lengths, expected [layers, KV heads]"),
        ({"induction": [["high"]]}, "could not convert string to float: 'high'"),
    ],
)
def test_a_file_of_something_else(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    PROFILE.write(path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    refused(path, message)


@pytest.mark.parametrize("name", ["source", "weights", "induction", "echo", "settings"])
def test_a_file_without_a_part(name: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    PROFILE.write(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content[name]
    path.write_text(json.dumps(content), encoding="utf-8")
    refused(path, f"KeyError: '{name}', expected it whole")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"1\t0.5\n"])
def test_a_file_that_is_no_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_bytes(content)
    start = re.escape(f"head profile {path}: ")
    with pytest.raises(ValueError, match=f"^{start}.+, expected a file that `longloom heads` wrote$"):
        HeadProfile.read(path)


@pytest.mark.parametrize("content", ["[]", "3", '"longloom head profile"', "null", "{}"])
def test_json_that_is_no_profile(content: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text(content, encoding="utf-8")
    refused(path, "found another kind of file, expected one that `longloom heads` wrote")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No such file or directory.*, expected a file that `longloom heads` wrote"):
        HeadProfile.read(tmp_path / "none.json")
    with pytest.raises(ValueError, match="expected a file that `longloom heads` wrote"):
        HeadProfile.read(tmp_path)
