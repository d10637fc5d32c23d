"""Copying from four times the model's window: what LongCache's scope and the right heads are worth, and what they hold.

4,096 random tokens to the repository's own model of 1,024, then 32 from the middle of them again, one by one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from longloom.kernels.huggingface.attention import policy_attention
from longloom.kernels.kvcache.base import KVPolicy
from longloom.kernels.kvcache.longcache import LongCachePolicy
from longloom.kernels.kvcache.razor_longcache import RazorLongCachePolicy
from longloom.kernels.kvcache.streaming import StreamingPolicy

from .test_razor_copying import SPECIAL, base, one_thread, others, profile

__all__ = ["one_thread"]

ROWS, LENGTH, PLACE, COPIED, CHUNK = 2, 4096, 1600, 32, 512
#: Four of sixteen heads.
QUARTER: dict[str, Any] = {"induction": 0.25, "echo": 0.0}


@cache
def copied(policy: KVPolicy[Any]) -> tuple[float, int]:
    """The share of the 31 tokens after the first that is foretold from the true ones, and the bytes held at the end."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(len(SPECIAL), base().config.vocab_size, (ROWS, LENGTH), generator=generator)
    prompt = torch.cat((torch.zeros(ROWS, 1, dtype=torch.int64), drawn), dim=1)
    again = drawn[:, PLACE : PLACE + COPIED]
    right = []
    with torch.inference_mode(), policy_attention(base(), policy) as held:
        for chunk in prompt.split(CHUNK, dim=1):
            base()(input_ids=chunk, past_key_values=held, use_cache=True, logits_to_keep=1)
        for token, following in zip(again.T[:-1], again.T[1:], strict=True):
            logits = base()(input_ids=token[:, None], past_key_values=held, use_cache=True).logits
            right.append(logits[:, -1].argmax(dim=-1) == following)
        return float(torch.stack(right).float().mean()), held.bytes()


def test_the_scope_carries_beyond_the_window() -> None:
    assert base().config.max_position_embeddings == LENGTH // 4
    assert copied(LongCachePolicy())[0] > 0.75
    assert copied(StreamingPolicy(sink=32, window=512))[0] < 0.1


def test_a_quarter_of_the_heads_is_as_good() -> None:
    whole, whole_bytes = copied(LongCachePolicy())
    ours, ours_bytes = copied(RazorLongCachePolicy(heads=profile(), **QUARTER))
    assert ours > whole - 0.08
    assert ours_bytes < (0.25 + 0.75 * (32 + 512) / LENGTH) * whole_bytes


def test_other_heads_protected_do_not_copy() -> None:
    right, right_bytes = copied(RazorLongCachePolicy(heads=profile(), **QUARTER))
    wrong, wrong_bytes = copied(RazorLongCachePolicy(heads=others(0), **QUARTER))
    assert abs(wrong_bytes - right_bytes) < 0.01 * right_bytes
    assert wrong < 0.2 < right - 0.4
