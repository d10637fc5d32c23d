"""Loading models: what loads is ready to use, and what does not load is one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longloom.kernels.huggingface.load import load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, dtype="float32"
    )
    LlamaForCausalLM(config).train().save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({"<|end|>": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no network: the hub's client fails at once."""

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)


def test_a_folder_is_loaded_ready_for_evaluation(folder: Path) -> None:
    threads = torch.get_num_threads()
    model, tokenizer = load_model(folder, device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.pad_token == "<|end|>"
    assert tokenizer("a") == tokenizer("a", padding=True)
    assert torch.get_num_threads() == threads
    assert load_model(str(folder), device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


def test_missing_folders_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    for name in (missing, str(missing)):
        with pytest.raises(ValueError, match=f"no model folder at '{missing}'"):
            load_model(name)


def test_folders_without_a_model_or_tokenizer_are_named(tmp_path: Path, folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"the folder '.*empty' holds no tokenizer that can be loaded: \S"):
        load_model(empty)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model that can be loaded: \S") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all.")
    with pytest.raises(ValueError, match="holds no model that can be loaded"):
        load_model(folder)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match=r"holds no (model|tokenizer) that can be loaded"):
        load_model(folder)


@pytest.mark.usefixtures("offline")
def test_a_hub_name_without_the_hub_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"'nobody/nothing': .*not in the hub's local cache.*does not answer"
    ) as caught:
        load_model("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_name_that_the_hub_does_not_know_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    with pytest.raises(ValueError, match="'nobody/nothing' is neither a folder nor a model that the Hugging Face hub"):
        load_model("nobody/nothing")


def test_impossible_names() -> None:
    with pytest.raises(ValueError, match="'no such name!' is neither a folder nor a possible name"):
        load_model("no such name!")
    with pytest.raises(ValueError, match="unknown dtype 'int3'; known: float32, bfloat16, float16"):
        load_model("any", dtype="int3")
    with pytest.raises(ValueError, match="unknown device 'toaster'"):
        load_model("any", device="toaster")
