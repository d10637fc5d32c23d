"""ChatQA's prompt in training: the evaluation's to the letter, the loss on the answer, cuts that keep the tail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longloom.evals.chatrag.prompt import SYSTEM, build_prompt
from longloom.evals.protocol import Request, prepare
from longloom.tasks.training import sft
from longloom.tasks.training.chatqa_prompt import KINDS, chat_template, encode
from longloom.tasks.training.mix import IGNORE

from .conftest import with_bos

LONG = 10_000


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tokenizer_folder)
    return found


def row(turns: int = 1, *, context: str = "warp 7 weft 織. " * 20, kind: str = "full", said: str = "weave") -> Any:
    messages = [
        {"role": ("user", "assistant")[turn % 2], "content": f"{said} {turn}?"} for turn in range(2 * turns - 1)
    ]
    return {"context": context, "kind": kind, "messages": messages, "answer": "Köper 織 9"}


def texts(tokenizer: PreTrainedTokenizerBase, given: Any, max_length: int) -> tuple[str, str]:
    found = encode(tokenizer, given, max_length=max_length)
    assert found is not None
    assert len(found.ids) <= max_length
    ids = found.ids.tolist()
    return tokenizer.decode(ids[: found.answer]), tokenizer.decode(ids[found.answer :])


@pytest.mark.parametrize("turns", [1, 3, 6])
def test_the_evaluations_prompt_and_the_answer_with_its_end(tokenizer: PreTrainedTokenizerBase, turns: int) -> None:
    """Of more than seven messages the last seven are kept, in training as in evaluation."""
    given = row(turns)
    prompt = build_prompt(given["messages"], given["context"], "full")
    before, answer = texts(tokenizer, given, LONG)
    assert before == "".join(prompt)
    assert before.count("weave") == min(7, 2 * turns - 1)
    assert answer == f" Köper 織 9{tokenizer.eos_token}"
    request = Request(prompt.context, before=prompt.system, after=prompt.dialogue, cut="right", chat=False)
    found = encode(tokenizer, given, max_length=LONG)
    assert found is not None
    assert found.ids[: found.answer].tolist() == prepare(request, tokenizer, room=None, limit=None).ids
    assert not found.cut


def test_instructions_of_the_kinds(tokenizer: PreTrainedTokenizerBase) -> None:
    number, _ = texts(tokenizer, row(2, kind="number"), LONG)
    assert "User: weave 0?" in number
    assert f"User: {KINDS['number'].text}weave 2?\n\nAssistant:" in number
    none, _ = texts(tokenizer, row(kind="none", context=""), LONG)
    assert none == f"{SYSTEM}\n\nUser: weave 0?\n\nAssistant:"  # no context, no blank place for it


def test_the_chat_template_asks_as_the_training_does(tokenizer: PreTrainedTokenizerBase) -> None:
    def rendered(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        text = tokenizer.apply_chat_template(
            messages, chat_template=chat_template(tokenizer), tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        return text

    plain, _ = texts(tokenizer, row(kind="none", context=""), LONG)
    assert rendered(("user", "weave 0?")) == plain
    given = row(kind="none")
    with_context, _ = texts(tokenizer, given, LONG)
    assert rendered(("system", given["context"]), ("user", "weave 0?")) == with_context
    told = rendered(("user", "a"), ("assistant", "b"), ("tool", "c"))
    assert told.endswith("\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant:")


@pytest.mark.parametrize("turns", [1, 2, 4])
@pytest.mark.parametrize("context", ["", "warp 7 weft 織."])
def test_the_chat_templates_ids_are_those_of_training(
    any_opening: PreTrainedTokenizerBase, turns: int, context: str
) -> None:
    """Of a whole conversation, of what is asked, and as the evaluation and the held-out loss read it."""
    tokenizer = any_opening
    given = row(turns, context=context, kind="none")
    trained = encode(tokenizer, given, max_length=LONG)
    assert trained is not None
    begun = sft.opening(tokenizer)
    assert trained.ids[: len(begun)].tolist() == begun
    tokenizer.chat_template = chat_template(tokenizer)
    asked = [{"role": "system", "content": context}, *given["messages"]] if context else given["messages"]
    whole = [*asked, {"role": "assistant", "content": given["answer"]}]
    text = tokenizer.apply_chat_template(whole, tokenize=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == trained.ids.tolist()
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == trained.ids[: trained.answer].tolist()
    ids, labels = sft.encode(tokenizer, whole, max_length=LONG)
    assert ids == trained.ids.tolist()
    assert labels[trained.answer :] == ids[trained.answer :]
    learnt = tokenizer.decode([label for label in labels if label != IGNORE])
    assert learnt.count("weave") == turns - 1  # the earlier answers too
    if turns == 1 and not context:
        request = Request(given["messages"][0]["content"])
        assert prepare(request, tokenizer, room=None, limit=None).ids == trained.ids[: trained.answer].tolist()


def test_a_bos_token_that_the_tokenizer_puts_is_there_once(tokenizer_folder: Path) -> None:
    plain, begun = AutoTokenizer.from_pretrained(tokenizer_folder), with_bos(tokenizer_folder)
    for length in (LONG, 300):
        found, without = (encode(each, row(), max_length=length) for each in (begun, plain))
        assert found is not None
        assert without is not None
        assert found.ids[0] == begun.bos_token_id
        assert (found.ids[1:] == begun.bos_token_id).sum() == (without.ids == begun.bos_token_id).sum() == 1  # the end
    assert encode(begun, row(), max_length=LONG).answer == encode(plain, row(), max_length=LONG).answer + 1


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(length=279, turns=1, words=0)
@given(length=st.integers(30, 700), turns=st.integers(1, 3), words=st.integers(0, 120))
def test_any_length_keeps_question_cue_and_answer(
    tokenizer: PreTrainedTokenizerBase, length: int, turns: int, words: int
) -> None:
    given = row(turns, context="weft 織. " * words)
    whole = encode(tokenizer, given, max_length=LONG)
    assert whole is not None
    found = encode(tokenizer, given, max_length=length)
    system = len(tokenizer(f"{SYSTEM}\n\n", add_special_tokens=False)["input_ids"])
    answer = whole.ids[whole.answer :].tolist()
    cue = len(tokenizer("Assistant:", add_special_tokens=False)["input_ids"])
    if found is None:  # nothing of the question would be left
        assert length <= system + cue + len(answer)
        return
    assert len(found.ids) <= length
    assert found.ids[found.answer :].tolist() == answer
    assert found.cut == (len(whole.ids) > length)
    prompt = tokenizer.decode(found.ids[: found.answer].tolist())
    assert prompt.startswith(SYSTEM)
    assert prompt.endswith("Assistant:")
    end = len(tokenizer("?\n\nAssistant:", add_special_tokens=False)["input_ids"])
    assert prompt.endswith("?\n\nAssistant:") or length < system + end + len(answer) + 2  # room for the cue alone
    if "weft 織" in prompt:  # something of the context is left: it lost its end, and all else is whole
        dialogue = build_prompt(given["messages"], "", "full").dialogue
        kept = prompt.removeprefix(f"{SYSTEM}\n\n").removesuffix(dialogue)
        assert prompt.endswith(dialogue)
        assert given["context"].startswith(kept.rstrip("\ufffd"))
        assert len(found.ids) >= min(length, len(whole.ids)) - 4


def test_a_question_that_holds_the_document_loses_its_beginning(tokenizer: PreTrainedTokenizerBase) -> None:
    """A row of ChatQA 2's long_sft."""
    given = row(context="", kind="none", said="begin " + "weft " * 400 + "So which")
    before, answer = texts(tokenizer, given, 400)
    assert before.startswith(f"{SYSTEM}\n\n")
    assert "begin" not in before
    assert before.endswith("weft So which 0?\n\nAssistant:")
    assert answer.startswith(" Köper")


def test_an_answer_that_does_not_fit_is_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode(tokenizer, row() | {"answer": "warp " * 500}, max_length=400) is None
