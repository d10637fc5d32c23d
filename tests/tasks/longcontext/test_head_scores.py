"""Published head scores: files as their authors write them, and whatever else such a file may hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longloom.tasks.longcontext.head_scores import Heads, read_scores

HEADS = Heads(layers=3, query=8, kv=4)


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).random(shape)


def retrieval_head(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def detections() -> dict[str, list[float]]:
    """Of three layers with eight query heads, in no order, as many detections as a head's number and one."""
    rng = np.random.default_rng(2)
    return {f"{layer}-{head}": rng.random(1 + head).tolist() for head in range(8) for layer in (2, 0, 1)}


def test_duoattention(tmp_path: Path) -> None:
    path = tmp_path / "full_attention_heads.tsv"
    gates = numbers(3, 4)
    gates[1, 2], gates[2, 0] = 1.25, -0.5  # its loader clips
    np.savetxt(path, gates, delimiter="\t")
    assert read_scores(path, "duoattention", HEADS) == tuple(map(tuple, gates.clip(0, 1).tolist()))


@pytest.mark.parametrize(("layers", "kv"), [(1, 4), (3, 1), (1, 1)])
def test_a_single_layer_or_kv_head(layers: int, kv: int, tmp_path: Path) -> None:
    scores = numbers(layers, kv)
    np.savetxt(tmp_path / "scores.tsv", scores, delimiter="\t")
    torch.save(torch.tensor(scores).squeeze(), tmp_path / "scores.pt")
    heads = Heads(layers, 2 * kv, kv)
    for name, layout in (("scores.tsv", "duoattention"), ("scores.pt", "kvzip")):
        assert read_scores(tmp_path / name, layout, heads) == tuple(map(tuple, scores.tolist()))


@pytest.mark.parametrize("kv", [8, 4, 2, 1])
def test_retrieval_head_takes_means_and_the_best_of_a_group(kv: int, tmp_path: Path) -> None:
    found = detections()
    path = retrieval_head(tmp_path / "model.json", found)
    scores = read_scores(path, "retrieval-head", Heads(3, 8, kv))
    group = 8 // kv
    for layer in range(3):
        for head in range(kv):
            own = [found[f"{layer}-{query}"] for query in range(head * group, (head + 1) * group)]
            assert scores[layer][head] == pytest.approx(max(sum(one) / len(one) for one in own))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kvzip(dtype: torch.dtype, tmp_path: Path) -> None:
    scores = torch.tensor(numbers(3, 1, 4)).to(dtype)
    torch.save(scores, tmp_path / "model-scbench_qa_eng-0.pt")
    expected = tuple(map(tuple, scores[:, 0].double().tolist()))
    assert read_scores(tmp_path / "model-scbench_qa_eng-0.pt", "kvzip", HEADS) == expected


@pytest.mark.parametrize("layout", ["duoattention", "kvzip"])
@pytest.mark.parametrize("shape", [(3, 8), (4, 3), (2, 4), (12,)])
def test_scores_of_other_heads_are_refused(layout: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "scores"
    if layout == "kvzip":
        torch.save(torch.tensor(numbers(*shape)), path)
    else:
        np.savetxt(path, numbers(*shape).reshape(shape[0], -1), delimiter="\t")
    with pytest.raises(ValueError, match=r"scores: has the shape .*, expected the model's 3 layers x 4 KV heads$"):
        read_scores(path, layout, HEADS)


def test_retrieval_head_of_other_heads_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    found = detections()
    missing = {name: scores for name, scores in found.items() if name != "2-7"}
    with pytest.raises(ValueError, match=r"s.json: lacks '2-7', expected the 8 query heads of each of .* 3 layers$"):
        read_scores(retrieval_head(path, missing), "retrieval-head", HEADS)
    with pytest.raises(ValueError, match=r"s.json: has '3-0', expected the 8 query heads"):
        read_scores(retrieval_head(path, found | {"3-0": [1]}), "retrieval-head", HEADS)
    for wrong in ([], 0.5, ["a"], [True], None):
        with pytest.raises(ValueError, match=r"s.json: '1-1' holds .*, expected a list of numbers$"):
            read_scores(retrieval_head(path, found | {"1-1": wrong}), "retrieval-head", HEADS)


@pytest.mark.parametrize("layout", ["duoattention", "retrieval-head", "kvzip"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(layout: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "scores"
    scores = numbers(3, 4)
    scores[1, 2] = value
    if layout == "duoattention":
        np.savetxt(path, scores, delimiter="\t")
    elif layout == "kvzip":
        torch.save(torch.tensor(scores), path)
    else:
        retrieval_head(path, detections() | {"1-5": [0.5, value]})
    with pytest.raises(ValueError, match=r"KV head 2 of layer 1 has (nan|-?inf), expected finite scores$"):
        read_scores(path, layout, HEADS)


class Malicious:
    """Makes a folder where a pickle is trusted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    for text in ("layer\thead\n0\t1\n", "1\t2\n3\n", ""):
        path.write_text(text)
        for layout in ("duoattention", "retrieval-head", "kvzip"):
            with pytest.raises(ValueError, match=f"{path}:") as caught:
                read_scores(path, layout, HEADS)
            assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match="found no JSON object"):
        read_scores(retrieval_head(path, [1, 2]), "retrieval-head", HEADS)
    torch.save({"scores": torch.zeros(3, 4)}, path)
    with pytest.raises(ValueError, match=r"holds a dict, expected a tensor of real numbers$"):
        read_scores(path, "kvzip", HEADS)
    torch.save(Malicious(tmp_path / "made"), path)
    with pytest.raises(ValueError, match=r"cannot be read as tensors alone"):
        read_scores(path, "kvzip", HEADS)
    assert not (tmp_path / "made").exists()
    with pytest.raises(ValueError, match=r"is a folder, expected one file$"):
        read_scores(tmp_path, "duoattention", HEADS)
    with pytest.raises(ValueError, match=r"unknown layout .* 'duo'; known: duoattention, kvzip, retrieval-head$"):
        read_scores(path, "duo", HEADS)
    for layout in ("duoattention", "retrieval-head", "kvzip"):
        with pytest.raises(FileNotFoundError):
            read_scores(tmp_path / "no", layout, HEADS)
