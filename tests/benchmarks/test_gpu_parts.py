"""Every check and benchmark of the kernels on a GPU, at tiny sizes on the reference, and what they count."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_check
import pytest
import torch
from gpu import decode, gather, harness, head_probe, peers, prefill, spans

from longloom.kernels.attention.pages import RaggedKV

from .tiny import TINY

ROOT = Path(gpu_check.__file__).resolve().parents[1]


def test_every_kernel_has_its_turn_and_its_tests():
    found = {path.stem for path in (ROOT / "kernels" / "attention").glob("[!_]*.py")}
    found -= {"pages", "pack", "quantise", "summaries", "topk_reference"}  # no Triton
    assert set(gpu_check.PARTS) == found | {"linear_cross_entropy", "razor", "longcache", "gradients", "minisequence"}
    tests = {path for paths in gpu_check.PARTS.values() for path in paths} | set(gpu_check.TESTS)
    assert [path for path in sorted(tests) if not (ROOT / path).exists()] == []


def part(name):
    module = importlib.import_module(f"gpu.{name}")
    return module, module.Sizes(**TINY[name])


@pytest.mark.parametrize("name", gpu_check.PARTS)
def test_every_check_passes_on_the_reference(run, name):
    module, sizes = part(name)
    assert gpu_check.check(run, {name: module}, {name: sizes}) == []
    assert run.notes == []


@pytest.mark.parametrize("name", gpu_check.PARTS)
def test_every_benchmark_runs(run, name):
    module, sizes = part(name)
    kept = []
    assert gpu_check.measure(run, {name: module}, {name: sizes}, lambda: False, lambda told: kept.append({*told})) == []
    assert kept == [{name}]
    assert {row.part for row in run.rows} == {name}
    assert all(row.share is not None for row in run.rows)
    ours = [row for row in run.rows if row.way.startswith("reference")]
    assert ours
    if name != "combine":
        assert len(ours) < len(run.rows)  # a peer beside it
    assert all(target.found is not None for target in run.targets)
    strange = [note for note in run.notes if "sdpa" not in note]  # backends that the CPU does not have
    assert strange == []


def test_a_check_that_fails_is_told_and_the_others_go_on(run):
    def wrong(run, sizes):
        harness.close(torch.ones(3), torch.full((3,), 1.1))

    module = SimpleNamespace(CHECKS={"wrong": wrong, "right": lambda run, sizes: None})
    assert gpu_check.check(run, {"some": module}, {"some": None}) == [
        ("some: wrong", "AssertionError: relative error 9.09e-02, allowed 3e-05")
    ]


def test_a_benchmark_that_fails_or_comes_too_late_is_told(run):
    def measure(run, sizes):
        raise RuntimeError("out of\n memory")

    modules = {"first": SimpleNamespace(measure=measure), "second": SimpleNamespace(measure=measure)}
    turns = iter([False, True])
    parts = {"first": None, "second": None}
    failures = gpu_check.measure(run, modules, parts, lambda: next(turns), lambda seconds: None)
    assert failures == [
        ("first", "RuntimeError: out of memory"),
        ("second", "not measured: the time is up; --part measures it alone"),
    ]


# What is counted


def test_bytes_of_a_step():
    """2 rows of 2 KV heads and 4 query heads, 20 + 0 + 33 + 5 slots on pages of 16."""
    kv_len = torch.tensor([[20, 0], [33, 5]], dtype=torch.int32)
    table = torch.tensor([[[0, 1, -1], [-1, -1, -1]], [[2, 3, 4], [5, -1, -1]]], dtype=torch.int32)
    cache = RaggedKV(*torch.zeros(2, 6, 16, 32, dtype=torch.bfloat16), table, kv_len)
    query = torch.zeros(2, 4, 1, 32, dtype=torch.bfloat16)
    pools = 2 * (20 + 33 + 5) * 32 * 2
    integers = 4 * (4 + 6)
    assert decode.needed_bytes(query, cache) == pools + integers + 2 * 8 * 32 * 2 + 8 * 4
    means = {name: torch.zeros(2, 2, 32) for name in ("mean_key", "mean_value")}
    with_means = RaggedKV(cache.keys, cache.values, table, kv_len, **means, dropped=torch.ones_like(kv_len))
    assert decode.needed_bytes(query, with_means) - decode.needed_bytes(query, cache) == 4 * (2 * 32 * 4 + 4)


def test_razor_keeps_a_third():
    sizes = decode.Sizes()
    for context, ratio in ((131_072, 3.125), (524_288, 3.125), (4000, 1.0)):
        windows = torch.cat([decode.razor_windows(context, whole, sizes) for whole in sizes.whole])
        kept = torch.where(windows < 0, context, (windows + sizes.sink).clamp(max=context))
        assert context * kept.numel() / float(kept.sum()) == pytest.approx(ratio, rel=2e-3)


def test_repeated_rows_are_alike_on_pages_of_their_own(run):
    one = decode.ragged(run, torch.tensor([[70, 5, 130]], dtype=torch.int32), 16)
    three = decode.repeated(one, 3)
    assert three.keys.shape[0] == 3 * one.keys.shape[0]
    assert len(three.host_table[three.host_table >= 0].unique()) == int((three.host_table >= 0).sum())
    query = run.randn(1, 6, 1, 16)
    output, _ = decode.decode(query.expand(3, -1, -1, -1).contiguous(), three, scale=0.25)
    assert torch.equal(output, decode.decode(query, one, scale=0.25)[0].expand(3, -1, -1, -1))


@pytest.mark.parametrize(
    ("tokens", "window", "sink"), [(9, 9, 0), (9, 100, 3), (9, 3, 0), (9, 3, 2), (9, 3, 8), (5, 0, 1)]
)
def test_pairs_that_a_window_sees(tokens, window, sink):
    seen = [(p, j) for p in range(tokens) for j in range(p + 1) if p - j < window or j < sink]
    assert prefill.window_pairs(tokens, window, sink) == len(seen)


def test_the_dense_probe_is_the_definition():
    query, key = torch.randn(2, 12, 16).double(), torch.randn(1, 12, 16).double()
    scores = head_probe.dense(query, key, 3, 0.3)
    for head in range(2):
        logits = (query[head] @ key[0].T * 0.3).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
        weights = logits.softmax(-1)
        for offset in (0, 1):
            sums = [
                sum(float(weights[1 + r, 1 + c + offset]) for c in range(r - 3, -1, -3) if c + offset <= r)
                for r in range(3, 11)
            ]
            assert float(scores[head, offset]) == pytest.approx(sum(sums) / len(sums), rel=1e-5)


def test_a_selection_is_what_longcache_makes(run):
    sizes = gather.Sizes(**TINY["gather"])
    chosen = gather.selection(run, sizes)[0].tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == sizes.scope
    assert chosen[: sizes.span] == list(range(sizes.span))
    assert chosen[-sizes.scope // 2 :] == list(range(sizes.keys - sizes.scope // 2, sizes.keys))


def test_spans_by_hand():
    votes = torch.tensor([0, 3, 0, 0, 0, 0, 1, 1, 0, 0, 9])
    assert spans.by_hand(votes, 2, 4, 0, 10) == [0, 1, 2, 5, 6, 7, 8]
    assert spans.by_hand(votes, 9, 2, 6, 8) == [6, 7]


def test_flashinfer_is_asked_for_every_head_as_a_request(run, monkeypatch):
    asked = {}

    class Wrapper:
        def __init__(self, workspace, layout, **options):
            asked["layout"] = layout

        def plan(self, *arguments, **options):
            asked["plan"] = arguments

        def run(self, query, pools):
            return query

    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper))
    cache = decode.ragged(run, torch.tensor([[70, 5], [130, 64]], dtype=torch.int32), 16)
    [call] = peers.flashinfer_decode([run.randn(2, 4, 1, 16)], [cache])
    assert call().shape == (4, 2, 16)
    indptr, indices, last, *rest = asked["plan"]
    assert indptr.tolist() == [0, 2, 3, 6, 7]
    assert indices.tolist() == [page for line in cache.table.flatten(0, 1).tolist() for page in line if page >= 0]
    assert last.tolist() == [6, 5, 2, 64]
    assert rest == [2, 1, 16, 64]
