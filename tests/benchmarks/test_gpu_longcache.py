"""LongCache end to end in `make gpu-check`: what it counts, what fits, and that its checks would tell."""

import dataclasses

import pytest
import torch
from gpu import longcache, razor
from gpu.razor import vector, weight_bytes
from random_llama import LLAMA_3_1_8B, random_llama

from longloom.kernels.kvcache.full import FullPolicy
from longloom.kernels.kvcache.tokens import HostTokens

from .tiny import TINY

SIZES = longcache.Sizes(**TINY["longcache"])


def test_the_full_size_is_the_papers():
    scopes = [longcache.scope_size(longcache.policy_of(scope, longcache.Sizes())) for scope in longcache.Sizes().scopes]
    assert scopes == [8192, 32 + 256 * 32 + 8192]
    assert longcache.model_bytes(LLAMA_3_1_8B) == pytest.approx(2 * 8_030_261_248, rel=1e-4)  # but for the norms
    assert longcache.ring_bytes(longcache.policy_of((4096, 127), longcache.Sizes()), LLAMA_3_1_8B) == 4608 * 131_072


def test_of_a_million_tokens_a_quarter_of_the_layers_fits(run):
    run.room = 60_000_000_000
    found = [longcache.layers_that_fit(run, context, longcache.Sizes()) for context in longcache.Sizes().contexts]
    assert found == [32, 32, 16, 8]
    assert run.notes == []
    run.room = 1_000_000
    assert longcache.layers_that_fit(run, 1 << 20, longcache.Sizes()) == 0
    assert [note.partition(", it")[0] for note in run.notes] == [": 1024K: skipped"]


def test_rows_say_of_how_many_layers(run):
    run.room = 260_000
    longcache.measure(run, dataclasses.replace(SIZES, contexts=(144, 1600)))
    assert {row.case.rpartition(", ")[0] for row in run.rows} == {"0K", "1K, 1 layers"}


def test_without_transformers_it_says_so(run, monkeypatch):
    monkeypatch.setattr(razor.importlib.util, "find_spec", lambda name: None)
    for function in (longcache.measure, *longcache.CHECKS.values()):
        function(run, SIZES)
    assert run.notes == [": skipped, it needs transformers"]
    assert run.rows == run.targets == []


def test_without_host_memory_the_device_is_measured(run, monkeypatch):
    monkeypatch.setattr(longcache, "host_memory", lambda: 1000)
    longcache.measure(run, dataclasses.replace(SIZES, contexts=(144,)))
    assert run.notes == [": 0K: no host memory for its tokens"]
    told = {row.case for row in run.rows if "host memory" in row.way}
    assert told == {"0K, prefill"}
    assert [target.found for target in run.targets if "over host" in target.what] == [None]


@pytest.mark.parametrize("host", [False, True])
def test_a_filled_cache_is_one_that_a_prompt_leaves(run, host):
    """As many tokens in as many places; the steps that follow do not move them."""
    policy = longcache.policy_of(SIZES.scopes[0], SIZES, host=host)
    cache = longcache.filled(policy, 144, run, SIZES.shape, SIZES)
    model = random_llama(SIZES.shape, torch.bfloat16, run.device)
    tokens = [layer.state.tokens for layer in cache.layers]
    assert {part.seen for part in tokens} == {144}
    assert cache.get_seq_length() == 144
    before = [[part.data_ptr() for part in one.tensors()] for one in tokens]
    with torch.inference_mode(), razor.decoding(model, policy, cache) as step:
        for _ in range(SIZES.room - 1):
            step()
    assert [[part.data_ptr() for part in one.tensors()] for one in tokens] == before
    assert all(isinstance(one, HostTokens) == host for one in tokens)
    if host:
        assert cache.bytes() == longcache.ring_bytes(policy, SIZES.shape)
    else:
        assert cache.bytes() == (144 + SIZES.room) * vector(SIZES.shape)


def test_bytes_of_a_step(run):
    """The weights, and of each layer the keys of all tokens, the scope's keys and values."""
    longcache.measure(run, dataclasses.replace(SIZES, contexts=(144,)))
    _, read = weight_bytes(random_llama(SIZES.shape, torch.bfloat16, run.device))
    moved = {row.way: row.bytes for row in run.rows if row.case == "0K, a step on the device"}
    token = 3 * 2 * 16 * 2  # layers, KV heads, numbers, bytes
    assert moved == {
        "sdpa, full": read + 2 * 144 * token,
        "reference, scope 128": read + (144 + 2 * 128) * token,
        "reference, scope 112": read + (144 + 2 * 112) * token,
    }


def test_a_layer_of_other_answers_is_found(run, monkeypatch):
    choose = longcache.LongCachePolicy.choose

    def other(self, state, query, begin, end):
        return choose(self, state, query if query.dtype == torch.float32 else -query, begin, end)

    monkeypatch.setattr(longcache.LongCachePolicy, "choose", other)
    with pytest.raises(AssertionError, match="relative error"):
        longcache.check_layer(run, SIZES)


def test_host_memory_of_other_bits_is_found(run, monkeypatch):
    fetch = HostTokens._fetch
    monkeypatch.setattr(HostTokens, "_fetch", lambda self, *given: fetch(self, *given) * 1.01)
    with pytest.raises(AssertionError, match="result 0 differs"):
        longcache.check_model(run, SIZES)


def test_a_device_that_holds_more_is_found(run, monkeypatch):
    monkeypatch.setattr(longcache, "ring_bytes", lambda *given: 77)
    with pytest.raises(AssertionError, match="bytes held on the device, predicted 77"):
        longcache.check_model(run, SIZES)


def test_a_scope_that_is_not_full_attention_is_found(run, monkeypatch):
    attend = FullPolicy.attend
    monkeypatch.setattr(FullPolicy, "attend", lambda self, *given, **options: attend(self, *given, **options) * 1.2)
    with pytest.raises(AssertionError, match="relative error"):
        longcache.check_model(run, SIZES)
