"""TracIn's products against gradients taken by hand, and which documents they are taken of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from longloom.kernels.huggingface.load import load_model
from longloom.storage.parquet import read_table
from longloom.storage.store import Store
from longloom.tasks.ngrams.query import Index
from longloom.tasks.trace import influence, pairs, study, task
from longloom.tasks.trace.influence import build, checkpoints_of, gradient, learning_rate_of
from longloom.tasks.training import finetune

from .conftest import Brute, letters


def by_hand(model: Any, ids: list[int], first: int) -> torch.Tensor:
    """The gradient of the mean loss on ids[first:], flat."""
    model.zero_grad()
    labels = torch.tensor([[-100] * first + ids[first:]])
    model(input_ids=torch.tensor([ids]), labels=labels).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()


def test_gradient_is_of_the_tokens_asked_for(model_folder: Path) -> None:
    model, tokenizer = load_model(model_folder, device="cpu", dtype="float32")
    text, begin = "The red fox is a sly animal", len("The red fox is a ")
    found = gradient(model, tokenizer, text, begin)
    assert found is not None
    ids = tokenizer(text)["input_ids"]
    expected = by_hand(model, ids, len(tokenizer("The red fox is a")["input_ids"]))
    assert torch.cat([part.flatten() for part in found]).double() == pytest.approx(expected, abs=1e-5)
    assert gradient(model, tokenizer, "The", 3) is None
    assert gradient(model, tokenizer, "a", 0) is None  # nothing stands before it


@pytest.mark.parametrize("kind", ["brute", "token_index"])
def test_products(
    kind: str, request: pytest.FixtureRequest, model_folder: Path, make_records: Callable[..., Path], tmp_path: Path
) -> None:
    index: Brute | Index = request.getfixturevalue(kind)
    records = make_records([("A red fox", "a sly animal"), ("A green frog", "a frog jumps")])
    (tmp_path / "pairs").mkdir()
    pairs.build(records, index, letters, tmp_path / "pairs", n=2, gamma=-1.0, mode="paper", least=1)
    model, tokenizer = load_model(model_folder, device="cpu", dtype="float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    model.save_pretrained(tmp_path / "checkpoint-7")
    settings: dict[str, Any] = {"gamma": -1.0, "count": 100, "documents": 50, "seed": 0, "device": "cpu"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        checkpoints = [model_folder, tmp_path / "checkpoint-7"]
        stats = build(model_folder, checkpoints, records, tmp_path / "pairs", index, tmp_path / name, **settings)
    assert (tmp_path / "one" / "influence.parquet").read_bytes() == (
        tmp_path / "two" / "influence.parquet"
    ).read_bytes()
    rows = read_table(tmp_path / "one", "influence").to_pylist()
    # Of the kept pairs only (" red fox", " sly animal") has documents that hold the output's n-gram alone.
    assert stats.counts["pairs"] == 1
    assert {(row["x"], row["y"]) for row in rows} == {(" red fox", " sly animal")}
    seen = [(row["checkpoint"], row["group"], row["document"], row["id"]) for row in rows]
    assert seen == [
        (checkpoint, *place)
        for checkpoint in ("", "checkpoint-7")
        for place in (("pair", 0, "d0"), ("pair", 1, "d1"), ("output", 4, "d4"))
    ]
    texts = {0: "The red fox is a sly animal", 1: "A sly animal", 4: "One sly animal"}
    network, _ = load_model(model_folder, device="cpu", dtype="float32")
    example = tokenizer("A red fox a sly animal")["input_ids"]
    target = by_hand(network, example, len(tokenizer("A red fox a")["input_ids"])).clone()
    for row in rows[:3]:
        ids = tokenizer(texts[row["document"]])["input_ids"]
        before = tokenizer(texts[row["document"]].removesuffix(" sly animal"))["input_ids"]
        assert row["product"] == pytest.approx(float(target @ by_hand(network, ids, len(before))), rel=1e-3)
    assert rows[3]["product"] != pytest.approx(rows[0]["product"], rel=1e-3)


def test_a_passage_is_what_the_corpus_holds_though_decoders_drop_a_leading_space() -> None:
    """As those of SentencePiece's tokenizers do."""

    class Stripping(Brute):
        def decode(self, tokens: Sequence[int]) -> str:
            return super().decode(tokens).removeprefix(" ")

    index: Any = Stripping(["The red fox is a sly animal. Really.", " sly animal"])
    gram = tuple(b" sly animal")
    for ordinal, text in ((0, "The red fox is a sly animal"), (1, "sly animal")):
        found, begin = influence._passage(index, index.document(ordinal).tokens, gram)
        assert (found, found[begin:]) == (text, "sly animal")


def test_draws_are_bounded(model_folder: Path, brute: Brute, make_records: Callable[..., Path], tmp_path: Path) -> None:
    records = make_records([("A red fox", "a sly animal")])
    for name in ("pairs", "few", "none"):
        (tmp_path / name).mkdir()
    pairs.build(records, brute, letters, tmp_path / "pairs", n=1, gamma=-1.0, mode="paper", least=1)
    arguments = (model_folder, [model_folder], records, tmp_path / "pairs", brute)
    stats = build(*arguments, tmp_path / "few", gamma=-1.0, count=2, documents=1, seed=3, device="cpu")
    assert (stats.counts["pairs"], stats.counts["gradients"]) == (2, 6)
    stats = build(*arguments, tmp_path / "none", gamma=0.999, count=2, documents=1, seed=3, device="cpu")
    assert stats.counts["pairs"] == 0
    assert read_table(tmp_path / "none", "influence").num_rows == 0


def test_checkpoints_of_a_trainer(tmp_path: Path) -> None:
    assert checkpoints_of(tmp_path) == [tmp_path]
    for name in ("checkpoints/checkpoint-20", "checkpoints/checkpoint-3", "checkpoints/checkpoint-last"):
        (tmp_path / name).mkdir(parents=True)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-3", "checkpoint-20"]


def test_the_sum_over_the_checkpoints_of_a_training(
    model_folder: Path, brute: Brute, make_records: Callable[..., Path], tmp_path: Path
) -> None:
    """TracInCP: each checkpoint's product counts by its learning rate, here against autograd by hand."""
    for name in ("pool", "model", "pairs", "out"):
        (tmp_path / name).mkdir()
    turns = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "a fox runs"}]
    pool = pa.Table.from_pylist([{"id": str(n), "source": "s", "messages": turns} for n in range(8)])
    pq.write_table(pool, tmp_path / "pool" / "instructions.parquet")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    start = tmp_path / "start"
    LlamaForCausalLM.from_pretrained(model_folder).save_pretrained(start)
    tokenizer.save_pretrained(start)
    model = tmp_path / "model"
    finetune.build(
        start, tmp_path / "pool", None, model, tuning="full", epochs=1, batch=2, learning_rate=1e-2, rank=1, alpha=1,
        dropout=0.0, max_length=32, seed=0, checkpoints=2,
    )  # fmt: skip
    etas = {"step-2": 1e-2 * (1 + 3 / 4) / 2, "step-4": 1e-2 * (2 / 4 + 1 / 4) / 2}  # linear to 0 over 4 steps
    checkpoints = checkpoints_of(model)
    assert [path.name for path in checkpoints] == list(etas)
    assert [learning_rate_of(path) for path in (*checkpoints, start)] == [*map(pytest.approx, etas.values()), 1.0]

    records = make_records([("A red fox", "a sly animal")])
    pairs.build(records, brute, letters, tmp_path / "pairs", n=2, gamma=-1.0, mode="paper", least=1)
    settings: dict[str, Any] = {"gamma": -1.0, "count": 100, "documents": 50, "seed": 0, "device": "cpu"}
    stats = build(model, checkpoints, records, tmp_path / "pairs", brute, tmp_path / "out", **settings)
    assert stats.counts["checkpoints"] == 2
    rows = read_table(tmp_path / "out", "influence").to_pylist()
    texts = {0: "The red fox is a sly animal", 1: "A sly animal", 4: "One sly animal"}
    totals = dict.fromkeys(texts, 0.0)
    for checkpoint in checkpoints:
        network = LlamaForCausalLM.from_pretrained(checkpoint)
        example = tokenizer("A red fox a sly animal")["input_ids"]
        target = by_hand(network, example, len(tokenizer("A red fox a")["input_ids"])).clone()
        for document, text in texts.items():
            ids = tokenizer(text)["input_ids"]
            found = by_hand(network, ids, len(tokenizer(text.removesuffix(" sly animal"))["input_ids"]))
            totals[document] += etas[checkpoint.name] * float(target @ found)
    summed = {document: sum(row["product"] for row in rows if row["document"] == document) for document in texts}
    assert summed == {document: pytest.approx(total, rel=1e-3) for document, total in totals.items()}
    (told,) = study._influence(tmp_path / "out", rows[0]["task"])
    assert (told["pairs"], told["checkpoints"]) == (1, 2)
    assert told["pair"] == pytest.approx((totals[0] + totals[1]) / 2, rel=1e-3)
    assert told["output"] == pytest.approx(totals[4], rel=1e-3)


def test_a_stage_finds_the_checkpoints_that_a_model_brings(
    index_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(influence, "build", lambda model, checkpoints, *rest, **options: asked.append(checkpoints))
    kept = [tmp_path / "checkpoints" / name for name in ("step-9", "step-10")]
    body: Any = task._influence
    for given, expected in (
        ([], [tmp_path]),
        ([], kept),
        (["elsewhere/checkpoint-3"], [Path("elsewhere/checkpoint-3")]),
    ):
        inputs = dict.fromkeys(("model", "records", "pairs"), tmp_path) | {"index": index_folder}
        work = SimpleNamespace(inputs=inputs, out=tmp_path, progress=None)
        body.__wrapped__(work, index=None, checkpoints=given)
        assert asked.pop() == expected
        for folder in kept:
            folder.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_other_checkpoints_are_another_influence(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_indexed", lambda store, index: ({}, {}, None))
    monkeypatch.setattr(task, "_influence", lambda store, inputs, **options: options["identity"]["checkpoints"])
    found = []
    for name in ("one", "other"):
        folder = tmp_path / name / "checkpoint-7"
        folder.mkdir(parents=True)
        (folder / file).write_text(name)
        given: dict[str, Any] = dict.fromkeys(("records", "pairs", "index", "model"))
        found.append(task.influence_of(Store(tmp_path / "store"), source=str(tmp_path / name), label="", **given))
    assert found[0] != found[1]
