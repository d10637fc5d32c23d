"""What several choices or samples follow is read once: the same scores and answers, and a failure stays one's own."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import longloom.evals.likelihoods as scored_module
import longloom.evals.lm as lm_module
from longloom.evals.ledger import Ledger
from longloom.evals.lm import PolicyLM
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.registry import get_policy

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
POLICIES: dict[str, dict[str, Any]] = {
    "full": {},
    "h2o": {"budget": 40},
    "infllm": {"sink": 2, "local": 16, "chunk": 8, "blocks": 2, "block": 8},
    "longcache": {"sink": 2, "local": 16, "chunk": 8, "spans": 3, "span": 8},
    "snapkv": {"budget": 40, "window": 8},
    "streaming": {"sink": 2, "window": 30},
}
policies = pytest.mark.parametrize("name", list(POLICIES))
FIRST, SECOND = " the value of the key is" * 12, " is the key of the value" * 9
#: Two documents of four choices each, and what lm-eval asks besides: a choice without its context.
ASKED = [
    *((FIRST, choice) for choice in (" key", " value of it", " x = 1", " key")),
    *((SECOND, choice) for choice in (" the", " a longer choice than that", " b", " c")),
    ("", "the"),
]


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> Loaded:
    return load_model(model_folder, device="cpu")


@pytest.fixture
def read(loaded: Loaded) -> Any:
    """The tokens of each call of the model."""
    found: list[int] = []
    hook = loaded[0].register_forward_pre_hook(
        lambda module, given, named: found.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    yield found
    hook.remove()


def build(loaded: Loaded, name: str = "full", **change: Any) -> PolicyLM:
    policy = get_policy(name, **POLICIES[name])
    return PolicyLM(*loaded, policy, **{"batch_size": 3, "max_length": None, **change})


def requests(asked: list[tuple[str, str]] = ASKED) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, pair, number, metadata=("task", number, 1)) for number, pair in enumerate(asked)
    ]


@policies
def test_choices_of_one_context_score_as_they_do_alone(loaded: Loaded, name: str, read: list[int]) -> None:
    told: list[tuple[int, int | None]] = []
    lm = build(loaded, name, progress=lambda done, total: told.append((done, total)))
    read.clear()
    together = lm.loglikelihood(requests())
    shared, tokens = sum(read), len(loaded[1](FIRST)["input_ids"])
    assert told == [(number, len(ASKED)) for number in range(1, len(ASKED) + 1)]
    assert all(outcome.seconds > 0 for outcome in lm.outcomes.values())
    read.clear()
    alone = [build(loaded, name).loglikelihood([one])[0] for one in requests()]
    assert together == alone  # to the bit
    assert len({score for score, _ in together}) > 5
    assert shared < sum(read) - 5 * tokens


def test_what_the_ledger_has_is_not_read_for(loaded: Loaded, read: list[int], tmp_path: Path) -> None:
    asked = requests()
    expected = build(loaded).loglikelihood(asked)
    build(loaded, ledger=Ledger(tmp_path / "ledger", {})).loglikelihood(asked[:3])
    lm = build(loaded, ledger=Ledger(tmp_path / "ledger", {}))
    read.clear()
    assert lm.loglikelihood(asked[:4]) == expected[:4]
    assert read.count(len(loaded[1](FIRST)["input_ids"])) == 1
    read.clear()
    assert build(loaded, ledger=Ledger(tmp_path / "ledger", {})).loglikelihood(asked[:4]) == expected[:4]
    assert read == []


def failing(monkeypatch: pytest.MonkeyPatch, fails: Any) -> list[bool]:
    """Lets scores fail; tells of each try whether its context had been read."""
    real, tries = scored_module.loglikelihood, []

    def score(model: Any, context: Any, continuation: Any, **options: Any) -> Any:
        tries.append(isinstance(context, lm_module.Context))
        if fails(context, continuation):
            raise torch.OutOfMemoryError("too much")
        return real(model, context, continuation, **options)

    monkeypatch.setattr(scored_module, "loglikelihood", score)
    return tries


def test_a_choice_that_fails_loses_no_other(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build(loaded).loglikelihood(requests())
    lost = loaded[1](SECOND + " a longer choice than that")["input_ids"][len(loaded[1](SECOND)["input_ids"]) :]
    tries = failing(monkeypatch, lambda context, continuation: continuation == lost)
    lm = build(loaded)
    found = lm.loglikelihood(requests())
    assert found[5] == (-math.inf, False)
    assert found[:5] + found[6:] == expected[:5] + expected[6:]
    assert [outcome.error for outcome in lm.outcomes.values() if outcome.error] == ["OutOfMemoryError: too much"]
    assert tries == [True] * 4 + [True, True, False, False, False, False]


def test_where_a_copy_is_too_much_each_choice_reads_by_itself(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build(loaded).loglikelihood(requests())
    held: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    real = lm_module.read_context

    def note(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        held.append(weakref.ref(found.cache))
        return found

    def fails(context: Any, continuation: Any) -> bool:
        copied = isinstance(context, lm_module.Context)
        if not copied:
            gc.collect()
            alive.extend(one() is not None for one in held)
        return copied

    monkeypatch.setattr(lm_module, "read_context", note)
    failing(monkeypatch, fails)
    lm = build(loaded)
    assert lm.loglikelihood(requests()) == expected
    assert not any(outcome.error for outcome in lm.outcomes.values())
    assert len(held) == 2
    assert not any(alive)  # what had been read is gone before a choice is tried again


def test_a_context_that_cannot_be_read_once_is_read_for_each(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build(loaded).loglikelihood(requests())

    def fails(*given: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(lm_module, "read_context", fails)
    lm = build(loaded)
    assert lm.loglikelihood(requests()) == expected
    too_long = build(loaded).loglikelihood(requests([(FIRST, " value" * 600), (FIRST, " value" * 600), (FIRST, " a")]))
    assert [math.isfinite(score) for score, _ in too_long] == [False, False, True]


def test_a_device_that_is_lost_while_a_context_is_read_ends_the_evaluation(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*given: Any, **options: Any) -> Any:
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(lm_module, "read_context", lost)
    with pytest.raises(torch.AcceleratorError):
        build(loaded).loglikelihood(requests())


class First:
    """Picks the first of three samples, and keeps all."""

    samples, temperature, seed = 3, 1.5, 0

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, prompt: str, answers: Any) -> int:
        self.seen.append(list(answers))
        return 0


@policies
def test_samples_of_one_prompt_read_it_once(
    loaded: Loaded, name: str, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        Instance("generate_until", {}, (text, {"max_gen_toks": 6}), 0, metadata=("task", number, 1))
        for number, text in enumerate((FIRST, SECOND))
    ]
    longest = len(loaded[1](FIRST)["input_ids"])
    once = First()
    replies = build(loaded, name, picker=once).generate_until(asked)
    assert read.count(longest) == 1
    # Where copies are too much, each sample reads.
    real, draws = lm_module.generate, []

    def generate(*given: Any, **options: Any) -> Any:
        draws.append(len(options["samplings"]))
        if draws[-1] > 1:
            raise torch.OutOfMemoryError("too much")
        return real(*given, **options)

    monkeypatch.setattr(lm_module, "generate", generate)
    read.clear()
    each = First()
    assert build(loaded, name, picker=each).generate_until(asked) == replies
    assert draws == [3, 1, 1, 1]
    assert read.count(longest) == 3
    assert each.seen == once.seen
    assert len(set(map(tuple, zip(*once.seen, strict=True)))) == 3


def test_a_prompt_s_end_as_long_as_a_chunk_is_refused_before_anything_is_asked(loaded: Loaded) -> None:
    policy = get_policy("longcache", **POLICIES["longcache"], asking=512)
    message = "^KV policy 'longcache': asking must be less than 512, the tokens of a chunk in which prompts are read"
    with pytest.raises(ValueError, match=message):
        PolicyLM(*loaded, policy, batch_size=1, max_length=None)
