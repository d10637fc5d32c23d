"""compose.yaml, the Dockerfiles and the Helm values: valid by their own tools where those are, and what must hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .stack import interpolate

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
COMPOSE = INFRA / "compose.yaml"
DOCKERFILES = sorted(INFRA.glob("Dockerfile.?pu"))
JOB = INFRA / "helm" / "bootstrap-job.yaml"
VALUES = sorted(set(INFRA.glob("helm/*.yaml")) - {JOB})
#: A version, not a name that moves.
PINNED = re.compile(r"\d+\.\d+\.\d+|\d+\.\d+(?=-)")


def tool(name: str) -> str:
    """The command, beside this Python or on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} (pip install -e '.[dev]')")
    return found


def check(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def test_compose_is_valid_by_the_compose_specification() -> None:
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_are_clean(path: Path) -> None:
    check(tool("hadolint"), path)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pin_everything_and_do_not_run_as_root(path: Path) -> None:
    text = path.read_text()
    (base,) = re.findall(r"^FROM (\S+)", text, re.M)
    assert PINNED.search(base.partition(":")[2]), base
    installs = re.findall(r"pip install (.*)", text)
    assert installs
    assert all("--constraint constraints.txt" in line for line in installs)
    assert re.findall(r"^USER (\S+)", text, re.M) == ["1001"]
    ignored = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    assert {".git", ".venv", "**/.env", "infra/certificates", "infra/data", ".longloom"} <= set(ignored)


def variables(dockerfile: Path) -> dict[str, str]:
    """What an image sets."""
    found = re.findall(r"^ENV (.*)$", dockerfile.read_text().replace("\\\n", " "), re.M)
    return dict(pair.split("=", 1) for line in found for pair in line.split())


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_processes_start_in_an_empty_folder(path: Path, compose: dict[str, Any]) -> None:
    """In one of corpora, a file there could stand in for a module."""
    assert variables(path)["PYTHONSAFEPATH"] == "1"
    start = Path(re.findall(r"^WORKDIR (\S+)", path.read_text(), re.M)[-1])
    mounted = {Path(place.split(":")[-1 - place.endswith(":ro")]) for place in compose["x-volumes"]}
    assert mounted == {Path("/store"), Path("/certificates"), Path("/data")}
    assert not any(start.is_relative_to(place) for place in (*mounted, Path("/opt/longloom")))
    assert re.search(rf"mkdir .*{start}", path.read_text())
    assert not re.search(rf"(chown|COPY) .*{start}", path.read_text())
    assert not any("working_dir" in service for service in compose["services"].values())


def test_the_bootstrap_runs_in_the_image(compose: dict[str, Any], tmp_path: Path) -> None:
    """Where Python leaves a script's folder, with the rest of it, out of its path."""
    (container,) = yaml.safe_load(JOB.read_text())["spec"]["template"]["spec"]["containers"]
    service = compose["services"]["bootstrap"]
    assert service["command"] == container["command"] == ["python", "/opt/longloom/infra/bootstrap.py"]
    assert service["environment"]["LONGLOOM_FOLDER"] == "/data"
    assert "PYTHONSAFEPATH" not in COMPOSE.read_text() + JOB.read_text()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "PYTHON"))}
    image = {"PYTHONSAFEPATH": variables(DOCKERFILES[0])["PYTHONSAFEPATH"], "PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, str(INFRA / "bootstrap.py")]
    done = subprocess.run(command, env=kept | image, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("bootstrap: no server"), done.stderr


def test_the_chart_says_where_the_ui_is_made() -> None:
    """The image's own place is not to be written to in Kubernetes; the chart's variable is of the same name."""
    code = "from prefect.settings import get_current_settings as s; print(s().server.ui.static_directory)"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    image = {key: value for key, value in variables(INFRA / "Dockerfile.cpu").items() if key.startswith("PREFECT_")}
    for chart, expected in (({}, "/home/longloom/ui"), ({"PREFECT_UI_STATIC_DIRECTORY": "/ui_build"}, "/ui_build")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=kept | image | chart,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout == f"{expected}\n", done.stderr


@pytest.mark.parametrize("name", ["dask-scheduler", "dask-worker"])
def test_images_have_the_commands_of_the_dask_chart(name: str, tmp_path: Path) -> None:
    """Which distributed has no more."""
    script = INFRA / "dask-command.sh"
    for path in DOCKERFILES:
        assert f"COPY infra/dask-command.sh /usr/local/bin/{name}\n" in path.read_text()
    shutil.copy(script, tmp_path / name)  # with its mode, as COPY does
    places = os.pathsep.join([str(tmp_path), str(Path(tool("dask")).parent), os.environ["PATH"]])
    done = subprocess.run(
        [name, "--help"], env=os.environ | {"PATH": places}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith(f"Usage: dask {name.removeprefix('dask-')} "), done.stderr


def test_every_image_is_a_version(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert PINNED.search(service["image"].rpartition(":")[2]), (name, service["image"])


def test_no_secret_is_in_a_file(compose: dict[str, Any]) -> None:
    """Compose takes them from the environment, and refuses to start without them."""
    given = ["POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "PREFECT_AUTH"]
    text = COMPOSE.read_text()
    for name in given:
        assert f"${{{name}:?" in text, f"{name} may be empty"
    for name, service in compose["services"].items():
        for key, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|SECRET|_AUTH|_KEY|TOKEN", key) and not key.startswith("DASK_"):
                assert re.fullmatch(r"\$\{\w+(:[?-].*)?\}", value), (name, key)
            assert not re.search(r"://[^/$]*:[^/$@]+@", str(value)), (name, key)
    for path in (*VALUES, JOB):
        for key, value in _leaves(yaml.safe_load(path.read_text())):
            assert not re.search(r"password|authstring|secretkey", key.lower()), (path.name, key, value)
            assert "BEGIN" not in str(value), (path.name, key)


def _leaves(node: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [leaf for name, value in node.items() for leaf in _leaves(value, str(name))]
    if isinstance(node, list):
        return [leaf for value in node for leaf in _leaves(value, key)]
    return [(key, node)]


def test_what_runs_is_watched_and_what_starts_waits(compose: dict[str, Any]) -> None:
    services = compose["services"]
    once = {name for name, service in services.items() if service.get("restart") == "no"}
    assert once == {"migrate", "certificates", "bootstrap"}
    for name, service in services.items():
        assert name in once or service["restart"] == "unless-stopped", name
        for other, how in (service.get("depends_on") or {}).items():
            expected = "service_completed_successfully" if other in once else "service_healthy"
            assert how["condition"] == expected, (name, other)
            assert other in once or "healthcheck" in services[other], (name, other)


def test_only_the_server_is_published_and_on_loopback(compose: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in compose["services"].items() if service.get("ports")}
    assert list(ports) == ["server"]
    assert all(port.startswith("127.0.0.1:") for port in ports["server"])


def test_containers_are_confined(compose: dict[str, Any]) -> None:
    """All but PostgreSQL's and Redis's, whose images step down from root themselves."""
    confined = {name: one for name, one in compose["services"].items() if name not in ("postgres", "redis")}
    assert len(confined) == 11
    for name, service in confined.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        if name != "certificates":
            assert service["cap_drop"] == ["ALL"], name
            assert service.get("user") == (None if service["image"].startswith("longloom:") else "1001:1001"), name
    assert compose["services"]["s3"]["depends_on"] == {"certificates": {"condition": "service_completed_successfully"}}
    once = compose["services"]["certificates"]
    assert (once["user"], once["restart"]) == ("0", "no")
    assert "chown 1001:1001 /s3 " in once["command"][-1]
    assert set(compose["services"]["s3"]["volumes"]) < set(once["volumes"])


def test_a_worker_has_one_gpu_and_one_run(compose: dict[str, Any]) -> None:
    """Two runs of one worker would both take GPU 0."""
    workers = [one for name, one in compose["services"].items() if name.startswith("worker-gpu")]
    devices, names = [], []
    for worker in workers:
        command = worker["command"]
        assert command[command.index("--limit") + 1] == "1"
        assert command[command.index("--work-queue") + 1] == "gpu"
        (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
        assert "count" not in device
        devices += device["device_ids"]
        names.append(command[command.index("--name") + 1])
    assert devices == ["0", "1"]
    assert len(set(names)) == len(workers)
    assert [("gpu" in worker["profiles"], "gpus" in worker["profiles"]) for worker in workers] == [
        (True, True),
        (False, True),
    ]


def test_dask_is_asked_for_its_health_and_does_not_kill(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert "http://127.0.0.1:8787/health" in services["dask-scheduler"]["healthcheck"]["test"][-1]
    command = services["dask-worker"]["command"]
    assert command[command.index("--memory-limit") + 1] == "0"
    page = (ROOT / "docs" / "howto" / "dask.md").read_text()
    commands = re.findall(r"^ {4}.*\bdask worker .*", page, re.M)
    assert len(commands) == 3
    assert all(" --memory-limit 0" in line for line in commands)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "http://127.0.0.1:4200"),
        ({"LONGLOOM_PORT": "5000"}, "http://127.0.0.1:5000"),
        ({"LONGLOOM_PORT": "5000", "LONGLOOM_URL": "https://prefect.example"}, "https://prefect.example"),
    ],
)
def test_browsers_find_the_api_beside_the_ui(compose: dict[str, Any], given: dict[str, str], expected: str) -> None:
    server = {key: interpolate(value, given) for key, value in compose["x-server"].items()}
    assert (server["PREFECT_UI_URL"], server["PREFECT_SERVER_UI_API_URL"]) == (expected, f"{expected}/api")
    (port,) = compose["services"]["server"]["ports"]
    assert interpolate(port, given) == f"127.0.0.1:{given.get('LONGLOOM_PORT', 4200)}:4200"


def test_all_processes_of_the_server_agree(compose: dict[str, Any]) -> None:
    """The settings of Prefect's page on scaling, and authentication; none of them is of the memory kind."""
    services = compose["services"]
    server = services["server"]["environment"]
    assert services["services"]["environment"] == services["migrate"]["environment"] == server
    redis = {key for key, value in server.items() if str(value).startswith(("prefect_redis.", "redis://"))}
    assert len(redis) == 8
    assert server["PREFECT_SERVER_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")
    assert server["PREFECT_SERVER_API_AUTH_STRING"].startswith("${PREFECT_AUTH:?")
    assert "--no-services" in services["server"]["command"]
    for name in ("bootstrap", "worker-cpu", "worker-gpu"):
        assert services[name]["environment"]["PREFECT_API_AUTH_STRING"] == "${PREFECT_AUTH}", name


def test_settings_are_ones_that_prefect_knows(compose: dict[str, Any]) -> None:
    """A misspelt one would be ignored in silence."""
    from prefect import settings

    text = "\n".join(path.read_text() for path in (COMPOSE, *VALUES, JOB, *DOCKERFILES))
    named = set(re.findall(r"\bPREFECT_[A-Z_]+\b", text))
    named -= {"PREFECT_AUTH"}
    named -= {name for name in named if name.startswith("PREFECT_REDIS_")}  # prefect-redis' own, tried in the next file
    assert len(named) >= 20
    assert [name for name in sorted(named) if not hasattr(settings, name)] == []


def test_settings_have_values_that_prefect_takes(compose: dict[str, Any]) -> None:
    """Else nothing would start; read as Prefect reads them, out of the environment."""
    helm = yaml.safe_load((INFRA / "helm" / "prefect-server.yaml").read_text())
    secrets = dict.fromkeys(("POSTGRES_PASSWORD", "REDIS_PASSWORD", "PREFECT_AUTH"), "x")
    by_compose = {key: interpolate(value, secrets) for key, value in compose["x-server"].items()}
    by_helm = {entry["name"]: entry["value"] for entry in helm["global"]["prefect"]["env"]}
    code = "from prefect.settings import get_current_settings as s; print(s().server.events.retention_period.days)"
    for given in (by_compose, by_helm):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stdout == "7\n", done.stderr


def test_helm_values_hold_what_security_asks() -> None:
    found = {path.stem: yaml.safe_load(path.read_text()) for path in VALUES}
    assert set(found) == {"prefect-server", "prefect-worker-cpu", "prefect-worker-gpu", "dask"}
    server = found["prefect-server"]
    assert server["server"]["basicAuth"] == {"enabled": True, "existingSecret": "longloom-auth"}
    assert server["ingress"]["tls"] is True
    assert server["backgroundServices"]["runAsSeparateDeployment"] is True
    queues = []
    for name in ("cpu", "gpu"):
        worker = found[f"prefect-worker-{name}"]["worker"]
        assert (worker["config"]["type"], worker["config"]["workPool"]) == ("process", "longloom")
        assert PINNED.search(worker["image"]["prefectTag"])
        queues += worker["config"]["workQueues"]
    assert queues == ["default", "compute", "gpu"]
    limited = {"name": "LONGLOOM_GPU_LIMIT", "value": "longloom-gpu"}
    assert limited in found["prefect-worker-gpu"]["worker"]["extraEnvVars"]
    assert limited not in found["prefect-worker-cpu"]["worker"]["extraEnvVars"]
    dask = found["dask"]
    assert dask["jupyter"] == {"enabled": False, "rbac": False}
    for part in (dask["scheduler"], dask["worker"], *dask["additional_worker_groups"]):
        assert PINNED.search(str(part["image"]["tag"]))
        assert "dask_worker" not in part["image"]  # the chart's own is right, whichever chart it is
        given = {entry["name"]: entry.get("value") for entry in part["env"]}
        for key, value in yaml.safe_load(COMPOSE.read_text())["x-dask"].items():
            if "CLIENT" not in key and not value.startswith("/certificates/"):
                assert given[key] == value, key
    for part in (dask["worker"], *dask["additional_worker_groups"]):
        assert part["extraArgs"][:2] == ["--memory-limit", "0"]


def _names(node: Any, kind: str) -> set[str]:
    """Of the secrets or claims that a manifest or values refer to."""
    if isinstance(node, list):
        return {name for value in node for name in _names(value, kind)}
    if not isinstance(node, dict):
        return set()
    found = {name for value in node.values() for name in _names(value, kind)}
    if kind == "claim":
        return found | {value for key, value in node.items() if key == "claimName"}
    found |= {node[key] for key in ("existingSecret", "extraEnvVarsSecret", "secretName") if key in node}
    return found | {node[key]["name"] for key in ("secretKeyRef", "secretRef", "secret") if "name" in node.get(key, {})}


def test_the_job_goes_with_the_values() -> None:
    values = {path.stem: yaml.safe_load(path.read_text()) for path in VALUES}
    workers = [values[f"prefect-worker-{kind}"]["worker"] for kind in ("cpu", "gpu")]
    job = yaml.safe_load(JOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    image = workers[0]["image"]
    assert container["image"] == f"{image['repository']}:{image['prefectTag']}"
    assert _names(job, "secret") == {workers[0]["extraEnvVarsSecret"]}
    assert _names(job, "claim") == _names(values, "claim") == {"longloom-store"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for worker in workers:
        (claimed,) = (volume["name"] for volume in worker["extraVolumes"] if "persistentVolumeClaim" in volume)
        (folder,) = (mount["mountPath"] for mount in worker["extraVolumeMounts"] if mount["name"] == claimed)
        assert given["LONGLOOM_FOLDER"] == folder == mounts["store"]
        assert given["PREFECT_API_URL"] == worker["serverApiConfig"]["apiUrl"]
        block = {"name": "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK", "value": "remote-file-system/longloom"}
        assert block in worker["extraEnvVars"]
    assert given["LONGLOOM_RESULTS"].startswith("s3://")
    gpu = workers[1]
    assert (gpu["config"]["limit"], gpu["resources"]["limits"]["nvidia.com/gpu"]) == (1, 1)
    assert given["LONGLOOM_GPUS"] == str(gpu["replicaCount"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_readme_makes_every_secret_that_is_referred_to() -> None:
    text = (INFRA / "README.md").read_text().replace("\\\n", " ")
    made = dict(re.findall(r"create secret generic (\S+) (.*)", text))
    values = [yaml.safe_load(path.read_text()) for path in (*VALUES, JOB)]
    assert set(made) == _names(values, "secret")
    keys = set(re.findall(r"--from-literal=(\w+)=", made["longloom-worker"]))
    storage = {key for key in yaml.safe_load(COMPOSE.read_text())["x-storage"] if key.startswith("AWS_")}
    assert keys == {"PREFECT_API_AUTH_STRING"} | storage
    assert len(storage) == 4
    for path in (*VALUES, JOB):
        assert f"helm/{path.name}" in text
