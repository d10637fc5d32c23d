"""Log-likelihoods and cuts of harness tasks, against lm-eval's own model class on the same weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import longloom.evals.likelihoods as scored_module
from longloom.evals.ledger import Ledger
from longloom.evals.lm import PolicyLM
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.registry import get_policy


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts a begin token of its own before every text, as Llama's does."""
    made = tmp_path_factory.mktemp("begins")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.bos_token = "<|user|>"
    begin = tokenizer.convert_tokens_to_ids("<|user|>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", begin)])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(made)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.config.bos_token_id = begin
    model.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> HFLM:
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


def build(folder: Path, **options: Any) -> PolicyLM:
    model, tokenizer = load_model(folder, device="cpu")
    return PolicyLM(model, tokenizer, get_policy("full"), batch_size=1, max_length=None, **options)


@pytest.fixture(scope="module")
def ours(folder: Path) -> PolicyLM:
    return build(folder)


def ask(kind: str, *arguments: Any, number: int = 0) -> list[Instance]:
    return [Instance(kind, {}, arguments, 0, metadata=("task", number, 1))]


TEXT = "the value of the key is "


@pytest.mark.parametrize("context", ["", "the key is", TEXT * 60, TEXT * 200])
@pytest.mark.parametrize("continuation", [" value", " the value of the key"])
def test_log_likelihoods(theirs: HFLM, ours: PolicyLM, context: str, continuation: str) -> None:
    asked = ask("loglikelihood", context, continuation)
    ((score, greedy),) = ours.loglikelihood(asked)
    ((expected, expected_greedy),) = theirs.loglikelihood(asked, disable_tqdm=True)
    assert score == pytest.approx(float(expected), abs=2e-4)
    assert greedy == expected_greedy


@pytest.mark.parametrize("text", ["the value of the key", TEXT * 150])
def test_rolling_log_likelihoods(theirs: HFLM, ours: PolicyLM, text: str) -> None:
    asked = ask("loglikelihood_rolling", text)
    (score,) = ours.loglikelihood_rolling(asked)
    assert score == pytest.approx(float(theirs.loglikelihood_rolling(asked, disable_tqdm=True)[0]), rel=1e-5)


@pytest.mark.parametrize("prompt", ["the key is", TEXT * 200])
def test_generations(theirs: HFLM, ours: PolicyLM, prompt: str) -> None:
    options = {"max_gen_toks": 12, "until": ["\n"], "do_sample": False}
    asked = ask("generate_until", prompt, options)
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)
    assert ours.outcomes["task", 0, 0].truncated == (len(prompt) > 1000)


def test_other_names_for_the_length_and_sampling(ours: PolicyLM) -> None:
    ours.generate_until(ask("generate_until", "the key", {"max_new_tokens": 5, "until": []}))
    assert ours.outcomes["task", 0, 0].new_tokens <= 5
    with pytest.raises(ValueError, match="asks for sampling"):
        ours.generate_until(ask("generate_until", "the key", {"temperature": 0.8, "until": []}))


def test_scores_are_kept_over_a_kill(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*ask("loglikelihood", "the key", " is"), *ask("loglikelihood", "the key", " was", number=1)]
    first = build(folder, ledger=Ledger(tmp_path / "ledger", {}))
    expected = first.loglikelihood(asked)
    monkeypatch.setattr(scored_module, "loglikelihood", lambda *args, **options: pytest.fail("computed again"))
    again = build(folder, ledger=Ledger(tmp_path / "ledger", {}))
    assert again.loglikelihood(asked) == expected
    assert again.outcomes["task", 1, 0].prompt_tokens == first.outcomes["task", 1, 0].prompt_tokens > 0


def test_a_failed_score_is_counted_and_loses_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scored_module.loglikelihood

    def fail(model: Any, context: Any, continuation: Any, **options: Any) -> Any:
        if len(continuation) > 3:
            raise torch.OutOfMemoryError("too much")
        return real(model, context, continuation, **options)

    monkeypatch.setattr(scored_module, "loglikelihood", fail)
    lm = build(folder)
    asked = [*ask("loglikelihood", "a", " the value of the key"), *ask("loglikelihood", "the key", " is", number=1)]
    (lost, _), (kept, _) = lm.loglikelihood(asked)
    assert lost == -math.inf
    assert math.isfinite(kept)
    assert lm.outcomes["task", 0, 0].error == "OutOfMemoryError: too much"
    assert lm.outcomes["task", 1, 0].error is None
    (impossible,) = build(folder).loglikelihood(ask("loglikelihood", "a", " value" * 600))
    assert impossible[0] == -math.inf
