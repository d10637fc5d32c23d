"""Importing a model: whole folders only, and no pickles."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from longloom.storage.manifest import cache_key
from longloom.storage.store import Store
from longloom.tasks.training.imported import build, revision
from longloom.tasks.training.task import import_model


@pytest.fixture
def source(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_whole_model_without_what_could_run(source: Path, out: Path) -> None:
    expected = {path.name for path in source.iterdir()}
    unwanted = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "x.pkl", "modeling_x.py")
    for name in unwanted:
        (source / name).write_bytes(b"code")
    (source / "checkpoint-1").mkdir()
    (source / "checkpoint-1" / "config.json").write_text("{}")
    (source / "manifest.json").write_text("{}")
    stats = build(str(source), out)
    assert {path.name for path in out.iterdir()} == expected
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in expected)
    assert stats.counts == {"files": len(expected), "bytes": sum(path.stat().st_size for path in out.iterdir())}
    LlamaForCausalLM.from_pretrained(out)


def test_a_tokenizer_alone(tokenizer_folder: Path, out: Path) -> None:
    build(str(tokenizer_folder), out)
    assert len(AutoTokenizer.from_pretrained(out)) == 300


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (["*"], "holds no config.json and no tokenizer.json, expected a transformers folder"),
        (["config.json", "tokenizer*"], "holds no config.json and no tokenizer.json, expected a transformers folder"),
        (["config.json"], r"holds \*.safetensors and no config.json, expected a whole model, no adapter"),
        (["*.safetensors"], r"holds no \*.safetensors, expected its weights in that format"),
    ],
)
def test_parts_are_refused(source: Path, out: Path, without: list[str], message: str) -> None:
    (source / "pytorch_model.bin").write_bytes(b"code")
    for path in [path for pattern in without for path in source.glob(pattern)]:
        path.unlink()
    with pytest.raises(ValueError, match=f"model {source}: {message}"):
        build(str(source), out)
    assert not list(out.iterdir())


def test_of_the_hub_it_is_the_commit_of_the_key(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another one is uploaded between the question and the download."""
    commits = iter(["c0ffee", "decaf"])
    asked: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None = None, **_: object) -> str:
        asked.append((name, revision))
        return str(source)

    monkeypatch.setenv("LONGLOOM_QUIET", "1")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(sha=next(commits)))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    ref = import_model(Store(tmp_path / "store"), "weaver/warp-1b")
    assert asked == [("weaver/warp-1b", "c0ffee")]
    key = cache_key("import", 1, {"source": "hub:weaver/warp-1b@c0ffee"}, {})
    assert ref.uri == f"artifacts/model/{key}"


def test_without_a_network_it_is_what_the_cache_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "c0ffee" + "0" * 34
    refs = tmp_path / "hub" / "models--weaver--warp-1b" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commit)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert revision("weaver/warp-1b") == f"hub:weaver/warp-1b@{commit}"
    with pytest.raises(
        ValueError, match=r"^model 'weaver/weft': .*neither the hub nor its local cache gives it \(OSError"
    ):
        revision("weaver/weft")
