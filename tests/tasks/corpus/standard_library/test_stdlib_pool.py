from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from longloom.storage.parquet import read_table
from longloom.tasks.corpus.standard_library import flaws, pool, wording
from longloom.tasks.corpus.standard_library.flaws import Example
from longloom.tasks.corpus.standard_library.modules import held_out, module_ids

EXAMPLES = 300
CHARACTERS = 1200


def build(out: Path, root: Path, *, examples: int = EXAMPLES, seed: int = 3, characters: int = CHARACTERS, **options):
    out.mkdir()
    stats = pool.build(out, examples=examples, seed=seed, characters=characters, root=root, **options)
    rows = read_table(out, "instructions").to_pylist()
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        row["user"], row["answer"] = (turn["content"] for turn in row.pop("messages"))
        row["context"], row["question"] = row["user"].rsplit("\n\n", 1)
    return stats, rows


def name_asked(row: dict[str, str]) -> str:
    """The name in a question, by the wordings; fails where none fits."""
    for words in wording.QUESTIONS[row["source"]]:
        pattern = re.escape(words).replace(re.escape("{name}"), "(.+)")
        match = re.fullmatch(pattern, row["question"])
        if match:
            return match[1] if match.groups() else ""
    raise AssertionError(f"no wording of {row['source']} fits {row['question']!r}")


@pytest.fixture(scope="module")
def built(made_library, tmp_path_factory):
    return build(tmp_path_factory.mktemp("pool") / "out", made_library)


@pytest.fixture(scope="module")
def flawless(made_library, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flaws, "FLAWED", dict.fromkeys(flaws.FLAWED, 0.0))
        return build(tmp_path_factory.mktemp("flawless") / "out", made_library)


def test_rows_are_as_many_as_asked_and_as_long_as_allowed(built):
    stats, rows = built
    assert stats.counts == {"examples": EXAMPLES, "modules": 60}
    assert len(rows) == EXAMPLES
    assert len({row["id"] for row in rows}) == EXAMPLES
    assert [row["id"] for row in rows] == [f"{row['source']}-{index:06d}" for index, row in enumerate(rows)]
    lengths = [len(row["user"]) + len(row["answer"]) for row in rows]
    assert max(lengths) == stats.values["characters"]["most"] <= CHARACTERS
    assert min(lengths) < 150  # uneven in length
    assert all(row["answer"] for row in rows)


def test_kinds_have_their_stated_shares(built):
    stats, rows = built
    assert Counter(row["source"] for row in rows) == stats.values["kinds"]
    assert sum(pool.SHARES.values()) == pytest.approx(1)
    originals = {(row["source"], row["context"]) for row in rows}
    for kind, count in Counter(kind for kind, _ in originals).items():
        assert abs(count - pool.SHARES[kind] * len(originals)) < 1


def test_the_share_of_duplicates_is_as_stated(built):
    stats, rows = built
    counts = Counter((row["user"], row["answer"]) for row in rows)
    repeated = sum(count - 1 for count in counts.values())
    assert repeated == stats.values["exact_duplicates"] == round(0.10 * EXAMPLES)
    near = len(counts) - len({(row["source"], row["context"]) for row in rows})
    assert near == stats.values["near_duplicates"] == round(0.08 * EXAMPLES)


def test_nothing_comes_from_a_held_out_module(built, made_library):
    words = {
        name: set(re.findall("mod[a-j]{4}x", (made_library / name).read_text())) for name in module_ids(made_library)
    }
    forbidden = set().union(*(found for name, found in words.items() if held_out(name)))
    assert len(forbidden) == 6
    used = {word for row in built[1] for word in re.findall("mod[a-j]{4}x", (row["user"] + row["answer"]).lower())}
    assert len(used) > 40
    assert not used & forbidden


def test_without_flaws_every_look_up_can_be_read_off_its_context(flawless):
    checked = Counter()
    for row in flawless[1]:
        name, answer, context = name_asked(row), row["answer"], row["context"]
        checked[row["source"]] += 1
        if row["source"] in ("constant", "definition", "passkey", "copy"):
            assert context.count(answer) == 1
        if row["source"] == "constant":
            assert answer.startswith(f"{name} = ")
        elif row["source"] == "definition":
            assert re.fullmatch(rf"(def|class) {name}\b.*:  # Paragraph \d+", answer)
        elif row["source"] == "passkey":
            assert re.fullmatch(rf"The pass key for {name} is \d{{5}}\.", answer)
        elif row["source"] == "copy":
            assert answer.startswith("<<<\n")
            assert answer.endswith("\n>>>")
    assert set(checked) == set(pool.SHARES)
    assert flawless[0].values["flawed"] == {}


def test_without_flaws_every_answer_from_code_is_the_modules_own(flawless, made_library):
    texts = {name: (made_library / name).read_text() for name in module_ids(made_library)}
    squeezed = [re.sub(r"\n{3,}", "\n\n", text) for text in texts.values()]
    for row in flawless[1]:
        if row["source"] == "next_line":
            assert any(f"{row['context']}\n{row['answer']}\n" in text for text in squeezed)
        elif row["source"] in ("docstring", "signature"):
            module, rest = row["context"].split("\n", 1)
            lines = [line.strip() for line in texts[module.removeprefix("# ")].split("\n")]
            header, said = (
                (rest.split("\n")[-1].strip(), row["answer"])
                if row["source"] == "docstring"
                else (row["answer"], rest.strip('"').split("\n")[0])
            )
            assert lines[lines.index(header) + 1].strip('"') == said


def test_look_ups_are_spread_over_the_thirds(flawless):
    for kind in ("constant", "definition", "passkey", "copy"):
        found = {(row["context"], row["answer"]) for row in flawless[1] if row["source"] == kind}
        thirds = Counter(3 * context.index(answer) // len(context) for context, answer in found)
        assert max(thirds.values()) - min(thirds[third] for third in range(3)) <= 1


def test_flaws_have_their_stated_share(built):
    stats, rows = built
    total = sum(stats.values["flawed"].values())
    assert set(stats.values["flawed"]) == set(flaws.FLAWS)
    expected = sum(flaws.FLAWED[kind] * share for kind, share in pool.SHARES.items())
    assert abs(total / EXAMPLES - expected) < 0.04
    wrong = [row for row in rows if row["source"] == "constant" and row["context"].count(row["answer"]) != 1]
    assert wrong  # flaws are really in the rows


def test_spoiling_keeps_the_users_turn_and_never_makes_an_answer_longer():
    good = [Example("docstring", f"context {n}", "", n % 3, f"Answer number {n} of a docstring.") for n in range(100)]
    spoiled = flaws.spoil(good, random.Random(1))
    flawed = [(old, new) for old, new in zip(good, spoiled, strict=True) if new.flaw]
    assert Counter(new.flaw for _, new in flawed) == {"truncated": 10, "wrong": 10, "hollow": 10}
    for old, new in flawed:
        assert new.user == old.user
        assert new.answer != old.answer
        assert len(new.answer) <= len(old.answer)
        if new.flaw == "truncated":
            assert old.answer.startswith(new.answer)
            assert len(new.answer) <= len(old.answer) / 2 + 1
        elif new.flaw == "wrong":
            assert new.answer in {other.answer for other in good}
        else:
            assert new.answer in wording.HOLLOW
    assert all(old == new for old, new in zip(good, spoiled, strict=True) if not new.flaw)
    assert flaws.spoil([], random.Random(1)) == []


def test_rewording_changes_the_question_alone():
    good = [Example("constant", f"a_{n} = {n}", f"a_{n}", n % 3, f"a_{n} = {n}") for n in range(50)]
    by_context = {example.context: example for example in good}
    near = flaws.reword(good, 20, random.Random(2))
    assert len({example.context for example in near}) == 20
    for example in near:
        original = by_context[example.context]
        assert example.user != original.user
        assert example.user.startswith(f"{original.context}\n\n")
        assert (example.answer, example.name) == (original.answer, original.name)


def test_two_builds_have_the_same_bytes_and_another_seed_others(made_library, tmp_path):
    contents = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build(tmp_path / name, made_library, examples=60, seed=seed)
        contents.append((tmp_path / name / "instructions.parquet").read_bytes())
        assert [path.name for path in (tmp_path / name).iterdir()] == ["instructions.parquet"]
    assert contents[0] == contents[1] != contents[2]


def test_progress_rises_to_the_number_asked(made_library, tmp_path):
    told = []
    build(tmp_path / "out", made_library, examples=40, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (40, 40)


def test_the_real_library_gives_every_kind(real_library, tmp_path):
    stats, rows = build(tmp_path / "out", real_library, examples=200, characters=2000)
    assert {row["source"] for row in rows} == set(pool.SHARES)
    assert stats.values["characters"]["most"] <= 2000
    assert all(name_asked(row) is not None for row in rows)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"examples": 0}, "examples is 0, expected at least 1"),
        ({"characters": 599}, "characters is 599, expected at least 600"),
    ],
)
def test_parameters_out_of_range_are_refused(made_library, tmp_path, parameters, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "out", made_library, **parameters)


def test_a_library_too_small_for_the_pool_is_refused(made_library, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    for number, module in enumerate([name for name in module_ids(made_library) if not held_out(name)][:3]):
        kept = next(name for name in (f"k{number}_{n}.py" for n in range(99)) if not held_out(name))
        (small / kept).write_text((made_library / module).read_text())
    with pytest.raises(
        ValueError, match=r"too few examples of the kind 'docstring': found \d+ in 3 modules, expected 62"
    ):
        build(tmp_path / "out", small, examples=400)
