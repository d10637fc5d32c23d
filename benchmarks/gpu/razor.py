"""Llama-3.1-8B's shape end to end, with random weights: a prompt, its compression, decode from full and Razor's caches.

One prefill serves both caches, as in `generate`. A row's memory is what torch's allocator held at the peak beyond the
weights: the cache counts, the other way's does not. Decode is told twice: as Python calls the model, where the host may
be what takes the time, and as a CUDA graph of the same step.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from random_llama import LLAMA_3_1_8B, Shape, feed, random_llama, random_profile
from torch import Tensor

from gpu.harness import Run, close
from longloom.kernels.attention.pages import PAGE
from longloom.kernels.kvcache.base import KVPolicy, reserve
from longloom.kernels.kvcache.compressed import CompressedState
from longloom.kernels.kvcache.full import FullPolicy
from longloom.kernels.kvcache.prompt import PromptPolicy
from longloom.kernels.kvcache.razor import RazorPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from longloom.kernels.huggingface.cache import PolicyCache


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked.

    Attributes:
        contexts: tokens of the prompts.
        chunk: of them a forward pass, as `generate` feeds them.
        tokens: generated as Python calls the model.
        room: that the caches are given before steps are timed: more than these and the repetitions of a graph.
        window: the policy's S_0; the rest is as in the paper.
        few: layers of the model that is checked, on a prompt of `context` tokens.
    """

    shape: Shape = LLAMA_3_1_8B
    contexts: tuple[int, ...] = (32_768, 131_072)
    chunk: int = 512
    tokens: int = 32
    room: int = 512
    window: int = 4000
    few: int = 2
    context: int = 8192


#: Policies by what a row calls them.
Ways = dict[str, RazorPolicy | FullPolicy]


def available(run: Run) -> bool:
    """Whether there is transformers; if not, that is noted."""
    found = importlib.util.find_spec("transformers") is not None
    if not found:
        run.note("skipped, it needs transformers")
    return found


def ways_of(run: Run, model: PreTrainedModel, shape: Shape, sizes: Sizes) -> Ways:
    """Razor with a random profile, and full: last, for it appends to the prompt's own tensors."""
    from longloom.kernels.huggingface.weights import fingerprint

    razor = RazorPolicy(heads=random_profile(fingerprint(model), shape), window=sizes.window)
    return {f"{run.implementation}, Razor": razor, "sdpa, full": FullPolicy()}


@torch.inference_mode()
def measure(run: Run, sizes: Sizes) -> None:
    """Each context: the prefill, the compression, then decode from either cache."""
    if not available(run):
        return
    shape = sizes.shape
    matrices = shape.width * (2 * (shape.heads + shape.kv_heads) * shape.head_dim + 3 * shape.mlp)
    weights = 2 * (shape.layers * matrices + 2 * shape.vocabulary * shape.width)
    # A full cache may hold an eighth to spare; beside it Razor's, and a layer that moves.
    fitting = [n for n in sizes.contexts if run.fits(f"{n // 1024}K", weights + int(1.6 * n * vector(shape)))]
    if not fitting:
        return
    model = random_llama(shape, torch.bfloat16, run.device)
    ways = ways_of(run, model, shape, sizes)
    for context in fitting:
        caches = _measure_prompt(run, model, ways, context, sizes)
        _measure_steps(run, model, ways, caches, context, sizes)


def vector(shape: Shape) -> int:
    """Bytes of a token's keys and values in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * 2


def weight_bytes(model: PreTrainedModel) -> tuple[int, int]:
    """Of all weights, and of those that a step reads: of the embedding it is a row."""
    held = sum(part.numel() * part.element_size() for part in model.parameters())
    embedding = next(model.get_input_embeddings().parameters())
    return held, held - embedding.numel() * embedding.element_size()


def _measure_prompt(run: Run, model: PreTrainedModel, ways: Ways, context: int, sizes: Sizes) -> dict[str, PolicyCache]:
    """What each way keeps of one prompt."""
    from longloom.kernels.huggingface.attention import policy_attention, rope_of

    case, shape = f"{context // 1024}K", sizes.shape
    weights, read = weight_bytes(model)
    layers = read // 2 - shape.vocabulary * shape.width  # numbers that meet every token; the output layer, one
    attention = 4 * (context * (context + 1) // 2) * shape.heads * shape.head_dim * shape.layers
    ids = torch.randint(shape.vocabulary, (1, context), device=run.device)
    with policy_attention(model, PromptPolicy()) as prompt:
        prefill = run.once(
            f"{case}, prefill",
            run.implementation,
            lambda: feed(model, prompt, ids, sizes.chunk),
            moved=read + context * vector(shape),
            flops=2 * layers * context + attention,
            held=weights,
        )
    caches: dict[str, PolicyCache] = {}
    for way, policy in ways.items():

        def keep(way: str = way, policy: RazorPolicy | FullPolicy = policy) -> None:
            caches[way] = prompt.kept_by(policy, rope_of(model))

        if isinstance(policy, FullPolicy):
            keep()  # there is nothing to do
            continue
        moved = context * vector(shape) + held_bytes(context, policy, shape)
        row = run.once(f"{case}, compression", way, keep, moved=moved, held=weights)
        run.target(f"{case}: compression's share of the prefill", row.seconds / prefill.seconds, 0.02, most=True)
    return caches


def _measure_steps(
    run: Run, model: PreTrainedModel, ways: Ways, caches: dict[str, PolicyCache], context: int, sizes: Sizes
) -> None:
    """Decode from the full caches, drop them, and then from Razor's."""
    case, shape = f"{context // 1024}K", sizes.shape
    weights, read = weight_bytes(model)
    seconds, memory = [], []
    for way, policy in reversed(ways.items()):
        cache = caches.pop(way)
        kept = context * vector(shape) if isinstance(policy, FullPolicy) else held_bytes(context, policy, shape)
        others = sum(other.bytes() for other in caches.values())
        make_room(cache, sizes.room)
        with decoding(model, policy, cache) as step:
            row = run.once(
                f"{case}, {sizes.tokens} tokens",
                way,
                functools.partial(_repeat, step, sizes.tokens),
                moved=sizes.tokens * (read + kept),
                held=weights + others,
            )
            graph = run.time(f"{case}, a step on the device", way, [step], moved=read + kept, graph=True)
        run.say(f"  {sizes.tokens / row.seconds:.1f} tokens/s as Python calls it, {1 / graph.seconds:.1f} as a graph")
        seconds.append(graph.seconds)
        assert row.extra_bytes is not None
        memory.append(row.extra_bytes)
        del cache, step
    if context == max(sizes.contexts):
        run.target(f"{case}: a step on the device, full over Razor", seconds[0] / seconds[1], 1.3)
        run.target(f"{case}: memory beyond the weights, full over Razor", memory[0] / memory[1], 2.9)


@contextmanager
def decoding(
    model: PreTrainedModel, policy: KVPolicy[Any], cache: PolicyCache, *, greedy: bool = True
) -> Iterator[Callable[[], Tensor]]:
    """A step that goes on from the cache and does not wait for the device: the logits [1, vocabulary].

    It reads its own answers; not `greedy`, ids that count up, so that two ways stay comparable where rounding decides
    an argmax.
    """
    from longloom.kernels.huggingface.attention import policy_attention

    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)

    def step() -> Tensor:
        logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]
        ids.copy_(logits.argmax(dim=-1, keepdim=True) if greedy else ids + 1)
        return logits

    with policy_attention(model, policy, cache=cache):
        yield step


def _repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


def make_room(cache: PolicyCache, tokens: int) -> None:
    """Let every layer take so many tokens without moving, so that the graph of a step stays valid."""
    layers: list[Any] = cache.layers
    for state in (layer.state for layer in layers):
        if isinstance(state, CompressedState):
            assert state.cache is not None
            state.cache.grow(tokens)
        else:
            needed = state.seen + tokens
            state.keys, state.values = (reserve(part, needed, part) for part in (state.keys, state.values))


def held_bytes(tokens: int, policy: RazorPolicy, shape: Shape) -> int:
    """What Razor's caches hold of one row's prompt in 16-bit numbers: whole pages, tables, means and counts."""
    assert policy.heads is not None
    chosen = policy.heads.chosen(induction=policy.induction, echo=policy.echo)
    window = max(policy.window, int(tokens / policy.compression))
    held = 0
    for layer in range(shape.layers):
        kept = [
            tokens if (layer, head) in chosen else min(tokens, policy.sink + window) for head in range(shape.kv_heads)
        ]
        pages = [math.ceil(slots / PAGE) for slots in kept]
        held += 2 * 2 * PAGE * shape.head_dim * sum(pages)
        held += shape.kv_heads * (4 * max(pages) + 2 * 4 * shape.head_dim + 2 * 4)
    return held


@torch.inference_mode()
def check_model(run: Run, sizes: Sizes) -> None:
    """Of few layers: bytes are as predicted, and with all heads protected answers are the full cache's."""
    if not available(run):
        return
    from longloom.kernels.huggingface.attention import policy_attention, rope_of

    shape = replace(sizes.shape, layers=sizes.few)
    model = random_llama(shape, torch.bfloat16, run.device)
    razor, full = ways_of(run, model, shape, sizes).values()
    assert isinstance(razor, RazorPolicy)
    ids = torch.randint(shape.vocabulary, (1, sizes.context), device=run.device)
    with policy_attention(model, PromptPolicy()) as prompt:
        feed(model, prompt, ids, sizes.chunk)
    found, predicted = prompt.kept_by(razor, rope_of(model)).bytes(), held_bytes(sizes.context, razor, shape)
    if found != predicted:
        raise AssertionError(f"{found} bytes held, predicted {predicted}")
    answers = []
    for policy in (replace(razor, induction=1.0), full):
        with decoding(model, policy, prompt.kept_by(policy, rope_of(model)), greedy=False) as step:
            answers.append(torch.cat([step() for _ in range(4)]))
    close(answers[0], answers[1], tolerance=5e-2)


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {"a model of few layers": check_model}
