"""The evaluation stage end to end: results, determinism, resume after a kill, failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import longloom.evals.lm as lm_module
from longloom.evals.longbench.metrics import code_sim
from longloom.storage.stats import Stats
from longloom.tasks.longcontext.backends import LEDGER, PolicyBackend
from longloom.tasks.longcontext.evaluate import build

SHARED = Path(__file__).resolve().parents[3] / "../shared/data"
REAL_GENERATE = lm_module.generate
TABLES = ("samples", "scores", "cost")


def run(
    model: Path,
    data: Path | None,
    out: Path,
    policy: str = "full",
    options: dict[str, Any] | None = None,
    **change: Any,
) -> Stats:
    out.mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        "suite": "records",
        "tasks": None,
        "suite_options": {},
        "limit": None,
        "max_length": None,
        "batch_size": 2,
        "seed": 0,
    }
    backend = PolicyBackend(model, policy, options or {}, device="cpu")
    return build(backend, data, out, **{**settings, **change})


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / f"{table}.parquet").to_pylist()
    return found


def results(out: Path) -> list[bytes]:
    return [(out / f"{table}.parquet").read_bytes() for table in ("samples", "scores")]


class Calls:
    """Counts the calls of generate, and lets a test break one of them."""

    def __init__(self, broken: Callable[[int], BaseException | None] = lambda number: None) -> None:
        self.number = 0
        self.broken = broken

    def __call__(self, model: Any, prompts: list[list[int]], **options: Any) -> Any:
        self.number += 1
        error = self.broken(self.number)
        if error is not None:
            raise error
        return REAL_GENERATE(model, prompts, **options)


def test_a_suite_of_one_s_own(model_folder: Path, records_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[tuple[int, int | None]] = []
    stats = run(model_folder, records_folder, out, progress=lambda done, total: seen.append((done, total)))
    assert sorted(path.name for path in out.iterdir()) == ["cost.parquet", "samples.parquet", "scores.parquet"]
    assert stats.volatile == ("cost.parquet",)
    assert (seen[0], seen[-1]) == ((2, 10), (10, 10))

    samples = rows(out, "samples")
    assert [(row["task"], row["sample"]) for row in samples] == [
        (task, n) for task in ("keys", "lines") for n in range(5)
    ]
    assert [row["truncated"] for row in samples] == [False, False, True, True, True] * 2
    assert all(row["prompt_tokens"] + (6 if row["task"] == "keys" else 9) <= 512 for row in samples)
    assert samples[4]["references"] == ["key4"]
    for row in samples[5:]:
        assert row["score"] == code_sim(row["prediction"], row["references"][0])
    assert (samples[0]["metric"], samples[0]["policy"], samples[0]["suite"]) == ("string_match", "full", "records")
    assert [row["length"] for row in samples[:5]] == [0, 1, 2, 3, 4]
    assert (samples[0]["retrieval"], samples[0]["gold_recall"], samples[0]["group"]) == (None, None, None)
    assert all(row["fixed"] is None for row in samples)  # neither metric has a mended variant
    scores = rows(out, "scores")
    assert [(row["task"], row["samples"], row["truncated"], row["failed"]) for row in scores] == [
        ("keys", 5, 3, 0),
        ("lines", 5, 3, 0),
    ]
    assert scores[1]["score"] == round(100 * sum(row["score"] for row in samples[5:]) / 5, 2)
    assert stats.counts == {"tasks": 2, "samples": 10, "failed": 0, "truncated": 6}
    assert stats.values["scores"] == {row["task"]: row["score"] for row in scores}
    costs = rows(out, "cost")
    assert [row["prompt_tokens"] for row in costs] == [
        sum(row["prompt_tokens"] for row in samples if row["task"] == task) for task in ("keys", "lines")
    ]
    assert all(row["peak_kv_bytes"] > 0 and row["seconds"] > 0 and row["new_tokens"] > 0 for row in costs)
    for row in costs:
        assert 0 < row["kv_bytes_mean"] < row["kv_bytes"] <= row["peak_kv_bytes"]  # prompts of several lengths
        assert 0 < row["compress_seconds"] + row["decode_seconds"] < row["seconds"]
        # Answers of 6 or 9 tokens, the first of which comes with the prompt; a row may wait for the others.
        longest = 6 if row["task"] == "keys" else 9
        assert row["new_tokens"] - 5 <= row["decode_steps"] <= 5 * (longest - 1)


def test_a_killed_run_repeats_nothing_and_ends_with_the_same_bytes(
    model_folder: Path, records_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Calls()
    monkeypatch.setattr(lm_module, "generate", whole)
    run(model_folder, records_folder, tmp_path / "whole")
    assert whole.number == 6

    out = tmp_path / "killed"
    monkeypatch.setattr(lm_module, "generate", Calls(lambda number: KeyboardInterrupt() if number == 4 else None))
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, records_folder, out)
    ledger = (out / LEDGER).read_bytes()
    assert ledger.count(b"\n") == 1 + 3 * 2 - 1  # the first line, and three batches of which one holds a single row
    (out / LEDGER).write_bytes(ledger + b'{"key": "torn')

    rest = Calls()
    monkeypatch.setattr(lm_module, "generate", rest)
    run(model_folder, records_folder, out)
    assert rest.number == 3
    assert results(out) == results(tmp_path / "whole")
    assert not (out / LEDGER).exists()


def test_generations_of_another_policy_are_not_taken(
    model_folder: Path, records_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(lm_module, "generate", Calls(lambda number: KeyboardInterrupt() if number == 4 else None))
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, records_folder, out)
    calls = Calls()
    monkeypatch.setattr(lm_module, "generate", calls)
    run(model_folder, records_folder, out, policy="streaming", options={"sink": 2, "window": 30})
    assert calls.number == 6
    assert {row["policy"] for table in TABLES for row in rows(out, table)} == {"streaming:sink=2,window=30"}
    assert rows(out, "cost")[0]["peak_kv_bytes"] < 512 * 2 * 2 * 2 * 8 * 4 // 8  # 32 of 512 tokens are kept


def test_failures_are_counted_and_stay_in_the_denominator(
    model_folder: Path, records_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    broken = Calls(lambda number: RuntimeError("out of memory\nat some place") if number == 1 else None)
    monkeypatch.setattr(lm_module, "generate", broken)
    stats = run(model_folder, records_folder, out, tasks=["lines"])
    samples = rows(out, "samples")
    failed = [row for row in samples if row["failed"]]
    assert [row["error"] for row in failed] == ["RuntimeError: out of memory"] * 2
    assert all(row["score"] == 0 and row["prediction"] == "" for row in failed)
    (score,) = rows(out, "scores")
    assert (score["samples"], score["failed"]) == (5, 2)
    assert score["score"] == round(100 * sum(row["score"] for row in samples) / 5, 2)
    assert stats.counts["failed"] == 2
    (spent,) = rows(out, "cost")
    assert spent["kv_bytes_mean"] > spent["kv_bytes"] / 5  # of the three that were answered


def test_nothing_is_published_where_everything_failed(
    model_folder: Path, records_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_module, "generate", Calls(lambda number: RuntimeError("no")))
    with pytest.raises(ValueError, match="all 10 samples failed, the first with: RuntimeError: no"):
        run(model_folder, records_folder, tmp_path / "out")
    assert not (tmp_path / "out" / "scores.parquet").exists()


def test_limit_and_max_length(model_folder: Path, records_folder: Path, tmp_path: Path) -> None:
    run(model_folder, records_folder, tmp_path / "out", tasks=["keys"], limit=2, max_length=20)
    samples = rows(tmp_path / "out", "samples")
    assert [row["truncated"] for row in samples] == [True, True]
    assert all(row["prompt_tokens"] <= 20 + 4 for row in samples)  # and the template


def test_needle_grid(model_folder: Path, tmp_path: Path) -> None:
    essays = tmp_path / "essays"
    essays.mkdir()
    (essays / "a.txt").write_text("The key is the value. " * 40)
    grid = {"lengths": [180, 512], "depths": [0, 100]}
    out = tmp_path / "out"
    run(model_folder, essays, out, suite="needle", tasks=["single"], suite_options=grid)
    samples = rows(out, "samples")
    assert [(row["length"], row["depth"]) for row in samples] == [(180, 0.0), (180, 100.0), (512, 0.0), (512, 100.0)]
    assert all(row["length"] - 35 <= row["prompt_tokens"] <= row["length"] - 32 for row in samples)
    assert not any(row["truncated"] for row in samples)
    options = {"lengths": [600], "depths": [0]}
    with pytest.raises(ValueError, match=r"sample 0: a prompt of \d+ tokens must not be cut, and 480 are allowed"):
        run(model_folder, essays, out, suite="needle", tasks=["single"], suite_options=options)


def test_a_sample_that_cannot_fit_is_a_failure(model_folder: Path, tmp_path: Path) -> None:
    document = {
        "instructions": ["Is it so? " * 400, "And is it so? " * 400],
        "outputs": ["4", "4"],
        "input": "1+1=2. The answer is 2.",
        "evaluation": "exam",
    }
    data = tmp_path / "gsm100.jsonl"
    data.write_text(json.dumps(document) + "\n")
    # The questions alone are longer than the 384 tokens that an answer of a quarter leaves of a window of 512.
    with pytest.raises(ValueError, match=r"all 2 samples failed, .*the model's window leaves 384 tokens"):
        run(model_folder, data, tmp_path / "out", suite="leval")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "glue"}, "unknown suite 'glue'; known: chatrag, infinitebench, leval, "),
        ({"tasks": ["keys", "doors"]}, "suite 'records' has no task 'doors'; known: keys, lines"),
        ({"policy": "lazy"}, "unknown KV policy 'lazy'; known: "),
        ({"limit": 0}, "limit is 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"max_length": 1}, "max_length is 1, expected at least 2"),
        ({"suite_options": {"x": 1}}, "suite 'records' has no option 'x'; its options: none"),
    ],
)
def test_bad_parameters(
    model_folder: Path, records_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(model_folder, records_folder, tmp_path / "out", **change)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the checkout")
def test_official_records(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = SHARED / "longbench/multifieldqa_zh.jsonl"
    run(model_folder, data, out, suite="longbench", limit=2)
    (score,) = rows(out, "scores")
    assert (score["task"], score["metric"], score["samples"]) == ("multifieldqa_zh", "qa_f1_zh", 2)
    assert all(400 < row["prompt_tokens"] <= 512 - 64 and row["truncated"] for row in rows(out, "samples"))


def test_a_full_disk_is_no_failed_sample(
    model_folder: Path, records_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, rows: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longloom.evals.ledger.Ledger.add", full)
    with pytest.raises(OSError, match="No space left"):
        run(model_folder, records_folder, tmp_path / "out")
