"""Prompts longer than the model's window, where somebody asks for them: never by themselves, and then as they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from lm_eval.api.instance import Instance
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import longloom.evals.lm as lm_module
import longloom.evals.suite_lm as suite_lm_module
from longloom.evals.lm import PolicyLM
from longloom.evals.protocol import DoesNotFit, Request, prepare
from longloom.evals.stub_lm import StubLM, fixed
from longloom.kernels.huggingface.generate import generate
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.huggingface.loglikelihood import loglikelihood
from longloom.kernels.huggingface.reading import CHUNK
from longloom.kernels.kvcache.registry import get_policy
from longloom.storage.stats import Stats
from longloom.tasks.longcontext.backends import PolicyBackend
from longloom.tasks.longcontext.evaluate import build

from .conftest import WINDOW

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
#: Policies whose scope is no larger than the window, and one that has none.
POLICIES: dict[str, dict[str, Any]] = {
    "full": {},
    "streaming": {"sink": 4, "window": 60},
    "longcache": {"sink": 8, "local": 64, "chunk": 64, "spans": 3},
}


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> Loaded:
    return load_model(model_folder, device="cpu")


def run(model: Path, data: Path, out: Path, policy: str, **change: Any) -> Stats:
    out.mkdir()
    settings: dict[str, Any] = {
        "suite": "records",
        "tasks": ["keys"],
        "suite_options": {},
        "limit": None,
        "max_length": None,
        "batch_size": 2,
        "seed": 0,
    }
    return build(PolicyBackend(model, policy, POLICIES[policy], device="cpu"), data, out, **{**settings, **change})


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / f"{table}.parquet").to_pylist()
    return found


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_length_that_is_asked_for_takes_the_place_of_the_window(
    loaded: Loaded, model_folder: Path, records_folder: Path, tmp_path: Path, policy: str
) -> None:
    run(model_folder, records_folder, tmp_path / "cut", policy)
    run(model_folder, records_folder, tmp_path / "whole", policy, max_length=2000)
    run(model_folder, records_folder, tmp_path / "between", policy, max_length=700)
    cut, whole, between = (rows(tmp_path / name, "samples") for name in ("cut", "whole", "between"))
    sizes = [row["prompt_tokens"] for row in whole]
    assert sizes[1] < WINDOW < sizes[2] < 700 < sizes[3] < 1900 < sizes[4]
    assert [row["truncated"] for row in cut] == [size > WINDOW - 6 for size in sizes]  # 6 tokens of an answer
    assert max(row["prompt_tokens"] for row in cut) <= WINDOW - 6
    assert [row["truncated"] for row in whole] == [False] * 4 + [True]
    assert sizes[4] <= 2000 + 8  # what is limited is the prompt before the template
    assert all(WINDOW < row["prompt_tokens"] <= 700 + 8 for row in between if row["truncated"])
    for name, samples in (("cut", cut), ("whole", whole), ("between", between)):
        (score,) = rows(tmp_path / name, "scores")
        assert score["window"] == WINDOW
        assert score["beyond"] == sum(row["prompt_tokens"] > WINDOW for row in samples)
        assert (score["beyond"] == 0) == (name == "cut")
        assert score["truncated"] == sum(row["truncated"] for row in samples)

    # Sample 3, uncut, is what the policy makes of the whole prompt.
    model, tokenizer = loaded
    record = json.loads((records_folder / "keys.jsonl").read_text().splitlines()[3])
    turn = [{"role": "user", "content": f"{record['context']}\n\n{record['input']}"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == sizes[3]
    chosen = get_policy(policy, **POLICIES[policy])
    ((answer,),) = generate(model, [ids], policies=[chosen], max_new_tokens=6, eos_token_ids=[0])
    assert tokenizer.decode(answer.ids, skip_special_tokens=True) == whole[3]["prediction"]


@pytest.mark.parametrize("policy", ["full", "longcache"])
def test_needles_beyond_the_window(model_folder: Path, tmp_path: Path, policy: str) -> None:
    (tmp_path / "essays").mkdir()
    (tmp_path / "essays" / "a.txt").write_text("The key is the value. " * 40)
    given = {"suite": "needle", "tasks": ["single"], "suite_options": {"lengths": [300, 1300], "depths": [0, 100]}}
    data, out = tmp_path / "essays", tmp_path / "out"
    stats = run(model_folder, data, out, policy, max_length=1300, **given)
    samples = rows(out, "samples")
    assert [row["length"] for row in samples] == [300, 300, 1300, 1300]
    assert all(row["length"] - 36 <= row["prompt_tokens"] <= row["length"] - 32 for row in samples)
    (score,) = rows(out, "scores")
    assert (score["beyond"], score["window"], stats.counts["truncated"]) == (2, WINDOW, 0)
    # Nobody asked for it:
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens must not be cut, and 480 are allowed"):
        run(model_folder, data, tmp_path / "unasked", policy, **given)
    with pytest.raises(ValueError, match=r"must not be cut, and 1000 are allowed \(window 512, .*, max_length 1000\)$"):
        run(model_folder, data, tmp_path / "shorter", policy, max_length=1000, **given)


def test_questions_on_one_document_beyond_the_window_read_it_once(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {
        "instructions": [f"Which key has number {number}?" for number in range(3)],
        "outputs": ["A", "B", "C"],
        "input": " ".join(f"key{number} = {number}" for number in range(200)),
        "evaluation": "exam",
    }
    data = tmp_path / "coursera.jsonl"
    data.write_text(json.dumps(document) + "\n")
    reads: list[int] = []
    real = lm_module.read_prefix

    def note(*args: Any, **options: Any) -> Any:
        reads.append(len(args[1]))
        return real(*args, **options)

    monkeypatch.setattr(lm_module, "read_prefix", note)
    monkeypatch.setattr(suite_lm_module, "_ANSWER_SHARE", WINDOW // 5)  # short answers
    given = {"suite": "leval", "tasks": ["coursera"], "max_length": 4000}
    run(model_folder, data, tmp_path / "shared", "longcache", **given)
    (common,) = reads
    assert common % CHUNK == 0
    assert common > 2 * WINDOW
    monkeypatch.setattr(lm_module, "alike", lambda prompts, apart: [[number] for number in range(len(prompts))])
    run(model_folder, data, tmp_path / "alone", "longcache", batch_size=1, **given)
    assert len(reads) == 1
    one, other = (rows(tmp_path / name, "samples") for name in ("shared", "alone"))
    assert one == other
    assert not any(row["truncated"] for row in one)


def test_a_suites_own_limit_leaves_the_window_in_force(loaded: Loaded) -> None:
    request = Request("x = 1\n" * 800)
    instance = Instance(
        "generate_until",
        {"requests": [request.to_dict()]},
        ("", {"max_gen_toks": 32}),
        0,
        metadata=("task", 0, 1),
    )

    def asked(**limits: int | None) -> tuple[int, bool]:
        lm = StubLM(fixed("1"), loaded[1], window=WINDOW, **limits)
        assert lm.generate_until([instance]) == ["1"]
        ((_, outcome),) = lm.outcomes.items()
        return outcome.prompt_tokens, outcome.truncated

    assert asked(suite_length=2000) == asked() == asked(suite_length=10_000)
    assert asked()[1]
    assert asked()[0] <= WINDOW - 32
    assert asked(suite_length=100)[0] < 110  # the smaller of the two
    assert WINDOW < 1990 < asked(max_length=2000, suite_length=100)[0] <= 2004
    assert asked(max_length=10_000) == (len(prepare(request, loaded[1], room=None, limit=None).ids), False)


def test_a_limit_that_leaves_nothing_is_named(loaded: Loaded) -> None:
    request = Request("one-long-word" * 30, cut="words_right")
    with pytest.raises(
        DoesNotFit, match=r"^max_length leaves 9 tokens for the prompt, and nothing of the document fit"
    ):
        prepare(request, loaded[1], room=None, limit=9)
    with pytest.raises(DoesNotFit, match=r"^the model's window leaves 20 tokens for the prompt, and nothing"):
        prepare(request, loaded[1], room=20, limit=None)
    assert prepare(request, loaded[1], room=sys.maxsize, limit=None) == prepare(
        request, loaded[1], room=None, limit=None
    )


@pytest.mark.parametrize("policy", ["full", "longcache"])
def test_loglikelihoods_of_more_than_the_window(loaded: Loaded, policy: str) -> None:
    model, tokenizer = loaded
    chosen = get_policy(policy, **POLICIES[policy])
    context, continuation = "key7 = 7\n" * 150 + "key8", " = 8"
    ids = tokenizer(context)["input_ids"]
    after = tokenizer(context + continuation)["input_ids"][len(ids) :]
    assert len(ids) > WINDOW

    def scored(max_length: int | None) -> float:
        lm = PolicyLM(model, tokenizer, chosen, batch_size=1, max_length=max_length)
        asked = Instance("loglikelihood", {}, (context, continuation), 0, metadata=("task", 0, 1))
        ((score, _),) = lm.loglikelihood([asked])
        (outcome,) = lm.outcomes.values()
        assert outcome.truncated == (len(ids) + len(after) > (max_length or WINDOW) + 1)
        return score

    assert scored(2000) == loglikelihood(model, ids, after, policy=chosen)[0]
    assert scored(None) == loglikelihood(model, ids[-(WINDOW + 1 - len(after)) :], after, policy=chosen)[0]
    assert scored(50) == loglikelihood(model, ids[-(51 - len(after)) :], after, policy=chosen)[0]

    lm = PolicyLM(model, tokenizer, chosen, batch_size=1, max_length=4000)
    (rolling,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (context,), 0, metadata=("t", 0, 1))])
    assert rolling == loglikelihood(model, [0], ids, policy=chosen, rolling=True)[0]  # in one window
