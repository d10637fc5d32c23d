from __future__ import annotations

import ast

import pytest

from longloom.tasks.corpus.standard_library.modules import library_root, read_module
from longloom.tasks.corpus.standard_library.syntax import read_facts

SOURCE = '''"""A module."""
import os

LIMIT = 250
ratio, mode_name = 0.25, 'r+b'


@cache
def short(value):
    """Say it.

    At length.
    """
    if value:
        inner_name = "a" "b"
    elif LIMIT:
        pass
    return f"""{value}
    """


def long(first,
         second):
    return first


class Holder(object):
    kind = 'holder-kind'

    async def wait_for(self, x=1):
        def hidden(): pass
        return x
'''


def test_definitions_have_their_header_body_docstring_and_owner():
    facts = read_facts("a.py", SOURCE)
    found = {one.name: one for one in facts.definitions}
    assert list(found) == ["short", "Holder", "wait_for"]  # `long` has no header of one line, `hidden` is in a function
    assert found["short"].header == "def short(value):"
    assert found["short"].body[0] == '    """Say it.'
    assert found["short"].docstring == "Say it.\n\nAt length."
    assert found["wait_for"].header == "async def wait_for(self, x=1):"
    assert found["wait_for"].body == ("    def hidden(): pass", "    return x")
    assert (found["wait_for"].owner, found["short"].owner) == ("class Holder(object):", "")


def test_names_and_literals_are_those_written():
    facts = read_facts("a.py", SOURCE)
    assert sorted(facts.names) == ["LIMIT", "inner_name", "kind", "mode_name", "ratio"]
    assert sorted(facts.literals) == ["'holder-kind'", "0.25", "250"]


def test_lines_of_strings_are_prose_and_no_place_to_insert():
    facts = read_facts("a.py", SOURCE)
    prose = {facts.lines[number].strip() for number in facts.prose}
    assert prose == {'"""Say it.', "", "At length.", '"""', 'return f"""{value}'}
    assert not facts.statements & facts.prose
    assert not any(facts.lines[number].lstrip().startswith(("elif", "def short")) for number in facts.statements)
    assert [facts.lines[number] for number in facts.starts if facts.lines[number].startswith("    ")] == [
        "    kind = 'holder-kind'",
        "    async def wait_for(self, x=1):",
    ]


@pytest.mark.parametrize("broken", ["def f(:\n", "x = 1\x00\n", "print 'old'\n"])
def test_what_does_not_parse_is_none(broken):
    assert read_facts("bad.py", broken) is None


@pytest.mark.parametrize("module", ["json/decoder.py", "textwrap.py", "shelve.py", "contextlib.py"])
def test_a_line_before_any_statement_leaves_a_real_module_valid(module):
    text = read_module(module)
    assert text is not None, library_root()
    facts = read_facts(module, text)
    lines = []
    for number, line in enumerate(text.split("\n")):
        if number in facts.statements:
            lines.append(line[: len(line) - len(line.lstrip())] + "inserted_here = 1")
        lines.append(line)
    tree = ast.parse("\n".join(lines))
    found = sum(isinstance(node, ast.Name) and node.id == "inserted_here" for node in ast.walk(tree))
    assert found == len(facts.statements) > 50
