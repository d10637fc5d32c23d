"""Fine-tuning from start to end: what is trained on, merged adapters, kills, the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import Linear
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from longloom.evals.protocol import Request, prepare
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training import finetune
from longloom.tasks.training.mix import IGNORE
from longloom.tasks.training.sft import encode, load_examples
from longloom.tasks.training.watched import CHECKPOINTS

from .conftest import with_bos

Contents = Callable[[Path], dict[str, bytes]]
OPTIONS: dict[str, Any] = {
    "epochs": 2,
    "batch": 4,
    "learning_rate": 1e-2,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.1,
    "max_length": 64,
    "seed": 0,
}


def build(
    model: Path, pool: Path, out: Path, *, coreset: Path | None = None, progress: Progress = silent, **changes: Any
) -> Stats:
    out.mkdir(exist_ok=True)
    return finetune.build(model, pool, coreset, out, progress=progress, **{"tuning": "lora"} | OPTIONS | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return LlamaForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_artifact(
    model_folder: Path,
    pool: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    contents: Contents,
    tuning: str,
) -> None:
    stats = build(model_folder, pool, tmp_path / "a", tuning=tuning)
    build(model_folder, pool, tmp_path / "b", tuning=tuning)
    files = contents(tmp_path / "a")
    assert files == contents(tmp_path / "b")
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.parquet"} <= set(files)
    assert not any("adapter" in name or CHECKPOINTS in name or name.endswith(".bin") for name in files)
    here = str(tmp_path_factory.getbasetemp()).encode()
    assert not any(here in content for content in files.values())

    assert stats.counts == {"examples": 25, "steps": 14}
    assert stats.values["without_label"] == 1
    total = sum(parameter.numel() for parameter in LlamaForCausalLM.from_pretrained(model_folder).parameters())
    lora = 2 * 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32))  # layers, rank, q + (k, v) + o
    assert stats.values["trainable"] == {"lora": lora, "full": total}[tuning]
    before, after = weights(model_folder), weights(tmp_path / "a")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = {name for name in before if name.split(".")[-2] in finetune.LORA_TARGETS}
    assert changed == (adapted if tuning == "lora" else set(before))

    rows = pq.read_table(tmp_path / "a" / "training.parquet").to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lengths = [len(encode(tokenizer, messages, max_length=64)[0]) for _, messages in load_examples(pool)]
    assert max(lengths) == 64
    assert rows[-1]["tokens"] == 2 * (sum(lengths) - lengths[3])  # number 3 has no answer
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-2 * (1 - i / 14) for i in range(14)])
    assert sum(row["loss"] for row in rows[-4:]) < sum(row["loss"] for row in rows[:4])


def test_merged_adapters_answer_as_before(
    model_folder: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(4, 44)[None]
    logits = []
    merge = PeftModel.__getattr__

    def spy(self: PeftModel, name: str) -> Any:
        if name == "merge_and_unload":
            logits.append(self.eval()(input_ids=ids).logits.detach())
        return merge(self, name)

    monkeypatch.setattr(PeftModel, "__getattr__", spy)
    build(model_folder, pool, tmp_path)
    assert len(logits) == 1
    torch.testing.assert_close(LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, logits[0], rtol=1e-4, atol=1e-4)
    untrained = LlamaForCausalLM.from_pretrained(model_folder)(ids).logits
    assert (untrained - logits[0]).abs().max() > 0.1


@pytest.mark.parametrize(("tuning", "step"), [("lora", 2), ("lora", 7), ("lora", None), ("full", 13)])
def test_a_killed_run_ends_with_the_same_bytes(
    model_folder: Path,
    pool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
    tuning: str,
    step: int | None,
) -> None:
    monkeypatch.setattr(finetune, "ROWS", 7)  # a row each 2 steps, a checkpoint each 4
    monkeypatch.setattr(finetune, "SAVES", 4)
    calls: list[int] = []
    build(model_folder, pool, tmp_path / "whole", tuning=tuning, progress=lambda done, total: calls.append(done))

    def stop(done: int, total: int | None) -> None:
        if step is not None and done == calls[step - 1]:
            raise KeyboardInterrupt

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        if step is None:
            patch.setattr(PreTrainedModel, "save_pretrained", _but_checkpoints(out, fail))
        with pytest.raises(KeyboardInterrupt):
            build(model_folder, pool, out, tuning=tuning, progress=stop)
    again: list[int] = []
    build(model_folder, pool, out, tuning=tuning, progress=lambda done, total: again.append(done))
    assert again == {2: calls, 7: calls[4:], 13: calls[12:], None: []}[step]
    assert contents(out) == contents(tmp_path / "whole")


def _but_checkpoints(out: Path, fail: Callable[..., None]) -> Callable[..., None]:
    save = PreTrainedModel.save_pretrained
    return lambda self, folder, *args, **options: (fail if Path(folder) == out else save)(
        self, folder, *args, **options
    )


def test_a_coreset_is_all_that_is_trained_on(
    model_folder: Path, pool: Path, tmp_path: Path, contents: Contents
) -> None:
    chosen = [20, 4, 3, 11, 8]
    coreset = tmp_path / "coreset"
    coreset.mkdir()
    pq.write_table(pa.table({"index": pa.array(chosen, pa.int64())}), coreset / "coreset.parquet")
    stats = build(model_folder, pool, tmp_path / "a", coreset=coreset, batch=2)
    assert stats.counts == {"examples": 4, "steps": 4}
    # The same examples as a pool of their own.
    small = tmp_path / "small"
    small.mkdir()
    pq.write_table(pq.read_table(pool / "instructions.parquet").take(chosen), small / "instructions.parquet")
    build(model_folder, small, tmp_path / "b", batch=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_bad_parameters(model_folder: Path, pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tuning 'prefix': unknown, expected 'lora' or 'full'"):
        build(model_folder, pool, tmp_path, tuning="prefix")
    with pytest.raises(ValueError, match="instructions: none of 26 examples has an answer within 1 tokens"):
        build(model_folder, pool, tmp_path, max_length=1)
    with pytest.raises(ValueError, match=r"training: the loss is nan at step \d+; .*lower the learning rate$"):
        build(model_folder, pool, tmp_path, tuning="full", learning_rate=1e30)


def test_an_example_that_the_chat_template_refuses_is_named(model_folder: Path, refused: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^example '12': the tokenizer's chat template refuses the conversation"):
        build(model_folder, refused, tmp_path / "out")


@pytest.mark.parametrize("bos", [False, True])
def test_a_model_without_a_chat_template_is_asked_as_it_was_trained(
    model_folder: Path, pool: Path, tmp_path: Path, bos: bool
) -> None:
    model = tmp_path / "model"
    LlamaForCausalLM.from_pretrained(model_folder).save_pretrained(model)
    tokenizer = with_bos(model_folder) if bos else AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(model)
    build(model, pool, tmp_path / "out", epochs=1)
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = load_examples(pool)[10][1]
    trained, labels = encode(tokenizer, messages, max_length=64)
    assert encode(saved, messages, max_length=64) == (trained, labels)
    asked = prepare(Request(messages[0]["content"]), saved, room=None, limit=None).ids
    assert asked == trained[: len(asked)]
    assert (asked[0] == saved.bos_token_id) == bos
    assert labels[len(asked)] != IGNORE


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_weights_are_trained_in_float32_and_saved_as_they_were_stored(
    model_folder: Path, pool: Path, tmp_path: Path, tuning: str
) -> None:
    """The same weights stored in two types: the results are equal but for the rounding at the end."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for name, dtype in (("half", torch.bfloat16), ("whole", torch.float32)):
        source = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).to(dtype)
        source.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        build(tmp_path / name, pool, tmp_path / f"{name}-tuned", tuning=tuning)
    half, whole = (load_file(tmp_path / f"{name}-tuned" / "model.safetensors") for name in ("half", "whole"))
    assert {part.dtype for part in half.values()} == {torch.bfloat16}
    assert {part.dtype for part in whole.values()} == {torch.float32}
    assert all(torch.equal(half[name], part.to(torch.bfloat16)) for name, part in whole.items())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half-tuned", dtype="auto").dtype == torch.bfloat16


SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "within"),
    [
        ("llama", "self_attn"),
        ("phi3", "self_attn"),
        ("phi", "self_attn"),
        ("gpt_neox", "attention"),
        ("bloom", "self_attention"),
        ("falcon", "self_attention"),
        ("gptj", "attn"),
        ("opt", "self_attn"),
        ("codegen", "attn"),
        ("mpt", "attn"),
        ("gpt2", "attn"),
    ],
)
def test_adapters_are_on_every_projection_of_the_attention_and_on_nothing_else(kind: str, within: str) -> None:
    rotary = {"rotary_dim": 4} if kind in ("gptj", "codegen") else {}
    heads = {"num_attention_heads": 4} if kind == "codegen" else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE | rotary | heads))
    layers = {
        name for name, part in model.named_modules() if f".{within}." in name and isinstance(part, Linear | Conv1D)
    }
    assert layers
    adapted = finetune.with_lora(model, rank=2, alpha=4, dropout=0.0)
    found = {name for name, part in adapted.get_base_model().named_modules() if hasattr(part, "lora_A")}
    assert found == layers


def test_projections_of_unknown_names_are_refused() -> None:
    """`o_proj` alone has a known name."""
    config = AutoConfig.for_model("deepseek_v3", **SHAPE, num_key_value_heads=2, n_routed_experts=8, q_lora_rank=4)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    said = (
        r"^model: deepseek_v3 has the linear layers .*kv_a_proj_with_mqa.*, expected all attention projections of one"
    )
    with pytest.raises(ValueError, match=said):
        finetune.with_lora(model, rank=2, alpha=4, dropout=0.0)
