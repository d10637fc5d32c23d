from __future__ import annotations

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longloom.tasks.corpus.standard_library import lookups, wording
from longloom.tasks.corpus.standard_library.haystack import Haystack, is_plain
from longloom.tasks.corpus.standard_library.modules import held_out, module_ids, read_module
from longloom.tasks.corpus.standard_library.syntax import Facts, read_facts

SEEDS = st.integers(0, 10**6)
THIRDS = st.integers(0, 2)
ROOMS = st.integers(300, 1800)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def facts(real_library) -> list[Facts]:
    found = [read_facts(name, read_module(name, real_library) or "") for name in module_ids(real_library)]
    return [one for one in found if one is not None]


def third_of(context: str, answer: str) -> int:
    assert context.count(answer) == 1
    return 3 * context.index(answer) // len(context)


@FEW
@given(seed=SEEDS, size=st.integers(200, 1800))
def test_a_window_is_a_modules_own_lines(facts, seed, size):
    window = Haystack(facts).window(random.Random(seed), size)
    text = "\n".join(window.lines)
    assert 0.9 * size <= len(text) <= size
    assert is_plain(text)
    numbers = list(window.numbers)
    assert numbers == sorted(set(numbers))
    assert [window.facts.lines[number] for number in numbers] == list(window.lines)
    skipped = set(range(numbers[0], numbers[-1])) - set(numbers)
    assert not any(window.facts.lines[number] for number in skipped)  # blank lines alone are left out
    assert "\n\n\n" not in text


@FEW
@given(seed=SEEDS, third=THIRDS, room=ROOMS)
def test_a_constant_stands_once_in_its_third(facts, seed, third, room):
    rng = random.Random(seed)
    found = lookups.constant(
        Haystack(facts), rng, name="target_name", values=["'gold-7'", "48151"], room=room, third=third
    )
    assert len(found.context) + len(found.answer) <= room
    assert found.answer == f"target_name = {found.gold}"
    assert found.context.count("target_name") == found.context.count(found.gold) == 1
    assert third_of(found.context, found.answer) == third == found.third
    line = next(line for line in found.context.split("\n") if "target_name" in line)
    assert line.strip() == found.answer


@FEW
@given(seed=SEEDS, third=THIRDS, room=ROOMS, side=st.booleans())
def test_a_pass_key_stands_once_in_its_third(facts, seed, third, room, side):
    rng = random.Random(seed)
    found = lookups.passkey(Haystack(facts), rng, name="amber-river", for_held_out=side, room=room, third=third)
    assert len(found.context) + len(found.answer) <= room
    assert found.answer == f"The pass key for amber-river is {found.gold}."
    assert re.fullmatch(r"\d{5}", found.gold)
    assert found.context.count(found.gold) == found.context.count("amber-river") == 1
    assert held_out(found.gold) is side
    assert third_of(found.context, found.answer) == third
    assert f"# {found.answer}" in [line.strip() for line in found.context.split("\n")]


@FEW
@given(seed=SEEDS, third=THIRDS, room=st.integers(520, 1800))
def test_one_paragraph_defines_the_target(facts, seed, third, room):
    rng = random.Random(seed)
    others = lookups.plain_definitions(facts)
    target = rng.choice(others)
    found = lookups.definition(others, rng, target=target, room=room, third=third)
    assert len(found.context) + len(found.answer) <= room
    assert third_of(found.context, found.answer) == third
    assert found.answer == f"{target.header}  # {found.gold}"
    # As the metric `retrieval` reads it: all numbers of the answer are the paragraph's.
    number = re.findall(r"Paragraph (\d+)", found.gold)
    assert re.findall(r"\d+", found.answer) == number
    labels = [int(label) for label in re.findall(r"  # Paragraph (\d+)$", found.context, re.MULTILINE)]
    assert labels == list(range(labels[0], labels[0] + len(labels)))
    assert len(labels) >= 3
    assert found.context.count(target.name) == 1
    headers = {one.header for one in others}
    labelled = [line.split("  # Paragraph")[0] for line in found.context.split("\n") if "# Paragraph" in line]
    assert set(labelled) <= headers


@FEW
@given(seed=SEEDS, third=THIRDS, room=ROOMS)
def test_a_marked_passage_is_to_be_repeated_with_its_marks(facts, seed, third, room):
    found = lookups.copying(Haystack(facts), random.Random(seed), room=room, third=third)
    assert len(found.context) + len(found.answer) <= room
    assert third_of(found.context, found.answer) == third
    assert found.context.count("<<<") == found.context.count(">>>") == found.context.count(found.gold) == 1
    before, rest = found.context.split("<<<\n")
    passage, after = rest.split("\n>>>")
    assert passage == found.gold
    assert found.answer == f"<<<\n{passage}\n>>>"
    assert 1 <= len(passage.split("\n")) <= 6
    assert before.endswith("\n") or before == ""
    assert after.startswith("\n") or after == ""


@FEW
@given(seed=SEEDS, room=ROOMS)
def test_the_next_line_comes_right_after_the_context(facts, seed, room):
    found = lookups.next_line(Haystack(facts), random.Random(seed), room=room)
    assert 0.6 * room <= len(found.context)
    assert len(found.context) + 1 + len(found.answer) <= room
    assert not any(mark in found.answer for mark in ("`", "#", "//"))
    assert len(found.answer.strip()) >= 8
    squeezed = [re.sub(r"\n{3,}", "\n\n", "\n".join(one.lines)) for one in facts]
    assert any(f"{found.context}\n{found.answer}\n" in f"{text}\n" for text in squeezed)


def test_a_definition_asked_for_is_named_in_its_header_alone(facts):
    found = lookups.plain_definitions(facts)
    assert len(found) > 200
    for one in found:
        assert not re.search(r"\d", one.header)
        assert "\n".join((one.header, *one.body)).count(one.name) == 1
        assert not one.name.startswith("__")


@pytest.mark.parametrize(
    "text",
    ["x = 'é'", "a <<< b", "see Paragraph 3", "the pass key", "\tx = 1", "x" * 121, "[1024, 2048, 4096]"],
)
def test_text_that_would_disturb_a_task_is_no_haystack(text):
    assert not is_plain(text)
    assert is_plain("x = [a, b]\n\n    return x")


def test_a_size_that_no_module_has_is_refused(facts):
    with pytest.raises(ValueError, match="no 900000 characters of plain code"):
        Haystack(facts).window(random.Random(0), 900_000)
    with pytest.raises(ValueError, match="from 0 modules"):
        Haystack([]).window(random.Random(0), 200)


def test_a_place_that_is_not_there_is_refused(facts):
    haystack = Haystack(facts)
    with pytest.raises(ValueError, match="no place for 'the_name = 12345'"):
        lookups.constant(haystack, random.Random(0), name="the_name", values=["12345"], room=300, third=5)
    others = lookups.plain_definitions(facts)
    with pytest.raises(ValueError, match="in third 5"):
        lookups.definition(others, random.Random(0), target=others[0], room=600, third=5)


def test_the_sides_share_no_word_of_a_pass_keys_name():
    sides = [
        {word for name in wording.passkey_names(held_out=side) for word in name.split("-")} for side in (False, True)
    ]
    assert not sides[0] & sides[1]
    assert len(wording.passkey_names(held_out=True)) == len(set(wording.passkey_names(held_out=True))) == 256
