"""RazorAttention on ALiBi models: what the bound promises, and answers from what each head keeps, in float64 loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from longloom.kernels.kvcache.base import KVPolicy, LayerState
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState
from longloom.kernels.kvcache.razor_alibi import RazorAlibiPolicy, logit_bounds
from longloom.kernels.kvcache.registry import get_policy, names_for

from .tokens import HEADS, SCALING, SIZE, Tokens, alibi, random_tokens

GROUPS = 3
ALIBI = alibi(GROUPS * HEADS)
POLICY = get_policy("razor-alibi", eps=0.1)


class Projections:
    """A layer norm of d features, and projections of some heads behind it, in float64."""

    def __init__(self, d: int, size: int, heads: int = 3, *, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.gamma, self.beta = 1 + 0.5 * self.random(d), 0.5 * self.random(d)
        self.query, self.key = 0.2 * self.random(heads, size, d), 0.2 * self.random(heads, size, d)
        self.query_bias, self.key_bias = self.random(heads, size), self.random(heads, size)
        self.scaling = size**-0.5

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def bounds(self) -> Tensor:
        return logit_bounds(self.gamma, self.beta, self.query, self.query_bias, self.key, scaling=self.scaling)

    def by_hand(self) -> Tensor:
        """The bounds by their definition, d x d matrices and all."""
        d = len(self.gamma)
        centre = torch.eye(d, dtype=torch.float64) - 1 / d
        found = []
        for query, bias, key in zip(self.query, self.query_bias, self.key, strict=True):
            left, right = query @ self.gamma.diag() @ centre, key @ self.gamma.diag() @ centre
            size = torch.linalg.svdvals(left.T @ right)[0]
            found.append(2 * self.scaling * (d * size + math.sqrt(d) * (right.T @ (query @ self.beta + bias)).norm()))
        return torch.stack(found)

    def logits(self, inputs: Tensor) -> Tensor:
        """Of all pairs of tokens with these inputs [N, d] of the norm, without ALiBi's biases: [heads, N, N]."""
        x = layer_norm(inputs, inputs.shape[-1:], self.gamma, self.beta, eps=1e-12)
        queries = x @ self.query.mT + self.query_bias[:, None]
        return self.scaling * queries @ (x @ self.key.mT + self.key_bias[:, None]).mT

    def inputs(self, tokens: int) -> Tensor:
        """Random ones, and at random places those that some head's logits answer most, up to their sign."""
        d = len(self.gamma)
        inputs = self.random(tokens, d)
        centre = torch.eye(d, dtype=torch.float64) - 1 / d
        extreme = []
        for query, bias, key in zip(self.query, self.query_bias, self.key, strict=True):
            right = (key * self.gamma) @ centre
            u, _, vh = torch.linalg.svd(((query * self.gamma) @ centre).T @ right)
            for best in (u[:, 0], vh[0], (query @ self.beta + bias) @ right):
                extreme += [best, -best]
        places = torch.randint(2 * len(extreme), (tokens,), generator=self.generator)
        for place, which in enumerate(places.tolist()):
            if which < len(extreme):
                inputs[place] = extreme[which]
        return inputs


@pytest.mark.parametrize(("d", "size"), [(24, 6), (7, 7), (5, 8), (33, 1)])
def test_bounds_are_their_definition(d: int, size: int) -> None:
    layer = Projections(d, size, seed=d)
    torch.testing.assert_close(layer.bounds(), layer.by_hand(), rtol=1e-12, atol=1e-12)
    assert layer.bounds().dtype == torch.float64
    single = [part.float() for part in (layer.gamma, layer.beta, layer.query, layer.query_bias, layer.key)]
    torch.testing.assert_close(logit_bounds(*single, scaling=layer.scaling), layer.by_hand(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(8))
def test_no_logit_exceeds_the_own_tokens_by_more_than_its_bound(seed: int) -> None:
    layer = Projections(24, 6, seed=seed)
    logits = layer.logits(layer.inputs(300))
    most = (logits - logits.diagonal(dim1=1, dim2=2)[..., None]).amax(dim=(1, 2))
    assert (most <= layer.bounds()).all()
    assert (most >= 0.2 * layer.bounds()).all()  # they are not far from what extreme inputs reach


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eps", [1e-2, 1e-5])
def test_no_token_beyond_the_window_has_more_weight_than_eps(seed: int, eps: float) -> None:
    layer = Projections(24, 6, seed=seed)
    slopes = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)
    distance = torch.arange(400)[:, None] - torch.arange(400)
    logits = layer.logits(layer.inputs(400)) - slopes[:, None, None] * distance
    weights = logits.masked_fill(distance < 0, -torch.inf).softmax(dim=-1)
    scope = (layer.bounds() - math.log(eps)) / slopes
    for head in range(3):
        window = math.ceil(scope[head])
        assert window < 300  # or nothing would be beyond
        far = distance >= window
        assert 0 < weights[head][far].max() <= eps
        assert (weights[head] * far).sum(dim=-1).max() <= eps / -math.expm1(-slopes[head])


def test_the_bound_is_reached_where_the_papers_formula_fails() -> None:
    """All of gamma in one feature: the norm's output is longer than gamma."""
    d, strength = 16, 0.5
    layer = Projections(d, 1, heads=1)
    layer.gamma, layer.beta = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    layer.gamma[0] = 2
    layer.query, layer.key = torch.zeros(1, 1, d, dtype=torch.float64), torch.zeros(1, 1, d, dtype=torch.float64)
    layer.query[0, 0, 0], layer.key[0, 0, 0] = strength, -strength
    layer.query_bias, layer.key_bias = torch.zeros(2, 1, 1, dtype=torch.float64)
    inputs = torch.zeros(2, d, dtype=torch.float64)
    inputs[0, 0], inputs[1, 0] = -1, 1
    logits = layer.logits(inputs)[0]
    reached = float(logits[1, 0] - logits[1, 1])
    assert float(layer.bounds()) == pytest.approx(reached, rel=1e-9)
    papers = 2 * strength**2 * float(layer.gamma.norm() ** 2)  # 2 ||W_Q W_K^T|| ||gamma||^2
    assert reached == pytest.approx((d - 1) * papers, rel=1e-9)


def test_the_bound_is_reached_with_a_bias_alone() -> None:
    layer = Projections(12, 4, heads=1)
    layer.query, layer.beta = torch.zeros_like(layer.query), torch.zeros_like(layer.beta)
    best = layer.query_bias[0] @ (layer.key[0] * layer.gamma)
    logits = layer.logits(torch.stack((best - best.mean(), best.mean() - best)))[0]
    assert float(layer.bounds()) == pytest.approx(float(logits[1, 0] - logits[1, 1]), rel=1e-9)


def test_windows_are_the_formula() -> None:
    policy = RazorAlibiPolicy(eps=1e-3)
    for layer in range(2):
        expected = [
            math.ceil((float(ALIBI.bounds[layer, head]) - math.log(1e-3)) / float(ALIBI.slopes[head]))  # type: ignore[index]
            for head in range(GROUPS * HEADS)
        ]
        assert policy.windows(ALIBI, layer).tolist() == expected
    assert RazorAlibiPolicy().eps == 1e-5


def feed(
    policy: KVPolicy[Any], state: LayerState, tokens: Tokens, begin: int, end: int, start: Tensor | None
) -> Tensor:
    part = tokens[:, begin:end]
    return policy.attend(state, part.query, part.key, part.value, ALIBI, start=start, scaling=SCALING)


def answer(
    policy: KVPolicy[Any], tokens: Tokens, prompt: int, start: Tensor | None = None, *, layer: int = 0
) -> tuple[Tensor, Any]:
    """The prompt in one piece, then single steps: the outputs of the steps."""
    state = policy.state_type(layer)
    feed(policy, state, tokens, 0, prompt, start)
    steps = [feed(policy, state, tokens, now, now + 1, start) for now in range(prompt, tokens.key.shape[2])]
    return torch.cat(steps, dim=2), state


def windows(layer: int = 0) -> list[int]:
    """Of the KV heads: what the farthest-sighted query head of each sees."""
    own = POLICY.windows(ALIBI, layer).tolist()  # type: ignore[attr-defined]
    return [max(own[head * GROUPS : (head + 1) * GROUPS]) for head in range(HEADS)]


def by_definition(tokens: Tokens, prompt: int, kept: list[int]) -> Tensor:
    """Of one row: each KV head's last `kept` tokens of the prompt, and all of the answer's."""
    length = tokens.key.shape[2]
    output = torch.empty(1, GROUPS * HEADS, length - prompt, SIZE, dtype=torch.float64)
    for head in range(GROUPS * HEADS):
        own = head // GROUPS
        key, value = tokens.key[0, own].double(), tokens.value[0, own].double()
        for now in range(prompt, length):
            slots = torch.arange(max(0, prompt - kept[own]), now + 1)
            logits = key[slots] @ tokens.query[0, head, now].double() * SCALING
            weights = (logits - float(ALIBI.slopes[head]) * (now - slots)).softmax(0)
            output[0, head, now - prompt] = weights @ value[slots]
    return output


def close(ours: Tensor, reference: Tensor) -> None:
    assert ours.isfinite().all()
    assert (ours.double() - reference).abs().max() < 1e-5


@pytest.mark.parametrize("prompt", [1, 5, 20, 30, 60, 150])
@pytest.mark.parametrize("layer", [0, 1])
def test_answers_come_from_each_heads_last_tokens(prompt: int, layer: int) -> None:
    tokens = random_tokens(prompt + 7, seed=prompt)
    ours, state = answer(POLICY, tokens, prompt, layer=layer)
    close(ours, by_definition(tokens, prompt, windows(layer)))
    assert state.cache.host_len.tolist() == [[min(prompt, window) + 7 for window in windows(layer)]]
    everything = by_definition(tokens, prompt, [prompt] * HEADS)
    lost = (ours - everything).abs().max()
    assert lost < 1e-5 if prompt <= min(windows(layer)) else lost > 1e-5


@pytest.mark.parametrize("padding", [[0, 13, 59], [40, 0], [60, 3]])
def test_a_rows_window_is_its_own(padding: list[int]) -> None:
    tokens = random_tokens(66, batch=len(padding))
    ours, state = answer(POLICY, tokens, 60, torch.tensor(padding))
    for row, pad in enumerate(padding):
        close(ours[row : row + 1], by_definition(tokens[row : row + 1, pad:], 60 - pad, windows()))
        assert state.cache.host_len[row].tolist() == [min(60 - pad, window) + 6 for window in windows()]


def test_several_tokens_at_once_after_the_prompt() -> None:
    tokens = random_tokens(80)
    state = POLICY.state_type(0)
    outputs = [feed(POLICY, state, tokens, begin, end, None) for begin, end in ((0, 60), (60, 61), (61, 80))]
    close(torch.cat(outputs[1:], dim=2), by_definition(tokens, 60, windows()))


def test_keeping_from_a_shared_prefill_is_the_same_to_the_bit() -> None:
    tokens, chunks = random_tokens(64), ((0, 16), (16, 32), (32, 60))
    prompt, alone = PromptState(0), POLICY.state_type(0)
    for begin, end in chunks:
        feed(PromptPolicy(), prompt, tokens, begin, end, None)
        feed(POLICY, alone, tokens, begin, end, None)
    shared = POLICY.keep(prompt, ALIBI)  # type: ignore[attr-defined]
    for now in range(60, 64):
        ours = feed(POLICY, shared, tokens, now, now + 1, None)
        assert torch.equal(ours, feed(POLICY, alone, tokens, now, now + 1, None))


def test_memory_is_what_the_windows_hold() -> None:
    _, state = answer(POLICY, random_tokens(2001), 2000)
    page = 64
    pages = sum(-(-(window + 1) // page) + 1 for window in windows())  # and at most one to grow on
    assert state.bytes() <= 2 * pages * page * SIZE * 4 + 1000
    _, full = answer(get_policy("full"), random_tokens(2001), 2000)
    assert state.bytes() < full.bytes() / 10


def test_full_attention_adds_the_biases() -> None:
    tokens = random_tokens(40, batch=2)
    padding = torch.tensor([0, 11])
    ours, _ = answer(get_policy("full"), tokens, 30, padding)
    close(ours[:1], by_definition(tokens[:1, :], 30, [30] * HEADS))
    close(ours[1:], by_definition(tokens[1:, 11:], 19, [19] * HEADS))


def test_few_policies_know_alibi() -> None:
    assert names_for(type(ALIBI)) == ["full", "razor-alibi"]


@pytest.mark.parametrize("eps", [0, 1, 1.0, -0.1, True, float("nan"), "small"])
def test_bad_options(eps: Any) -> None:
    with pytest.raises(ValueError, match=r"KV policy 'razor-alibi': eps must be a number between 0 and 1, found "):
        get_policy("razor-alibi", eps=eps)
