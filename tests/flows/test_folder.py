"""Where relative paths of a deployment's runs lead, and where modules are not looked for; test_server.py has runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    {
        entry["entrypoint"].partition(":")[0]
        for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    }
)
#: Prefect does this with the flow of a run that a worker starts.
EVERY = """
import importlib, os, sys, warnings
warnings.simplefilter("ignore")  # Prefect says that flows are defined again
start = os.getcwd()
for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("longloom.flows")]:
        del sys.modules[name]
    os.chdir(start)
    sys.path.insert(0, ".")
    importlib.import_module(module)
    print(module, os.getcwd(), "." in sys.path)
"""
WORK = """
import os, sys
from longloom.flows.runtime import prepare
from longloom.tasks.workers import Workers

if __name__ == "__main__":
    prepare("store")
    with Workers(sys.argv[1], threads=1) as workers:
        print(workers.submit("where", os.getcwd).result())
"""


def run(code: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    ours = ("PREFECT_", "LONGLOOM_", "PYTHONSAFEPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, *code],
        cwd=folder,
        env=kept | {"HOME": str(folder)} | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_every_flow_of_a_deployment_enters_the_folder_when_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "data").mkdir()
    told = {"PREFECT__FLOW_RUN_ID": "1", "LONGLOOM_FOLDER": str(tmp_path / "data")}
    done = run(["-c", EVERY, *MODULES], tmp_path / "start", **told)
    assert done.returncode == 0, done.stderr
    assert len(MODULES) > 15
    assert done.stdout.splitlines() == [f"{module} {tmp_path / 'data'} False" for module in MODULES]


@pytest.mark.parametrize("told", [{"LONGLOOM_FOLDER": "/"}, {"PREFECT__FLOW_RUN_ID": "1"}])
def test_what_is_no_run_of_a_deployment_stays_where_it_is(tmp_path: Path, told: dict[str, str]) -> None:
    done = run(["-c", "import longloom.flows.params, os; print(os.getcwd())"], tmp_path, **told)
    assert (done.stdout, done.stderr) == (f"{tmp_path}\n", "")


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    told = {"LONGLOOM_FOLDER": str(tmp_path / "gone")}
    done = run(["-c", "import longloom.flows.report"], tmp_path, **told, PREFECT__FLOW_RUN_ID="1")
    assert done.returncode == 1
    said = f"LONGLOOM_FOLDER is '{tmp_path / 'gone'}': no such folder, expected the folder that relative paths of runs"
    assert done.stderr.splitlines()[-1].startswith(f"ValueError: {said}")
    for server in (["ui", "--port", "0"], ["serve"]):
        address = {"PREFECT_API_URL": "http://127.0.0.1:9/api"} if server == ["serve"] else {}
        done = run(["-c", "from longloom.flows.cli import main; main()", *server], tmp_path, **told, **address)
        assert done.returncode == 2
        assert done.stderr.startswith(f"longloom: {said}")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("workers", ["processes", "cluster"])
def test_a_process_that_is_spawned_runs_no_file_of_its_folder(tmp_path: Path, workers: str) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    corpus.mkdir()
    elsewhere.mkdir()
    (elsewhere / "work.py").write_text(WORK)
    for name in ("pickle", "random", "selectors", "sitecustomize", "orjson"):
        (corpus / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'a').write({name!r})\n")
    done = run([str(elsewhere / "work.py"), workers], corpus)
    assert not (tmp_path / "run").exists(), (tmp_path / "run").read_text()
    assert (done.returncode, done.stdout) == (0, f"{corpus}\n"), done.stderr
