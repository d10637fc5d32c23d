"""The records of the memorization study: three tasks about functions of one side, as they stand in the source."""

from __future__ import annotations

import ast

import pytest

from longloom.tasks.corpus.standard_library import functions
from longloom.tasks.corpus.standard_library.functions import KINDS
from longloom.tasks.corpus.standard_library.modules import held_out, read_module
from longloom.tasks.trace.records import load

SETTINGS = {"functions": 12, "seed": 3}


@pytest.fixture(scope="module", params=["made", "real"])
def library(request, made_library, real_library):
    return made_library if request.param == "made" else real_library


@pytest.fixture(scope="module", params=[False, True], ids=["corpus", "held-out"])
def built(request, library, tmp_path_factory):
    out = tmp_path_factory.mktemp("functions")
    stats = functions.build(out, held_out=request.param, root=library, **SETTINGS)
    return request.param, stats, load(out)


def test_three_tasks_about_the_same_functions_of_one_side(built):
    side, stats, records = built
    ids = {kind: [record.id for record in records if record.task == kind] for kind in KINDS}
    assert len(ids["knowledge"]) == stats.counts["functions"] == 12
    assert ids["knowledge"] == ids["translation"] == ids["completion"]
    modules = {record.id.partition(":")[0] for record in records}
    assert {held_out(module) for module in modules} == {side}
    assert stats.counts == {"records": 36, "tasks": 3, "functions": 12, "modules": len(modules)}


def test_questions_and_answers_stand_in_the_source(built, library):
    _, _, records = built
    for record in records:
        module, _, name = record.id.partition(":")
        text = read_module(module, library)
        assert record.prompt == record.input
        if record.task == "completion":
            head, body = record.input, record.output
            assert f"def {name}(" in head
            assert body in text  # with the line ends and the indentation before it
        elif record.task == "knowledge":
            assert record.input.endswith(":")
            line = record.output.strip().strip('"')
            kinds = ast.FunctionDef | ast.AsyncFunctionDef
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds) and node.name == name]
            assert line in {(ast.get_docstring(node) or "").strip().split("\n")[0].rstrip() for node in nodes}
        else:
            assert record.output in text


def test_an_answer_is_not_in_its_question(built):
    _, _, records = built
    for record in records:
        assert record.output.strip() not in record.input


def test_the_draw_is_the_same_each_time_and_follows_the_seed(made_library, tmp_path):
    found = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        functions.build(tmp_path / name, functions=12, held_out=False, seed=seed, root=made_library)
        found[name] = (tmp_path / name / "records.parquet").read_bytes()
    assert found["a"] == found["b"]
    assert found["a"] != found["c"]


def test_no_module_outweighs_the_others_and_there_may_be_fewer(made_library, tmp_path):
    stats = functions.build(tmp_path, functions=1000, held_out=True, seed=0, root=made_library)
    records = [record for record in load(tmp_path) if record.task == "knowledge"]
    modules = [record.id.partition(":")[0] for record in records]
    assert max(modules.count(module) for module in modules) == 8  # of 16 that each has
    assert stats.counts["functions"] == 6 * 8


def test_a_library_without_documented_functions_is_told(tmp_path):
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "bare.py").write_text("def plain(value):\n    return value\n")
    with pytest.raises(ValueError, match=r"^the library's training modules have no function with a docstring"):
        functions.build(tmp_path, functions=3, held_out=False, seed=0, root=tmp_path / "library")
    assert not (tmp_path / "records.parquet").exists()
