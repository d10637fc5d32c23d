"""The model as lm-eval's LM: batches, end tokens, stop strings, log-likelihoods."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from longloom.evals.lm import PolicyLM, end_tokens
from longloom.evals.protocol import Request
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.registry import get_policy

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> Loaded:
    return load_model(model_folder, device="cpu")


def build(loaded: Loaded, **change: Any) -> PolicyLM:
    return PolicyLM(*loaded, get_policy("full"), **{"batch_size": 3, "max_length": None, **change})


def test_a_policy_that_does_not_fit_is_refused_at_once(loaded: Loaded) -> None:
    with pytest.raises(ValueError, match=r"^KV policy 'razor' needs the model's head profile: `longloom heads` makes"):
        PolicyLM(*loaded, get_policy("razor"), batch_size=3, max_length=None)


def instance(number: int, arguments: tuple[Any, ...], doc: dict[str, Any] | None = None) -> Instance:
    kind = "generate_until" if isinstance(arguments[-1], dict) else "loglikelihood"
    return Instance(kind, doc or {}, arguments, 0, metadata=("task", number, 1))


def greedy(loaded: Loaded, text: str, tokens: int) -> list[int]:
    """By the model's own forward pass, without a cache."""
    model, tokenizer = loaded
    ids = tokenizer(text)["input_ids"]
    new: list[int] = []
    for _ in range(tokens):
        with torch.no_grad():
            token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token == 0:
            break
        new.append(token)
    return new


def test_answers_in_the_order_of_the_requests(loaded: Loaded) -> None:
    texts = ["key", "the value of the key is", "a" * 50, "x = 1", "the"]
    requests = [instance(n, (text, {"max_gen_toks": 5 + n % 2})) for n, text in enumerate(texts)]
    lm = build(loaded)
    replies = lm.generate_until(requests)
    expected = [loaded[1].decode(greedy(loaded, text, 5 + n % 2)) for n, text in enumerate(texts)]
    assert replies == expected
    assert lm.outcomes["task", 2, 0].prompt_tokens == 50
    assert [lm.outcomes["task", n, 0].new_tokens <= 5 + n % 2 for n in range(5)] == [True] * 5


def test_stop_strings_cut_the_reply(loaded: Loaded) -> None:
    (whole,) = build(loaded).generate_until([instance(0, ("the key", {"max_gen_toks": 8}))])
    stop = whole[3:5]
    (cut,) = build(loaded).generate_until([instance(0, ("the key", {"max_gen_toks": 8, "until": ["", stop]}))])
    assert cut == whole[: whole.index(stop)]
    with pytest.raises(ValueError, match="asks for sampling"):
        build(loaded).generate_until([instance(0, ("the key", {"do_sample": True}))])


def test_a_harness_prompt_is_cut_on_the_left(loaded: Loaded) -> None:
    lm = build(loaded)
    lm.generate_until([instance(0, ("ab" * 600, {"max_gen_toks": 12}))])
    assert lm.outcomes["task", 0, 0].prompt_tokens == 500
    assert lm.outcomes["task", 0, 0].truncated


def test_a_model_whose_configuration_names_no_window(loaded: Loaded) -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=len(loaded[1]), hidden_size=16, n_layer=1, n_head=2)).eval()
    lm = build((model, loaded[1]))
    lm.generate_until([instance(0, ("ab" * 600, {"max_gen_toks": 2}))])
    outcome = lm.outcomes["task", 0, 0]
    assert (lm.window, outcome.prompt_tokens, outcome.truncated) == (None, 1200, False)
    ((likelihood, _),) = lm.loglikelihood([instance(0, ("the key", " is"))])
    assert likelihood < 0


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> list[Instance]:
    """Two prompts whose beginning is read once."""
    monkeypatch.setattr("longloom.evals.beginnings.CHUNK", 16)
    texts = ["the value of the key is " * 8 + end for end in ("a", "b")]
    return [instance(number, (text, {"max_gen_toks": 2})) for number, text in enumerate(texts)]


@pytest.mark.parametrize("where", ["lm.generate", "lm.read_prefix", "likelihoods.loglikelihood"])
def test_a_device_that_is_lost_ends_the_evaluation(
    where: str, loaded: Loaded, alike: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything after it would fail too, and be published as zeros."""

    def lost(*given: Any, **options: Any) -> Any:
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(f"longloom.evals.{where}", lost)
    lm = build(loaded)
    scored = where == "likelihoods.loglikelihood"
    with pytest.raises(torch.AcceleratorError):
        (lm.loglikelihood if scored else lm.generate_until)([instance(0, ("the key", " is"))] if scored else alike)


def test_a_failed_beginning_holds_no_memory_while_each_prompt_is_tried(
    loaded: Loaded, alike: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    tried = PolicyLM._try

    class Cache: ...

    def fails(*given: Any, **options: Any) -> Any:
        cache = Cache()
        held.append(weakref.ref(cache))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def note(self: PolicyLM, *given: Any) -> Any:
        alive.append(held[-1]() is not None)
        return tried(self, *given)

    alone = [build(loaded).generate_until([one])[0] for one in alike]
    monkeypatch.setattr("longloom.evals.lm.read_prefix", fails)
    monkeypatch.setattr(PolicyLM, "_try", note)
    assert build(loaded).generate_until(alike) == alone
    assert alive == [False, False]


def test_a_chat_template_of_the_harness_prints_no_date_of_today(loaded: Loaded) -> None:
    tokenizer = copy.deepcopy(loaded[1])
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    text = build((loaded[0], tokenizer)).apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text == "26 Jul 2024 Hi"


def test_all_end_tokens_count(loaded: Loaded) -> None:
    model, tokenizer = loaded
    assert end_tokens(model, tokenizer) == [0]
    before = model.generation_config.eos_token_id
    first = greedy(loaded, "the key", 1)[0]
    try:
        model.generation_config.eos_token_id = [7, first]
        assert end_tokens(model, tokenizer) == [7, first, 0]
        assert build(loaded).generate_until([instance(0, ("the key", {"max_gen_toks": 4}))]) == [""]
    finally:
        model.generation_config.eos_token_id = before


def test_a_line_end_stops_but_not_at_once(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def note(model: Any, prompts: Any, **options: Any) -> Any:
        asked.append(options)
        raise RuntimeError("enough")

    monkeypatch.setattr("longloom.evals.lm.generate", note)
    doc = {"requests": [Request("the key", newline_stops=True).to_dict()]}
    lm = build(loaded)
    assert lm.generate_until([instance(0, ("ignored", {"max_gen_toks": 4}), doc)]) == [""]
    newline = loaded[1]("\n")["input_ids"][-1]
    assert set(asked[0]["eos_token_ids"]) == {0, newline}
    assert asked[0]["min_new_tokens"] == 1
    assert lm.outcomes["task", 0, 0].error == "RuntimeError: enough"


def test_loglikelihoods(loaded: Loaded) -> None:
    model, tokenizer = loaded
    lm = build(loaded)
    ((score, is_greedy),) = lm.loglikelihood([instance(0, ("the key", " is the value"))])
    context, whole = (tokenizer(text)["input_ids"] for text in ("the key", "the key is the value"))
    with torch.no_grad():
        logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = sum(float(logprobs[at - 1, whole[at]]) for at in range(len(context), len(whole)))
    assert score == pytest.approx(expected, abs=1e-4)
    assert not is_greedy

    (rolling,) = lm.loglikelihood_rolling([instance(0, ("the key is",))])
    ids = [0, *tokenizer("the key is")["input_ids"]]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert rolling == pytest.approx(sum(float(logprobs[at - 1, ids[at]]) for at in range(1, len(ids))), abs=1e-4)


def test_a_long_text_is_scored_in_windows(loaded: Loaded) -> None:
    (rolling,) = build(loaded).loglikelihood_rolling([instance(0, ("xyz " * 300,))])
    assert rolling < -1000
