"""Gradient features end to end on a toy Llama, against autograd and a plain projection written out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from longloom.tasks.coreset import features
from longloom.tasks.coreset.features import build
from longloom.tasks.coreset.projection import signs
from longloom.tasks.progress import Progress
from longloom.tasks.training.sft import encode, load_messages

DIMENSION, SEED, MAX_LENGTH = 48, 3, 40


def run(toy, out: Path, **changes):
    out.mkdir(parents=True, exist_ok=True)
    options = {"dimension": DIMENSION, "seed": SEED, "max_length": MAX_LENGTH} | changes
    return build(toy.model, toy.instructions, toy.warmup, out, **options)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    run(toy, out)
    return out


def by_hand(toy, conversation: list[dict[str, str]]) -> np.ndarray:
    """One row: full logits, log-softmax, backward() into .grad, float64 from there on."""
    input_ids, labels = encode(AutoTokenizer.from_pretrained(toy.model), conversation, max_length=MAX_LENGTH)
    row = np.zeros(DIMENSION)
    for checkpoint, weight in (("checkpoint-00001", 0.25), ("checkpoint-00002", 0.75)):
        base = AutoModelForCausalLM.from_pretrained(toy.model)
        model = PeftModel.from_pretrained(base, toy.warmup / checkpoint, is_trainable=True).eval()
        log_probabilities = model(torch.tensor([input_ids])).logits[0].log_softmax(-1)
        losses = [-log_probabilities[t - 1, labels[t]] for t in range(1, len(labels)) if labels[t] != -100]
        (sum(losses) / len(losses)).backward()
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
        projected = adjusted @ signs(0, len(adjusted), dimension=DIMENSION, seed=SEED) / np.sqrt(DIMENSION)
        row += weight * projected / np.linalg.norm(projected)
    return row


@pytest.mark.parametrize("example", [0, 2, 8, 9])
def test_rows_equal_the_hand_made_ones(toy, built: Path, example: int) -> None:
    """A plain example, another, one with two answers, and one that loses its beginning to max_length."""
    found = np.load(built / "features.npy")[example]
    np.testing.assert_allclose(found, by_hand(toy, load_messages(toy.instructions)[example]), atol=2e-5)


def test_shape_zeros_and_counts(toy, built: Path, tmp_path: Path) -> None:
    rows = np.load(built / "features.npy")
    assert rows.shape == (10, DIMENSION)
    assert rows.dtype == np.float32
    # 5 has no assistant. 7 answers nothing, and learns from its end token alone.
    assert [i for i, row in enumerate(rows) if not row.any()] == [5]
    assert np.array_equal(rows[2], rows[3])
    record = json.loads((built / "features.json").read_text())
    assert (record["zero_gradient"], record["without_target"], record["at_max_length"]) == (1, 1, 1)
    assert [one["weight"] for one in record["checkpoints"]] == pytest.approx([0.25, 0.75])
    assert sorted(files(built)) == ["features.json", "features.npy"]
    stats = run(toy, tmp_path)
    assert stats.counts == {"examples": 10, "dimension": DIMENSION, "zero_gradient": 1}
    assert files(tmp_path) == files(built)


def test_rows_are_unit_at_each_checkpoint_and_no_more_than_unit_in_the_sum(
    toy, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(features.shutil, "rmtree", lambda path, **_: None)  # the parts stay
        run(toy, tmp_path)
    parts = [np.load(path) for path in sorted((tmp_path / "parts").glob("checkpoint-*/*.npy"))]
    assert len(parts) == 2
    for rows in parts:
        norms = np.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(np.delete(norms, 5), 1, atol=1e-6)
        assert norms[5] == 0
    norms = np.linalg.norm(np.load(built / "features.npy"), axis=1)
    assert (norms <= 1 + 1e-6).all()
    assert (np.delete(norms, 5) < 0.999).any(), "the sum must not be normalised again"


def test_max_length_is_bound_by_the_model(toy, tmp_path: Path) -> None:
    assert run(toy, tmp_path, max_length=10_000).values["max_length"] == 64


def test_labels_lost_to_truncation_give_zeros(toy, pool_of, tmp_path: Path) -> None:
    """The answer comes first here, and the tail of the second question is all that is kept."""
    pool = pool_of(["a", "b", "c" * 50], ["a", "b"])
    stats = build(toy.model, pool, toy.warmup, tmp_path, dimension=8, seed=0, max_length=20)
    assert stats.counts["zero_gradient"] == stats.values["without_target"] == stats.values["at_max_length"] == 1
    assert np.load(tmp_path / "features.npy").any(axis=1).tolist() == [False, True]


def test_threads_change_no_byte(toy, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK_ROWS", 3)
    before = torch.get_num_threads()
    outcomes = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            run(toy, tmp_path / str(threads))
            assert torch.get_num_threads() == threads
            outcomes.append(files(tmp_path / str(threads)))
    finally:
        torch.set_num_threads(before)
    assert outcomes[0] == outcomes[1]


class KilledError(Exception):
    """Stands for the signal."""


def killer(after: int) -> Progress:
    def progress(done: int, total: int | None) -> None:
        if done >= after:
            raise KilledError

    return progress


@pytest.mark.parametrize("after", [1, 5, 9, 10, 11, 17, 20])
def test_a_killed_run_goes_on_to_the_same_bytes(
    toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(features, "PART_ROWS", 4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(toy, whole)
    with pytest.raises(KilledError):
        run(toy, killed, progress=killer(after))
    kept = [4 * int(path.stem) for path in killed.glob("parts/checkpoint-*/*.npy")]
    taken = 0
    original = features.example_gradient

    def counted(*arguments):
        nonlocal taken
        taken += 1
        return original(*arguments)

    monkeypatch.setattr(features, "example_gradient", counted)
    reports: list[tuple[int, int | None]] = []
    run(toy, killed, progress=lambda done, total: reports.append((done, total)))
    assert files(killed) == files(whole)
    assert reports[-1] == (20, 20)
    assert reports == sorted(reports)
    # Ten examples, two checkpoints, but 5 has no gradient; a part that was written is not taken again.
    assert taken == 18 - sum(len(set(range(start, min(start + 4, 10))) - {5}) for start in kept)
    assert len(kept) == {1: 0, 5: 1, 9: 2, 10: 2, 11: 3, 17: 4, 20: 5}[after]


def test_a_kill_while_folding_or_tidying(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(toy, whole)
    for name in ("_fold", "_write_json"):
        calls = 0
        original = getattr(features, name)

        def late(*arguments, original=original, name=name):
            nonlocal calls
            calls += 1
            result = original(*arguments)
            if name == "_fold" or calls == 2:
                raise KilledError
            return result

        with monkeypatch.context() as patch:
            patch.setattr(features, name, late)
            with pytest.raises(KilledError):
                run(toy, killed / name)
        run(toy, killed / name)
        assert files(killed / name) == files(whole)


def test_parts_of_another_plan_are_thrown_away(toy, built: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(toy, tmp_path, seed=SEED + 1, progress=killer(20))
    assert list(tmp_path.glob("parts/checkpoint-*/*.npy"))
    run(toy, tmp_path)
    assert files(tmp_path) == files(built)


def test_a_gradient_that_is_not_finite_names_the_example(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = features.example_gradient

    def broken(model, parameters, input_ids, labels):
        gradient = original(model, parameters, input_ids, labels)
        return gradient * float("nan") if len(input_ids) == MAX_LENGTH else gradient

    monkeypatch.setattr(features, "example_gradient", broken)
    with pytest.raises(ValueError, match="checkpoint-00001: the gradient of example 9 is not finite"):
        run(toy, tmp_path)


def test_a_zero_gradient_is_not_replaced_by_the_moments(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        features,
        "example_gradient",
        lambda model, parameters, *_: torch.zeros(sum(p.numel() for p in parameters.values())),
    )
    assert run(toy, tmp_path).counts["zero_gradient"] == 10


def test_bad_parameters_are_named(toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_length"):
        run(toy, tmp_path, max_length=1)
    with pytest.raises(ValueError, match="dimension"):
        run(toy, tmp_path, dimension=0)
