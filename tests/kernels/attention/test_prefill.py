"""Prefill: Triton, the reference and torch's own attention against dense attention in float64."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from longloom.kernels.attention.prefill import prefill, prefill_lse
from longloom.kernels.dispatch import record_choices

SCALE = 0.2


@dataclass(frozen=True)
class Case:
    """Queries and keys of each row, and each KV head's window and sinks (no windows: two full heads)."""

    rows: Sequence[tuple[int, int]]
    group: int
    head_dim: int
    window: Sequence[int] = ()
    sink: Sequence[int] = ()
    alibi: bool = False


CASES = {
    "full heads": Case([(70, 70), (1, 40), (33, 81)], group=4, head_dim=32),
    "a row of one token": Case([(1, 1), (50, 50), (0, 3)], group=1, head_dim=80),
    "full and windowed": Case([(90, 90), (20, 75)], group=3, head_dim=32, window=[-1, 20, 1], sink=[5, 3, 0]),
    "windows at the tiles' borders": Case(
        [(140, 140)], group=1, head_dim=16, window=[15, 16, 17, 31, 32, 33, 63, 64, 65], sink=[0, 1, 2] * 3
    ),
    "sinks of several tiles": Case([(30, 180), (70, 70)], group=4, head_dim=80, window=[9, 40], sink=[150, 64]),
    "windows without sinks": Case([(60, 100)], group=2, head_dim=128, window=[1, 50]),
    "nothing to see": Case([(40, 50)], group=1, head_dim=32, window=[0, 0], sink=[0, 3]),
    "alibi": Case([(60, 60), (9, 50)], group=3, head_dim=32, alibi=True),
    "alibi in windows": Case([(60, 70)], group=2, head_dim=32, window=[-1, 25], sink=[0, 4], alibi=True),
}


@dataclass
class Inputs:
    """What one call takes."""

    query: Tensor
    key: Tensor
    value: Tensor
    cu_q: Tensor
    cu_k: Tensor
    options: dict[str, Tensor | None]

    def run(self, implementation: str | None = None) -> tuple[Tensor, Tensor]:
        tensors = (self.query, self.key, self.value, self.cu_q, self.cu_k)
        return prefill_lse(*tensors, scale=SCALE, **self.options, implementation=implementation)

    def exactly(self) -> "Inputs":
        """The same in float64."""
        parts = (part.detach().double() for part in (self.query, self.key, self.value))
        return Inputs(*parts, self.cu_q, self.cu_k, self.options)


def offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def draw(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    cu_q, cu_k = (offsets(lengths) for lengths in zip(*case.rows, strict=True))
    kv_heads = len(case.window) or 2
    query = torch.randn(int(cu_q[-1]), kv_heads * case.group, case.head_dim).to(dtype).to(device)
    key, value = torch.randn(2, int(cu_k[-1]), kv_heads, case.head_dim).to(dtype).to(device)
    options = {
        "window": torch.tensor(case.window, dtype=torch.int32, device=device) if case.window else None,
        "sink": torch.tensor(case.sink, dtype=torch.int32, device=device) if case.sink else None,
        "alibi": torch.rand(kv_heads * case.group, device=device) if case.alibi else None,
    }
    return Inputs(query, key, value, cu_q, cu_k, options)


def dense(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The formula in float64 with whole matrices of logits; differentiable."""
    query, key, value = (part.cpu().double() for part in (inputs.query, inputs.key, inputs.value))
    group = query.shape[1] // key.shape[1]
    window, sink, alibi = (None if part is None else part.cpu() for part in inputs.options.values())
    outputs, totals = [], []
    for begin_q, end_q, begin_k, end_k in zip(
        inputs.cu_q[:-1], inputs.cu_q[1:], inputs.cu_k[:-1], inputs.cu_k[1:], strict=True
    ):
        keys, values = (part[begin_k:end_k].repeat_interleave(group, dim=1) for part in (key, value))
        j = torch.arange(len(keys))
        p = j[len(keys) - int(end_q - begin_q) :, None]
        logits = torch.einsum("qhd,khd->hqk", query[begin_q:end_q], keys) * SCALE
        if alibi is not None:
            logits = logits + alibi.double()[:, None, None] * (j - p)
        seen = (j <= p).expand(logits.shape)
        if window is not None:
            width = window.repeat_interleave(group)[:, None, None]
            sinks = 0 if sink is None else sink.repeat_interleave(group)[:, None, None]
            seen = seen & ((width < 0) | (j < sinks) | (p - j < width))
        logits = logits.masked_fill(~seen, -math.inf)
        total = logits.logsumexp(dim=-1)
        weights = (logits - total.clamp(min=-1e300)[..., None]).exp().masked_fill(~seen, 0)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
        totals.append(total)
    return torch.cat(outputs), torch.cat(totals, dim=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_equals_the_formula(case, implementation, dtype, device, assert_close):
    inputs = draw(CASES[case], dtype, device)
    output, lse = inputs.run(implementation)
    expected, expected_lse = dense(inputs)
    assert output.dtype == dtype
    assert output.is_contiguous()
    assert_close(output, expected)
    assert_close(lse, expected_lse, tolerance=1e-3 if dtype != torch.float32 else 1e-5)


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (64, 16), (16, 64)])
def test_any_tiles(block_m, block_n, device, assert_close, monkeypatch):
    """Tiles with and without a mask, before, in and behind windows of several tiles."""
    from longloom.kernels.attention.triton import prefill as kernels

    monkeypatch.setattr(kernels, "configuration", lambda *_: kernels.tiles_of(block_m, block_n))
    inputs = draw(
        Case([(100, 170), (17, 17)], group=3, head_dim=16, window=[-1, 60, 8], sink=[0, 40, 1]), torch.float32, device
    )
    output, lse = inputs.run("triton")
    expected, expected_lse = dense(inputs)
    assert_close(output, expected)
    assert_close(lse, expected_lse)


@pytest.mark.parametrize("head_dim", [96, 256])
def test_head_sizes(head_dim, dtype, device, assert_close):
    inputs = draw(Case([(20, 40)], group=2, head_dim=head_dim, window=[-1, 9], sink=[0, 2]), dtype, device)
    assert_close(inputs.run("triton")[0], dense(inputs)[0])


@pytest.mark.parametrize("case", CASES)
def test_float64_stays_float64(case, device, assert_close):
    inputs = draw(CASES[case], torch.float64, device)
    output, lse = inputs.run("reference")
    expected, expected_lse = dense(inputs)
    assert output.dtype == lse.dtype == torch.float64
    assert_close(output, expected, tolerance=1e-12)
    assert_close(lse, expected_lse, tolerance=1e-12)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_chunks_on_a_cache_equal_the_whole(implementation, device, assert_close):
    """Chunks of 1, 30 and 49 tokens on views of a cache [Hkv, capacity, D] with room for more."""
    query = torch.randn(80, 6, 32, device=device)
    cache = torch.randn(2, 2, 100, 32, device=device)
    cache[:, :, 80:] = math.nan
    key, value = cache.transpose(1, 2)
    options = {"scale": SCALE, "implementation": implementation}
    for name, window in (("full", [-1, -1]), ("windows", [17, -1])):
        options |= {"window": torch.tensor(window, dtype=torch.int32, device=device), "sink": None}
        options["sink"] = torch.full_like(options["window"], 2)
        whole = prefill(query, key[:80], value[:80], offsets([80]), offsets([80]), **options)
        chunks = [
            prefill(query[begin:end], key[:end], value[:end], offsets([end - begin]), offsets([end]), **options)
            for begin, end in ((0, 1), (1, 31), (31, 80))
        ]
        assert whole.isfinite().all(), name
        assert_close(torch.cat(chunks), whole)


@pytest.mark.parametrize("implementation", ["sdpa", "reference", "triton"])
def test_rows_do_not_see_each_other(implementation, device, assert_close):
    group = 1 if implementation == "sdpa" else 2  # on CUDA torch has no fused kernel for more in float32
    inputs = draw(Case([(40, 40), (35, 35), (21, 21)], group=group, head_dim=32), torch.float32, device)
    expected = dense(inputs)[0]
    inputs.value[40:75] = math.nan
    tensors = (inputs.query, inputs.key, inputs.value, inputs.cu_q, inputs.cu_k)
    output = prefill(*tensors, scale=SCALE, implementation=implementation)
    assert output[40:75].isnan().all()
    for part in (slice(40), slice(75, None)):
        assert_close(output[part], expected[part])


@pytest.mark.parametrize("implementation", ["sdpa", "reference", "triton"])
@pytest.mark.parametrize("rows", [[], [(0, 4)], [(0, 4), (0, 1)]])
def test_no_queries(implementation, rows, device):
    cu_q, cu_k = offsets([new for new, _ in rows]), offsets([seen for _, seen in rows])
    dtype = torch.bfloat16 if implementation == "sdpa" else torch.float32  # as above
    key = torch.randn(int(cu_k[-1]), 2, 16, dtype=dtype, device=device)
    query = key.new_empty(0, 4, 16)
    assert prefill(query, key, key, cu_q, cu_k, scale=1.0, implementation=implementation).shape == (0, 4, 16)
    if implementation != "sdpa":
        assert prefill_lse(query, key, key, cu_q, cu_k, scale=1.0, implementation=implementation)[1].shape == (4, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sdpa_is_bit_for_bit_what_full_attention_computes(dtype):
    """The calls of the full KV policy: a prompt, a chunk after it, a decode step, rows of a batch."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, 40, 32, generator=generator).to(dtype)
    key, value = torch.randn(2, 1, 2, 40, 32, generator=generator).to(dtype)
    visible = torch.arange(40) <= torch.arange(40)[:, None]
    prompt = scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALE, enable_gqa=True)
    chunk = scaled_dot_product_attention(
        query[:, :, 25:], key, value, attn_mask=visible[25:], scale=SCALE, enable_gqa=True
    )
    step = scaled_dot_product_attention(query[:, :, -1:].reshape(1, 2, 3, 32), key, value, scale=SCALE)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    packed = torch.cat((q, q[25:], q[-1:])), torch.cat((k, k, k)), torch.cat((v, v, v))
    with record_choices() as ran:
        output = prefill(*packed, offsets([40, 15, 1]), offsets([40, 40, 40]), scale=SCALE)
        alone = prefill(q, k, v, offsets([40]), offsets([40]), scale=SCALE)  # views with other strides
    assert ran == {"prefill:sdpa": 2}
    assert torch.equal(output[:40], prompt[0].transpose(0, 1))
    assert torch.equal(output[40:55], chunk[0].transpose(0, 1))
    assert torch.equal(output[55:], step.reshape(1, 6, 32))
    assert torch.equal(alone, output[:40])
    assert alone.is_contiguous()


def test_what_is_chosen(device):
    fallback = "triton" if device.type == "cuda" else "reference"
    chosen = {}
    for name in ("full heads", "full and windowed", "alibi"):
        inputs = draw(CASES[name], torch.float32, device)
        tensors = (inputs.query, inputs.key, inputs.value, inputs.cu_q, inputs.cu_k)
        with record_choices() as ran:
            prefill(*tensors, scale=SCALE, **inputs.options)
            inputs.run()
        chosen[name] = dict(ran)
    # On CUDA torch has no fused kernel for float32 with grouped heads, nor for a chunk after earlier keys.
    plain = "triton" if device.type == "cuda" else "sdpa"
    both = {f"prefill:{fallback}": 1, f"prefill_lse:{fallback}": 1}
    assert chosen == {
        "full heads": {f"prefill:{plain}": 1, f"prefill_lse:{fallback}": 1},
        "full and windowed": both,
        "alibi": both,
    }


@pytest.mark.parametrize(
    ("case", "dtype", "group", "reason"),
    [
        ([(30, 30), (1, 50)], torch.bfloat16, 4, None),
        ([(30, 30)], torch.float32, 1, None),
        ([(30, 50)], torch.bfloat16, 4, "on CUDA 30 queries after 20 earlier keys need a mask"),
        ([(30, 30)], torch.float32, 4, "on CUDA no fused kernel of torch takes float32, 4 heads a KV head"),
        ([(30, 30)], torch.float64, 1, "on CUDA no fused kernel of torch takes float64, 1 heads a KV head"),
    ],
)
def test_sdpa_on_cuda_does_what_torch_has_a_fused_kernel_for(case, dtype, group, reason, device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    inputs = draw(Case(case, group=group, head_dim=64), dtype, device)
    tensors = (inputs.query, inputs.key, inputs.value, inputs.cu_q, inputs.cu_k)
    with record_choices() as ran:
        prefill(*tensors, scale=SCALE)
    assert ("prefill:sdpa" in ran) == (reason is None)
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            prefill(*tensors, scale=SCALE, implementation="sdpa")


class Largest(TorchDispatchMode):
    """The most elements that any tensor has which is made within."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.numel())
        return result


@pytest.mark.parametrize("window", [-1, 64])
def test_the_reference_holds_no_square(window):
    inputs = draw(Case([(3000, 3000)], group=1, head_dim=16, window=[window]), torch.float32, torch.device("cpu"))
    with Largest() as largest:
        inputs.run("reference")
    assert largest.elements <= (1 << 21 if window < 0 else 3000 * 64)  # 3000 * 3000 would be 9 million


def bad(**parts: object) -> dict[str, object]:
    cu_q, cu_k = offsets([3, 2]), offsets([3, 5])
    tensors = {"query": torch.zeros(5, 4, 16), "key": torch.zeros(8, 2, 16), "value": torch.zeros(8, 2, 16)}
    return {**tensors, "cu_q": cu_q, "cu_k": cu_k, "scale": 1.0, **parts}


BAD = {
    "query must be [Tq, Hq, D], found [4, 16]": bad(query=torch.zeros(4, 16)),
    "key must be of float32, found float16": bad(key=torch.zeros(8, 2, 16).half()),
    "query must be of float16, bfloat16, float32, float64, found int32": bad(query=torch.zeros(5, 4, 16).int()),
    "value must be [Tk, Hkv, D] with Tk=8, Hkv=2, D=16, found [7, 2, 16]": bad(value=torch.zeros(7, 2, 16)),
    "value must be on cpu like query, found meta": bad(value=torch.zeros(8, 2, 16, device="meta")),
    "query must be contiguous in its last dimension, found strides (64, 1, 4)": bad(query=torch.zeros(5, 16, 4).mT),
    "3 query heads are no multiple of 2 KV heads": bad(query=torch.zeros(5, 3, 16)),
    "scale must be positive and finite, found 0.0": bad(scale=0.0),
    "scale must be positive and finite, found inf": bad(scale=float("inf")),
    "cu_q must be of int32, found int64": bad(cu_q=offsets([3, 2]).long()),
    "cu_q must be on the CPU, found meta": bad(cu_q=torch.zeros(3, dtype=torch.int32, device="meta")),
    "cu_q must be rising from 0 to 5, all the tokens there are, found [0, 6, 5]": bad(cu_q=offsets([6, -1])),
    "cu_q must be rising from 0 to 5, all the tokens there are, found [0, 3, 4]": bad(cu_q=offsets([3, 1])),
    "cu_q must be rising from 0 to 5, all the tokens there are, found []": bad(cu_q=offsets([])[1:]),
    "cu_k must be [B+1] with B+1=3, found [2]": bad(cu_k=offsets([8])),
    "cu_k must be rising from 0 to 8, all the tokens there are, found [1, 3, 8]": bad(cu_k=offsets([2, 5]) + 1),
    "cu_k must be of at least 3 keys in row 0, found 2": bad(cu_k=offsets([2, 6])),
    "cu_k must be of at least 1 keys in row 0, found 0": bad(cu_q=offsets([0, 5]), cu_k=offsets([0, 8])),
    "window must be [Hkv] with Hkv=2, found [1]": bad(window=torch.zeros(1, dtype=torch.int32)),
    "window must be of int32, found int64": bad(window=torch.zeros(2, dtype=torch.int64)),
    "window must be at least -1, found -2": bad(window=torch.tensor([3, -2], dtype=torch.int32)),
    "sink must be at least 0, found -1": bad(sink=torch.tensor([3, -1], dtype=torch.int32)),
    "alibi must be [Hq] with Hq=4, found [2]": bad(alibi=torch.zeros(2)),
    "alibi must be of float32, found float16": bad(alibi=torch.zeros(4).half()),
    "implementation must be one of sdpa, triton, reference, found 'flash'": bad(implementation="flash"),
    "implementation 'sdpa' cannot do this: torch's attention has no alibi": bad(
        alibi=torch.zeros(4), implementation="sdpa"
    ),
    "implementation 'sdpa' cannot do this: torch's attention has no window": bad(
        window=torch.zeros(2, dtype=torch.int32), implementation="sdpa"
    ),
    "implementation 'triton' cannot do this: Triton kernels take head sizes 16 to 256, found 8": bad(
        **{
            name: torch.zeros(shape) for name, shape in (("query", (5, 4, 8)), ("key", (8, 2, 8)), ("value", (8, 2, 8)))
        },
        implementation="triton",
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message):
    with pytest.raises(ValueError, match=f"^{re.escape(f'prefill: {message}')}$"):
        prefill(**BAD[message])


def test_lse_refuses_in_its_own_name():
    with pytest.raises(ValueError, match="prefill_lse: implementation must be one of triton, reference, found 'sdpa'"):
        prefill_lse(**bad(implementation="sdpa"))
    with pytest.raises(ValueError, match=r"prefill_lse: scale must be positive and finite, found -1.0"):
        prefill_lse(**bad(scale=-1.0))
