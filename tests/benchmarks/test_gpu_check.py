"""`make gpu-check` as a whole without a GPU: its tests' process, its results, its exits."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_check
import pytest
import torch
from gpu import ceilings, correctness

from .tiny import TINY, NoMeter

ROOT = Path(gpu_check.__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with tests, some of which fail; pytest starts sooner without its plugins."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(correctness.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "good.py").write_text(
        "import os, pytest\n"
        "def test_device(): assert os.environ['LONGLOOM_TEST_DEVICE'] == 'cpu'\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_number(n): pass\n"
        "@pytest.mark.skip\n"
        "def test_skipped(): pass\n"
    )
    (tmp_path / "bad.py").write_text("def test_wrong():\n    assert 1 == 2, 'one is not two'\n")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "slow.py").write_text("import time\ndef test_slow(): time.sleep(60)\n")
    return tmp_path


def outcome(checkout, *tests, limit=60.0):
    return correctness.finish(correctness.start(checkout, tests, checkout, "cpu"), checkout, limit)


def test_the_tests_outcome(checkout):
    assert outcome(checkout, "good.py") == (3, 1, [])
    found = outcome(checkout, "good.py", "bad.py", "broken.py")
    assert [failure.name for failure in found.failures] == ["::broken"]  # pytest stops where it cannot collect
    found = outcome(checkout, "good.py", "bad.py")
    assert found[:2] == (3, 1)
    assert found.failures == [("bad::test_wrong", "AssertionError: one is not two")]


def test_tests_that_do_not_end_or_do_not_begin(checkout):
    [failure] = outcome(checkout, "slow.py", limit=2.0).failures
    assert failure.why.startswith("did not end in 2 s; ")
    [failure] = outcome(checkout, "absent.py").failures
    assert failure.name == "pytest"
    assert "absent.py" in failure.why


@pytest.fixture
def whole(checkout, monkeypatch):
    """The whole script on two parts on the CPU; what it returns."""
    about = {"device": "Some CPU", "memory_bytes": 1 << 40, "cache_bytes": 1000}
    small = {name: importlib.import_module(f"gpu.{name}").Sizes(**TINY[name]) for name in ("combine", "head_probe")}
    for name, sizes in small.items():
        monkeypatch.setattr(f"gpu.{name}.Sizes", lambda sizes=sizes: sizes)
    monkeypatch.setattr(gpu_check, "PARTS", {"combine": ("good.py",), "head_probe": ("bad.py",)})
    monkeypatch.setattr(gpu_check, "TESTS", ("good.py",))
    monkeypatch.setattr(gpu_check, "ROOT", checkout)
    monkeypatch.setattr(gpu_check, "RESULTS", checkout / "results")
    few = ceilings.measure
    monkeypatch.setattr(ceilings, "measure", lambda device, meter: few(device, meter, copy_bytes=99, matmul=9))

    def start(**options):
        options = SimpleNamespace(**{"part": None, "out": None, "seed": 1} | options)
        return gpu_check.everything(options, checkout, about, torch.device("cpu"), NoMeter(), "reference")

    return start


def test_a_whole_run_leaves_its_figures(whole, checkout, capsys):
    assert whole() == 0
    told = capsys.readouterr().out
    assert "tests: 3 passed, 1 skipped" in told
    assert "combine: parts that have seen nothing: passed" in told
    assert "met  head_probe: 101 tokens, 4 heads: MB of scratch" in told
    found = json.loads((checkout / "results" / "some-cpu.json").read_text())
    assert {row["part"] for row in found["rows"]} == {"combine", "head_probe"}
    assert set(found) >= {"device", "commit", "seed", "ceilings", "targets", "tests_passed", "elapsed_s", "notes"}
    assert found["failures"] == []


def test_a_part_alone_leaves_the_results_as_they_are(whole, checkout, capsys):
    assert whole(part=["combine"], out=checkout / "out") == 0
    assert not (checkout / "results").exists()
    found = json.loads((checkout / "out" / "combine-some-cpu.json").read_text())
    assert {row["part"] for row in found["rows"]} == {"combine"}
    assert "3 passed, 1 skipped" in (checkout / "out" / "pytest.log").read_text()


def test_a_part_whose_tests_failed_is_not_timed(whole, checkout, capsys):
    assert whole(part=["head_probe", "combine"], out=checkout / "out") == 1
    told = capsys.readouterr().out
    assert "failed: bad::test_wrong\n    AssertionError: one is not two" in told
    assert "not timed, since their tests or checks failed: head_probe\n" in told
    found = json.loads((checkout / "out" / "head_probe-combine-some-cpu.json").read_text())
    assert {row["part"] for row in found["rows"]} == {"combine"}
    assert found["failures"] == [["bad::test_wrong", "AssertionError: one is not two"]]


def test_a_failure_of_no_parts_tests_stops_all(whole):
    names = ["combine", "head_probe"]
    assert gpu_check.wrong([("combine: a check", "why")], names) == {"combine"}
    assert gpu_check.wrong([("good::test_number", "why")], names) == {"combine"}
    assert gpu_check.wrong([("pytest", "did not end"), ("good::test_number", "why")], names) == set(names)
    assert gpu_check.wrong([], names) == set()


def test_a_run_that_is_killed_leaves_the_parts_it_has_measured(whole, checkout, monkeypatch):
    def killed(run, sizes):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpu.head_probe.measure", killed)
    with pytest.raises(KeyboardInterrupt):
        whole()
    found = json.loads((checkout / "results" / "some-cpu.json").read_text())
    assert {row["part"] for row in found["rows"]} == {"combine"}
    assert set(found["seconds"]) == {"combine"}


def test_the_checkout_is_importable_without_an_install(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import gpu_check, pathlib;"
        "gpu_check.importable(pathlib.Path(sys.argv[2])); import longloom.kernels.dispatch as d; print(d.__file__)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, ROOT / "benchmarks", tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == str(tmp_path / "longloom" / "kernels" / "dispatch.py")


def test_without_a_gpu_one_line_is_told():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_check.py"], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        f"gpu-check: torch {torch.__version__} finds no CUDA device; nvidia-smi shows what the driver finds\n"
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_takes_the_interpreter_it_is_given(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    told = subprocess.run(
        ["make", "-s", "-C", ROOT, "gpu-check", f"PYTHON={python}", "ARGS=--part decode"],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert told.stdout.splitlines()[-1] == "benchmarks/gpu_check.py --part decode"
