"""`lm_eval --model longloom`: its arguments, and lm-eval's own command from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longloom.evals import plugin
from longloom.evals.harness_lm import HarnessLM
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy

TASKS = Path(__file__).resolve().parents[2] / "evals" / "longbench"
TASK = "longloom_longbench_hotpotqa"

#: The command, without the harness's own tasks: reading their files would take 20 seconds.
COMMAND = """
import sys
from longloom.evals import plugin
plugin.install()
import lm_eval.tasks.manager as manager
manager.__file__ = sys.argv.pop()
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random two-layer Llama."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,  # wide, so that answers differ
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three records in LongBench's format."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "input": f"Which key is number {number}?",
            "context": f"key{number} is the value. " * 20 * number,
            "answers": [f"key{number}"],
            "length": number,
            "dataset": "hotpotqa",
            "language": "en",
            "all_classes": None,
            "_id": str(number),
        }
        for number in (1, 2, 3)
    ]
    (folder / "hotpotqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def replies(lm: HarnessLM, data: Path) -> list[str]:
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": str(data)})
    results = evaluator.evaluate(lm, manager.load([TASK]), bootstrap_iters=0)
    assert results is not None
    return [example["resps"][0][0] for example in results["samples"][TASK]]


def test_the_registered_class_is_there() -> None:
    module, _, name = plugin.TARGET.partition(":")
    assert (module, name) == (HarnessLM.__module__, HarnessLM.__name__)


def test_lm_eval_s_own_command(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    options = {
        "--model": "longloom",
        "--model_args": f"pretrained={model_folder},kv_policy=streaming,sink=4,window=60,max_length=700",
        "--include_path": str(TASKS),
        "--tasks": TASK,
        "--metadata": json.dumps({"data": str(data_folder)}),
        "--batch_size": "2",
        "--output_path": str(tmp_path / "out"),
    }
    arguments = [word for option in options.items() for word in option]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "run", *arguments, "--log_samples", str(tmp_path / "nothing" / "here.py")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert TASK in done.stdout
    (written,) = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = sorted(map(json.loads, written.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    told = [sample["resps"][0][0] for sample in samples]
    assert len(told) == 3

    same: dict[str, Any] = {"pretrained": str(model_folder), "device": "cpu", "batch_size": 2, "max_length": 700}
    assert told == replies(HarnessLM(**same, kv_policy="streaming", sink=4, window=60), data_folder)
    assert told != replies(HarnessLM(**same), data_folder)  # without a KV policy


def test_longcache_answers_through_the_harness(model_folder: Path, data_folder: Path) -> None:
    common = f"pretrained={model_folder},device=cpu,batch_size=2,max_length=700"
    lm = HarnessLM.create_from_arg_string(f"{common},kv_policy=longcache,sink=4,local=40,spans=2,span=8")
    assert lm._policies[0] == get_policy("longcache", sink=4, local=40, spans=2, span=8)
    whole = replies(HarnessLM.create_from_arg_string(common), data_folder)
    assert replies(lm, data_folder) != whole
    default = HarnessLM.create_from_arg_string(f"{common},kv_policy=longcache")
    assert replies(default, data_folder) == whole  # a scope of 1,024 tokens, the model's window


def test_arguments_of_lm_eval(model_folder: Path) -> None:
    lm = HarnessLM.create_from_arg_string(
        f"pretrained={model_folder},kv_policy=streaming,sink=2,window=30,batch_size=3,device=cpu",
        {"batch_size": "1", "max_batch_size": None, "device": "cuda:7"},
    )
    assert (lm._batch_size, lm._policies[0]) == (3, get_policy("streaming", sink=2, window=30))
    # The command's own default device is nobody's wish.
    lm = HarnessLM.create_from_arg_obj({"pretrained": str(model_folder)}, {"batch_size": 4, "device": "cuda:0"})
    assert (lm._batch_size, lm._policies[0].name) == (4, "full")


def test_a_head_profile_comes_from_its_file(model_folder: Path, tmp_path: Path) -> None:
    weights = fingerprint(LlamaForCausalLM.from_pretrained(model_folder))
    HeadProfile("probe", weights, ((0.1, 0.9), (0.2, 0.3))).write(tmp_path / "heads.json")
    lm = HarnessLM.create_from_arg_string(
        f"pretrained={model_folder},kv_policy=razor,heads={tmp_path / 'heads.json'},window=8,device=cpu"
    )
    assert lm._policies[0] == get_policy("razor", window=8, heads=HeadProfile.read(tmp_path / "heads.json"))


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        ("kv_policy=full", {}, r"^--model_args name kv_policy, expected pretrained=FOLDER_OR_NAME among them$"),
        ("", {}, r"^--model_args name nothing, expected pretrained="),
        (
            "pretrained=FOLDER,windw=3",
            {},
            r"^--model_args: KV policy 'full' has no option 'windw'; its options: none \(and of the model: pret",
        ),
        (
            "pretrained=FOLDER,kv_policy=streaming,sink=4",
            {},
            r"^--model_args: KV policy 'streaming' needs the option 'wi",
        ),
        (
            "pretrained=FOLDER,kv_policy=razor",
            {},
            r"^KV policy 'razor' needs the model's head profile: `longloom heads`",
        ),
        ("pretrained=FOLDER,kv_policy=raisor", {}, r"^--model_args: unknown KV policy 'raisor'; known: "),
        ("pretrained=FOLDER", {"max_batch_size": 8}, r"^--model_args: KV policy 'full' has no option 'max_batch_size'"),
        ("pretrained=FOLDER", {"batch_size": "auto"}, r"^--batch_size is 'auto', expected a whole number"),
        ("pretrained=FOLDER", {"batch_size": 0}, r"^batch_size is 0, expected at least 1$"),
        ("pretrained=FOLDER,dtype=int4", {}, r"^unknown dtype 'int4'; known: float32"),
        ("pretrained=FOLDER/none", {}, r"^no model folder at "),
    ],
)
def test_bad_arguments(model_folder: Path, arguments: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HarnessLM.create_from_arg_string(arguments.replace("FOLDER", str(model_folder)), config)
