"""Inputs of a whole pipeline, as small as they can be (a few source files, a model folder, instructions, records), and
commands that run in this process."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longloom.flows import cli, runtime
from longloom.storage.store import Store

from .command import Done, Run

WORDS = ("alpha", "beta", "gamma", "delta")


@pytest.fixture
def signals_restored() -> Iterator[None]:
    """The command line's entry point sets handlers of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def longloom(signals_restored: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `longloom ...`."""

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["longloom", *arguments])
        capsys.readouterr()  # what was said before
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def run(harness: None, longloom: Run, monkeypatch: pytest.MonkeyPatch, store: Store) -> Run:
    """Runs `longloom ...` on the store."""
    for name in ("prepare", "quiet", "start_server"):  # the harness is the server
        monkeypatch.setattr(runtime, name, lambda *store: None)
    return lambda *arguments: longloom(*arguments, "--store", str(store.root))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus/, model/, instructions.jsonl and records/ (the task `copy` in LongBench's format)."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "corpus").mkdir()
    for i in range(4):
        lines = [f"def {WORDS[(i + j) % 4]}_{j}(x):\n    return x + {i * j}\n" for j in range(30)]
        (folder / "corpus" / f"m{i}.py").write_text("\n".join(lines))
    with (folder / "instructions.jsonl").open("w") as file:
        for i in range(20):
            messages = [
                {"role": "user", "content": f"say {WORDS[i % 4]} {i}"},
                {"role": "assistant", "content": WORDS[i % 4]},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    records = folder / "records"
    (records / "config").mkdir(parents=True)
    fixed = {"input": "?", "length": 3, "dataset": "copy", "language": "en", "all_classes": None}
    with (records / "copy.jsonl").open("w") as file:
        for i, word in enumerate(WORDS):
            file.write(json.dumps(fixed | {"context": f"word: {word}", "answers": [word], "_id": str(i)}) + "\n")
    tables = {"prompt": "{context}\nword:", "maxlen": 4, "metric": "qa_f1", "chat": False}
    for name, value in tables.items():
        (records / "config" / f"dataset2{name}.json").write_text(json.dumps({"copy": value}))
    _write_model(folder / "corpus", folder / "model")
    return folder


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standard library of 12 small modules, 4 of them held out: functions with docstrings and bodies."""
    from longloom.tasks.corpus.standard_library.modules import held_out

    folder = tmp_path_factory.mktemp("library")
    left = {True: 4, False: 8}
    for number in range(400):
        name = f"m{number}.py"
        if left[held_out(name)]:
            left[held_out(name)] -= 1
            (folder / name).write_text("\n\n".join(_function(number, place) for place in range(6)))
    return folder


def _function(number: int, place: int) -> str:
    """No eight words of it in a row stand in another module."""
    word = WORDS[place % 4]
    lines = [f"    {WORDS[(place + i) % 4]}_{number} = first * {i} + {word}_{number}" for i in range(8)]
    docstring = f'    """Return the {word} of {word}_{number}."""'
    return "\n".join([f"def {word}_{number}_{place}(first, second):", docstring, *lines]) + "\n"


def _write_model(sources: Path, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from longloom.tasks.corpus.build import build as build_corpus
    from longloom.tasks.corpus.tokenizer import build as build_tokenizer

    corpus = folder.with_name("corpus-of-the-tokenizer")
    corpus.mkdir()
    folder.mkdir()
    build_corpus([str(sources)], corpus, text_field="text", id_field="id", on_bad_record="stop")
    build_tokenizer(corpus, folder, vocab_size=300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
