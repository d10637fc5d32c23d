"""The seeded circuit: heads look at the tokens before, another one at what followed earlier occurrences of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from longloom.tasks.training.recipe import SHAPES, Shape
from longloom.tasks.training.seeding import seed_induction

from .conftest import TINY

LENGTH = 64  # tokens that are repeated


def fresh(seed: int, shape: Shape = SHAPES["1m"], **changes: int | float) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = dataclasses.asdict(shape) | changes
    config = LlamaConfig(vocab_size=1024, tie_word_embeddings=True, **settings)
    return LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()


def random_ids(length: int, rows: int = 1) -> Tensor:
    return torch.randint(4, 1024, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def after_earlier_ones(model: LlamaForCausalLM, layer: int, repeats: int = 3) -> Tensor:
    """Mean attention of each head to the token 0 .. 15 places after a token's earlier occurrences: [heads, 16]."""
    ids = torch.cat((torch.zeros(8, 1, dtype=torch.int64), random_ids(LENGTH, 8).repeat(1, repeats)), dim=1)
    weights = model.model(ids, output_attentions=True).attentions[layer][:, :, 1:, 1:]
    found = torch.zeros(weights.shape[1], 16)
    for now in range(LENGTH + 15, LENGTH * repeats):
        for earlier in range(now % LENGTH, now - 15, LENGTH):
            found += weights[:, :, now, earlier : earlier + 16].mean(dim=0)
    return found / (LENGTH * (repeats - 1) - 15)


@torch.no_grad()
def test_attention_goes_to_the_tokens_before() -> None:
    model = fresh(0)
    ids = random_ids(1024)
    unseeded = model.model(ids, output_attentions=True).attentions[0][0]
    seed_induction(model, seed=0)
    seeded = model.model(ids, output_attentions=True).attentions[0][0]
    for lag in (1, 2, 3):
        before, after = (weights.diagonal(-lag, 1, 2) for weights in (unseeded, seeded))  # [heads, T - lag]
        own = 2 * (lag - 1)  # the first query head of its KV head
        assert before.mean() < 0.2
        assert after[own, :63].min() > 0.8
        assert after[own, :255].mean() > 0.97
        assert after[own].mean() > 0.85  # rotations of far tokens come round again
        assert torch.cat((after[:own], after[own + 1 :])).mean() < 0.2  # the other heads look elsewhere


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_second_layer_prefers_what_followed_earlier_occurrences(seed: int) -> None:
    model = fresh(seed)
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    assert after_earlier_ones(model, 1)[:group, 1].max() < 0.015
    seed_induction(model, seed=seed)
    found = after_earlier_ones(model, 1)[:group]
    others = torch.cat((found[:, :1], found[:, 2:]), dim=1)
    assert (found[:, 1] > 2 * others.amax(dim=1)).all()


def test_the_second_part_reads_what_the_first_one_writes() -> None:
    model = fresh(0)
    seed_induction(model, seed=0)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    found = after_earlier_ones(model, 1)[0]
    assert found[1] < 1.2 * found[2:].mean()


@torch.no_grad()
def test_seeding_is_a_function_of_its_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        model = fresh(3)
        seed_induction(model, seed=seed)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    blind = {f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(4) for part in "qk"}
    written = {f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(2) for part in "vo"}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"} | blind | written


@torch.no_grad()
def test_what_it_leaves_as_it_was() -> None:
    model, before = fresh(3), fresh(3).state_dict()
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    seed_induction(model, seed=0)
    assert torch.equal(torch.rand(3), drawn)  # the global generator
    after, size = model.state_dict(), model.config.head_dim
    for name, weight in after.items():
        attention = "self_attn" in name
        layer = int(name.split(".")[2]) if "layers" in name else -1
        if "norm" in name or "gate" in name or "up_proj" in name or (attention and "v_proj" in name and layer > 1):
            assert torch.equal(weight, before[name]), name
        elif "down_proj" in name:
            assert torch.equal(weight, 0.1 * before[name]), name
        elif attention:
            # Of the first layer the first query head of KV heads 0, 1, 2; of the second one KV head 0 and its group.
            heads = {(0, "q"): (0, 2, 4), (0, "o"): (0, 2, 4), (0, "k"): (0, 1, 2), (0, "v"): (0, 1, 2)}
            heads |= {(1, "q"): (0, 1), (1, "o"): (0, 1), (1, "k"): (0,), (1, "v"): (0,)}
            part = name.split(".")[-2][0]
            own = torch.tensor(heads.get((layer, part), ()), dtype=torch.int64)
            rest = (torch.arange(weight.shape[part == "o"]) // size)[:, None].ne(own).all(dim=1)
            old = before[name]
            if part == "v":
                assert torch.equal(weight[rest], old[rest]), name
            elif part == "o":
                assert torch.equal(weight[:, rest], 0.2 * old[:, rest]), name
            else:  # blind to one direction, and otherwise as they were
                ranks = torch.linalg.svdvals((weight - old)[rest].double())
                assert ranks[0] > 1e-3, name
                assert ranks[1] < 1e-5, name
        else:
            assert name in ("model.embed_tokens.weight", "lm_head.weight")
            assert torch.linalg.svdvals((weight - before[name]).double())[1] < 1e-4, name
    assert model.lm_head.weight is model.model.embed_tokens.weight


@torch.no_grad()
def test_all_embeddings_have_one_direction_alike_that_no_logit_sees() -> None:
    model, unseeded = fresh(0), fresh(0)
    norm = unseeded.model.embed_tokens.weight.norm(dim=1).mean()
    seed_induction(model, seed=0)
    moved = model.model.embed_tokens.weight - unseeded.model.embed_tokens.weight
    _, _, directions = torch.linalg.svd(moved.double(), full_matrices=False)
    along = model.model.embed_tokens.weight.double() @ directions[0]
    assert along.diff().abs().max() < 1e-5
    assert (along.abs() - norm).abs().max() < 0.02 * norm
    hidden = torch.randn(5, model.config.hidden_size)
    logits = model.lm_head(hidden) - model.lm_head(hidden + 3 * directions[0].float())
    assert (logits - logits[:, :1]).abs().max() < 1e-3  # every token's alike


SMALL = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (TINY, {}),
        (SHAPES["1m"], SMALL),  # subspaces overlap
        (SHAPES["1m"], SMALL | {"hidden_size": 33, "num_attention_heads": 1, "num_key_value_heads": 1}),
        (SHAPES["1m"], {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}),
    ],
    ids=["tiny", "two heads wide", "one head wide", "no groups"],
)
@torch.no_grad()
def test_other_shapes(shape: Shape, changes: dict[str, int]) -> None:
    model = fresh(0, shape, **changes)
    ids = random_ids(32)
    before = model.model(ids, output_attentions=True).attentions[0][0, 0].diagonal(-1).mean()
    seed_induction(model, seed=0)
    assert model.model(ids, output_attentions=True).attentions[0][0, 0].diagonal(-1).mean() > 0.5 > 3 * before
    assert model(ids).logits.isfinite().all()
    found = after_earlier_ones(model, 1)[0]
    assert found[1] > 1.2 * found[2:].mean()


def test_a_model_as_narrow_as_a_head_has_no_room() -> None:
    with pytest.raises(AssertionError):
        seed_induction(fresh(0, hidden_size=32, num_attention_heads=1, num_key_value_heads=1), seed=0)
