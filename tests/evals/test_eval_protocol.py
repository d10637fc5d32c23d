"""Truncation before the chat template, and what fits into the window."""

from __future__ import annotations

from copy import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from longloom.evals.protocol import DoesNotFit, Request, chat_text, encode, prepare, render

WORDS = " ".join(f"w{number:03}" for number in range(300))


def test_a_short_prompt_is_left_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    request = Request("b", before="a", after="c", prefix="d")
    prepared = prepare(request, tokenizer, room=100, limit=None)
    assert tokenizer.decode(prepared.ids) == "<|user|>abc<|end|><|assistant|>d"
    assert not prepared.truncated
    plain = prepare(Request("b", chat=False, prefix="d"), tokenizer, room=100, limit=None)
    assert tokenizer.decode(plain.ids) == "bd"


@pytest.mark.parametrize("beginning", ["", "\n", "{% set said = 1 %}\n"])
def test_a_template_that_prints_the_day_prints_the_same_on_every_day(
    tokenizer: PreTrainedTokenizerFast, beginning: str
) -> None:
    dated = copy(tokenizer)
    # As Llama 3.2's asks for it.
    asks = "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}{%- endif %}Today: {{ day }}"
    dated.chat_template = f"{beginning}{asks}{tokenizer.chat_template}"
    expected = f"{'' if '{' in beginning else beginning.rstrip()}Today: 26 Jul 2024<|user|>b<|end|><|assistant|>"
    assert tokenizer.decode(render(Request("b"), dated, "b")) == expected
    turns = [{"role": "user", "content": "b"}]
    assert chat_text(dated, turns, prompt=True) == expected
    assert chat_text(tokenizer, turns, prompt=False, template=dated.chat_template) + "<|assistant|>" == expected


def test_the_middle_is_cut_before_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode(tokenizer, WORDS)
    prepared = prepare(Request(WORDS), tokenizer, room=10_000, limit=41)
    middle = tokenizer.decode(ids[:20]) + tokenizer.decode(ids[-20:])
    assert tokenizer.decode(prepared.ids) == f"<|user|>{middle}<|end|><|assistant|>"
    assert prepared.truncated
    # At the limit nothing is cut.
    assert not prepare(Request(WORDS), tokenizer, room=10_000, limit=len(ids)).truncated
    assert prepare(Request(WORDS), tokenizer, room=10_000, limit=len(ids) - 1).truncated


def test_the_window_counts_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = len(render(Request(WORDS), tokenizer, WORDS))
    assert not prepare(Request(WORDS), tokenizer, room=whole, limit=None).truncated
    prepared = prepare(Request(WORDS), tokenizer, room=whole - 1, limit=None)
    assert prepared.truncated
    assert whole - 6 < len(prepared.ids) < whole


def test_left_and_words(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode(tokenizer, WORDS)
    left = prepare(Request(WORDS, cut="left", chat=False), tokenizer, room=30, limit=None)
    assert left.ids == ids[-30:]
    # In steps of 250 words from 2,000 on: 500 words are too long, 250 fit.
    many = " ".join(f"w{number:03}" for number in range(1000))
    right = prepare(Request(many, cut="words_right", chat=False), tokenizer, room=10_000, limit=2000)
    assert tokenizer.decode(right.ids) == " ".join(many.split(" ")[:250])
    left = prepare(Request(many, cut="words_left", chat=False), tokenizer, room=10_000, limit=2000)
    assert tokenizer.decode(left.ids) == " ".join(many.split(" ")[-250:])
    # Officially the next step from 240 words would be to leave out 10, and then 260: here an eighth of the limit.
    few = prepare(Request(WORDS, cut="words_right", chat=False, after="?"), tokenizer, room=1000, limit=240)
    kept = tokenizer.decode(few.ids).removesuffix("?").split(" ")
    assert kept == WORDS.split(" ")[: len(kept)]
    assert 0 < len(kept) < 240
    assert (240 - len(kept)) % 30 == 0


def test_what_is_around_the_document_is_never_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    request = Request(WORDS, before="BEGIN ", after=" END")
    prepared = prepare(request, tokenizer, room=60, limit=None)
    text = tokenizer.decode(prepared.ids)
    assert text.startswith("<|user|>BEGIN w000")
    assert text.endswith("w299 END<|end|><|assistant|>")
    assert len(prepared.ids) <= 60


def test_what_does_not_fit(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DoesNotFit, match="the model's window leaves 5 tokens"):
        prepare(Request(WORDS, before=WORDS), tokenizer, room=5, limit=None)
    with pytest.raises(ValueError, match=r"must not be cut, and 50 are allowed") as caught:
        prepare(Request(WORDS, cut="never"), tokenizer, room=50, limit=None)
    assert not isinstance(caught.value, DoesNotFit)


def test_a_prompt_that_begins_with_bos_gets_no_other(tokenizer: PreTrainedTokenizerFast) -> None:
    ready = "<|end|><|user|>hi<|end|><|assistant|>"
    assert tokenizer.decode(prepare(Request(ready, chat=False), tokenizer, room=50, limit=None).ids) == ready


@settings(max_examples=40, deadline=None)
@given(text=st.text("aé的 w1\n", min_size=1, max_size=300), room=st.integers(12, 120), limit=st.integers(4, 90))
def test_prepared_prompts_always_fit(tokenizer: PreTrainedTokenizerFast, text: str, room: int, limit: int) -> None:
    prepared = prepare(Request(text), tokenizer, room=room, limit=limit)
    assert len(prepared.ids) <= room
    ids = encode(tokenizer, text)
    assert prepared.truncated == (len(ids) > limit or len(render(Request(text), tokenizer, text)) > room)
