"""Where the loss is taken in a conversation, for several templates; batches and padding."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longloom.evals.protocol import Request, prepare
from longloom.tasks.training.mix import IGNORE
from longloom.tasks.training.sft import (
    PLAIN_TEMPLATE,
    encode,
    encode_all,
    epoch_batches,
    load_examples,
    opening,
    pad,
    render,
    with_opening,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: End token of each kind of template; before it the answer as it stands in the text.
ENDS = {"demo": "<|end|>", "chatml": "<|im_end|>", "foreign": "<|im_end|>", "plain": "<|end|>", "plain-no-eos": ""}
NAMES = {"s": "system", "u": "user", "a": "assistant"}


@pytest.fixture(scope="module")
def tokenizers(tokenizer_folder: Path) -> dict[str, PreTrainedTokenizerBase]:
    """`foreign`: ends its turns with a token that is not its eos token, as base models with a chat template do."""
    made = {name: AutoTokenizer.from_pretrained(tokenizer_folder) for name in ENDS}
    for name in ("chatml", "foreign"):
        made[name].chat_template = CHATML
        made[name].add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made["chatml"].eos_token = "<|im_end|>"
    for name in ("plain", "plain-no-eos"):
        made[name].chat_template = None
    made["plain-no-eos"].eos_token = None
    return made


def talk(roles: str, *contents: str) -> list[dict[str, str]]:
    return [
        {"role": NAMES[role], "content": content}
        for role, content in zip(roles, itertools.cycle(contents), strict=False)
    ]


def labelled(tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int]) -> list[str]:
    """The text of each stretch of labels."""
    assert all(label in (token, IGNORE) for token, label in zip(ids, labels, strict=True))
    stretches = itertools.groupby(labels, lambda label: label != IGNORE)
    return [tokenizer.decode(list(stretch)) for marked, stretch in stretches if marked]


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("roles", ["ua", "uaua", "sua", "suauau", "uasua", "uaau"])
def test_labels_are_the_answers(tokenizers: dict[str, PreTrainedTokenizerBase], kind: str, roles: str) -> None:
    tokenizer = tokenizers[kind]
    messages = talk(roles, "weave 1?", "Köper 織 🧵 e\u0301", "warp * weft", "def f():\n    return 0")
    ids, labels = encode(tokenizer, messages, max_length=10_000)
    template = PLAIN_TEMPLATE if kind.startswith("plain") else tokenizer.chat_template
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, chat_template=template)
    assert ids == whole
    blank = " " if kind.startswith("plain") else ""  # the plain prompt ends before it
    answers = [f"{blank}{turn['content']}{ENDS[kind]}" for turn in messages if turn["role"] == "assistant"]
    assert labelled(tokenizer, ids, labels) == answers
    prompt = tokenizer.apply_chat_template(
        messages[: roles.index("a")],
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
        chat_template=template,
    )
    start = next(i for i, label in enumerate(labels) if label != IGNORE)
    assert ids[:start] == prompt  # what the model will meet


@pytest.mark.parametrize("added", ["<|end|>", "<|user|> <|end|>", ""])
def test_without_a_template_an_example_begins_as_a_text_does_at_inference(tokenizer_folder: Path, added: str) -> None:
    """What the tokenizer adds before a text, its bos token or more, is met in training too, and has no label."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    names = [*added.split(), "<|pad|>"]  # the last one is put behind a text, where no example goes on
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{added} $A <|pad|>".strip(), special_tokens=special
    )
    begun = [token for _, token in special[:-1]]
    assert opening(tokenizer) == begun
    messages = talk("ua", "weave 1?", "warp")
    plain = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert encode(tokenizer, messages, max_length=100) == encode(plain, messages, max_length=100)  # with a template
    tokenizer.chat_template = None
    ids, labels = encode(tokenizer, messages, max_length=100)
    prompt = render(tokenizer, messages[:1], prompt=True)
    asked = prepare(Request(prompt), tokenizer, room=None, limit=None).ids[:-1]
    assert ids[: len(asked)] == asked
    assert labels[: len(asked)] == [IGNORE] * len(asked)
    assert labelled(tokenizer, ids, labels) == [" warp<|end|>"]
    first = len(begun)
    for length in (3, len(ids) - 1, len(ids)):  # the beginning stays
        kept = [*range(first), *range(len(ids) - length + first, len(ids))]
        found = encode(tokenizer, messages, max_length=length)
        assert found == ([ids[place] for place in kept], [labels[place] for place in kept])
    assert encode(tokenizer, messages, max_length=1) == ((ids[:1], labels[:1]) if begun else (ids[-1:], labels[-1:]))


@settings(max_examples=150, deadline=None)
@given(data=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=2, max_size=4))
def test_any_text_keeps_its_labels(tokenizers: dict[str, PreTrainedTokenizerBase], data: list[str]) -> None:
    messages = talk("uaua"[: len(data)], *data)
    ids, labels = encode(tokenizers["demo"], messages, max_length=10_000)
    assert ids == tokenizers["demo"].apply_chat_template(messages, tokenize=True, return_dict=False)
    assert labelled(tokenizers["demo"], ids, labels) == [f"{text}<|end|>" for text in data[1::2]]


def test_an_answer_to_nothing_has_no_label(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    ids, labels = encode(tokenizers["demo"], talk("aua", "hello", "weave?", "warp"), max_length=100)
    assert labelled(tokenizers["demo"], ids, labels) == ["warp<|end|>"]


def test_a_template_that_rewrites_is_refused(tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(ValueError, match="chat template: rewrites earlier turns"):
        encode(tokenizer, talk("uaua", "a"), max_length=100)


def test_a_template_that_refuses_a_conversation_is_told_with_the_example(tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    examples = [("one", talk("ua", "a")), ("two", [{"role": "critic", "content": "b"}, *talk("ua", "a")])]
    with pytest.raises(
        ValueError, match=r"^example 'two': the tokenizer's chat template refuses the conversation: unknown role critic"
    ):
        encode_all(tokenizer, examples, max_length=100)


def test_the_tail_is_kept(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    messages = talk("ua", "weave " * 9, "warp weft")
    ids, labels = encode(tokenizers["demo"], messages, max_length=10_000)
    for length in (1, 5, 12, len(ids), len(ids) + 1):
        assert encode(tokenizers["demo"], messages, max_length=length) == (ids[-length:], labels[-length:])


def test_a_bos_token_that_the_template_prints_is_kept_with_the_tail(tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    ids, labels = encode(tokenizer, talk("ua", "weave " * 9, "warp weft"), max_length=10_000)
    assert ids[0] == tokenizer.bos_token_id
    found = encode(tokenizer, talk("ua", "weave " * 9, "warp weft"), max_length=9)
    assert found == (ids[:1] + ids[-8:], labels[:1] + labels[-8:])


def test_an_empty_line_stands_between_the_plain_turns(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    said = render(tokenizers["plain"], talk("suau", "a", "b", "c", "d"), prompt=True)
    assert said == "System: a\n\nUser: b\n\nAssistant: c<|end|>\n\nUser: d\n\nAssistant:"


def test_the_plain_template_with_the_opening_has_the_ids_of_training(any_opening: PreTrainedTokenizerBase) -> None:
    tokenizer = any_opening
    tokenizer.chat_template = None
    messages = talk("uaua", "weave 1?", "warp", "and 2?", "weft")
    trained = encode(tokenizer, messages, max_length=100)
    tokenizer.chat_template = with_opening(tokenizer, PLAIN_TEMPLATE, beginning="User: a")
    assert (tokenizer.chat_template == PLAIN_TEMPLATE) == (not opening(tokenizer))
    assert encode(tokenizer, messages, max_length=100) == trained
    asked = prepare(Request("weave 1?"), tokenizer, room=None, limit=None).ids
    assert trained[0][: len(asked)] == asked
    assert trained[1][len(asked)] != IGNORE


def test_an_opening_that_cannot_be_written_is_refused(tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    blank = [("Ġ", tokenizer.convert_tokens_to_ids("Ġ"))]  # written, it is a letter
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="Ġ $A", special_tokens=blank)
    with pytest.raises(ValueError, match=r"^tokenizer: puts '.*' before a text, and reads it back as other tokens"):
        with_opening(tokenizer, PLAIN_TEMPLATE, beginning="User: a")


def test_examples_without_labels_are_counted(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    conversations = [talk("ua", "q", "a"), talk("u", "q"), talk("uau", "q", "a", "and again " * 30)]
    kept, without = encode_all(tokenizers["demo"], list(zip("abc", conversations, strict=True)), max_length=20)
    assert without == 2  # the last one's answer is cut off
    assert kept == [encode(tokenizers["demo"], conversations[0], max_length=20)]


def test_a_label_that_nothing_precedes_is_none(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    assert encode_all(tokenizers["demo"], [("a", talk("ua", "q", "a"))], max_length=1) == ([], 1)  # the end token


def test_examples_in_the_order_asked_for(pool: Path) -> None:
    every = load_examples(pool)
    assert [name for name, _ in every] == [str(number) for number in range(26)]
    assert load_examples(pool, [5, 0, 9]) == [every[5], every[0], every[9]]
    assert [turn["role"] for turn in every[9][1]] == ["user", "assistant"] * 2


def test_padding() -> None:
    batch = pad([([5, 6, 7], [IGNORE, 6, 7]), ([8], [IGNORE])], pad_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7], [IGNORE] * 3]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=150),
    batch=st.integers(1, 9),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_every_epoch_covers_every_example(lengths: list[int], batch: int, epochs: int, seed: int) -> None:
    batches = epoch_batches(lengths, batch=batch, epochs=epochs, seed=seed)
    assert batches == epoch_batches(lengths, batch=batch, epochs=epochs, seed=seed)
    a_pass = -(-len(lengths) // batch)
    assert len(batches) == epochs * a_pass
    for epoch in range(epochs):
        mine = batches[epoch * a_pass : (epoch + 1) * a_pass]
        assert Counter(itertools.chain(*mine)) == Counter(range(len(lengths)))
        assert sorted(map(len, mine))[1:] == [batch] * (a_pass - 1)


def test_epochs_differ_and_lengths_meet() -> None:
    lengths = [i % 40 + 1 for i in range(320)]
    batches = epoch_batches(lengths, batch=4, epochs=2, seed=0)
    assert batches[:80] != batches[80:]
    padding = sum(max(lengths[i] for i in rows) * len(rows) for rows in batches[:80]) / sum(lengths)
    assert padding < 1.1
