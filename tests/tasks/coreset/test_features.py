"""Gradient features end to end on a toy Llama, against autograd and a plain projection written out by hand."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from longloom.tasks.coreset import features, shards
from longloom.tasks.coreset.batched import PerExample
from longloom.tasks.coreset.features import build
from longloom.tasks.coreset.projection import Projection
from longloom.tasks.coreset.store import open_features
from longloom.tasks.progress import Progress
from longloom.tasks.training.sft import encode, load_examples

DIMENSION, SEED, MAX_LENGTH = 48, 3, 40


def run(toy, out: Path, **changes):
    out.mkdir(parents=True, exist_ok=True)
    given = {
        "dimension": DIMENSION,
        "seed": SEED,
        "max_length": MAX_LENGTH,
        "adam": True,
        "bias_correction": False,
        "device": "cpu",
        "threads": 2,
        "workers": "threads",
    }
    pool = changes.pop("pool", toy.instructions)
    return build(toy.model, pool, toy.warmup, out, **given | changes)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    run(toy, out)
    return out


@pytest.fixture(scope="module")
def in_fours(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards of four rows."""
    out = tmp_path_factory.mktemp("in-fours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SHARD_ROWS", 4)
        run(toy, out)
    return out


def by_hand(toy, conversation: list[dict[str, str]], *, adam: bool = True) -> tuple[np.ndarray, list[float]]:
    """One row and the losses: full logits, log-softmax, backward() into .grad, float64 from there on."""
    input_ids, labels = encode(AutoTokenizer.from_pretrained(toy.model), conversation, max_length=MAX_LENGTH)
    row, told = np.zeros(DIMENSION), []
    for checkpoint, weight in (("checkpoint-00001", 0.25), ("checkpoint-00002", 0.75)):
        base = AutoModelForCausalLM.from_pretrained(toy.model)
        model = PeftModel.from_pretrained(base, toy.warmup / checkpoint, is_trainable=True).eval()
        log_probabilities = model(torch.tensor([input_ids])).logits[0].log_softmax(-1)
        losses = [-log_probabilities[t - 1, labels[t]] for t in range(1, len(labels)) if labels[t] != -100]
        (sum(losses) / len(losses)).backward()
        told.append(float(sum(losses).detach() / len(losses)))
        moments = load_file(toy.warmup / checkpoint / "optimizer.safetensors")
        named = [(name, p) for name, p in model.named_parameters() if "lora_" in name]
        gradient, first, second = (
            np.concatenate([tensor.double().numpy().ravel() for tensor in group])
            for group in (
                [p.grad for _, p in named],
                [moments[f"exp_avg.{name}"] for name, _ in named],
                [moments[f"exp_avg_sq.{name}"] for name, _ in named],
            )
        )
        adjusted = (0.9 * first + 0.1 * gradient) / np.sqrt(0.999 * second + 0.001 * gradient**2 + 1e-8)
        taken = torch.from_numpy(adjusted if adam else gradient)[None]
        projected = Projection(taken.shape[1], DIMENSION, seed=SEED)(taken)[0].numpy()
        row += weight * projected / np.linalg.norm(projected)
    return row, told


@pytest.mark.parametrize("example", [0, 2, 8, 9])
def test_rows_equal_the_hand_made_ones(toy, built: Path, example: int) -> None:
    """A plain example, another, one with two answers, and one that loses its beginning to max_length."""
    row, losses = by_hand(toy, load_examples(toy.instructions)[example][1])
    stored = open_features(built)
    np.testing.assert_allclose(stored.rows(example, example + 1)[0], row, atol=3e-4)
    np.testing.assert_allclose(stored.losses()[example], losses, rtol=1e-5)


def test_without_adam_they_are_the_plain_gradients(toy, tmp_path: Path) -> None:
    run(toy, tmp_path, adam=False)
    row, _ = by_hand(toy, load_examples(toy.instructions)[2][1], adam=False)
    np.testing.assert_allclose(open_features(tmp_path).rows(2, 3)[0], row, atol=3e-4)
    assert json.loads((tmp_path / "features.json").read_text())["adam"] is None


def test_bias_correction_changes_the_rows(toy, built: Path, tmp_path: Path) -> None:
    run(toy, tmp_path, bias_correction=True)
    assert np.abs(open_features(tmp_path).rows(0, 5) - open_features(built).rows(0, 5)).max() > 1e-3
    with pytest.raises(ValueError, match="bias_correction"):
        run(toy, tmp_path, bias_correction=True, adam=False)


def test_shape_zeros_and_counts(toy, built: Path, tmp_path: Path) -> None:
    stored = open_features(built)
    rows = stored.rows(0, 10)
    assert stored.shape == rows.shape == (10, DIMENSION)
    # 5 has no assistant. 7 answers nothing, and learns from its end token alone.
    assert [i for i, row in enumerate(rows) if not row.any()] == [5]
    assert np.array_equal(rows[2], rows[3]), "equal examples have equal rows"
    record = json.loads((built / "features.json").read_text())
    told = ("zero_gradient", "without_target", "at_max_length", "duplicates", "empty")
    assert [record[name] for name in told] == [1, 1, 1, 1, 0]
    assert record["one_by_one"] is None
    assert stored.weights == pytest.approx([0.25, 0.75])
    shards_of = [f"checkpoint-0000{k}/rows-000000.npy" for k in (1, 2)]
    assert sorted(files(built)) == [*shards_of, "examples.parquet", "features.json"]
    table = pq.read_table(built / "examples.parquet").to_pydict()
    assert table["index"] == list(range(10))
    assert sum(table["tokens"]) == record["tokens"]
    assert table["loss"][5] is None
    assert table["answer_tokens"][5] == 0
    assert table["answer_tokens"][7] == 1
    assert [len(one) for i, one in enumerate(table["loss"]) if i != 5] == [2] * 9
    stats = run(toy, tmp_path)
    assert stats.counts == {"examples": 10, "dimension": DIMENSION, "zero_gradient": 1}
    assert files(tmp_path) == files(built)


def test_rows_are_unit_at_each_checkpoint_and_no_more_than_unit_in_the_sum(built: Path) -> None:
    stored = open_features(built)
    for number in range(2):
        norms = np.linalg.norm(stored.checkpoint(number, 0, 10), axis=1)
        np.testing.assert_allclose(np.delete(norms, 5), 1, atol=1e-3)
        assert norms[5] == 0
    norms = np.linalg.norm(stored.rows(0, 10), axis=1)
    assert (norms <= 1 + 1e-3).all()
    assert (np.delete(norms, 5) < 0.999).any(), "the sum must not be normalised again"


def test_odd_pools(toy, pool_of, tmp_path: Path) -> None:
    """No turn at all, an empty answer, nobody who answers, the same a hundred times."""
    pool = pool_of([], ["a", ""], ["only asked"], *[["say ab", "abab"]] * 100)
    stats = run(toy, tmp_path / "out", pool=pool)
    rows = open_features(tmp_path / "out").rows(0, 103)
    assert rows.any(axis=1).tolist() == [False, True, False] + [True] * 100
    assert (rows[3:] == rows[3]).all()
    found = {name: stats.values[name] for name in ("empty", "without_target", "duplicates", "zero_gradient")}
    assert found == {"empty": 1, "without_target": 2, "duplicates": 99, "zero_gradient": 2}


def test_max_length_is_bound_by_the_model(toy, tmp_path: Path) -> None:
    assert run(toy, tmp_path, max_length=10_000).values["max_length"] == 64


def test_max_length_is_bound_by_the_text_part_of_a_model(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose window stands in a configuration within its own (Gemma 3, Llama 4)."""
    text = AutoConfig.from_pretrained(toy.model)
    nested = SimpleNamespace(model_type="nested", get_text_config=lambda: text)
    monkeypatch.setattr(features, "AutoConfig", SimpleNamespace(from_pretrained=lambda folder: nested))
    assert run(toy, tmp_path, max_length=10_000, dimension=8).values["max_length"] == 64


def test_labels_lost_to_truncation_give_zeros(toy, pool_of, tmp_path: Path) -> None:
    """The answer comes first here, and the tail of the second question is all that is kept."""
    pool = pool_of(["a", "b", "c" * 50], ["a", "b"])
    stats = run(toy, tmp_path, pool=pool, dimension=8, max_length=20)
    assert stats.counts["zero_gradient"] == stats.values["without_target"] == stats.values["at_max_length"] == 1
    assert open_features(tmp_path).rows(0, 2).any(axis=1).tolist() == [False, True]


def test_threads_change_no_byte(toy, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shards.BATCH_TOKENS, "cpu", 40)
    before = torch.get_num_threads()
    for threads in (1, 3):
        run(toy, tmp_path / str(threads), threads=threads)
        assert torch.get_num_threads() == before
    assert files(tmp_path / "1") == files(tmp_path / "3")
    found, expected = (open_features(folder).rows(0, 10) for folder in (tmp_path / "1", built))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_cluster_of_this_host_writes_the_same_bytes(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So do a scheduler's workers: test_scheduler.py."""
    monkeypatch.setattr(features, "SHARD_ROWS", 4)
    run(toy, tmp_path / "alone")
    told: list[tuple[int, int | None]] = []
    run(toy, tmp_path / "other", workers="cluster", threads=1, progress=lambda *done: told.append(done))
    assert files(tmp_path / "other") == files(tmp_path / "alone")
    assert told[-1] == (20, 20)


def test_no_scheduler_is_one_line(toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no scheduler answers there"):
        run(toy, tmp_path, workers="nonsense://x")


@pytest.mark.parametrize(
    ("tokens", "expected"), [(10, [[1], [3], [0, 2]]), (1, [[1], [3], [0], [2]]), (99, [[1, 3, 0, 2]])]
)
def test_batches_are_cut_by_padded_tokens(tokens: int, expected: list[list[int]]) -> None:
    examples = [(torch.ones(n + 1, dtype=torch.int64), torch.ones(n + 1, dtype=torch.int64)) for n in (5, 12, 4, 9)]
    assert shards.cut(examples, tokens) == expected


def test_what_batches_cannot_do_is_done_one_by_one(toy, built: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "unsupported", lambda *_: "some reason")
    stats = run(toy, tmp_path)
    assert stats.values["one_by_one"] == "some reason"
    found, expected = (open_features(folder).rows(0, 10) for folder in (tmp_path, built))
    np.testing.assert_allclose(found, expected, atol=2e-3)


class KilledError(Exception):
    """Stands for the signal."""


def killer(after: int) -> Progress:
    def progress(done: int, total: int | None) -> None:
        if done >= after:
            raise KilledError

    return progress


@pytest.mark.parametrize("after", [0, 1, 4, 9, 13, 20])
def test_a_killed_run_goes_on_to_the_same_bytes(
    toy, in_fours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(features, "SHARD_ROWS", 4)
    killed = tmp_path / "killed"
    with pytest.raises(KilledError):
        run(toy, killed, progress=killer(after))
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("checkpoint-*/rows-*.npy")}
    assert len(kept) < 6
    assert not (killed / "features.json").exists()
    reports: list[tuple[int, int | None]] = []
    run(toy, killed, progress=lambda done, total: reports.append((done, total)))
    assert files(killed) == files(in_fours)
    assert reports[-1] == (20, 20)
    assert reports == sorted(reports)
    for path, written in kept.items():
        assert path.stat().st_mtime_ns == written, "a shard that was written is not taken again"
    assert reports[0][0] == sum(2 if path.stem.endswith("2") else 4 for path in kept)


def test_whatever_a_sigkill_leaves(toy, in_fours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files as they are just before one gets its name, when its first bytes are written, for one file in three."""
    moments: list[Path] = []
    replace = os.replace

    def watched(partial: Path, path: Path) -> None:
        moments.append(tmp_path / f"moment-{len(moments)}")
        shutil.copytree(tmp_path / "out", moments[-1])
        left = moments[-1] / partial.relative_to(tmp_path / "out")
        left.write_bytes(partial.read_bytes()[:100])
        replace(partial, path)

    monkeypatch.setattr(features, "SHARD_ROWS", 4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", watched)
        run(toy, tmp_path / "out")
    assert len(moments) == 17  # the plan, 3 of the pool, losses and rows of 2 x 3 shards, the record
    for moment in moments[::3]:
        for partial in moment.rglob("*.partial"):  # that process is not this one
            partial.rename(re.sub(r"-[0-9]+(?=[.]partial)", "-1", str(partial)))
        run(toy, moment)
        assert files(moment) == files(in_fours)


def test_a_kill_while_finishing(toy, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_finish", "write_json"):
        calls = 0
        original = getattr(features, name)

        def late(*arguments, original=original, name=name):
            nonlocal calls
            calls += 1
            result = original(*arguments)
            if name == "_finish" or calls == 2:
                raise KilledError
            return result

        with monkeypatch.context() as patch:
            patch.setattr(features, name, late)
            with pytest.raises(KilledError):
                run(toy, tmp_path / name)
        run(toy, tmp_path / name)
        assert files(tmp_path / name) == files(built)


@pytest.mark.parametrize("lost", ["checkpoint-*.npy", "first.npy", "offsets.npy", "one-by-one", "plan.json", "*"])
def test_a_kill_while_what_is_needed_no_more_is_removed(
    toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(shards, "unsupported", lambda *_: "some reason")
    expected = run(toy, tmp_path / "whole", dimension=8)

    def killed(work: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:  # as at the end
            for path in work.glob(lost):
                path.unlink()
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(features.shutil, "rmtree", killed)
        with pytest.raises(KilledError):
            run(toy, tmp_path / "killed", dimension=8)
    assert run(toy, tmp_path / "killed", dimension=8) == expected
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_record_of_another_plan_is_no_end(toy, built: Path, tmp_path: Path) -> None:
    """Finished under one plan, begun under another, then asked for the first again."""
    run(toy, tmp_path)
    with pytest.raises(KilledError):
        run(toy, tmp_path, seed=SEED + 1, progress=killer(4))
    run(toy, tmp_path)
    assert files(tmp_path) == files(built)


def test_shards_of_another_plan_are_thrown_away(toy, built: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(toy, tmp_path, seed=SEED + 1, progress=killer(20))
    shutil.copytree(tmp_path / "checkpoint-00002", tmp_path / "checkpoint-00003")  # which this plan has not
    assert list(tmp_path.glob("checkpoint-*/*.npy"))
    run(toy, tmp_path)
    assert files(tmp_path) == files(built)


def test_equal_examples_of_different_shards_have_equal_rows(
    toy, pool_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are taken once: batches of other sizes would differ in the last bits, and ties would not be ties."""
    contents = [("say ab", "abab"), ("say cab", "cab cab"), ("nobody answers",), ("say g", "gg")]
    pool = pool_of(*contents, *contents[::-1], contents[1])
    monkeypatch.setattr(features, "SHARD_ROWS", 3)
    taken: list[int] = []
    original = PerExample.__call__

    def counted(self, examples, sink):
        taken.append(len(examples))
        return original(self, examples, sink)

    monkeypatch.setattr(PerExample, "__call__", counted)
    stats = run(toy, tmp_path / "out", pool=pool)
    assert sum(taken) == 3 * 2  # at two checkpoints
    assert stats.values["duplicates"] == 5
    assert (stats.values["zero_gradient"], stats.values["without_target"]) == (2, 2)
    found = open_features(tmp_path / "out")
    rows, losses = found.rows(0, 9), found.losses()
    for one, other in ((0, 7), (1, 6), (1, 8), (3, 4), (2, 5)):
        assert rows[one].tobytes() == rows[other].tobytes()
        assert np.array_equal(losses[one], losses[other], equal_nan=True)
    assert rows[[0, 1, 3]].any(axis=1).all()
    assert not rows[2].any()


def test_a_gradient_that_is_not_finite_names_the_example(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PerExample.__call__

    def broken(self, examples, sink):
        return original(self, examples, lambda name, found: sink(name, found * bad(examples)[:, None]))

    def bad(examples):
        return torch.tensor([float("nan") if len(ids) == MAX_LENGTH else 1.0 for ids, _ in examples])

    monkeypatch.setattr(PerExample, "__call__", broken)
    with pytest.raises(ValueError, match="checkpoint-00001: the gradient of example 9 is not finite"):
        run(toy, tmp_path)


def test_an_example_that_the_chat_template_refuses_is_named(toy, tmp_path: Path) -> None:
    shutil.copytree(toy.model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(toy.model)
    tokenizer.chat_template = (
        "{% if messages[0].content == 'one' %}{{ raise_exception('not one') }}{% endif %}" + tokenizer.chat_template
    )
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^example 'e8': the tokenizer's chat template refuses the conversation: not"):
        run(replace(toy, model=tmp_path / "model"), tmp_path / "out")


def test_a_zero_gradient_is_not_replaced_by_the_moments(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PerExample.__call__
    monkeypatch.setattr(
        PerExample,
        "__call__",
        lambda self, examples, sink: original(self, examples, lambda name, found: sink(name, found * 0)),
    )
    assert run(toy, tmp_path).counts["zero_gradient"] == 10


def test_bad_parameters_are_named(toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_length"):
        run(toy, tmp_path, max_length=1)
    with pytest.raises(ValueError, match="dimension"):
        run(toy, tmp_path, dimension=0)
