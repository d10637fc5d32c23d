"""LongCache's options: what a window gives by default, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.longcache import LongCachePolicy
from longloom.kernels.kvcache.registry import get_policy

from .longcache_loops import largest_scope


def rope(window: int | None) -> Rope:
    return Rope(10000.0 ** -(torch.arange(4) / 4), window=window)


@pytest.mark.parametrize(
    ("window", "options", "local", "spans", "chunk"),
    [
        (8192, {}, 4096, 127, 512),  # the paper's for Llama-3-8B
        (131072, {}, 8192, 256, 512),  # and for Llama-3.1-8B
        (32768, {}, 8192, 256, 512),
        (16384, {}, 8192, 255, 512),
        (1024, {}, 512, 15, 64),
        (512, {}, 256, 7, 32),
        (128, {}, 64, 1, 8),
        (127, {}, 63, 1, 7),
        (32, {"sink": 4, "span": 4}, 16, 3, 2),
        (5, {"sink": 1, "span": 2}, 2, 1, 1),
        (8192, {"local": 2048}, 2048, 191, 256),
        (8192, {"span": 8, "sink": 8}, 4096, 511, 512),  # the paper's ablation, with as many sinks as a span has tokens
        (8192, {"span": 16, "sink": 16}, 4096, 255, 512),
        (8192, {"span": 64, "sink": 64}, 4096, 63, 512),
        (8192, {"span": 128, "sink": 128}, 4096, 31, 512),
        (131072, {"span": 64}, 8192, 128, 512),
        (131072, {"span": 10000}, 8192, 1, 512),
        (8192, {"spans": 10}, 4096, 10, 512),
        (8192, {"spans": 0}, 4096, 0, 512),
        (64, {"spans": 0}, 32, 0, 4),
        (None, {"local": 100, "spans": 7}, 100, 7, 12),
        (None, {"local": 5, "spans": 7, "chunk": 5}, 5, 7, 5),
    ],
)
def test_defaults_come_from_the_window(
    window: int | None, options: dict[str, Any], local: int, spans: int, chunk: int
) -> None:
    policy = get_policy("longcache", **options)
    fitted = policy.fitted(rope(window))
    assert (fitted.local, fitted.spans, fitted.chunk) == (local, spans, chunk)
    assert fitted == fitted.fitted(rope(window))
    assert {name: getattr(fitted, name) for name in options} == options
    if window is not None:
        assert largest_scope(fitted) <= window
    assert policy == get_policy("longcache", **options)  # itself unchanged


def test_the_paper_s_defaults() -> None:
    policy = LongCachePolicy().fitted(rope(8192))
    assert (policy.sink, policy.span, policy.k, policy.block) == (32, 32, 4, None)
    assert largest_scope(policy) == 8192


@pytest.mark.parametrize(
    ("window", "options", "message"),
    [
        (
            8192,
            {"spans": 128},
            "a scope of 8224 tokens (sink 32 + 128 spans of 32 + local 4096) is larger than the model's window of 8192",
        ),
        (
            1024,
            {"local": 1024, "spans": 0},
            "a scope of 1056 tokens (sink 32 + 0 spans of 32 + local 1024) is larger than the model's window of 1024",
        ),
        (
            16,
            {"spans": 0},
            "a scope of 40 tokens (sink 32 + 0 spans of 32 + local 8) is larger than the model's window",
        ),
        (
            64,
            {},
            "the model's window of 64 has no room for a span of 32 tokens beside sink 32 and local 32",
        ),
        (16, {}, "the model's window of 16 has no room for a span of 32 tokens beside sink 32 and local 8"),
        (1, {}, "the model's window of 1 has no room for a span of 32 tokens beside sink 32 and local 1"),
        (1024, {"local": 1024}, "the model's window of 1024 has no room for a span of 32 tokens beside sink 32 and lo"),
        (1024, {"chunk": 513}, "chunk must be at most local=512, for a chunk lies within the local tokens, found 513"),
        (None, {}, "needs the option 'local': the model's window is not known"),
        (None, {"local": 64}, "needs the option 'spans': the model's window is not known"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(window: int | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        get_policy("longcache", **options).fitted(rope(window))
    assert str(caught.value).startswith("KV policy 'longcache'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, "chunk must be a whole number >= 1, found 0"),
        ({"chunk": 2.0}, "chunk must be a whole number >= 1, found 2.0"),
        (
            {"local": 64, "chunk": 65},
            "chunk must be at most local=64, for a chunk lies within the local tokens, found 65",
        ),
        ({"local": 0}, "local must be a whole number >= 1, found 0"),
        ({"sink": -1}, "sink must be a whole number >= 0, found -1"),
        ({"sink": True}, "sink must be a whole number >= 0, found True"),
        ({"spans": -1}, "spans must be a whole number >= 0, found -1"),
        ({"span": 31}, "span must be an even number, found 31"),
        ({"span": 1}, "span must be a whole number >= 2, found 1"),
        ({"span": 0}, "span must be a whole number >= 2, found 0"),
        ({"k": 0}, "k must be a whole number >= 1, found 0"),
        ({"k": "4"}, "k must be a whole number >= 1, found '4'"),
        ({"block": 48}, "block must be a power of two, found 48"),
        ({"block": 16}, "block must be a whole number >= 32, found 16"),
        ({"block": 0}, "block must be a whole number >= 32, found 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^KV policy 'longcache': {re.escape(message)}$"):
        get_policy("longcache", **options)
