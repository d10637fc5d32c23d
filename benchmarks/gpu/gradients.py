"""Gradient features of a Llama-3.2-1B-shaped model with random weights: tokens a second, from ids to unit rows.

Adapters as TAGCOS and LESS have them (rank 128 on the attention's projections), bfloat16, d = 8,192, examples of equal
length with the loss on their end. The peer is the same model, an example at a time, as the released code takes them,
without what comes after the gradient.

LoGra (arXiv 2405.13954) published 4,696 tokens a second for the gradient logging of Llama-3-8B on an A100; models of
other sizes are compared by tokens times parameters.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from random_llama import LLAMA_3_2_1B, Shape, random_llama

from gpu.harness import Run, close

if TYPE_CHECKING:
    from peft import PeftModel

    from longloom.tasks.coreset.shards import UnitRows

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
#: Tokens a second times parameters: of Llama-3-8B, 8.03e9.
LOGRA = 4696 * 8.03e9


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked.

    Attributes:
        rank: of the adapters.
        dimension: of the projection.
        length: tokens of an example.
        answer: of them with a loss, the last ones.
        examples: in a batch.
        few: layers of the model that is checked.
    """

    shape: Shape = LLAMA_3_2_1B
    rank: int = 128
    dimension: int = 8192
    length: int = 512
    answer: int = 128
    examples: int = 32
    few: int = 2


Examples = list[tuple[torch.Tensor, torch.Tensor]]


def available(run: Run) -> bool:
    """Whether the libraries are there; if not, that is noted."""
    lacking = [name for name in ("transformers", "peft") if importlib.util.find_spec(name) is None]
    if lacking:
        run.note(f"not measured: no {' and no '.join(lacking)}")
    return not lacking


def adapted(shape: Shape, rank: int, dtype: torch.dtype, device: torch.device) -> PeftModel:
    """A random model with random adapters of its own type."""
    from peft import LoraConfig, get_peft_model

    from longloom.tasks.coreset.gradients import in_type

    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(random_llama(shape, dtype, device), config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    return in_type(model, dtype).to(device).eval()


def batch(sizes: Sizes, number: int) -> Examples:
    """Random examples on the CPU, where those of a pool are too."""
    made = torch.Generator().manual_seed(number)
    ids = torch.randint(0, sizes.shape.vocabulary, (sizes.examples, sizes.length), generator=made)
    labels = ids.clone()
    labels[:, : -sizes.answer] = -100
    return list(zip(ids, labels, strict=True))


def rows_of(model: PeftModel, sizes: Sizes, device: torch.device) -> UnitRows:
    """With moments as large as they come to be in training."""
    from longloom.tasks.coreset.gradients import trainable
    from longloom.tasks.coreset.projection import Projection
    from longloom.tasks.coreset.shards import UnitRows

    parameters = {name: parameter.numel() for name, parameter in trainable(model).items()}
    total = sum(parameters.values())
    first = 1e-4 * torch.randn(total, device=device)
    projection = Projection(total, sizes.dimension, seed=0, device=device)
    return UnitRows(parameters, projection, (first, first.square()), None)


def measure(run: Run, sizes: Sizes) -> None:
    """A batch's features; the peer's gradients of a quarter of its examples, at least one."""
    from longloom.tasks.coreset.batched import PerExample
    from longloom.tasks.coreset.gradients import example_gradient, trainable

    if not available(run):
        return
    model = adapted(sizes.shape, sizes.rank, torch.bfloat16, run.device)
    parameters = trainable(model)
    unit = rows_of(model, sizes, run.device)
    held = sum(one.numel() for one in model.parameters())
    embedded = sizes.shape.vocabulary * sizes.shape.width
    # Forward and the gradients of the activations: two products each; the vocabulary's head sees the answers alone.
    flops = 4 * sizes.examples * (sizes.length * (held - 2 * embedded) + sizes.answer * embedded)
    size = sum(unit.sizes.values()) / 1e6
    case = f"{sizes.examples} examples of {sizes.length} tokens, {size:.0f}M adapted, d {sizes.dimension}"
    with PerExample(model, parameters) as take:
        batches = [batch(sizes, number) for number in range(2)]
        calls = [lambda one=one: unit(one, take) for one in batches]
        ours = run.time(case, f"{run.implementation} batched", calls, flops=flops, peak=True)
    few = max(1, sizes.examples // 4)
    alone = [(ids.to(run.device), labels.to(run.device)) for ids, labels in batches[0][:few]]

    def one_by_one() -> None:
        for example in alone:
            example_gradient(model, parameters, *example)

    peer = run.time(f"{few} of them, gradients alone", "one by one", [one_by_one], flops=flops * few // sizes.examples)
    tokens = sizes.examples * sizes.length / ours.seconds
    run.say(f"  {tokens:,.0f} tokens/s, {sizes.examples / ours.seconds:,.1f} examples/s, {held / 1e9:.2f}B parameters")
    run.target("gradients: tokens/s times parameters over LoGra's on an A100", tokens * held / LOGRA, 1.0)
    run.target("gradients: examples/s over one by one", peer.seconds / few * sizes.examples / ours.seconds, 1.0)


def check(run: Run, sizes: Sizes) -> None:
    """Batches against the reference in float32 on the device, and the projection against the CPU's."""
    from longloom.tasks.coreset.batched import per_example_gradients
    from longloom.tasks.coreset.gradients import example_gradient, trainable
    from longloom.tasks.coreset.projection import Projection

    if not available(run):
        return
    model = adapted(replace(sizes.shape, layers=sizes.few), sizes.rank, torch.float32, run.device)
    parameters = trainable(model)
    examples = [
        (ids[: sizes.length - 3 * row], labels[: sizes.length - 3 * row])
        for row, (ids, labels) in enumerate(batch(sizes, 0)[:2])
    ]
    _, found = per_example_gradients(model, parameters, examples)
    for gradient, (ids, labels) in zip(found, examples, strict=True):
        _, expected = example_gradient(model, parameters, ids.to(run.device), labels.to(run.device))
        close(gradient, expected, tolerance=1e-3)
    made = [
        Projection(found.shape[1], sizes.dimension, seed=1, device=device)(found.to(device))
        for device in (run.device, "cpu")
    ]
    close(made[0].cpu(), made[1], tolerance=1e-4)


CHECKS = {"batched equals one by one, and the projection the CPU's": check}
