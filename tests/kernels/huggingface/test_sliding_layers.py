"""Layers that attend to a sliding window keep the model's own attention, whatever the policy of the others."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import longloom.kernels.huggingface.reading as reading
from longloom.kernels.huggingface.attention import policy_attention, sliding_windows
from longloom.kernels.huggingface.generate import generate
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy

from .dense import Rule, causal, dense_logits, razor
from .models import VOCABULARY, prompts, random_model

WINDOW = 8
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ALTERNATING = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}


@dataclass(frozen=True)
class Family:
    """A type of model with its settings, and the warning that it gives."""

    model_type: str
    settings: dict[str, Any]
    sliding: list[int]
    warning: str

    def model(self, window: int = WINDOW, **settings: Any) -> PreTrainedModel:
        return random_model(self.model_type, **{**self.settings, **settings, "sliding_window": window})


ALL = "all 2 layers attend to a sliding window of 8 tokens: no layer is left for the KV policy"
FAMILIES = {
    "mistral": Family("mistral", {}, [0, 1], ALL),
    # Its layers do not say that they slide: only the mask does.
    "phimoe": Family("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}, [0, 1], ALL),
    "qwen2": Family(
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 1},
        [1],
        "layer 1 attends to a sliding window of 8 tokens: the KV policy leaves it alone",
    ),
    "qwen2_moe": Family(
        "qwen2_moe",
        {"use_sliding_window": True, "shared_expert_intermediate_size": 16, **EXPERTS},
        [0],
        "layer 0 attends to a sliding window of 8 tokens: the KV policy leaves it alone",
    ),
    "gemma2 without soft caps": Family(
        "gemma2",
        {"attn_logit_softcapping": None, "query_pre_attn_scalar": 6},
        [0],
        "layer 0 attends to a sliding window of 8 tokens: the KV policy leaves it alone",
    ),
    # Two rotary embeddings: that of the sliding layers turns by another base.
    "gemma3": Family(
        "gemma3_text",
        {"query_pre_attn_scalar": 6, **ALTERNATING},
        [0, 2],
        "layers 0, 2 attend to a sliding window of 8 tokens: the KV policy leaves them alone",
    ),
    "gemma3, sliding alone": Family(
        "gemma3_text", {"query_pre_attn_scalar": 6, "layer_types": ["sliding_attention"] * 2}, [0, 1], ALL
    ),
    "olmo3": Family(
        "olmo3",
        {"num_hidden_layers": 4},
        [0, 1, 2],
        "layers 0, 1, 2 attend to a sliding window of 8 tokens: the KV policy leaves them alone",
    ),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "soft caps": ("gemma2", {"query_pre_attn_scalar": 6}, r"the attention of layer 0 uses softcap=50\.0"),
    "sinks": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2}, "the attention of layer 0 uses s_aux"),
    "later tokens": (
        "gemma3_text",
        {"query_pre_attn_scalar": 6, "use_bidirectional_attention": True},
        "layer 0 sees neither all tokens before nor a sliding window of them",
    ),
    "a window that is none": ("olmoe", {}, "layer 0 uses sliding_window=8, its mask shows all tokens"),
    "no positions elsewhere": (
        "exaone4",
        {"num_hidden_layers": 4, "sliding_window_pattern": 2},
        "layer 1 does not rotate queries and keys in Llama's convention",
    ),
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
quiet = pytest.mark.filterwarnings("ignore:.*sliding window of:UserWarning")


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp(min=1)
    assert ((ours - expected).abs().max() / scale).item() < 2e-5


@families
@quiet
@torch.no_grad()
def test_logits_are_the_models_own(family: Family) -> None:
    model, ids = family.model(), random_ids(2, 40)
    assert dict(sliding_windows(model)) == dict.fromkeys(family.sliding, WINDOW)
    expected = model(ids).logits
    for pieces in ([40], [23, 1, 1, 15], [7, 1, 1, 1, 30], [1] * 40):
        with policy_attention(model, get_policy("full")) as cache:
            logits = [model(piece, past_key_values=cache).logits for piece in ids.split(pieces, dim=1)]
        close(torch.cat(logits, dim=1), expected)
    for other in (WINDOW - 1, WINDOW + 1):  # one token more or less would be seen
        assert (family.model(other)(ids).logits - expected).abs().max() > 0.01


@pytest.mark.parametrize("length", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 1, 150])
@quiet
@torch.no_grad()
def test_prompts_around_the_window(length: int) -> None:
    model, ids = FAMILIES["qwen2"].model(), random_ids(1, length + 3)
    with policy_attention(model, get_policy("full")) as cache:
        pieces = ids.split([length, 1, 1, 1], dim=1)
        logits = torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], dim=1)
    close(logits, model(ids).logits)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma3"])
@quiet
@torch.no_grad()
def test_left_padded_rows_equal_rows_alone(name: str) -> None:
    model, ids, padding = FAMILIES[name].model(), random_ids(4, 30), (0, 5, 13, 26)
    mask = torch.stack([torch.arange(30) >= pad for pad in padding]).long()
    with policy_attention(model, get_policy("full")) as cache:
        logits = torch.cat(
            [
                model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache).logits
                for begin, end in ((0, 12), (12, 20), (20, 29), (29, 30))  # the last row begins within the third piece
            ],
            dim=1,
        )
    for row, pad in enumerate(padding):
        close(logits[row, pad:], model(ids[row : row + 1, pad:]).logits[0])


def profile(model: PreTrainedModel) -> HeadProfile:
    """Of 2 KV heads a layer; the best of them is layer 1's second."""
    layers = model.config.num_hidden_layers
    scores = [[0.1, 0.2], [0.3, 0.9], *([0.4, 0.4] for _ in range(layers - 2))]
    return HeadProfile("probe", fingerprint(model), tuple(tuple(row) for row in scores))


@pytest.mark.parametrize("name", ["qwen2_moe", "gemma3"])
@quiet
@torch.no_grad()
def test_other_layers_are_under_the_policy(name: str) -> None:
    family = FAMILIES[name]
    model, ids, prompt = family.model(), random_ids(1, 45), 40
    policy = get_policy("razor", heads=profile(model), window=5, compression=100, sink=2, induction=0.01, echo=0)
    with policy_attention(model, policy) as cache:
        pieces = ids.split([20, 20, 1, 1, 3], dim=1)
        logits = torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], dim=1)[0]

    def rule(layer: int, head: int, tokens: int) -> Rule:
        if layer in family.sliding:
            return causal(tokens, WINDOW)
        return causal(tokens) if (layer, head) == (1, 1) else razor(tokens, prompt, sink=2, window=5)

    close(logits, dense_logits(model, ids[0].tolist(), rule))
    assert (logits - model(ids).logits[0])[prompt:].abs().max() > 0.01


@quiet
@torch.no_grad()
def test_a_model_that_slides_throughout_is_itself_under_any_policy() -> None:
    model = FAMILIES["mistral"].model()
    ids = random_ids(2, 30)
    mask = torch.ones_like(ids)
    ids[1, :9], mask[1, :9] = 0, 0
    options: dict[str, Any] = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 15, "min_new_tokens": 15}
    expected = model.generate(ids, **options)
    for policy in (get_policy("recent", budget=3, sink=1), get_policy("streaming", sink=1, window=2)):
        with policy_attention(model, policy) as cache:
            assert model.generate(ids, past_key_values=cache, **options).tolist() == expected.tolist()
    assert len(set(expected[:, 30:].flatten().tolist())) > 5


@quiet
@torch.no_grad()
def test_sliding_layers_hold_their_window_alone() -> None:
    model, token = FAMILIES["mistral"].model(), 3 * 2 * 2 * 6 * 4  # rows, k and v, heads, size, float32
    for pieces in ([100], [1] * 30, [50, 1, 40, 1]):
        with policy_attention(model, get_policy("full")) as cache:
            for piece in random_ids(3, sum(pieces)).split(pieces, dim=1):
                model(piece, past_key_values=cache)
        assert cache.bytes() == 2 * WINDOW * token
        assert cache.get_seq_length() == sum(pieces)


@quiet
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_policies_share_a_prefill_beside_sliding_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 16)
    model, asked = FAMILIES[name].model(), prompts(50, 9, 33)
    sweep = [get_policy("full"), get_policy("recent", budget=6), get_policy("snapkv", budget=14, window=4)]
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_ids": []}
    together = generate(model, asked, policies=sweep, **options)
    for policy, answers in zip(sweep, together, strict=True):
        [alone] = generate(model, asked, policies=[policy], **options)
        assert [(a.ids, a.kv_bytes) for a in alone] == [(a.ids, a.kv_bytes) for a in answers]
    assert [a.ids for a in together[0]] != [a.ids for a in together[1]]
    for prompt, answer in zip(asked, together[0], strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=None
        )
        assert answer.ids == expected[0, len(prompt) :].tolist()


@quiet
def test_a_pyramid_stands_on_the_other_layers() -> None:
    """Their budgets' mean is the policy's, told at once or piece by piece."""
    kinds = [*["sliding_attention"] * 5, "full_attention"] * 2
    model = FAMILIES["gemma3"].model(num_hidden_layers=12, layer_types=kinds)
    policy, (prompt,) = get_policy("pyramidkv", budget=20, window=4, beta=4), prompts(100)
    answer = generate(model, [prompt], policies=[policy], max_new_tokens=2, eos_token_ids=[])[0][0]
    with torch.no_grad(), policy_attention(model, policy) as cache:
        for piece in torch.tensor([[*prompt, answer.ids[0]]]).split([100, 1], dim=1):
            model(piece, past_key_values=cache)
    lengths = [cache.layers[layer].state.cache.kv_len.unique().tolist() for layer in (5, 11)]
    assert lengths == [[32 + 1], [8 + 1]]
    assert answer.kv_bytes == cache.bytes()


@families
def test_one_warning_a_model_says_what_is_left_alone(family: Family) -> None:
    model = family.model()
    with pytest.warns(UserWarning, match="sliding window") as caught, policy_attention(model, get_policy("full")):
        pass
    assert [str(warning.message) for warning in caught if "window" in str(warning.message)] == [family.warning]
    assert all(warning.filename == __file__ for warning in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with policy_attention(model, get_policy("recent", budget=6)):
            pass


def test_a_model_without_windows_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with policy_attention(random_model(), get_policy("full")):
            pass
    assert not sliding_windows(random_model())


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_of_windows_are_refused(kind: str) -> None:
    model_type, settings, reason = REFUSED[kind]
    model = random_model(model_type, sliding_window=WINDOW, **settings)
    with (
        pytest.raises(ValueError, match=f"do not fit this model of type '{model_type}': {reason}"),
        policy_attention(model, get_policy("full")),
    ):
        pass
