"""Per-example gradients: batches against loops that take one example at a time, on this CPU; and the projection.

    python benchmarks/gradients.py --pool FOLDER --json results.json

FOLDER is an instructions artifact (the demo's). Three ways give the same gradients, held against each other before a
figure is told, and run in turns:

- loop: `model(input_ids, labels=labels).loss.backward()`, an example at a time, with torch's threads as they are;
- threads: `example_gradient`, which has the head only at labelled positions, whole examples on single threads;
- batched: `PerExample` on batches of like length, whole batches on single threads, as `features` does.

A ratio is the median of its rounds'. Where other processes take cores the loop suffers most: its threads wait for each
other at every product. `alone` is the same by processor time of one thread, which tells what batching itself saves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from peft import LoraConfig, PeftModel, get_peft_model
from random_llama import Shape, random_llama
from transformers import AutoTokenizer

from longloom.kernels.huggingface.load import load_model
from longloom.tasks.coreset.batched import PerExample
from longloom.tasks.coreset.encoded import Example
from longloom.tasks.coreset.gradients import example_gradient, has_target, trainable
from longloom.tasks.coreset.projection import Projection
from longloom.tasks.coreset.shards import BATCH_TOKENS, cut
from longloom.tasks.training.finetune import LORA_TARGETS
from longloom.tasks.training.sft import encode, load_examples

BASE = Path(__file__).resolve().parents[1] / "tasks" / "training" / "base"
MIDDLE = Shape(layers=8, width=512, mlp=1376, heads=8, kv_heads=4, head_dim=64, vocabulary=32_000)


def pool(folder: Path, count: int) -> list[Example]:
    """Every so-many-th example by length, so that batches are as full as they are in a shard."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    encoded = [encode(tokenizer, messages, max_length=1024) for _, messages in load_examples(folder)]
    examples = [(torch.tensor(ids), torch.tensor(labels)) for ids, labels in encoded]
    batches = cut([one for one in examples if has_target(one[1])], BATCH_TOKENS["cpu"])
    step = max(1, len(examples) // count)
    alive = [one for one in examples if has_target(one[1])]
    return [alive[number] for batch in batches[step // 2 :: step] for number in batch]


def adapted(name: str) -> PeftModel:
    """The demo's base model, or a random one, with adapters as the warm-up makes them."""
    torch.manual_seed(0)
    model = load_model(BASE, device="cpu", dtype="float32")[0] if name == "demo" else None
    model = model or random_llama(MIDDLE, torch.float32, torch.device("cpu"))
    config = LoraConfig(r=8, lora_alpha=32, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    made: PeftModel = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(0, 0.02)
    return made


class Ways:
    """The three ways; each gives the gradients [n, P]."""

    def __init__(self, model: PeftModel, examples: list[Example], threads: int) -> None:
        self.model, self.examples, self.threads = model, examples, threads
        self.parameters = trainable(model)

    def loop(self) -> torch.Tensor:
        rows = []
        for ids, labels in self.examples:
            self.model.zero_grad()
            self.model(input_ids=ids[None], labels=labels[None]).loss.backward()
            rows.append(torch.cat([one.grad.reshape(-1) for one in self.parameters.values() if one.grad is not None]))
        return torch.stack(rows)

    def single(self) -> torch.Tensor:
        return torch.stack([example_gradient(self.model, self.parameters, *one)[1] for one in self.examples])

    def threaded(self) -> torch.Tensor:
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            rows = workers.map(lambda one: example_gradient(self.model, self.parameters, *one)[1], self.examples)
            return torch.stack(list(rows))

    def batched(self, threads: int | None = None) -> torch.Tensor:
        sizes = [one.numel() for one in self.parameters.values()]
        starts = dict(zip(self.parameters, np.cumsum([0, *sizes]).tolist(), strict=False))
        result = torch.empty(len(self.examples), sum(sizes))

        def one(batch: list[int]) -> None:
            places = torch.tensor(batch)

            def keep(name: str, found: torch.Tensor) -> None:
                result[places, starts[name] : starts[name] + found.shape[1]] = found

            take([self.examples[number] for number in batch], keep)

        batches = cut(self.examples, BATCH_TOKENS["cpu"])
        with PerExample(self.model, self.parameters) as take:
            if threads == 1:
                for batch in batches:
                    one(batch)
            else:
                with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
                    list(workers.map(one, batches))
        return result


def timed(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    began = clock()
    call()
    return clock() - began


def told(values: list[float]) -> dict[str, float]:
    """Median and the furthest."""
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def gradients(name: str, examples: list[Example], rounds: int, threads: int) -> dict[str, Any]:
    """One model's figures."""
    model = adapted(name)
    ways = Ways(model, examples, threads)
    expected = ways.loop()
    errors = {}
    for way in (ways.threaded, ways.batched):
        errors[way.__name__] = float((way() - expected).norm() / expected.norm())
    assert max(errors.values()) < 1e-4, errors
    seconds: dict[str, list[float]] = {"loop": [], "threaded": [], "batched": []}
    for _ in range(rounds):
        for way_name, taken in seconds.items():
            taken.append(timed(getattr(ways, way_name)))
    alone: dict[str, list[float]] = {"loop": [], "single": [], "batched": []}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(rounds):
        for way_name, taken in alone.items():
            call = (lambda: ways.batched(1)) if way_name == "batched" else getattr(ways, way_name)
            taken.append(timed(call, time.thread_time))
    torch.set_num_threads(before)
    lengths = [len(ids) for ids, _ in examples]
    count = len(examples)
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "adapted": expected.shape[1],
        "examples": count,
        "mean_tokens": round(float(np.mean(lengths)), 1),
        "relative_errors": errors,
        "examples_a_second": {key: told([count / one for one in taken]) for key, taken in seconds.items()},
        "batched_over_loop": told([a / b for a, b in zip(seconds["loop"], seconds["batched"], strict=True)]),
        "batched_over_threaded": told([a / b for a, b in zip(seconds["threaded"], seconds["batched"], strict=True)]),
        "alone_examples_a_second": {key: told([count / one for one in taken]) for key, taken in alone.items()},
        "alone_batched_over_loop": told([a / b for a, b in zip(alone["loop"], alone["batched"], strict=True)]),
    }


def dense_block(coordinates: int, dimension: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the dense projection does for a block of coordinates: makes its signs again, and a product."""

    def call(vectors: torch.Tensor) -> torch.Tensor:
        words = np.random.Philox(key=0).random_raw(-(-coordinates * dimension // 64)).view(np.uint8)
        signs = np.unpackbits(words, count=coordinates * dimension).reshape(coordinates, dimension)
        return vectors @ (2 * torch.from_numpy(signs.astype(np.float32)) - 1)

    return call


def projection(parameters: int, dimension: int) -> dict[str, Any]:
    """Seconds a row; the dense one by a block of coordinates, which repeats over all of them."""
    torch.set_num_threads(1)
    made: list[Projection] = []
    build = timed(lambda: made.append(Projection(parameters, dimension, seed=0)))
    vector = torch.randn(1, parameters)
    row = statistics.median(timed(lambda: made[0](vector)) for _ in range(3))
    coordinates = 2048
    part = vector[:, :coordinates].expand(16, -1)
    dense = statistics.median(timed(lambda: dense_block(coordinates, dimension)(part)) for _ in range(3))
    return {
        "parameters": parameters,
        "dimension": dimension,
        "build_seconds": round(build, 2),
        "seconds_a_row": round(row, 3),
        "dense_seconds_a_row_in_batches_of_16": round(dense * parameters / coordinates / 16, 1),
    }


def main() -> None:
    """Everything, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True, help="an instructions artifact")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--examples", type=int, nargs=2, default=(200, 40), help="of the demo's model and the middle one"
    )
    parser.add_argument("--coordinates", type=int, default=134_217_728, help="of the projection")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    result: dict[str, Any] = {"machine": machine() | {"load": [round(one, 1) for one in os.getloadavg()]}}
    for name, count in zip(("demo", "middle"), options.examples, strict=True):
        torch.set_num_threads(threads)
        result[name] = gradients(name, pool(options.pool, count), options.rounds, threads)
        print(json.dumps({name: result[name]}, indent=1), flush=True)
    result["projection"] = projection(options.coordinates, 8192)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
