"""Head probe: Triton and the reference against plain loops over the dense softmax in float64."""

import re

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longloom.kernels.attention.head_probe import head_probe
from longloom.kernels.attention.triton import head_probe as kernels

BOTH = pytest.mark.parametrize("implementation", ["reference", "triton"])


def drawn(heads: int, kv_heads: int, tokens: int, head_dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(heads, tokens, head_dim, generator=generator),
        torch.randn(kv_heads, tokens, head_dim, generator=generator),
    )


def by_hand(query: Tensor, key: Tensor, period: int, scale: float, offsets: list[int]) -> Tensor:
    """The definition, one row, occurrence and offset after the other."""
    heads, tokens, _ = query.shape
    scores = torch.zeros(heads, len(offsets), dtype=torch.float64)
    for head in range(heads):
        keys = key[head // (heads // key.shape[0])].double().cpu()
        logits = query[head].double().cpu() @ keys.T * scale
        weights = [logits[row, : row + 1].softmax(0).tolist() for row in range(tokens)]
        for place, offset in enumerate(offsets):
            rows = []
            for r in range(period, tokens - 1):
                occurrences = [c for c in range(r) if (r - c) % period == 0]
                rows.append(sum(weights[1 + r][1 + c + offset] for c in occurrences))
            scores[head, place] = sum(rows) / len(rows)
    return scores


# tokens, period, query heads, KV heads, head size, offsets
CASES = {
    "one row": (3, 1, 2, 1, 32, [0]),
    "one row of a longer period": (7, 5, 1, 1, 64, [0, 4]),
    "period of one": (41, 1, 2, 2, 16, [0]),
    "period of two": (37, 2, 3, 1, 32, [1, 0]),
    "not a whole number of periods": (150, 33, 6, 2, 80, [0, 1, 32]),
    "less than two periods": (140, 100, 2, 1, 128, [0, 1]),
    "several tiles, many offsets": (261, 64, 2, 1, 32, list(range(17))),
    "a large head": (99, 24, 2, 1, 256, [1]),
    "the same offset twice": (30, 7, 2, 1, 48, [3, 3]),
}


@pytest.mark.parametrize("case", CASES)
@BOTH
def test_equals_the_definition(case, implementation, dtype, device, assert_close):
    tokens, period, heads, kv_heads, head_dim, offsets = CASES[case]
    query, key = (part.to(device, dtype) for part in drawn(heads, kv_heads, tokens, head_dim))
    scale = head_dim**-0.5
    scores = head_probe(query, key, period, scale=scale, offsets=offsets, implementation=implementation)
    assert scores.dtype == torch.float32
    assert scores.device == query.device
    assert_close(scores, by_hand(query, key, period, scale, offsets), tolerance=1e-5)


def test_float64_stays_float64(device, assert_close):
    query, key = (part.to(device, torch.float64) for part in drawn(4, 2, 50, 20))
    scores = head_probe(query, key, 12, scale=0.3)
    assert scores.dtype == torch.float64
    assert_close(scores, by_hand(query, key, 12, 0.3, [0, 1]), tolerance=1e-13)


def test_the_reference_takes_blocks_of_any_size(device, assert_close, monkeypatch):
    query, key = (part.to(device) for part in drawn(2, 1, 67, 16))
    expected = by_hand(query, key, 10, 0.25, [0, 1])
    for logits in (1, 2 * 67 * 7, 1 << 30):
        monkeypatch.setattr("longloom.kernels.attention.head_probe._LOGITS", logits)
        assert_close(head_probe(query, key, 10, scale=0.25, implementation="reference"), expected)


@BOTH
def test_views_are_read_in_place(implementation, device, assert_close):
    """Models hold [T, heads, D]."""
    query, key = (part.to(device).transpose(0, 1).contiguous().transpose(0, 1) for part in drawn(4, 2, 60, 32))
    wide = torch.full((2, 60, 40), torch.nan, device=device)
    wide[..., 3:35] = key
    scores = head_probe(query, wide[..., 3:35], 20, scale=0.2, implementation=implementation)
    plain = head_probe(query.contiguous(), key.contiguous(), 20, scale=0.2, implementation=implementation)
    assert_close(scores, plain.double())


@BOTH
def test_equal_keys_share_the_attention_of_a_row(implementation, device, assert_close):
    """A[row, :] = 1 / (row + 1): the score counts the occurrences."""
    tokens, period = 90, 20
    query, _ = (part.to(device) for part in drawn(2, 1, tokens, 32))
    key = torch.ones(1, tokens, 32, device=device)
    scores = head_probe(query, key, period, scale=0.2, offsets=(0, 7), implementation=implementation)
    share = sum((r // period) / (r + 2) for r in range(period, tokens - 1)) / (tokens - 1 - period)
    assert_close(scores, torch.full((2, 2), share, dtype=torch.float64))


@BOTH
def test_a_pure_induction_head_scores_one(implementation, device):
    """Each query meets exactly the keys behind its token's occurrences, at logits far beyond exp's range."""
    period, size = 24, 32
    codes = torch.nn.functional.one_hot(torch.arange(period), size).float().repeat(4, 1)
    query = torch.cat((torch.zeros(1, size), codes))[None].to(device)
    key = torch.cat((torch.zeros(2, size), codes[:-1]))[None].to(device)  # each token's predecessor; the first has none
    scores = head_probe(query, key, period, scale=500.0, offsets=(0, 1, 2), implementation=implementation)
    assert scores[0, 1] > 1 - 1e-6
    assert scores[0, [0, 2]].max() == 0


@BOTH
def test_attention_to_bos_takes_from_the_score_alone(implementation, device):
    query, key = (part.to(device) for part in drawn(2, 1, 80, 32))
    query[..., 0], key[..., 0] = 10.0, 0.0
    without = head_probe(query, key, 16, scale=1.0, offsets=range(0, 16, 3), implementation=implementation)
    key[:, 0, 0] = 1000.0
    scores = head_probe(query, key, 16, scale=1.0, offsets=range(0, 16, 3), implementation=implementation)
    assert without.min() > 0
    assert scores.abs().max() == 0


@BOTH
def test_grouped_heads_equal_repeated_keys(implementation, device, assert_close):
    query, key = (part.to(device) for part in drawn(6, 2, 75, 32))
    grouped = head_probe(query, key, 17, scale=0.2, implementation=implementation)
    repeated = head_probe(query, key.repeat_interleave(3, 0), 17, scale=0.2, implementation=implementation)
    assert_close(grouped, repeated.double())


def test_the_kernel_needs_little_scratch(device, monkeypatch):
    """At the paper's T = 10,001 and 32 heads: far below the 50 MB asked for, whatever the type."""
    held: list[int] = []

    def measure(kernel, grid, query, key, *args, **options):
        held.append(sum(arg.nbytes for arg in args if isinstance(arg, Tensor)))

    monkeypatch.setattr(kernels, "launch", measure)
    for dtype, size in ((torch.bfloat16, 128), (torch.float32, 256)):
        query = torch.zeros(1, 1, size, dtype=dtype, device=device)
        kernels.head_probe(query.expand(32, 10_001, -1), query.expand(8, 10_001, -1), 2500, 0.1, range(17))
    assert max(held) < 2e6


def test_the_reference_holds_no_square_matrix(device):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    query, key = (part.to(device) for part in drawn(2, 1, 3000, 16))
    with Largest() as largest:
        head_probe(query, key, 700, scale=0.2, implementation="reference")
    assert largest.numel < 3000 * 3000 / 8


def test_no_heads(device):
    for implementation in ("reference", "triton"):
        scores = head_probe(
            torch.zeros(0, 9, 16, device=device),
            torch.zeros(1, 9, 16, device=device),
            3,
            scale=1.0,
            implementation=implementation,
        )
        assert scores.shape == (0, 2)


@pytest.mark.parametrize(
    ("query", "key", "options", "message"),
    [
        ((4, 9, 16), (2, 9, 16), {"scale": float("inf")}, "head_probe: scale must be finite, found inf"),
        ((4, 9, 16), (2, 9, 16), {"period": 0}, "head_probe: period must be at least 1, found 0"),
        (
            (4, 9, 16),
            (2, 9, 16),
            {"period": 8},
            "head_probe: query must be of at least period + 2 = 10 tokens, found 9",
        ),
        ((4, 0, 16), (2, 0, 16), {}, "head_probe: query must be of at least period + 2 = 5 tokens, found 0"),
        ((4, 9, 16), (2, 9, 16), {"offsets": ()}, "head_probe: offsets must be at least one, found none"),
        ((4, 9, 16), (2, 9, 16), {"offsets": (0, -1)}, "head_probe: offsets must be 0 to period - 1 = 2, found -1"),
        ((4, 9, 16), (2, 9, 16), {"offsets": (3,)}, "head_probe: offsets must be 0 to period - 1 = 2, found 3"),
        ((9, 16), (2, 9, 16), {}, "head_probe: query must be [Hq, T, D], found [9, 16]"),
        ((4, 9, 16), (2, 8, 16), {}, "head_probe: key must be [Hkv, T, D] with T=9, D=16, found [2, 8, 16]"),
        ((3, 9, 16), (2, 9, 16), {}, "head_probe: 3 query heads are no multiple of 2 KV heads"),
        ((3, 9, 16), (0, 9, 16), {}, "head_probe: 3 query heads are no multiple of 0 KV heads"),
        (
            (4, 9, 16),
            (2, 9, 16),
            {"implementation": "sdpa"},
            "head_probe: implementation must be one of triton, reference, found 'sdpa'",
        ),
        (
            (4, 9, 8),
            (2, 9, 8),
            {"implementation": "triton"},
            "head_probe: implementation 'triton' cannot do this: Triton kernels take head sizes 16 to 256, found 8",
        ),
    ],
)
def test_a_bad_call_is_refused(query, key, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        head_probe(torch.zeros(query), torch.zeros(key), **{"period": 3, "scale": 1.0} | options)


@pytest.mark.parametrize(
    ("query", "key", "message"),
    [
        (torch.zeros(4, 9, 16), torch.zeros(2, 9, 16).half(), "head_probe: key must be of float32, found float16"),
        (
            torch.zeros(4, 9, 16).long(),
            torch.zeros(2, 9, 16),
            "head_probe: query must be of float16, bfloat16, float32, float64, found int64",
        ),
        (
            torch.zeros(4, 9, 16),
            torch.zeros(2, 16, 9).mT,
            "head_probe: key must be contiguous in its last dimension, found strides (144, 1, 9)",
        ),
        (
            torch.zeros(4, 9, 16),
            torch.zeros(2, 9, 16, device="meta"),
            "head_probe: key must be on cpu like query, found meta",
        ),
    ],
)
def test_bad_tensors_are_refused(query, key, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        head_probe(query, key, 3, scale=1.0)
