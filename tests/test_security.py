"""What SECURITY.md promises of the code, the store and the pages."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

from longloom.storage.manifest import MANIFEST, FileEntry, Manifest, content_digest, hash_file
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import DamagedArtifact, Store

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for folder in ("evals", "flows", "infra", "kernels", "storage", "tasks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
#: Reads YAML by a safe loader of its own, which the test looks at.
SAFE_LOADERS = {"evals/longbench/prompts.py": "SafeLoader", "tasks/longcontext/harness_data.py": "CSafeLoader"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call of the package: place, dotted name of what is called, the call."""
    for path in SOURCES:
        place = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{place}:{node.lineno}", ast.unparse(node.func), node


def option(call: ast.Call, name: str) -> object:
    """The literal value of a keyword; None when it is not given, the node itself when it is no literal."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else keyword.value
    return None


CALLS = list(calls())


def test_there_are_calls_to_look_at() -> None:
    assert len(SOURCES) > 200
    assert [place.partition(":")[0] for place, name, _ in CALLS if name == "torch.load"] == ["kernels/torch_file.py"]


def test_no_pickle_is_loaded() -> None:
    loaders = re.compile(r"(^|\.)(c?[pP]ickle|dill|cloudpickle|joblib|marshal|shelve)\.(loads?|Unpickler|open)$")
    assert [place for place, name, _ in CALLS if loaders.search(name)] == []
    unsafe = [place for place, name, call in CALLS if name == "torch.load" and option(call, "weights_only") is not True]
    assert unsafe == []
    assert [place for place, _, call in CALLS if option(call, "allow_pickle") not in (None, False)] == []
    assert [place for place, name, _ in CALLS if name.endswith(("read_pickle", "add_safe_globals"))] == []


def test_code_of_a_hub_is_never_trusted() -> None:
    assert [place for place, _, call in CALLS if option(call, "trust_remote_code") not in (None, False)] == []
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert not re.search(r"HF_DATASETS_TRUST_REMOTE_CODE|TRUST_REMOTE_CODE\W+1", text)


def test_no_text_is_run() -> None:
    run = [place for place, name, _ in CALLS if name in ("eval", "exec", "os.system", "os.popen", "yaml.load")]
    assert [place for place in run if place.partition(":")[0] not in SAFE_LOADERS] == []
    for place, base in SAFE_LOADERS.items():
        assert f"class _Loader(yaml.{base})" in (ROOT / place).read_text(encoding="utf-8")
    assert [place for place, _, call in CALLS if option(call, "shell") not in (None, False)] == []


def test_every_page_escapes() -> None:
    environments = [(place, call) for place, name, call in CALLS if name.rpartition(".")[2] == "Environment"]
    assert len(environments) >= 2
    assert [place for place, call in environments if option(call, "autoescape") is not True] == []
    pages = sorted(ROOT.glob("tasks/**/*.html"))
    assert len(pages) >= 5
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape", text), page
        assert not re.search(r"""(src|href)=["'](https?:)?//""", text), f"{page}: needs a network"


# ---- a store that others may write to


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def published(store: Store) -> tuple[ArtifactRef, Path]:
    work = store.begin("thing", "k", resume=False)
    (work / "data.json").write_text("{}")
    ref = store.publish(
        work,
        Stats({}),
        stage="thing",
        version=1,
        kind="thing",
        key="k",
        parameters={},
        parents={},
        runtime={},
        seconds=0,
        code="",
        environment={},
    )
    return ref, store.open(ref)


def forge(folder: Path, **changes: object) -> None:
    """A manifest as an attacker with this code would write it: changed, and sealed again."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    whole = Manifest.model_construct(
        **manifest | {"files": [FileEntry.model_construct(**f) for f in manifest["files"]]}
    )
    whole = whole.model_copy(update={"digest": content_digest(whole.files)})
    (folder / MANIFEST).write_text(whole.sealed().model_dump_json())


@pytest.mark.parametrize("path", ["../../../../secret", "/etc/hostname", "a/../../b", ".", ""])
def test_a_manifest_that_leads_out_of_its_folder_is_damaged(store: Store, path: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    ref, folder = published(store)
    entry = {"path": path, "bytes": 1, "sha256": hash_file(tmp_path / "secret"), "volatile": False}
    forge(folder, files=[entry])
    with pytest.raises(DamagedArtifact, match=MANIFEST):
        store.open(ref)
    assert store.find("thing", "k") is None
    with pytest.raises(ValidationError, match="below the artifact's folder"):
        FileEntry(**entry)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_in_an_artifact_is_damage(store: Store, what: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    ref, folder = published(store)
    if what == "file":
        (folder / "data.json").unlink()
        (folder / "data.json").symlink_to(outside / "secret")
        name = "data.json"
    else:
        (folder / "more").symlink_to(outside)
        name = "more/secret"
    forge(folder, files=[{"path": name, "bytes": 1, "sha256": hash_file(outside / "secret"), "volatile": False}])
    with pytest.raises(DamagedArtifact, match=r"is a link"):
        store.verify(folder)
    assert store.find(ref.kind, ref.key) is None


@pytest.mark.parametrize("uri", ["../outside", "/etc", "artifacts/../../outside", "runs"])
def test_a_reference_out_of_the_store_is_refused(store: Store, uri: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (store.root / "runs").mkdir(parents=True)
    ref = ArtifactRef(kind="thing", uri=uri, digest="0" * 64, schema_version=1)
    with pytest.raises(ValueError, match="outside the store"):
        store.open(ref)


# ---- what is installed


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "infra" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_constraints_pin_every_package_exactly() -> None:
    audit = _load("audit")
    assert len(audit.pins((ROOT / "constraints.txt").read_text())) > 150
    for line in (
        "torch>=2",
        "torch @ https://example.org/torch.whl",
        "git+https://example.org/x",
        "-e .",
        "torch==2.*",
    ):
        with pytest.raises(ValueError, match="expected NAME==VERSION"):
            audit.pins(line)


def test_an_audit_that_could_not_ask_does_not_look_like_one_that_passed() -> None:
    audit = _load("audit")
    known = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    mended = {"name": "b", "version": "1", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]}
    skipped = {"name": "c", "skip_reason": "not found on PyPI"}
    lines, number = audit.weaknesses({"dependencies": [known, mended, skipped]})
    assert lines == ["a 1: PYSEC-1, mended in 2", "b 1: PYSEC-2, mended in no release yet"]
    assert number == 1
    assert audit.strangers({"a": "1", "torch": "2"}, {"a": "1.1", "torch": "2+cpu", "x": "9"}) == ["a 1.1, pinned 1"]


# ---- files with secrets


def test_passwords_are_written_once_for_the_owner_alone(tmp_path: Path) -> None:
    written = _load("secrets_file")
    place = tmp_path / ".env"
    written.write(place)
    assert place.stat().st_mode & 0o777 == 0o600
    values = dict(line.split("=", 1) for line in place.read_text().splitlines() if "=" in line and "#" not in line)
    compose = (ROOT / "infra" / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+):\?", compose)) == {name for name, value in values.items() if len(value) >= 48}
    assert set(re.findall(r"\$\{(\w+)", compose)) - {"LONGLOOM_DATA", "LONGLOOM_PORT", "LONGLOOM_URL"} == set(values)
    with pytest.raises(FileExistsError):
        written.write(place)
    ignored = subprocess.run(["git", "check-ignore", "infra/.env"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()


def test_certificates_are_of_one_authority_and_stay(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "infra" / "certificates.py"), str(tmp_path / "c"), "--names", "scheduler"]
    for words in ("written", "stay"):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        assert words in done.stdout
    assert (tmp_path / "c" / "dask-key.pem").stat().st_mode & 0o777 == 0o600
    (tmp_path / "c" / "ca.pem").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
