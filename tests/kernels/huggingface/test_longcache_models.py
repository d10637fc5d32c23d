"""LongCache on transformers models: their own attention within the scope, loops in float64 beyond it.

And what it is worth on a model with induction heads, the repository's own: it copies from far behind its window.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import longloom.kernels.huggingface.reading as reading
from longloom.kernels.huggingface.attention import attention_function, policy_attention, rope_of
from longloom.kernels.huggingface.generate import generate
from longloom.kernels.huggingface.loglikelihood import loglikelihood
from longloom.kernels.huggingface.reading import read_prefix
from longloom.kernels.kvcache.base import KVPolicy, Rope
from longloom.kernels.kvcache.full import FullPolicy
from longloom.kernels.kvcache.longcache import LongCachePolicy
from longloom.kernels.kvcache.registry import get_policy
from longloom.kernels.kvcache.streaming import StreamingPolicy

from ..kvcache.longcache_loops import largest_scope, row_answers, turned
from .models import random_model

#: More than any test feeds: where no token comes twice no scores are equal, and rounding decides nothing.
VOCABULARY = 211
POLICY = LongCachePolicy(sink=2, local=12, chunk=4, spans=2, span=4, k=2)
SCOPE = largest_scope(POLICY)  # 22, of a window of 32

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
}
families = pytest.mark.parametrize("family", FAMILIES)
quiet = pytest.mark.filterwarnings("ignore:.*sliding window of:UserWarning")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As small models are fastest, and for the same sums on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def model_of(family: str) -> PreTrainedModel:
    model_type, settings = FAMILIES[family]
    return random_model(model_type, vocab_size=VOCABULARY, **settings)


def different_ids(rows: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([3 + torch.randperm(VOCABULARY - 3, generator=generator)[:length] for _ in range(rows)])


def mask_of(padding: Sequence[int], length: int) -> Tensor:
    return torch.stack([torch.arange(length) >= pad for pad in padding]).long()


@torch.no_grad()
def logits_of(
    model: PreTrainedModel, policy: KVPolicy[Any], ids: Tensor, pieces: Sequence[int], mask: Tensor | None = None
) -> Tensor:
    """All tokens' logits, fed piece by piece."""
    outputs, end = [], 0
    with policy_attention(model, policy) as held:
        for piece in ids.split(list(pieces), dim=1):
            end += piece.shape[1]
            shown = None if mask is None else mask[:, :end]
            outputs.append(model(piece, attention_mask=shown, past_key_values=held).logits)
    return torch.cat(outputs, dim=1)


class Still(nn.Module):
    """A rotary module that does not rotate."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return x.new_ones(1, 1, 6), x.new_zeros(1, 1, 6)


@contextmanager
def still(model: PreTrainedModel) -> Iterator[Any]:
    """The model without its rotation; gives the module that rotates."""
    rotary, model.model.rotary_emb = model.model.rotary_emb, Still()
    try:
        yield rotary
    finally:
        model.model.rotary_emb = rotary


@torch.no_grad()
def by_loops(
    model: PreTrainedModel,
    policy: Any,
    ids: Tensor,
    pieces: Sequence[int],
    pad: int = 0,
    windows: dict[int, int] | None = None,
) -> Tensor:
    """One row's logits [N - pad, vocabulary], all layers at once; layers with a window in place of the policy's."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, start: None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        factor = rotary.attention_scaling
        window = (windows or {}).get(module.layer_idx)
        if window is None:
            blank = torch.zeros(pad, 6)  # the padding's place
            parts = [torch.cat((blank.expand(part.shape[1], -1, -1), part[0]), dim=1) for part in (query, key, value)]
            output, _scopes = row_answers(
                policy, *parts, pieces, rotary.inv_freq, pad=pad, factor=factor, scaling=scaling
            )
        else:
            places = [*range(key.shape[2])]
            near = torch.tensor(places) - torch.tensor(places)[:, None]
            group = query.shape[1] // key.shape[1]
            keys = turned(key[0], places, rotary.inv_freq, factor).repeat_interleave(group, 0)
            scores = turned(query[0], places, rotary.inv_freq, factor) @ keys.mT * scaling
            scores = scores.masked_fill((near > 0) | (near <= -window), -torch.inf)
            output = scores.softmax(-1) @ value[0].double().repeat_interleave(group, 0)
        return output[None].to(query.dtype).transpose(1, 2).contiguous(), None

    with still(model) as rotary, attention_function(model, attend):
        logits: Tensor = model(ids[:, pad:], use_cache=False).logits[0]
    return logits


def close(ours: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert ours.shape == expected.shape
    assert ours.isfinite().all()
    scale = expected.abs().max().clamp(min=1)
    assert ((ours - expected).abs().max() / scale).item() < tolerance


# --- Tiny models ------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("pieces", [[SCOPE], [9, 1, 1, 1, SCOPE - 12], [1] * SCOPE])
@torch.no_grad()
def test_within_the_scope_logits_are_the_model_s_own(family: str, pieces: list[int]) -> None:
    model, ids = model_of(family), different_ids(2, SCOPE)
    assert model.config._attn_implementation == "eager"
    close(logits_of(model, POLICY, ids, pieces), model(ids).logits)


@families
@torch.no_grad()
def test_beyond_the_scope_logits_equal_loops(family: str) -> None:
    """A prompt, an answer and a second turn, of three times the model's window."""
    model, pieces = model_of(family), [70, 1, 1, 1, 21, 1]
    ids = different_ids(1, sum(pieces))
    ours = logits_of(model, POLICY, ids, pieces)[0]
    close(ours, by_loops(model, POLICY, ids, pieces))
    own = model(ids).logits[0]
    assert (ours - own)[SCOPE:].abs().max() > 0.1
    streaming = logits_of(model, LongCachePolicy(sink=2, local=12, chunk=4, spans=0), ids, pieces)[0]
    assert (ours - streaming)[SCOPE:].abs().max() > 0.1


@pytest.mark.parametrize("options", [{"chunk": 12}, {"chunk": 1}, {"block": 32, "k": 3}, {"sink": 0, "span": 2}])
def test_options_reach_the_model(options: dict[str, Any]) -> None:
    model, pieces = model_of("llama"), [70, 1, 1, 8]
    policy = LongCachePolicy(**{"sink": 2, "local": 12, "chunk": 4, "spans": 2, "span": 4, "k": 2, **options})
    ids = different_ids(1, sum(pieces))
    close(logits_of(model, policy, ids, pieces)[0], by_loops(model, policy, ids, pieces))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_left_padded_rows_equal_loops_and_rows_alone(family: str) -> None:
    model, pieces, padding = model_of(family), [60, 1, 1, 1, 17], [0, 7, 40, 58]
    ids = different_ids(4, sum(pieces))
    together = logits_of(model, POLICY, ids, pieces, mask_of(padding, sum(pieces)))
    for row, pad in enumerate(padding):
        own = ids[row : row + 1]
        close(together[row, pad:], by_loops(model, POLICY, own, pieces, pad))
        if pad == 40:  # of whole chunks; its scope is full behind the prompt
            close(together[row, pad:], logits_of(model, POLICY, own[:, pad:], [60 - pad, *pieces[1:]])[0])


@quiet
@torch.no_grad()
def test_layers_with_a_sliding_window_are_left_alone() -> None:
    pieces = [60, 1, 1, 18]
    ids = different_ids(1, sum(pieces))
    throughout = random_model("mistral", vocab_size=VOCABULARY, sliding_window=8)
    close(logits_of(throughout, POLICY, ids, pieces), throughout(ids).logits)
    mixed = random_model("qwen2", vocab_size=VOCABULARY, use_sliding_window=True, max_window_layers=1, sliding_window=8)
    ours = logits_of(mixed, POLICY, ids, pieces)[0]
    close(ours, by_loops(mixed, POLICY, ids, pieces, windows={1: 8}))
    assert (ours - mixed(ids).logits[0])[SCOPE:].abs().max() > 0.1


# --- Positions --------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions were asked for."""
    found: list[int] = []
    tables = Rope.tables

    def note(rope: Rope, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        found.append(length)
        return tables(rope, length, device)

    monkeypatch.setattr(Rope, "tables", note)
    return found


@pytest.mark.parametrize("family", ["llama", "llama, yarn", "qwen3"])
def test_positions_stay_within_the_scope(family: str, asked: list[int]) -> None:
    model = model_of(family)
    logits_of(model, POLICY, different_ids(2, 150), [140, *[1] * 10], mask_of([0, 50], 150))
    assert max(asked) == SCOPE < rope_of(model).window == 32  # type: ignore[operator]


def test_scaled_frequencies_are_used_as_they_are() -> None:
    plain = rope_of(model_of("llama"))
    for family, factor in (("llama, yarn", 0.1 * torch.tensor(4.0).log().item() + 1), ("llama 3.1", 1.0)):
        rope = rope_of(model_of(family))
        assert torch.equal(rope.inv_freq, model_of(family).model.rotary_emb.inv_freq)
        assert not torch.allclose(rope.inv_freq, plain.inv_freq)
        assert rope.attention_scaling == pytest.approx(factor)


def test_defaults_come_from_the_model_s_window(asked: list[int]) -> None:
    model = random_model(vocab_size=VOCABULARY, max_position_embeddings=128)
    logits_of(model, LongCachePolicy(), different_ids(1, 200), [190, 1, 1, 8])
    assert max(asked) == 128  # 32 + a span of 32 + 64


# --- Refusals ---------------------------------------------------------------------------------------------------------

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 3,
    "long_factor": [2.0] * 3,
    "original_max_position_embeddings": 16,
}
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "a scope larger than the window": (
        "llama",
        {},
        {"sink": 4, "local": 16, "spans": 4, "span": 4},
        "KV policy 'longcache': a scope of 36 tokens (sink 4 + 4 spans of 4 + local 16) is larger than the model's "
        "window of 32",
    ),
    "a window without room": (
        "llama",
        {},
        {},
        "KV policy 'longcache': the model's window of 32 has no room for a span of 32 tokens beside sink 32 and local "
        "16",
    ),
    "ALiBi": ("bloom", {}, {}, "KV policy 'longcache' needs rotary positions; with ALiBi: full, razor-alibi"),
    "no RoPE": (
        "gpt2",
        {"n_embd": 24, "n_head": 4, "n_layer": 2},
        {},
        "KV policies do not fit this model of type 'gpt2': it has no rotary position embedding that all layers share",
    ),
    "dynamic frequencies": (
        "llama",
        {"rope_parameters": DYNAMIC},
        {},
        "KV policies do not fit this model of type 'llama': its rotary frequencies change with the length (rope_type "
        "'dynamic')",
    ),
    "longrope": (
        "llama",
        {"rope_parameters": LONGROPE},
        {},
        "KV policies do not fit this model of type 'llama': its rotary frequencies change with the length (rope_type "
        "'longrope')",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused(kind: str) -> None:
    model_type, settings, options, message = REFUSED[kind]
    model = random_model(model_type, **settings)
    with (
        pytest.raises(ValueError, match=f"^{re.escape(message)}$"),
        policy_attention(model, get_policy("longcache", **options)),
    ):
        pass


# --- Generation -------------------------------------------------------------------------------------------------------


def padded(asked: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in asked])
    return ids, mask_of([longest - len(prompt) for prompt in asked], longest)


def greedy(model: PreTrainedModel, ids: Tensor, mask: Tensor, held: Any, new: int) -> Tensor:
    """transformers' own, the new tokens alone."""
    answer = model.generate(
        ids,
        attention_mask=mask,
        past_key_values=held,
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return answer[:, ids.shape[1] :]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_greedy_answers_and_a_second_turn_follow_the_policy_s_logits(family: str) -> None:
    model, new = model_of(family), 8
    asked = [row[:length].tolist() for row, length in zip(different_ids(3, 70), (70, 33, 5), strict=True)]
    ids, mask = padded(asked)
    with policy_attention(model, POLICY) as held:
        first = greedy(model, ids, mask, held, new)
        ids = torch.cat((ids, first, different_ids(3, 9, seed=2)), dim=1)
        mask = torch.cat((mask, mask.new_ones(3, new + 9)), dim=1)
        second = greedy(model, ids, mask, held, new)
    # The last token of an answer is fed with the next turn.
    whole = torch.cat((ids, second[:, :-1]), dim=1)
    mask = torch.cat((mask, mask.new_ones(3, new - 1)), dim=1)
    pieces = [70, *[1] * (new - 1), 10, *[1] * (new - 1)]
    told = logits_of(model, POLICY, whole, pieces, mask).argmax(dim=-1)
    assert told[:, 69 : 69 + new].tolist() == first.tolist()
    assert told[:, -new:].tolist() == second.tolist()
    ours = generate(model, asked, policies=[POLICY, FullPolicy()], max_new_tokens=new, eos_token_ids=[])
    assert [row.ids for row in ours[0]] == first.tolist()
    assert [row.ids for row in ours[0]] != [row.ids for row in ours[1]]
    assert ours[0][2].ids[: SCOPE - 5] == ours[1][2].ids[: SCOPE - 5]  # a short row sees everything


@pytest.mark.parametrize("asking", [0, 7, 15])
def test_a_prefix_read_once_changes_no_answer(asking: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = replace(POLICY, asking=asking)
    monkeypatch.setattr(reading, "CHUNK", 16)
    model = model_of("llama")
    prefix, *ends = (row.tolist() for row in different_ids(3, 64))
    asked = [prefix + end[:20] for end in ends]
    options: dict[str, Any] = {"policies": [policy], "max_new_tokens": 6, "eos_token_ids": []}
    read = read_prefix(model, prefix, policies=[policy], prompts=2)
    for prompt in asked:
        with_prefix = generate(model, [prompt], prefix=read, **options)[0][0]
        assert with_prefix.ids == generate(model, [prompt], **options)[0][0].ids


def test_a_prompt_s_end_is_fed_apart() -> None:
    """In the same batch a short row is all end: it is seen whole."""
    model, policy, new = model_of("llama"), replace(POLICY, asking=6), 5
    asked = [row[:length].tolist() for row, length in zip(different_ids(3, 80), (80, 71, 5), strict=True)]
    ids, mask = padded(asked)
    ours = [row.ids for row in generate(model, asked, policies=[policy], max_new_tokens=new, eos_token_ids=[])[0]]
    whole = torch.cat((ids, torch.tensor(ours)[:, :-1]), dim=1)
    mask = torch.cat((mask, mask.new_ones(3, new - 1)), dim=1)
    told = logits_of(model, policy, whole, [74, 6, *[1] * (new - 1)], mask).argmax(dim=-1)
    assert told[:, 79:].tolist() == ours


def test_a_short_remainder_of_the_text_does_not_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model, policy = model_of("llama"), replace(POLICY, asking=16)
    searched, choose = [], type(policy).choose

    def counted(self: Any, state: Any, query: Tensor, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        searched.append((state.layer, state.seen - query.shape[2], state.seen))
        return choose(self, state, query, begin, end)

    monkeypatch.setattr(type(policy), "choose", counted)
    prompt = (torch.arange(538) * 7 % VOCABULARY).tolist()  # 512 + 10 + 16
    options: dict[str, Any] = {"policies": [policy], "max_new_tokens": 1, "eos_token_ids": []}
    generate(model, [prompt], **options)
    assert {slot for _, begin, end in searched for slot in range(begin, end)} == {*range(522, 538)}
    alone, searched[:] = list(searched), []
    generate(model, [prompt], prefix=read_prefix(model, prompt[:512], policies=[policy], prompts=1), **options)
    assert searched == alone


@pytest.mark.parametrize(("rolling", "pieces"), [(False, [1] * 10), (True, [4, 4, 2])])
def test_a_long_continuation_is_asked_for_in_pieces(rolling: bool, pieces: list[int]) -> None:
    model, policy = model_of("llama"), replace(POLICY, asking=4)
    ids = different_ids(1, 80)
    context, continuation = ids[0, :69].tolist(), ids[0, 69:].tolist()
    found, _ = loglikelihood(model, context, continuation, policy=policy, rolling=rolling)
    logits = by_loops(model, policy, ids[:, :-1], [65, 4, *pieces])[68:].double()
    expected = logits.log_softmax(-1).gather(1, ids[0, 69:, None]).sum().item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("rolling", "pieces"), [(False, [1] * 9), (True, [9])])
def test_loglikelihood_is_that_of_the_loops(rolling: bool, pieces: list[int]) -> None:
    model = model_of("qwen2")
    ids = different_ids(1, 80)
    context, continuation = ids[0, :70].tolist(), ids[0, 70:].tolist()
    found, likeliest = loglikelihood(model, context, continuation, policy=POLICY, rolling=rolling)
    logits = by_loops(model, POLICY, ids[:, :-1], [70, *pieces])[69:].double()
    expected = logits.log_softmax(-1).gather(1, ids[0, 70:, None]).sum().item()
    assert found == pytest.approx(expected, rel=1e-4)
    assert likeliest == bool((logits.argmax(-1) == ids[0, 70:]).all())


# --- What it is worth -------------------------------------------------------------------------------------------------

BASE = Path(__file__).parents[3] / "tasks/training/base"
COPIED, GAP = 32, 8 * 1024


@cache
def base() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BASE).eval()
    assert model.config.max_position_embeddings == 1024
    return model


@torch.inference_mode()
def copied(policy: KVPolicy[Any]) -> float:
    """The share of the 31 tokens after the first that is foretold: 32 random tokens from 8 windows back, again."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(4, base().config.vocab_size, (1, 100 + GAP), generator=generator)
    prompt, again = torch.cat((torch.zeros(1, 1, dtype=torch.int64), drawn), dim=1), drawn[:, 100 : 100 + COPIED]
    with policy_attention(base(), policy) as held:
        for piece in prompt.split(512, dim=1):
            base()(input_ids=piece, past_key_values=held, logits_to_keep=1)
        pieces = [again[:, :1], again[:, 1:2], again[:, 2:-1]]  # an answer's steps, and several tokens at once
        logits = [base()(input_ids=piece, past_key_values=held).logits for piece in pieces]
    return float((torch.cat(logits, dim=1).argmax(dim=-1) == again[:, 1:]).float().mean())


def test_it_copies_from_eight_windows_back() -> None:
    """Nearly all of them: 0.97 to 1.0 with five seeds."""
    assert copied(LongCachePolicy()) > 0.8


def test_full_attention_and_streaming_do_not() -> None:
    assert copied(FullPolicy()) < 0.2
    assert copied(StreamingPolicy(sink=32, window=992)) < 0.1
