"""BLOOM under KV policies: its own answers under `full`, under `razor-alibi` those of a mask that its weights give."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

from longloom.kernels.huggingface import reading
from longloom.kernels.huggingface.attention import attention_function, encoding_of, policy_attention
from longloom.kernels.huggingface.generate import generate
from longloom.kernels.huggingface.loglikelihood import loglikelihood
from longloom.kernels.kvcache.base import Alibi
from longloom.kernels.kvcache.registry import get_policy

from .models import LAYERS, VOCABULARY, prompts, random_model

FULL, KEEP_ALL, TIGHT = get_policy("full"), get_policy("razor-alibi"), get_policy("razor-alibi", eps=0.3)
HEADS, SIZE = 4, 6


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """Queries small enough for some heads to see less than a hundred tokens, in layers that are not alike."""
    return near_sighted()


def near_sighted() -> PreTrainedModel:
    model = random_model("bloom")
    with torch.no_grad():
        for number, block in enumerate(model.get_decoder().h):
            projection = block.self_attention.query_key_value
            projection.weight.view(HEADS, 3, SIZE, -1)[:, 0] *= 0.005 * (number + 1)
            projection.bias.view(HEADS, 3, SIZE)[:, 0] *= 0.02
    return model


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def padded(*padding: int, length: int) -> tuple[Tensor, Tensor]:
    ids = random_ids(len(padding), length)
    mask = torch.stack([torch.arange(length) >= pad for pad in padding]).long()
    return ids * mask, mask


def state_of(model: PreTrainedModel) -> tuple[Any, ...]:
    modules = list(model.modules())
    return model.config._attn_implementation, modules, [dict(vars(module)) for module in modules]


def windows_by_hand(model: PreTrainedModel, eps: float) -> list[list[int]]:
    """ceil((bound - log eps) / slope) of every layer and head, in float64 and from whole d x d matrices."""
    found = []
    slopes = [2.0 ** (-8 * (head + 1) / HEADS) for head in range(HEADS)]
    for block in model.get_decoder().h:
        gamma, beta = (
            part.detach().double().numpy() for part in (block.input_layernorm.weight, block.input_layernorm.bias)
        )
        d = len(gamma)
        projection = block.self_attention.query_key_value
        weight, bias = (part.detach().double().numpy() for part in (projection.weight, projection.bias))
        row = []
        for head, slope in enumerate(slopes):
            first = 3 * SIZE * head
            query, key = weight[first : first + SIZE], weight[first + SIZE : first + 2 * SIZE]
            centre = np.diag(gamma) @ (np.eye(d) - 1 / d)
            inner = np.linalg.norm((query @ centre).T @ (key @ centre), ord=2)
            outer = np.linalg.norm((key @ centre).T @ (query @ beta + bias[first : first + SIZE]))
            bound = 2 / math.sqrt(SIZE) * (d * inner + math.sqrt(d) * outer)
            row.append(math.ceil((bound - math.log(eps)) / slope))
        found.append(row)
    return found


@contextmanager
def masked(monkeypatch: pytest.MonkeyPatch, windows: list[list[int]], prompt: int) -> Iterator[None]:
    """BLOOM's own attention, to which tokens after the prompt see each head's last tokens of the prompt alone."""
    own = BloomAttention.forward

    def forward(self: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows, length, _ = hidden_states.shape
        queries, keys = torch.arange(length)[:, None], torch.arange(length)
        hidden = [(queries >= prompt) & (keys < prompt - window) for window in windows[self.layer_idx]]
        biases = alibi.expand(-1, length, -1).masked_fill(torch.stack(hidden * rows), -torch.inf)
        return own(self, hidden_states, residual, biases, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(BloomAttention, "forward", forward)
        yield


@pytest.mark.parametrize("heads", [1, 4, 6, 7])
def test_slopes_are_the_models(heads: int) -> None:
    model = random_model("bloom", num_attention_heads=heads, hidden_size=6 * heads)
    encoding = encoding_of(model, FULL)
    assert isinstance(encoding, Alibi)
    biases = build_alibi_tensor(torch.ones(1, 5, dtype=torch.int64), heads, torch.float32)[:, 0]
    torch.testing.assert_close(encoding.slopes[:, None] * torch.arange(5), biases, rtol=0, atol=0)
    if heads == 4:
        assert encoding.slopes.tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]


@pytest.mark.parametrize(
    "overrides", [{}, {"num_attention_heads": 3}, {"apply_residual_connection_post_layernorm": True}]
)
@pytest.mark.parametrize("policy", [FULL, KEEP_ALL], ids=lambda policy: policy.name)
@torch.no_grad()
def test_logits_are_the_models_own(policy: Any, overrides: dict[str, Any]) -> None:
    model = random_model("bloom", **overrides)
    ids, mask = padded(0, 7, 20, length=40)
    expected, unpadded = model(ids, attention_mask=mask).logits, model(ids[:1]).logits
    with policy_attention(model, policy) as cache:
        pieces = [
            model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache).logits
            for begin, end in ((0, 23), (23, 24), (24, 25), (25, 40))
        ]
        assert cache.get_seq_length() == 40
    ours = torch.cat(pieces, dim=1)
    for row, pad in enumerate((0, 7, 20)):
        torch.testing.assert_close(ours[row, pad:], expected[row, pad:], rtol=1e-5, atol=2e-5)
    with policy_attention(model, policy) as cache:
        torch.testing.assert_close(model(ids[:1], past_key_values=cache).logits, unpadded, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected, rtol=0, atol=0)  # itself again


@pytest.mark.parametrize("policy", [FULL, KEEP_ALL], ids=lambda policy: policy.name)
@torch.no_grad()
def test_generate_gives_the_models_own_tokens(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("bloom", tie_word_embeddings=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter -= 1  # biases around one, of every linear layer, drown what differs from token to token
    ids, mask = padded(0, 7, 13, length=20)
    options: dict[str, Any] = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 15, "min_new_tokens": 15}
    expected = model.generate(ids, **options)[:, 20:].tolist()
    assert len({token for row in expected for token in row}) > 5
    with policy_attention(model, policy) as cache:
        assert model.generate(ids, past_key_values=cache, **options)[:, 20:].tolist() == expected
    monkeypatch.setattr(reading, "CHUNK", 8)
    asked = [row[pad:].tolist() for row, pad in zip(ids, (0, 7, 13), strict=True)]
    ends = {"eos_token_ids": [2], "min_new_tokens": 15, "max_new_tokens": 15}
    assert [answer.ids for answer in generate(model, asked, policies=[policy], **ends)[0]] == expected
    score = loglikelihood(model, asked[0], expected[0], policy=policy)[0]
    logits = model(torch.tensor([asked[0] + expected[0]])).logits[0, 19:-1].double().log_softmax(-1)
    assert score == pytest.approx(float(logits[range(15), expected[0]].sum()), abs=1e-4)


def test_heads_keep_what_the_formula_says(model: PreTrainedModel) -> None:
    windows = windows_by_hand(model, 0.3)
    assert all(window < 100 for row in windows for window in row[:2])
    assert all(window > 150 for row in windows for window in row[3:])
    assert windows[0] != windows[1]
    ids, mask = padded(0, 60, 145, length=150)
    with torch.no_grad(), policy_attention(model, TIGHT) as cache:
        for begin, end in ((0, 90), (90, 149), (149, 150)):
            model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache)
    for layer, held in enumerate(cache.layers):
        kept = [[min(149 - pad, window) + 1 for window in windows[layer]] for pad in (0, 60, 145)]
        assert held.state.cache.host_len.tolist() == kept


@torch.no_grad()
def test_small_windows_are_a_mask(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, prompt = random_ids(2, 160), 150
    whole = model(ids).logits
    with masked(monkeypatch, windows_by_hand(model, 0.3), prompt):
        expected = model(ids).logits
    with policy_attention(model, TIGHT) as cache:
        pieces = [
            model(ids[:, begin:end], past_key_values=cache).logits
            for begin, end in ((0, 100), (100, 150), (150, 151), (151, 160))
        ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-5, atol=2e-5)
    assert (expected - whole)[:, prompt:].abs().max() > 1e-3  # something is lost


def test_policies_share_a_prefill_and_memory_shrinks(model: PreTrainedModel) -> None:
    asked = prompts(700)
    options: dict[str, Any] = {"max_new_tokens": 6, "eos_token_ids": []}
    tight, full = generate(model, asked, policies=[TIGHT, FULL], **options)
    for policy, together in ((TIGHT, tight), (FULL, full)):
        [alone] = generate(model, asked, policies=[policy], **options)
        assert [(a.ids, a.kv_bytes) for a in alone] == [(a.ids, a.kv_bytes) for a in together]
    windows = windows_by_hand(model, 0.3)
    page = 64
    pages = sum(-(-(min(700, window) + 6) // page) + 1 for row in windows for window in row)
    assert tight[0].kv_bytes <= 2 * pages * page * SIZE * 4 + 1000
    assert full[0].kv_bytes >= 2 * LAYERS * HEADS * 700 * SIZE * 4
    assert tight[0].kv_bytes < 0.75 * full[0].kv_bytes


def test_bounds_follow_the_weights() -> None:
    model = near_sighted()
    encodings = [encoding_of(model, TIGHT) for _ in range(2)]
    assert encodings[0].bounds is encodings[1].bounds  # type: ignore[union-attr]
    assert encoding_of(model, FULL).bounds is None  # type: ignore[union-attr]
    with torch.no_grad():
        for block in model.get_decoder().h:
            block.input_layernorm.weight *= 2
    changed = TIGHT.windows(encoding_of(model, TIGHT), 1)  # type: ignore[attr-defined]
    assert changed.tolist() == windows_by_hand(model, 0.3)[1]
    assert encodings[0].bounds[1, 0] < encoding_of(model, TIGHT).bounds[1, 0]  # type: ignore[union-attr,index]


@torch.no_grad()
def test_half_precision(model: PreTrainedModel) -> None:
    half = copy.deepcopy(model).bfloat16()
    ids = random_ids(1, 170)
    expected = copy.deepcopy(half).float()(ids).logits
    for policy in (FULL, TIGHT):
        with policy_attention(half, policy) as cache:
            ours = torch.cat(
                [half(part, past_key_values=cache).logits for part in ids.split([160, 1, 9], dim=1)], dim=1
            )
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - expected).norm() < 0.03 * expected.norm()


def test_the_model_is_restored_also_after_an_error(model: PreTrainedModel) -> None:
    before = state_of(model)
    with policy_attention(model, TIGHT):
        assert state_of(model) != before
    assert state_of(model) == before
    with pytest.raises(KeyError, match="from inside"), policy_attention(model, FULL):
        raise KeyError("from inside")
    assert state_of(model) == before
    with policy_attention(model, FULL), pytest.raises(ValueError, match="replaced already"):  # noqa: SIM117
        with policy_attention(model, FULL):
            pass
    assert state_of(model) == before


def test_a_wrapped_forward_comes_back() -> None:
    """As accelerate wraps it: on the instance."""
    wrapped = near_sighted()
    layer = wrapped.get_decoder().h[0].self_attention
    layer.forward = mine = layer.forward
    with policy_attention(wrapped, FULL):
        assert layer.forward is not mine
    assert vars(layer)["forward"] is mine


@torch.no_grad()
def test_wrong_calls_are_refused(model: PreTrainedModel) -> None:
    ids = random_ids(2, 6)
    with policy_attention(model, FULL) as cache:
        with pytest.raises(ValueError, match="pass past_key_values=cache"):
            model(ids)
        with pytest.raises(ValueError, match="padding on the left"):
            model(ids, attention_mask=torch.tensor([[1] * 6, [1] * 5 + [0]]), past_key_values=cache)
        with pytest.raises(ValueError, match="must cover all 6 tokens"):
            model(ids, attention_mask=torch.ones(2, 4), past_key_values=cache)


def refuse(model: PreTrainedModel, policy: Any, message: str) -> None:
    before = state_of(model)
    with pytest.raises(ValueError, match=message), policy_attention(model, policy):
        pass
    with pytest.raises(ValueError, match=message):
        generate(model, [[3]], policies=[FULL, policy], max_new_tokens=1, eos_token_ids=[])
    assert state_of(model) == before


def test_policies_and_positions_must_fit(model: PreTrainedModel) -> None:
    message = "^KV policy '{}' needs rotary positions; with ALiBi: full, razor-alibi$"
    refuse(model, get_policy("snapkv", budget=64), message.format("snapkv"))
    refuse(model, get_policy("streaming", sink=4, window=60), message.format("streaming"))
    refuse(random_model(), TIGHT, "^KV policy 'razor-alibi' needs ALiBi; with rotary positions: .*full, .*streaming$")


def test_other_models_are_refused() -> None:
    with_alibi = random_model("mpt", d_model=24, n_heads=4, n_layers=2, max_seq_len=32)
    refuse(with_alibi, TIGHT, "do not fit this model of type 'mpt': it has no rotary position embedding")
    model = random_model("bloom", pretraining_tp=2, slow_but_exact=True)
    refuse(model, FULL, "do not fit this model of type 'bloom': it uses slow_but_exact=True")
    adapted = random_model("bloom")
    adapted.get_decoder().h[1].self_attention.query_key_value = nn.Sequential()
    refuse(adapted, TIGHT, r"layer 1: expected query_key_value to be a plain Linear, found torch\..*Sequential")


def test_nobody_else_may_answer_for_its_attention(model: PreTrainedModel) -> None:
    """A function that knows of no biases would be wrong."""
    with pytest.raises(ValueError, match="does not dispatch"), attention_function(model, lambda *_, **__: None):
        pass
