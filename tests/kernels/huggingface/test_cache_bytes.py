"""A cache's bytes are what it says: every tensor that hangs on it, counted by the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import longloom.kernels.huggingface.generate as generation
from longloom.kernels.attention.pages import RaggedKV
from longloom.kernels.huggingface.attention import policy_attention
from longloom.kernels.huggingface.cache import PolicyCache
from longloom.kernels.huggingface.generate import generate
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.base import KVPolicy, Rope, SharedPrefillPolicy
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy, names_for

from .models import prompts, random_model

LAYERS, HEADS, SIZE = 2, 2, 6
TOKEN = 4 * SIZE * HEADS  # bytes of a token's keys in one layer
LONG = 400


#: Options under which a policy drops most of LONG tokens, if it drops any.
OPTIONS: dict[str, dict[str, Any]] = {
    "adakv": {"budget": 20, "window": 4},
    "duo": {"retrieval": 0.25, "sink": 2, "recent": 8},
    "full": {},
    "h2o": {"budget": 20},
    "infllm": {"sink": 2, "local": 8, "blocks": 1, "block": 8},
    "knorm": {"budget": 20},
    "longcache": {"sink": 2, "local": 8, "spans": 2, "span": 4},
    "pyramidkv": {"budget": 20, "window": 4},
    "razor": {"induction": 0.25, "echo": 0, "window": 8, "compression": 100.0, "sink": 2},
    "razor+longcache": {"induction": 0.25, "echo": 0, "sink": 2, "local": 8, "spans": 2, "span": 4},
    "recent": {"budget": 20},
    "snapkv": {"budget": 20, "window": 4},
    "streaming": {"sink": 2, "window": 18},
}
#: They drop nothing.
WHOLE = ["full", "infllm", "longcache"]
names = pytest.mark.parametrize("name", OPTIONS)


def policy_of(name: str, model: PreTrainedModel) -> KVPolicy[Any]:
    policy = get_policy(name, **OPTIONS[name])
    if not policy.profiled:
        return policy
    return get_policy(name, heads=HeadProfile("probe", fingerprint(model), ((0.1, 0.2), (0.9, 0.3))), **OPTIONS[name])


def test_every_policy_is_counted() -> None:
    assert sorted(OPTIONS) == names_for(Rope)


def hanging_on(root: Any) -> tuple[list[Tensor], list[RaggedKV]]:
    """All tensors that can be reached from an object, and all ragged caches."""
    seen, tensors, ragged, left = {id(root)}, [], [], [root]
    while left:
        thing = left.pop()
        if isinstance(thing, Tensor):
            tensors.append(thing)
            continue
        if isinstance(thing, RaggedKV):
            ragged.append(thing)
        assert not isinstance(thing, nn.Module), "the cache holds on to the model"
        for other in gc.get_referents(thing):
            if id(other) not in seen and not isinstance(other, type | ModuleType | FunctionType):
                seen.add(id(other))
                left.append(other)
    return tensors, ragged


def held(tensors: Collection[Tensor]) -> int:
    """Bytes of the storages behind them."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def counted(cache: PolicyCache) -> tuple[int, int]:
    """Bytes of all tensors on a cache, those of the copies on the host counted apart."""
    tensors, ragged = hanging_on(cache)
    copies = held([part for kv in ragged for part in (kv.host_len, kv.host_limit, kv.host_table)])
    return held(tensors) - copies, copies


@pytest.fixture
def frozen() -> Iterator[None]:
    """What is there before a test is not looked at: the libraries have a million objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def large_tensors(least: int) -> Iterator[Tensor]:
    """All new tensors of the process on storages of at least so many bytes, but for parameters."""
    gc.collect()
    for thing in gc.get_objects():
        if (
            isinstance(thing, Tensor)
            and not isinstance(thing, nn.Parameter)
            and thing.untyped_storage().nbytes() >= least
        ):
            yield thing


@names
@torch.no_grad()
def test_bytes_are_those_of_all_tensors_on_the_cache(model: PreTrainedModel, name: str) -> None:
    ids = torch.tensor(prompts(LONG + 100, LONG + 100))
    mask = torch.ones_like(ids)
    mask[1, :33] = 0
    sizes, end = [], 0
    with policy_attention(model, policy_of(name, model)) as cache:
        assert cache.bytes() == 0
        for new in (150, LONG - 150, 1, 1, 80, 1):  # a prompt in two chunks, an answer, a second turn
            end += new
            model(ids[:, end - new : end], attention_mask=mask[:, :end], past_key_values=cache)
            alive, copies = counted(cache)
            shared = 0 if copies else (LAYERS - 1) * 2 * 8  # the padding is one tensor, and counts in each layer
            assert cache.bytes() - shared <= alive <= cache.bytes()
            assert copies < 1500
            sizes.append(cache.bytes())
    if name in WHOLE:
        assert sizes[1] >= 2 * 2 * LAYERS * LONG * TOKEN  # keys and values, rows
    else:
        assert sizes[2] < 2 * 2 * LAYERS * LONG * TOKEN * 0.8
    assert min(sizes) > 0


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in WHOLE])
@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("own", [True, False], ids=["our loop", "transformers' loop"])
def test_nothing_else_of_a_prompt_outlives_its_compression(
    model: PreTrainedModel, name: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, [prompt] = policy_of(name, model), prompts(LONG)
    least = LONG * TOKEN
    alive: list[list[torch.Size]] = []
    forward = model.model.forward

    def look(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        del args
        if kwargs["input_ids"].shape[1] == 1:
            alive.append([tensor.shape for tensor in large_tensors(least)])
        return output

    monkeypatch.setattr(model.model, "forward", look)
    if own:
        generate(model, [prompt], policies=[policy], max_new_tokens=4, eos_token_ids=[])
    else:
        ids = torch.tensor([prompt])
        with policy_attention(model, policy) as cache:
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=4,
                do_sample=False,
                eos_token_id=None,
            )
    assert alive == [[], [], []]


@pytest.mark.usefixtures("frozen")
def test_a_whole_prompt_would_be_seen(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search above finds the prompt where it is still there."""
    [prompt] = prompts(LONG)
    seen = []
    decode = generation._decode

    def look(*args: Any) -> Any:
        seen.extend(large_tensors(LONG * TOKEN))
        return decode(*args)

    monkeypatch.setattr(generation, "_decode", look)
    generate(model, [prompt], policies=[get_policy("full")], max_new_tokens=2, eos_token_ids=[])
    assert len(seen) >= 2 * LAYERS


@names
def test_generate_reports_what_the_cache_holds(
    model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, asked = policy_of(name, model), prompts(LONG, LONG)
    found = []
    decode = generation._decode

    def look(*args: Any) -> Any:
        answer = decode(*args)
        found.append(counted(args[1])[0])
        return answer

    monkeypatch.setattr(generation, "_decode", look)
    [answers] = generate(model, asked, policies=[policy], max_new_tokens=5, eos_token_ids=[])
    assert [answer.kv_bytes for answer in answers] == [found[0] // 2] * 2
    if isinstance(policy, SharedPrefillPolicy):
        assert answers[0].peak_kv_bytes >= 2 * LAYERS * LONG * TOKEN


@torch.no_grad()
def test_sliding_layers_are_counted_too() -> None:
    model = random_model("mistral", sliding_window=8)
    with pytest.warns(UserWarning, match="no layer is left"), policy_attention(model, get_policy("full")) as cache:
        model(torch.tensor(prompts(50, 50)), past_key_values=cache)
    assert cache.bytes() == held(hanging_on(cache)[0]) == 2 * 2 * LAYERS * 8 * TOKEN
