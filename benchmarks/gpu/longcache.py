"""Llama-3.1-8B's shape under LongCache to a million tokens, with random weights: a step, a chunk of a prompt, memory.

Contexts are filled with random keys and values, but for one prompt that is read as prompts are. Where not all layers'
tokens fit, a model of fewer layers is measured, and the row says of how many: what a layer costs does not depend on
them. Tokens are on the device, or in host memory, where only the scope and two pieces of the keys are on the device at
once; `full` attention is the peer. Decode is told twice: as Python calls the model, and as a CUDA graph of the same
step, which host memory does not allow: the host must know what was chosen.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from random_llama import LLAMA_3_1_8B, Shape, feed, random_llama
from torch import Tensor

from gpu.harness import Run, close, same
from gpu.razor import available, decoding, vector, weight_bytes
from longloom.kernels.kvcache.base import Rope, reserve
from longloom.kernels.kvcache.full import FullPolicy
from longloom.kernels.kvcache.longcache import LongCachePolicy
from longloom.kernels.kvcache.scoped import ScopedState
from longloom.kernels.kvcache.tokens import HostTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from longloom.kernels.huggingface.cache import PolicyCache


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked.

    Attributes:
        contexts: tokens before what is timed, multiples of `chunk`; the first is also read as a prompt.
        scopes: local tokens and spans, the paper's for models of 8K and of 128K.
        chunk: of a prompt.
        tokens: generated as Python calls the model.
        room: that a cache is given before steps are timed: more than all steps and chunks after each other.
        few: layers of the model that is checked, on `context` tokens, more than the first scope holds.
    """

    shape: Shape = LLAMA_3_1_8B
    contexts: tuple[int, ...] = (32_768, 131_072, 524_288, 1_048_576)
    scopes: tuple[tuple[int, int], ...] = ((4096, 127), (8192, 256))
    chunk: int = 512
    tokens: int = 8
    room: int = 4096
    few: int = 2
    context: int = 10_240


def policy_of(scope: tuple[int, int], sizes: Sizes, *, host: bool = False) -> LongCachePolicy:
    """LongCache with these local tokens and spans."""
    return LongCachePolicy(local=scope[0], spans=scope[1], chunk=sizes.chunk, host=host)


def scope_size(policy: LongCachePolicy) -> int:
    """Tokens that a query sees."""
    assert policy.local is not None
    return policy.sink + policy.most_chosen + policy.local


def layers_that_fit(run: Run, context: int, sizes: Sizes) -> int:
    """Of the shape's layers so many (halved as often as needed) as have room with their tokens; 0, noted: not one."""
    shape = sizes.shape
    while shape.layers > 1 and model_bytes(shape) + (context + sizes.room) * vector(shape) > run.room:
        shape = replace(shape, layers=shape.layers // 2)
    needed = model_bytes(shape) + (context + sizes.room) * vector(shape)
    return shape.layers if run.fits(f"{context // 1024}K", needed) else 0


def model_bytes(shape: Shape) -> int:
    """Of the weights in 16 bits."""
    matrices = shape.width * (2 * (shape.heads + shape.kv_heads) * shape.head_dim + 3 * shape.mlp)
    return 2 * (shape.layers * matrices + 2 * shape.vocabulary * shape.width)


def filled(policy: LongCachePolicy | FullPolicy, context: int, run: Run, shape: Shape, sizes: Sizes) -> PolicyCache:
    """A cache that holds `context` random tokens in all layers, with room for more."""
    from longloom.kernels.huggingface.cache import PolicyCache

    cache = PolicyCache.empty([policy] * shape.layers)
    like = run.randn(1, shape.kv_heads, sizes.chunk, shape.head_dim)
    layers: list[Any] = cache.layers
    for state in (layer.state for layer in layers):
        if isinstance(policy, LongCachePolicy) and policy.host:
            state.tokens = host_tokens(policy)
        else:
            held = state if isinstance(policy, FullPolicy) else state.tokens
            held.keys, held.values = (reserve(None, context + sizes.room, like) for _ in range(2))
        for begin in range(0, context, sizes.chunk):
            key, value = torch.randn_like(like), torch.randn_like(like)
            if isinstance(policy, LongCachePolicy):
                state.tokens.append(key, value)
            else:
                state.keys[:, :, begin : begin + sizes.chunk] = key
                state.values[:, :, begin : begin + sizes.chunk] = value
        state.seen = context
    return cache


def host_tokens(policy: LongCachePolicy) -> HostTokens:
    """Where a layer's tokens are under such a policy."""
    assert policy.local is not None
    assert policy.chunk is not None
    return HostTokens(policy.local, policy.chunk, policy.recent)


@torch.inference_mode()
def measure(run: Run, sizes: Sizes) -> None:
    """Each context: full, LongCache of each scope with its tokens on the device, and in host memory."""
    if not available(run):
        return
    model: PreTrainedModel | None = None
    made = 0
    for context in sizes.contexts:
        layers = layers_that_fit(run, context, sizes)
        if not layers:
            continue
        shape = replace(sizes.shape, layers=layers)
        if layers != made:
            model = None  # freed before there is another
            model, made = random_llama(shape, torch.bfloat16, run.device), layers
        assert model is not None
        case = f"{context // 1024}K" + ("" if layers == sizes.shape.layers else f", {layers} layers")
        last = context == sizes.contexts[-1]
        _Context(run, model, shape, sizes, context, case).measure(prompt=context == sizes.contexts[0], targets=last)


@dataclass(frozen=True)
class _Context:
    """What is measured at one length."""

    run: Run
    model: PreTrainedModel
    shape: Shape
    sizes: Sizes
    context: int
    case: str

    def measure(self, *, prompt: bool, targets: bool) -> None:
        """All ways.

        Args:
            prompt: whether a prompt of this length is read too.
            targets: whether figures are held to bounds.
        """
        run, sizes = self.run, self.sizes
        policies = [policy_of(scope, sizes) for scope in sizes.scopes]
        cache: PolicyCache | None = filled(FullPolicy(), self.context, run, self.shape, sizes)
        full, _ = self._steps("sdpa, full", FullPolicy(), cache, 2 * self.context)
        cache = None  # freed before there is another
        cache = filled(policies[0], self.context, run, self.shape, sizes)
        device = [self._way(policy, cache) for policy in policies]
        cache = None
        if prompt:
            self._prompt(policies[0])
        host: list[tuple[float, int]] = []
        if self.context * vector(self.shape) <= host_memory() // 2:
            hosted = [replace(policy, host=True) for policy in policies]
            host = [self._way(policy, filled(policy, self.context, run, self.shape, sizes)) for policy in hosted]
        else:
            run.note(f"{self.case}: no host memory for its tokens")
        if targets:
            run.target(f"{self.case}: a step on the device, full over LongCache", full / device[0][0], 1.3)
            ratio = device[0][1] / host[0][1] if host else None
            run.target(f"{self.case}: memory beyond the weights, device over host", ratio, 10.0)

    def _way(self, policy: LongCachePolicy, cache: PolicyCache) -> tuple[float, int]:
        """Steps and a chunk: seconds of a step, bytes at the peak beyond the weights."""
        way = f"{self.run.implementation}, scope {scope_size(policy)}" + (", host memory" if policy.host else "")
        seconds, most = self._steps(way, policy, cache, self.context + 2 * scope_size(policy))
        return seconds, max(most, self._chunk(way, policy, cache))

    def _steps(
        self, way: str, policy: LongCachePolicy | FullPolicy, cache: PolicyCache, tokens: int
    ) -> tuple[float, int]:
        """Decode steps that read keys or values of so many tokens: seconds of one, as a graph if it can be; memory."""
        run, sizes = self.run, self.sizes
        weights, read = weight_bytes(self.model)
        moved = read + tokens * vector(self.shape) // 2
        with decoding(self.model, policy, cache) as step:
            step()  # whatever is compiled for these sizes
            row = run.once(
                f"{self.case}, {sizes.tokens} tokens",
                way,
                functools.partial(_repeat, step, sizes.tokens),
                moved=sizes.tokens * moved,
                held=weights,
            )
            assert row.extra_bytes is not None
            if isinstance(policy, LongCachePolicy) and policy.host:
                seconds = row.seconds / sizes.tokens
                brought = self.context * vector(self.shape) // 2
                run.say(f"  {seconds * 1e3:.1f} ms a token, {brought / seconds / 1e9:.1f} GB/s of keys from the host")
            else:
                graph = run.time(f"{self.case}, a step on the device", way, [step], moved=moved, graph=True)
                seconds = graph.seconds
                run.say(f"  {row.seconds / sizes.tokens * 1e3:.1f} ms a token as Python calls it")
        return seconds, row.extra_bytes

    def _chunk(self, way: str, policy: LongCachePolicy, cache: PolicyCache) -> int:
        """A prompt's next chunk; bytes at its peak."""
        from longloom.kernels.huggingface.attention import policy_attention

        run, sizes, shape = self.run, self.sizes, self.shape
        weights, read = weight_bytes(self.model)
        scope, heads = scope_size(policy), shape.heads * shape.head_dim * shape.layers
        matrices = read // 2 - shape.vocabulary * shape.width  # numbers that meet every token; the output layer, one
        ids = torch.randint(shape.vocabulary, (1, sizes.chunk), device=run.device)
        with policy_attention(self.model, policy, cache=cache):
            feed(self.model, cache, ids, sizes.chunk)
            row = run.once(
                f"{self.case}, a chunk of {sizes.chunk}",
                way,
                lambda: feed(self.model, cache, ids, sizes.chunk),
                moved=read + (self.context + 2 * scope) * vector(shape) // 2,
                flops=2 * sizes.chunk * (matrices + heads * (self.context + 2 * scope)),
                held=weights,
            )
        run.say(f"  {sizes.chunk / row.seconds:.0f} tokens/s")
        assert row.extra_bytes is not None
        return row.extra_bytes

    def _prompt(self, policy: LongCachePolicy) -> None:
        """A whole prompt, its tokens on the device and in host memory."""
        from longloom.kernels.huggingface.attention import policy_attention

        run, sizes = self.run, self.sizes
        ids = torch.randint(self.shape.vocabulary, (1, self.context), device=run.device)
        weights, read = weight_bytes(self.model)
        for place, used in (("", policy), (", host memory", replace(policy, host=True))):
            way = f"{run.implementation}, scope {scope_size(policy)}{place}"
            with policy_attention(self.model, used) as cache:
                row = run.once(
                    f"{self.case}, prefill",
                    way,
                    functools.partial(feed, self.model, cache, ids, sizes.chunk),
                    moved=read + self.context * vector(self.shape),
                    flops=self.context * (read - 2 * self.shape.vocabulary * self.shape.width),
                    held=weights,
                )
            run.say(f"  {self.context / row.seconds:.0f} tokens/s")


def _repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


def host_memory() -> int:
    """Bytes of the host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def ring_bytes(policy: LongCachePolicy, shape: Shape) -> int:
    """What one row's cache holds on the device where its tokens are in host memory: the local ones and a chunk."""
    assert policy.local is not None
    assert policy.chunk is not None
    return (-(-policy.local // policy.chunk) + 1) * policy.chunk * vector(shape)


@torch.inference_mode()
def check_layer(run: Run, sizes: Sizes) -> None:
    """One layer against the CPU's references, on the device and from host memory; whole numbers make every score exact.

    A chunk and then steps, which on the device wait for nothing.
    """
    if not available(run):
        return
    from longloom.kernels.huggingface.attention import rope_of

    shape = replace(sizes.shape, layers=1)
    rope = rope_of(random_llama(replace(shape, vocabulary=8), torch.bfloat16, run.device))
    cpu = replace(rope, inv_freq=rope.inv_freq.cpu())
    length, queries = sizes.context + sizes.chunk + 3, min(64, sizes.chunk)
    query, key = (
        torch.randint(-2, 3, (1, heads, length, shape.head_dim), device=run.device).bfloat16()
        for heads in (shape.heads, shape.kv_heads)
    )
    value = run.randn(1, shape.kv_heads, length, shape.head_dim)
    cuts = [sizes.context, sizes.context + queries, *range(sizes.context + queries + 1, sizes.context + queries + 4)]

    def answers(policy: LongCachePolicy, parts: Sequence[Tensor], rope: Rope) -> list[Tensor]:
        state = ScopedState(0)
        if policy.host:
            state.tokens = host_tokens(policy)
        for begin in range(0, sizes.context, sizes.chunk):
            _, key, value = (part[:, :, begin : min(begin + sizes.chunk, sizes.context)] for part in parts)
            state.tokens.append(key, value)
        state.seen = sizes.context
        found = []
        for number, (begin, end) in enumerate(pairwise(cuts)):
            new = [part[:, :, begin:end].contiguous() for part in parts]
            quiet = number > 1 and not policy.host  # the chunk and the first step may compile
            with run.no_waits() if quiet else nullcontext():
                found.append(policy.attend(state, *new, rope, start=None, scaling=shape.head_dim**-0.5))
        return found

    policy = policy_of(sizes.scopes[0], sizes)
    expected = answers(policy, [part.float().cpu() for part in (query, key, value)], cpu)
    for host in (False, True):
        found = answers(replace(policy, host=host), (query, key, value), rope)
        for ours, theirs in zip(found, expected, strict=True):
            close(ours.cpu(), theirs)


@torch.inference_mode()
def check_model(run: Run, sizes: Sizes) -> None:
    """Of few layers: host memory changes no bit and leaves the device its ring; a step waits for nothing; a scope that
    holds everything is full attention.
    """
    if not available(run):
        return
    from longloom.kernels.huggingface.attention import policy_attention

    shape = replace(sizes.shape, layers=sizes.few)
    model = random_llama(shape, torch.bfloat16, run.device)
    ids = torch.randint(shape.vocabulary, (1, sizes.context), device=run.device)
    policy = policy_of(sizes.scopes[0], sizes)
    everything = replace(policy, local=-(-(sizes.context + 8) // sizes.chunk) * sizes.chunk, spans=1)

    def answers(policy: LongCachePolicy | FullPolicy) -> tuple[Tensor, int]:
        with policy_attention(model, policy) as cache:
            feed(model, cache, ids, sizes.chunk)
        with decoding(model, policy, cache, greedy=False) as step:
            found = [step(), step()]
            quiet = isinstance(policy, LongCachePolicy) and not policy.host
            with run.no_waits() if quiet else nullcontext():
                found.append(step())
        return torch.cat(found), cache.bytes()

    ours, _ = answers(policy)
    hosted, held = answers(replace(policy, host=True))
    same([hosted], [ours])
    if held != ring_bytes(policy, shape):
        raise AssertionError(f"{held} bytes held on the device, predicted {ring_bytes(policy, shape)}")
    close(answers(everything)[0], answers(FullPolicy())[0], tolerance=5e-2)


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {
    "a layer against the CPU": check_layer,
    "a model of few layers": check_model,
}
