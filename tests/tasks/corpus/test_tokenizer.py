"""The trained tokenizer: exact round trips, fixed special tokens, the chat template, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.corpus.tokenizer import SMALLEST, build

TEXT = "def weave(threads):\n    return [thread.strip() for thread in threads]\n\n\nEin Webstuhl für Texte. 織機 🧵\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=3) as writer:
        writer.write([{"id": str(index), "source": "s", "text": TEXT * (index + 1)} for index in range(8)])
    return folder


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    assert build(corpus, out, vocab_size=300).counts == {"tokens": 300}
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("text", [" a", "a , b .  c 's n't\r\n", "\ufeff\0", "<|end|> <|user|>", "e\u0301 é ﬁ", TEXT])
def test_texts_that_tokenizers_like_to_change(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    names = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 3)
    assert set(tokenizer.all_special_tokens) == set(names)
    assert tokenizer("<|user|>a<|end|>")["input_ids"] == [1, *tokenizer("a")["input_ids"], 0]
    assert tokenizer("a")["input_ids"][0] > 3  # nothing is added around a text


@pytest.mark.parametrize(
    ("roles", "prompt", "rendered"),
    [
        ("u", False, "<|user|>0<|end|>"),
        ("u", True, "<|user|>0<|end|><|assistant|>"),
        ("uaua", False, "<|user|>0<|end|><|assistant|>1<|end|><|user|>2<|end|><|assistant|>3<|end|>"),
        ("sua", False, "<|user|>0\n\n1<|end|><|assistant|>2<|end|>"),
        ("sau", True, "<|user|>0<|end|><|assistant|>1<|end|><|user|>2<|end|><|assistant|>"),
        ("uasu", False, "<|user|>0<|end|><|assistant|>1<|end|><|user|>2\n\n3<|end|>"),
        ("ssu", False, "<|user|>0\n\n1\n\n2<|end|>"),
        ("s", False, "<|user|>0<|end|>"),
        ("ua" + "t", False, "<|user|>0<|end|><|assistant|>1<|end|><|user|>2<|end|>"),
    ],
)
def test_chat_template(tokenizer: PreTrainedTokenizerFast, roles: str, prompt: bool, rendered: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    messages = [{"role": names[role], "content": str(index)} for index, role in enumerate(roles)]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt) == rendered


def test_contents_are_rendered_as_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "\n a \n"}, {"role": "assistant", "content": " {{ b }}\n"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|user|>\n a \n<|end|><|assistant|> {{ b }}\n<|end|>"
    with pytest.raises(Exception, match="unknown role judge, expected system, user, assistant or tool"):
        tokenizer.apply_chat_template([{"role": "judge", "content": ""}], tokenize=False)


def test_the_same_corpus_gives_the_same_bytes(corpus: Path, folder: Path, tmp_path: Path) -> None:
    build(corpus, tmp_path, vocab_size=300)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert not any(str(path).encode() in content for content in files.values() for path in (corpus, folder))


def test_vocabularies(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"vocab_size is {SMALLEST - 1}, expected at least {SMALLEST}"):
        build(corpus, tmp_path, vocab_size=SMALLEST - 1)
    calls: list[tuple[int, int | None]] = []
    stats = build(corpus, tmp_path, vocab_size=100_000, progress=lambda done, total: calls.append((done, total)))
    assert SMALLEST < stats.counts["tokens"] < 1000  # the corpus has no more pairs to merge
    assert calls[-1] == (8, 8)
