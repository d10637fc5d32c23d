"""The longest sequence that a training step takes within a bound on memory: plain, with gradient checkpointing, with
mini-sequences besides (arXiv 2407.15892); and whether mini-sequences change what is learned.

Memory is that of live tensors, counted as they come and go, so it is the same on every machine; what an operator needs
inside is not seen. `benchmarks/minisequence.py` measures the process instead.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from longloom.kernels.huggingface.load import load_model
from longloom.kernels.huggingface.minisequence import minisequence
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent

NUMBERS = "memory.json"
#: Of the model: half of Llama-3-8B's layers, 1/32 as wide, with as many words for its width (32 to 1).
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 16,
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 4096,
}
WAYS = ("plain", "checkpointing", "mini-sequences")
#: Bytes that a step may need beyond weights and gradients; of those, what a tile may take.
LIMIT, TILE = 32 * 2**20, 2**20
#: The lengths that the first line is drawn through, in tokens; the longest is found to this share of the limit.
FIRST, WITHIN = (96, 192), 0.05
#: Of the texts that both ways of a step are compared on: tokens of each.
LENGTHS = (700, 1000)


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operators return, as long as their storage lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, found)
        return found

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: object) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)


def build(model: Path, out: Path, *, seeds: int, progress: Progress = silent) -> Stats:
    """Writes `memory.json`: limit and shape; longest (way -> tokens); errors (for each seed, of the loss and, the
    largest over the weights, of a gradient, relative).

    Args:
        model: whose step is compared with and without mini-sequences; memory is that of `SHAPE`.
        out: an empty folder.
        seeds: of the texts of the comparison, and of the random model's.
        progress: told of every way and seed.

    Raises:
        ValueError: a model that mini-sequences do not work with.
    """
    longest = {}
    whole = len(WAYS) + seeds
    for number, way in enumerate(WAYS, 1):
        longest[way] = _longest(way)
        progress(number, whole)
    errors = []
    for seed in range(seeds):
        errors.append(_errors(model, seed))
        progress(len(WAYS) + seed + 1, whole)
    numbers = {"limit_bytes": LIMIT, "tile_bytes": TILE, "shape": SHAPE, "longest": longest, "errors": errors}
    (out / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return Stats(counts={way.replace("-", "_"): tokens for way, tokens in longest.items()})


def peak_bytes(way: str, tokens: int) -> int:
    """What a training step of the random model needs at its peak beyond weights and gradients."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, max_position_embeddings=131_072, use_cache=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").train()
    if way != "plain":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with minisequence(model, budget=TILE) if way == "mini-sequences" else nullcontext(), _Live() as live:
        _step(model, 16)  # from now on weights and gradients are known
        held, live.peak = live.now, live.now
        _step(model, tokens)
        return int(live.peak - held)


def _step(model: PreTrainedModel, tokens: int) -> None:
    ids = torch.arange(tokens)[None] % model.config.vocab_size
    model(input_ids=ids, labels=ids).loss.backward()


def _longest(way: str) -> int:
    """The longest sequence within LIMIT, to `WITHIN`: a line through the last two lengths proposes, a step disposes."""
    found = {tokens: peak_bytes(way, tokens) for tokens in FIRST}
    while True:
        fits = max((tokens for tokens, held in found.items() if held <= LIMIT), default=0)
        if fits and found[fits] >= (1 - WITHIN) * LIMIT:
            return fits
        (few, low), (many, high) = sorted(found.items())[-2:]
        guess = int(many + (0.99 * LIMIT - high) * (many - few) / (high - low))
        over = min((tokens for tokens, held in found.items() if held > LIMIT), default=2 * guess)
        guess = min(max(guess, fits + 1), over - 1)
        if guess in found:
            return fits
        found[guess] = peak_bytes(way, guess)


def _errors(place: Path, seed: int) -> dict[str, float]:
    """How far loss and gradients are from those of an ordinary step, relative.

    In float64, but for what the model itself computes in float32 (norms); on the CPU, GPU or not.
    """
    ids = [torch.randint(100, (1, tokens), generator=torch.Generator().manual_seed(seed)) for tokens in LENGTHS]
    steps = []
    for tiled in (False, True):
        model, _ = load_model(place, device="cpu")
        model = model.double().train()
        model.config.use_cache = False
        with minisequence(model, rows=64) if tiled else nullcontext():
            loss = sum(model(input_ids=text, labels=text).loss for text in ids)
            loss.backward()
        steps.append((float(loss.detach()), {name: weight.grad for name, weight in model.named_parameters()}))
    (loss, gradients), (tiled_loss, tiled_gradients) = steps
    worst = max(
        float((tiled_gradients[name] - wanted).norm() / wanted.norm())
        for name, wanted in gradients.items()
        if wanted is not None
    )
    return {"loss": abs(tiled_loss - loss) / abs(loss), "gradient": worst}
