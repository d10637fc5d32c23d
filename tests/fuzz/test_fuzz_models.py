"""Damaged configuration files of models, adapters, reward models and head profiles; lists that say what data means."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.storage.parquet import ShardWriter
from longloom.tasks.coreset.checkpoints import count_parameters, read_checkpoints, read_moments
from longloom.tasks.coreset.foreign import read_optimizer
from longloom.tasks.coreset.less_files import read_less
from longloom.tasks.longcontext.head_scores import Heads, read_scores
from longloom.tasks.preference.conditions import read_negations
from longloom.tasks.preference.encoding import FILE, reading_of
from longloom.tasks.preference.inference import CANDIDATES, NAME, SCHEMA, read_contexts
from longloom.tasks.preference.profiles import LIST, read_profiles
from longloom.tasks.preference.template import DEFAULT

from .damage import damaged, damaged_json, examples, survives

BASE = Path(__file__).resolve().parents[2] / "tasks/training/base"
SCORES = ((0.5, 0.25), (0.125, 1.0))


def _reading(folder: Path) -> Any:
    found = reading_of(folder, window=96)
    assert isinstance(found.template, str)
    assert type(found.max_length) is int
    assert found.max_length > 0
    assert type(found.ends) is bool
    return found


def _profile(folder: Path) -> Any:
    found = HeadProfile.read(folder / "heads.json")
    found.chosen(induction=0.5, echo=0.5)
    found.write(folder / "again.json")
    return found


def _strings(found: dict[str, str]) -> dict[str, str]:
    assert all(isinstance(text, str) for pair in found.items() for text in pair)
    json.dumps(found, ensure_ascii=False).encode()
    return found


#: A file, how its folder is read, what it holds.
FILES: dict[str, tuple[str, Callable[[Path], Any], Any]] = {
    "reward": (FILE, _reading, {"template": DEFAULT, "max_length": 96, "ends": True}),
    "negations": (
        "negations.json",
        lambda folder: _strings(read_negations(folder / "negations.json")),
        {"Be kind.": "Be unkind.", "Be brief.": "Be long."},
    ),
    "profiles": (LIST, lambda folder: _strings(read_profiles(folder)), {"Be kind.": "kind", "Be good.": "kind"}),
    "heads": (
        "heads.json",
        _profile,
        None,
    ),
    "retrieval-head": (
        "scores.json",
        lambda folder: read_scores(folder / "scores.json", "retrieval-head", Heads(2, 2, 1)),
        {"0-0": [0.5, 1], "0-1": [0.25], "1-0": [1.0], "1-1": [0.0, 0.5]},
    ),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_damaged_json_of_models(tmp_path: Path, kind: str) -> None:
    name, load, content = FILES[kind]
    path = tmp_path / name
    if content is None:
        profile = HeadProfile(
            source="random",
            weights="0" * 64,
            induction=SCORES,
            echo=SCORES,
            settings=(("seed", 0),),
            sliding_layers=(1,),
        )
        profile.write(path)
        content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content))
    assert load(tmp_path)

    @examples(60)
    @given(damaged_json(content))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        survives(lambda: load(tmp_path), names=str(path))

    check()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("layout", "content"),
    [("duoattention", b"0.5\t0.25\n0.125\t1\n"), ("kvzip", saved(torch.tensor(SCORES)))],
)
def test_damaged_head_scores(tmp_path: Path, layout: str, content: bytes) -> None:
    path = tmp_path / "scores"

    @examples(60)
    @given(damaged(content))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = survives(lambda: read_scores(path, layout, Heads(2, 2, 2)), names=str(path))
        assert found is None or np.isfinite(np.array(found)).all()

    check()


PLAIN = torch.zeros(2, 2)
ODD_TENSORS = [
    *(PLAIN.bfloat16(), PLAIN.to(torch.complex64), PLAIN.to_sparse(), PLAIN.bool(), torch.zeros(0), PLAIN[..., None]),
    *(torch.tensor(1.0), torch.zeros(2, 3), PLAIN / 0, PLAIN.to("meta"), torch.zeros(1).expand(2, 2), PLAIN.half()),
    *([1], {"a": 1}, None, PLAIN.clone().requires_grad_(), torch.quantize_per_tensor(PLAIN, 1.0, 0, torch.qint8)),
]


@pytest.mark.parametrize("value", ODD_TENSORS, ids=range(len(ODD_TENSORS)))
def test_odd_tensors_as_head_scores(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "scores.pt"
    path.write_bytes(saved(value))
    found = survives(lambda: read_scores(path, "kvzip", Heads(2, 2, 2)), names=str(path))
    assert found is None or np.array(found).shape == (2, 2)


def warmup(folder: Path) -> Path:
    for number in (1, 2):
        place = folder / f"checkpoint-{number:05d}"
        place.mkdir(parents=True)
        told = {"step": 10 * number, "mean_learning_rate": 0.1}
        (place / "checkpoint.json").write_text(json.dumps(told))
        save_file({"exp_avg.w": torch.ones(3), "exp_avg_sq.w": torch.ones(3)}, place / "optimizer.safetensors")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (place / name).write_bytes(b"{}")
    return folder


@pytest.mark.parametrize("name", ["checkpoint.json", "optimizer.safetensors"])
def test_damaged_checkpoints(tmp_path: Path, name: str) -> None:
    folder = warmup(tmp_path / "warmup")
    path = folder / "checkpoint-00002" / name
    whole = path.read_bytes()

    def load() -> list[float]:
        found = read_checkpoints(folder)
        count_parameters(found[1])
        read_moments(found[1], {"w": torch.Size([3])})
        return [one.mean_learning_rate for one in found]

    assert load() == [0.1, 0.1]

    @examples(60)
    @given(damaged_json(json.loads(whole)) if path.suffix == ".json" else damaged(whole))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = survives(load, names=("checkpoint-00002", "checkpoints"))
        assert found is None or np.isfinite(found).all()

    check()


def test_damaged_tensors_from_elsewhere(tmp_path: Path) -> None:
    rows = tmp_path / "less" / "a-ckpt10-adam" / "dim3" / "all_orig.pt"
    adam = tmp_path / "trainer" / "optimizer.pt"
    rows.parent.mkdir(parents=True)
    adam.parent.mkdir()
    state = {"state": {0: {"exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}}, "param_groups": [{"params": [0]}]}
    layout = {"w": torch.Size([3])}
    out = tmp_path / "out"

    def less() -> Any:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        return read_less(tmp_path / "less", out, name="a", dimension=3, rates=[0.1], pool="p")

    @examples(60)
    @given(damaged(saved(torch.eye(3))), damaged(saved(state)))
    def check(matrix: bytes, moments: bytes) -> None:
        rows.write_bytes(matrix)
        adam.write_bytes(moments)
        survives(less, names=(str(rows), "a-ckpt10-adam"))
        survives(lambda: read_optimizer(adam.parent, layout), names="trainer/optimizer.pt")

    check()


def test_damaged_contexts(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, NAME, SCHEMA, rows_per_shard=4) as writer:
        writer.write([{"id": "a", "p": [0.5, 0.5]}])
    path = tmp_path / CANDIDATES

    @examples(60)
    @given(damaged_json(["Be kind.", "Be brief."]))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = survives(lambda: read_contexts(tmp_path), names=str(path))
        assert found is None or all(isinstance(name, str) for name in found[0])

    check()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_models(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(BASE, tmp_path / "model"))
    path = folder / name
    whole = json.loads(path.read_bytes())
    if name == "tokenizer.json":  # the vocabulary would take all the damage
        small = dict(list(whole["model"]["vocab"].items())[:300])
        whole["model"] |= {"vocab": small, "merges": []}

    @examples(25)
    @given(st.one_of(damaged_json(whole)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        survives(lambda: load_model(folder), names=str(folder))

    check()
