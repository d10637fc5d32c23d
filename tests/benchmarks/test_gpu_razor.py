"""The model end to end of `make gpu-check`: what it counts, what it needs, and that its check would tell."""

import dataclasses

import pytest
import torch
from gpu import razor, timing
from random_llama import LLAMA_3_1_8B, feed, random_llama, random_profile

from longloom.kernels.huggingface.attention import policy_attention, rope_of
from longloom.kernels.kvcache.prompt import PromptPolicy
from longloom.kernels.kvcache.razor import RazorPolicy

from .tiny import TINY

SIZES = razor.Sizes(**TINY["razor"])


def test_the_full_size_is_the_papers():
    policy = RazorPolicy(heads=random_profile("some", LLAMA_3_1_8B))
    assert len(policy.heads.chosen(induction=policy.induction, echo=policy.echo)) == 36 + 3
    held = {n: razor.held_bytes(n, policy, LLAMA_3_1_8B) / (n * razor.vector(LLAMA_3_1_8B)) for n in (4000, 131_072)}
    assert held[131_072] == pytest.approx(0.15 + 0.85 / 5, rel=0.01)
    assert held[4000] == pytest.approx(1.0, rel=0.01)
    assert razor.vector(LLAMA_3_1_8B) == 131_072


def test_the_models_weights_are_counted():
    with torch.device("meta"):
        held, read = razor.weight_bytes(random_llama(LLAMA_3_1_8B, torch.bfloat16, torch.device("meta")))
    assert held == 2 * 8_030_261_248
    assert held - read == 2 * 128_256 * 4096


def test_without_transformers_it_says_so(run, monkeypatch):
    monkeypatch.setattr(razor.importlib.util, "find_spec", lambda name: None)
    razor.check_model(run, SIZES)
    razor.measure(run, SIZES)
    assert run.notes == [": skipped, it needs transformers"]
    assert run.rows == run.targets == []


def test_contexts_that_do_not_fit_are_left_out(run):
    run.room = 170_000  # more than the weights and 130 tokens take, less than those and 200
    razor.measure(run, dataclasses.replace(SIZES, contexts=(130, 200)))
    assert [note.partition(", it")[0] for note in run.notes] == [": 0K: skipped"]
    assert len(run.rows) == 6  # prefill, compression, and two rows each way
    run.rows.clear()
    run.room = 1000
    razor.measure(run, SIZES)
    assert run.rows == []


def test_memory_is_told_beyond_the_weights_and_the_other_cache(run):
    weights = razor.weight_bytes(random_llama(SIZES.shape, torch.bfloat16, run.device))[0]
    razor.measure(run, SIZES)
    extra = {(row.case, row.way): row.extra_bytes for row in run.rows if row.extra_bytes is not None}
    assert extra["0K, prefill", "reference"] == (1 << 30) - weights
    assert extra["0K, 3 tokens", "reference, Razor"] == (1 << 30) - weights
    policy = RazorPolicy(heads=random_profile("", SIZES.shape), window=SIZES.window)
    assert extra["0K, 3 tokens", "sdpa, full"] == (1 << 30) - weights - razor.held_bytes(200, policy, SIZES.shape)


def test_the_caches_stay_where_they_are_while_there_is_room(run):
    model = random_llama(SIZES.shape, torch.bfloat16, run.device)
    ids = torch.randint(64, (1, 140))
    with torch.inference_mode(), policy_attention(model, PromptPolicy()) as prompt:
        feed(model, prompt, ids, 32)
    with torch.inference_mode():
        for policy in razor.ways_of(run, model, SIZES.shape, SIZES).values():
            cache = prompt.kept_by(policy, rope_of(model))
            razor.make_room(cache, 20)
            states = [getattr(layer.state, "cache", layer.state) for layer in cache.layers]
            before = [(state.keys.data_ptr(), state.values.data_ptr()) for state in states]
            with razor.decoding(model, policy, cache) as step:
                for _ in range(20):
                    step()
            assert [(state.keys.data_ptr(), state.values.data_ptr()) for state in states] == before
            assert cache.get_seq_length() == 160


def test_a_cache_of_other_answers_is_found(run, monkeypatch):
    def replace(value, **changes):  # what the check protects is not
        return dataclasses.replace(
            value, **({"induction": 0.0, "compensate": False} if "induction" in changes else changes)
        )

    monkeypatch.setattr(razor, "replace", replace)
    with pytest.raises(AssertionError, match="relative error"):
        razor.check_model(run, SIZES)


def test_a_cache_of_other_bytes_is_found(run, monkeypatch):
    monkeypatch.setattr(razor, "held_bytes", lambda *given: 77)
    with pytest.raises(AssertionError, match="bytes held, predicted 77"):
        razor.check_model(run, SIZES)


def test_ratios_come_from_the_same_run(run):
    times = iter([3e-3, 2e-3])
    run.meter.seconds = lambda calls, graph: timing.Timing(next(times), 0.0)
    razor.measure(run, dataclasses.replace(SIZES, contexts=(130,)))
    found = {target.what.partition(": ")[2]: target.found for target in run.targets}
    assert found["a step on the device, full over Razor"] == pytest.approx(1.5)
    assert found["compression's share of the prefill"] == 1.0
