"""What imports what, and that the packaging tells the truth about the tree."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TOP = ("evals", "flows", "kernels", "storage", "tasks")
HEAVY = {"torch", "triton", "transformers", "duckdb"}


def imported(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` ran in a fresh interpreter."""
    code += "\nimport sys; sys.stderr.write(' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split("\n")[-1].split())


def test_no_flow_module_imports_a_heavy_library() -> None:
    modules = sorted(f"longloom.flows.{path.stem}" for path in (ROOT / "flows").glob("*.py"))
    assert len(modules) > 10
    found = imported("\n".join(f"import {module}" for module in modules))
    assert "prefect" in found
    assert not found & HEAVY


def test_form_models_import_pydantic_alone() -> None:
    found = imported("import longloom.flows.params")
    assert "pydantic" in found
    assert not found & (HEAVY | {"prefect", "pyarrow", "numpy", "rich", "cyclopts"})


def test_help_needs_no_prefect() -> None:
    found = imported(
        "import sys\nsys.argv = ['longloom', '--help']\nfrom longloom.flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    assert not found & (HEAVY | {"prefect", "pyarrow", "numpy"})


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("longloom")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "evaluate" in done.stdout


def test_no_init_file_stands_directly_in_a_top_folder() -> None:
    # A package `kernels` at the top would shadow the hub's and break transformers; see ARCHITECTURE's import names.
    assert [top for top in TOP if (ROOT / top / "__init__.py").exists()] == []


def test_packages_of_the_wheel_equal_the_tree() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {ROOT / top for top in TOP} | {path.parent for top in TOP for path in (ROOT / top).rglob("*.py")}
    tree = {"longloom." + folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    assert sorted(setuptools["packages"]) == sorted(tree)
    assert setuptools["package-dir"] == {f"longloom.{top}": top for top in TOP}


def test_every_folder_with_modules_below_the_top_is_a_package() -> None:
    folders = {path.parent for top in TOP for path in (ROOT / top).rglob("*.py")} - {ROOT / top for top in TOP}
    missing = [folder.relative_to(ROOT).as_posix() for folder in folders if not (folder / "__init__.py").exists()]
    assert missing == []


def test_entrypoints_of_the_deployments_exist() -> None:
    from prefect import Flow

    definition = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    entrypoints = {entry["name"]: entry["entrypoint"] for entry in definition["deployments"]}
    flows = {}
    for name, entrypoint in entrypoints.items():
        module, _, attribute = entrypoint.partition(":")
        flows[name] = getattr(importlib.import_module(module), attribute)
        assert isinstance(flows[name], Flow), entrypoint
    plain = {name: re.sub("-(nightly|weekly)$", "", name) for name in entrypoints}  # those of a schedule stand beside
    assert {name: flow.name for name, flow in flows.items()} == plain
    assert set(plain.values()) <= set(flows)
    assert set(flows) == {
        *("index", "pretrain", "coreset", "prove", "finetune", "extend", "tune", "evaluate", "rag", "heads", "judge"),
        *("pipeline", "report", "compare", "explain", "contamination", "trace", "replicate"),
        *("preference", "preference-score", "preference-evaluation"),
        *("index-nightly", "evaluate-weekly", "trace-weekly", "pipeline-weekly", "replicate-weekly"),
    }


def test_deployments_leave_parameters_to_the_form_models_and_hold_no_path() -> None:
    text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    definition = yaml.safe_load(text)
    assert definition["pull"] == []  # left out, Prefect would record the folder that it was registered from
    with_parameters = [entry["name"] for entry in definition["deployments"] if "parameters" in entry]
    assert with_parameters == ["trace-weekly"]  # what is traced has no default, and a schedule asks nobody
    assert all(
        schedule["active"] is False and schedule["slug"]
        for entry in definition["deployments"]
        for schedule in entry.get("schedules", [])
    )
    assert str(ROOT) not in text
