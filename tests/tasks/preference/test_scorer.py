"""A score depends on the text alone: not on the batch, the padding, or who else is asked about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from longloom.tasks.preference.encoding import FILE, Reading, encode, reading_of, set_apart_padding
from longloom.tasks.preference.reward_model import start
from longloom.tasks.preference.scorer import Asked, RewardScorer, TooLongError, load_scorer
from longloom.tasks.preference.template import DEFAULT

from .conftest import WORDS

READING = Reading(DEFAULT, 96)


def save(model: Path, folder: Path, reading: Reading | None = READING, *, seed: int = 0) -> Path:
    """An untrained reward model."""
    network, tokenizer = start(model, seed=seed)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if reading is not None:
        reading.write(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model_folder, tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def double(reward_model: Path) -> RewardScorer:
    """In float64, one text a batch: the reference."""
    found = load_scorer(reward_model, batch_tokens=1)
    found.model.double()
    return found


def asked(prompt: str, context: str | None, response: str) -> Asked:
    return Asked([{"role": "user", "content": prompt}], context, response)


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
questions = st.lists(st.builds(asked, texts, st.none() | texts, texts), min_size=1, max_size=9)


@given(questions=questions, batch_tokens=st.sampled_from([1, 50, 200, 4096]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_do_not_depend_on_the_batch(
    reward_model: Path, double: RewardScorer, questions: list[Asked], batch_tokens: int
) -> None:
    alone = np.array([double([each])[0] for each in questions])
    together = RewardScorer(double.model, double.tokenizer, READING, batch_tokens=batch_tokens)(questions)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


def test_single_precision_agrees_to_a_hundred_thousandth(reward_model: Path, double: RewardScorer) -> None:
    questions = [asked(f"q {word} " * n, None, word * (n % 5 + 1)) for n in range(1, 9) for word in WORDS]
    single = load_scorer(reward_model)(questions)
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, double(questions), rtol=0, atol=1e-5)
    assert len(set(single.tolist())) > 20


def test_equal_texts_are_read_once_and_score_alike(reward_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_scorer(reward_model)
    read: list[int] = []
    forward = scorer.forward
    monkeypatch.setattr(scorer, "forward", lambda rows: (read.append(len(rows)), forward(rows))[1])
    told: list[tuple[int, int | None]] = []
    first, other = asked("q", None, "warp"), asked("q", None, "weft loom")
    scores = scorer([first, other, first, first], progress=lambda done, total: told.append((done, total)))
    assert sum(read) == 2
    assert scores[0] == scores[2] == scores[3] != scores[1]
    assert told[-1][0] == told[-1][1] == sum(len(ids) for ids in scorer.encode([first, other]))
    assert scorer([]).shape == (0,)


def test_text_ends_with_the_end_token_once(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    question = asked("q", "z", "a")
    with_template = encode(tokenizer, question, READING)
    assert tokenizer.decode(with_template) == "<|user|>q\n\n[criteria] z<|end|><|assistant|>a<|end|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
    plain = encode(tokenizer, question, READING)
    assert tokenizer.decode(plain) == "user: q\n\n[criteria] z\n\nassistant: a<|end|>"
    as_it_is = encode(tokenizer, question, Reading(DEFAULT, 96, ends=False))
    assert tokenizer.decode(as_it_is) == "user: q\n\n[criteria] z\n\nassistant: a\n\n"
    tokenizer.chat_template = "{{ raise_exception('no such roles') }}"
    with pytest.raises(ValueError, match="the tokenizer's chat template refuses the conversation: no such roles"):
        encode(tokenizer, question, READING)


@pytest.mark.parametrize("ends", [True, False])
def test_without_a_chat_template_text_begins_as_the_tokenizer_says(model_folder: Path, ends: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    question, reading = asked("q", None, "a"), Reading(DEFAULT, 96, ends=ends)
    bos = TemplateProcessing(single="<|pad|> $A", special_tokens=[("<|pad|>", tokenizer.pad_token_id)])
    with_template = encode(tokenizer, question, reading)
    tokenizer.backend_tokenizer.post_processor = bos
    assert encode(tokenizer, question, reading) == with_template
    tokenizer.chat_template = None
    plain = encode(tokenizer, question, replace(reading, opens=False))
    assert tokenizer.decode(plain).startswith("User: q")
    assert encode(tokenizer, question, reading) == [tokenizer.pad_token_id, *plain]


def test_an_earlier_reward_model_is_read_as_it_was_trained(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"template": DEFAULT, "max_length": 96, "ends": True}))
    assert reading_of(tmp_path, window=96) == replace(READING, opens=False)
    READING.write(tmp_path)
    assert reading_of(tmp_path, window=96) == READING
    (tmp_path / FILE).write_text(json.dumps({"template": DEFAULT, "max_length": 96, "opens": 1}))
    with pytest.raises(ValueError, match=r"reward\.json: opens is 1, expected true or false"):
        reading_of(tmp_path, window=96)


def test_a_model_of_elsewhere_is_asked_as_its_template_says(model_folder: Path, tmp_path: Path) -> None:
    """Without reward.json, without a padding token in its configuration, and padded with its end token."""
    save(model_folder, tmp_path, None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    questions = [asked("q", "z", "a"), asked("q", None, "warp weft loom " * 3)]
    scorer = load_scorer(tmp_path)
    assert scorer.reading == Reading(DEFAULT, 96, ends=False)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(tmp_path), scorer.tokenizer
    alone = [model(torch.tensor([ids])).logits.item() for ids in scorer.encode(questions)]
    np.testing.assert_allclose(scorer(questions), alone, atol=1e-5)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_bidirectional_models_too(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        num_labels=1,
        pad_token_id=3,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = load_scorer(tmp_path)
    questions = [asked("q", None, "warp " * n) for n in (1, 5, 9)]
    np.testing.assert_allclose(scorer(questions), [scorer([each])[0] for each in questions], atol=1e-5)


def test_head_begins_with_unit_scores_and_is_kept(model_folder: Path, tmp_path: Path) -> None:
    network, _ = start(model_folder, seed=0)
    again, _ = start(model_folder, seed=0)
    other, _ = start(model_folder, seed=1)
    weight = network.score.weight
    assert torch.equal(weight, again.score.weight)
    assert not torch.equal(weight, other.score.weight)
    assert weight.std().item() == pytest.approx(33**-0.5, rel=0.4)
    save(model_folder, tmp_path, seed=1)
    kept, _ = start(tmp_path, seed=5)
    assert torch.equal(kept.score.weight, other.score.weight)


def test_padding_is_set_apart_only_where_it_must(model_folder: Path) -> None:
    network, tokenizer = start(model_folder, seed=0)
    assert not set_apart_padding(tokenizer, network)
    assert network.config.pad_token_id == tokenizer.pad_token_id == 3
    assert network.get_input_embeddings().num_embeddings == 300


def test_what_cannot_be_read_is_named(reward_model: Path, model_folder: Path, tmp_path: Path) -> None:
    scorer = load_scorer(reward_model)
    long = asked("q", None, "warp " * 200)
    assert scorer.fits([asked("q", None, "a"), long]) == [True, False]
    with pytest.raises(TooLongError, match=r"response 1: \d+ tokens with its prompt, expected at most 96"):
        scorer([asked("q", None, "a"), long])
    with pytest.raises(ValueError, match=r"has no reward head \(score.weight\), expected a trained reward model"):
        load_scorer(model_folder)
    folder = save(model_folder, tmp_path)
    (folder / FILE).write_text('{"template": "x"}')
    with pytest.raises(ValueError, match=r"reward\.json: field 'max_length' is missing"):
        reading_of(folder, window=96)
    scorer.model.score.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="response 0: its score is nan, expected a number"):
        scorer([asked("q", None, "a")])
