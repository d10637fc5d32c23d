"""RazorAttention on a model with induction heads, the repository's own: what protecting them is worth.

The claims of arXiv 2407.15891 in small: 64 random tokens, 600 others, then the first 32 again. The tokens to copy lie
in the range that is dropped.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from longloom.kernels.huggingface.attention import policy_attention
from longloom.kernels.huggingface.probes import induction_scores
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.base import KVPolicy
from longloom.kernels.kvcache.full import FullPolicy
from longloom.kernels.kvcache.heads import HeadProfile, Scores
from longloom.kernels.kvcache.razor import RazorPolicy
from longloom.kernels.kvcache.streaming import StreamingPolicy

BASE = Path(__file__).parents[3] / "tasks/training/base"
SPECIAL = range(4)
ROWS, LENGTH, GAP, COPIED = 8, 64, 600, 32
OPTIONS: dict[str, Any] = {"induction": 0.25, "echo": 0.0, "window": 16, "compression": 40.0}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As small models are fastest, and for the same sums on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def base() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BASE).eval()
    return model


@cache
def profile() -> HeadProfile:
    found = induction_scores(base(), bos=0, special=SPECIAL, length=128, repeats=4, seed=0)
    return HeadProfile("probe", fingerprint(base()), by_kv_head(found.induction), by_kv_head(found.echo))


def by_kv_head(scores: Tensor) -> Scores:
    """The maximum over a KV head's query heads."""
    grouped = scores.unflatten(1, (base().config.num_key_value_heads, -1)).amax(dim=2)
    return tuple(map(tuple, grouped.tolist()))


@cache
def copied(policy: KVPolicy[Any]) -> tuple[float, int]:
    """The share of the 31 tokens after the first that is foretold from the true ones, and the bytes held at the end."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(len(SPECIAL), base().config.vocab_size, (ROWS, LENGTH + GAP), generator=generator)
    prompt, again = torch.cat((torch.zeros(ROWS, 1, dtype=torch.int64), drawn), dim=1), drawn[:, :COPIED]
    with torch.inference_mode(), policy_attention(base(), policy) as held:
        base()(input_ids=prompt, past_key_values=held, use_cache=True, logits_to_keep=1)
        pieces = [again[:, :1], again[:, 1:-1]]  # a single token ends the prompt
        logits = [base()(input_ids=piece, past_key_values=held, use_cache=True).logits for piece in pieces]
        right = torch.cat(logits, dim=1).argmax(dim=-1) == again[:, 1:]
        return float(right.float().mean()), held.bytes()


def others(seed: int) -> HeadProfile:
    """Four heads of the layers that do not copy, as if they did."""
    layers, heads = profile().shape
    places = [(layer, head) for layer in range(layers) if layer != 1 for head in range(heads)]
    chosen = random.Random(seed).sample(places, 4)
    scores = tuple(tuple(float((layer, head) in chosen) for head in range(heads)) for layer in range(layers))
    return HeadProfile("test", profile().weights, scores)


def test_the_heads_that_copy_stand_out() -> None:
    layers, heads = profile().shape
    assert profile().chosen(induction=0.25, echo=0) == {(1, head) for head in range(heads)}
    scores = torch.tensor(profile().induction)
    assert scores[1].min() > 0.6
    assert scores[[layer for layer in range(layers) if layer != 1]].max() < 0.1


@pytest.mark.parametrize("fold", [False, True])
def test_razor_copies_nearly_as_well_as_the_whole_cache(fold: bool) -> None:
    whole, whole_bytes = copied(FullPolicy())
    ours, ours_bytes = copied(RazorPolicy(profile(), fold=fold, **OPTIONS))
    assert whole > 0.7
    assert ours > whole - 0.06
    assert ours_bytes < 0.4 * whole_bytes


@pytest.mark.parametrize("seed", range(3))
def test_other_heads_protected_do_not_copy(seed: int) -> None:
    ours, ours_bytes = copied(RazorPolicy(profile(), **OPTIONS))
    wrong, wrong_bytes = copied(RazorPolicy(others(seed), **OPTIONS))
    assert abs(wrong_bytes - ours_bytes) < 0.01 * ours_bytes
    assert wrong < 0.2 < ours - 0.3


def test_streaming_with_the_same_bytes_does_not_copy() -> None:
    ours, ours_bytes = copied(RazorPolicy(profile(), **OPTIONS))
    config = base().config
    token = 2 * ROWS * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    recent, recent_bytes = copied(StreamingPolicy(sink=4, window=ours_bytes // token - 4))
    assert 0.95 * ours_bytes < recent_bytes <= ours_bytes
    assert recent < 0.15 < ours - 0.4


def test_the_mean_of_the_dropped_does_no_harm() -> None:
    ours, ours_bytes = copied(RazorPolicy(profile(), **OPTIONS))
    lean, lean_bytes = copied(RazorPolicy(profile(), compensate=False, **OPTIONS))
    assert lean < ours + 0.02
    assert 0 < ours_bytes - lean_bytes < 0.01 * ours_bytes  # means and counts
