"""What stored models of several kinds say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    LlamaForCausalLM,
    MptConfig,
    PreTrainedConfig,
)

from longloom.tasks.training import heldout
from longloom.tasks.training.stored import dtype_of, window_of

SMALL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 3,
}
NESTED = Gemma3Config(
    text_config=SMALL,
    vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
)
BLOOM = BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2, pad_token_id=3)


@pytest.mark.parametrize(
    ("config", "window"),
    [(NESTED, 64), (BLOOM, 2**31 - 1), (MptConfig(), 2**31 - 1), (GPT2Config(n_positions=32), 32)],
)
def test_the_window_of_any_configuration(config: PreTrainedConfig, window: int) -> None:
    assert window_of(config) == window


@pytest.mark.parametrize(("config", "room"), [(NESTED, 64), (BLOOM, 100)])
def test_examples_are_cut_to_the_window_that_there_is(
    config: PreTrainedConfig, room: int, tokenizer_folder: Path, pool: Path, tmp_path: Path
) -> None:
    """Of the nested one the window of its text; the model without a window reads as far as it is asked to."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(tmp_path / "model")
    found = []
    for name, length in (("wide", 100), ("narrow", room)):
        (tmp_path / name).mkdir(exist_ok=True)
        heldout.build(tmp_path / "model", pool, tmp_path / name, max_length=length)
        found.append(pq.read_table(tmp_path / name / "heldout.parquet"))
    assert found[0].equals(found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("said", [True, False])
def test_the_type_of_stored_weights(model_folder: Path, tmp_path: Path, dtype: torch.dtype, said: bool) -> None:
    LlamaForCausalLM.from_pretrained(model_folder, dtype=dtype).save_pretrained(tmp_path)
    if not said:
        config = json.loads((tmp_path / "config.json").read_text())
        del config["dtype"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert dtype_of(tmp_path) == dtype
