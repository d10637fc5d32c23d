"""transformers models under a KV policy: equal to their own attention, restored afterwards, refused where unfit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longloom.kernels.huggingface.attention import attention_function, policy_attention
from longloom.kernels.kvcache.registry import get_policy

from .models import LAYERS, VOCABULARY, random_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, one query head a KV head": ("llama", {"num_key_value_heads": 4}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "granite": ("granite", {"attention_multiplier": 0.3}),
}
UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "no rotary positions": ("gpt2", {"n_embd": 24, "n_head": 4, "n_layer": 2}, "no rotary position embedding"),
    "interleaved rotation": ("cohere", {}, "does not rotate queries and keys in Llama's convention"),
    "norms after the rotation": ("hunyuan_v1_dense", {}, "does not rotate queries and keys in Llama's convention"),
    "a layer without positions": (
        "smollm3",
        {"num_hidden_layers": 4},
        "layer 3 does not rotate queries and keys in Llama's convention",
    ),
    "a part of each head rotated": ("stablelm", {}, "does not rotate its heads as a whole"),
    "frequencies that change": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        "change with the length",
    ),
}


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def state_of(model: PreTrainedModel) -> tuple[Any, ...]:
    modules = list(model.modules())
    return model.config._attn_implementation, modules, [dict(vars(module)) for module in modules]


def policies() -> list[Any]:
    """Each of them keeps everything of the 40 tokens used here."""
    return [get_policy("full"), get_policy("streaming", sink=4, window=60)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", policies(), ids=lambda policy: policy.name)
@torch.no_grad()
def test_logits_are_the_models_own(family: str, policy: Any) -> None:
    model_type, overrides = FAMILIES[family]
    model = random_model(model_type, **overrides)
    ids = random_ids(2, 40)
    expected = model(ids).logits
    with policy_attention(model, policy) as cache:
        pieces = [model(piece, past_key_values=cache).logits for piece in ids.split([23, 1, 1, 15], dim=1)]
        assert cache.get_seq_length() == 40
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)  # itself again afterwards


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: policy.name)
@torch.no_grad()
def test_transformers_generate_runs_under_a_policy(model: PreTrainedModel, policy: Any) -> None:
    ids = random_ids(3, 20)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 7, 13)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    options: dict[str, Any] = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 15, "min_new_tokens": 15}
    expected = model.generate(ids, **options)
    with policy_attention(model, policy) as cache:
        ours = model.generate(ids, past_key_values=cache, **options)
    assert ours.tolist() == expected.tolist()
    assert len(set(expected[:, 20:].flatten().tolist())) > 5


@torch.no_grad()
def test_left_padded_rows_equal_rows_alone_under_a_lossy_policy(model: PreTrainedModel) -> None:
    policy = get_policy("streaming", sink=2, window=5)
    ids, padding = random_ids(3, 30), (0, 9, 26)
    mask = torch.stack([torch.arange(30) >= pad for pad in padding]).long()
    with policy_attention(model, policy) as cache:
        # The last row is nothing but padding in the first two pieces.
        together = torch.cat(
            [
                model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache).logits
                for begin, end in ((0, 12), (12, 25), (25, 29), (29, 30))
            ],
            dim=1,
        )
    for row, pad in enumerate(padding):
        with policy_attention(model, policy) as cache:
            alone = model(ids[row : row + 1, pad:], past_key_values=cache).logits[0]
        torch.testing.assert_close(together[row, pad:], alone, rtol=1e-5, atol=2e-5)
        if pad == 0:
            assert (alone - model(ids[:1]).logits[0]).abs().max() > 0.1  # the policy does lose something


@torch.no_grad()
def test_cache_measures_what_all_layers_hold(model: PreTrainedModel) -> None:
    with policy_attention(model, get_policy("streaming", sink=2, window=5)) as cache:
        assert cache.bytes() == 0
        for _ in range(3):
            model(random_ids(3, 10), past_key_values=cache)
    assert cache.bytes() == LAYERS * 2 * 3 * 2 * (2 + 5) * 6 * 4  # layers, k and v, rows, heads, tokens, size, float32
    assert cache.get_seq_length() == 30
    assert cache.get_mask_sizes(4, 0) == (34, 0)


def test_the_model_is_restored_also_after_an_error(model: PreTrainedModel) -> None:
    policy = get_policy("full")
    before = state_of(model)
    with policy_attention(model, policy):
        assert state_of(model) != before
    assert state_of(model) == before
    with pytest.raises(KeyError, match="from inside"), policy_attention(model, policy):
        raise KeyError("from inside")
    assert state_of(model) == before
    with policy_attention(model, policy), pytest.raises(ValueError, match="replaced already"):  # noqa: SIM117
        with policy_attention(model, policy):
            pass
    assert state_of(model) == before
    with policy_attention(model, policy):  # and may be entered again
        pass


@torch.no_grad()
def test_two_models_may_be_under_policies_at_once(model: PreTrainedModel) -> None:
    other, ids = random_model("qwen3"), random_ids(1, 12)
    expected = model(ids).logits, other(ids).logits
    with policy_attention(model, get_policy("full")) as ours, policy_attention(other, policies()[1]) as theirs:
        torch.testing.assert_close(model(ids, past_key_values=ours).logits, expected[0], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(other(ids, past_key_values=theirs).logits, expected[1], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", UNFIT)
def test_unfit_models_are_refused_and_left_as_they_were(kind: str) -> None:
    model_type, overrides, reason = UNFIT[kind]
    model = random_model(model_type, **overrides)
    before = state_of(model)
    with pytest.raises(ValueError, match=f"do not fit this model of type '{model_type}': .*{reason}"):  # noqa: SIM117
        with policy_attention(model, get_policy("full")):
            pass
    assert state_of(model) == before


def test_a_model_in_training_mode_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"call model\.eval\(\)"),
        policy_attention(random_model().train(), get_policy("full")),
    ):
        pass


@torch.no_grad()
def test_wrong_calls_are_refused(model: PreTrainedModel) -> None:
    ids = random_ids(2, 6)
    with policy_attention(model, get_policy("full")) as cache:
        with pytest.raises(ValueError, match="pass past_key_values=cache"):
            model(ids)
        with pytest.raises(ValueError, match="padding on the left"):
            model(ids, attention_mask=torch.tensor([[1] * 6, [1] * 5 + [0]]), past_key_values=cache)
        with pytest.raises(ValueError, match="must cover all 6 tokens"):
            model(ids, attention_mask=torch.ones(2, 4), past_key_values=cache)
        with pytest.raises(ValueError, match="found 4-D"):
            model(ids, attention_mask=torch.zeros(2, 1, 6, 6), past_key_values=cache)
        with pytest.raises(ValueError, match="open a new one"):
            cache.crop(-1)


@torch.no_grad()
def test_any_function_can_answer_for_attention(model: PreTrainedModel) -> None:
    calls = []

    def zeros(module: Any, query: Tensor, key: Tensor, value: Tensor, start: Tensor | None, **_: Any) -> Any:
        calls.append((module.layer_idx, query.shape, key.shape, start))
        return torch.zeros_like(query).transpose(1, 2), None

    mask = torch.tensor([[1, 1, 1], [0, 0, 1]])
    with attention_function(model, zeros):
        logits = model(random_ids(2, 3), attention_mask=mask, use_cache=False).logits
    assert [(layer, start.tolist()) for layer, _, _, start in calls] == [(0, [0, 2]), (1, [0, 2])]
    assert calls[0][1:3] == ((2, 4, 3, 6), (2, 2, 3, 6))
    assert logits.shape == (2, 3, VOCABULARY)
