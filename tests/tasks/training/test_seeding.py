"""The seeded head looks at the token before, from the first step on."""

from __future__ import annotations

import dataclasses

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from longloom.tasks.training.recipe import SHAPES
from longloom.tasks.training.seeding import seed_previous_token_head


def fresh(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=1024, tie_word_embeddings=True, **dataclasses.asdict(SHAPES["1m"]))
    return LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()


@torch.no_grad()
def test_attention_goes_to_the_previous_token() -> None:
    model = fresh(0)
    ids = torch.randint(4, 1024, (1, 1024), generator=torch.Generator().manual_seed(1))
    before = model(ids, output_attentions=True).attentions[0][0, 0].diagonal(-1)
    seed_previous_token_head(model, seed=0)
    after = model(ids, output_attentions=True).attentions[0][0].diagonal(-1, 1, 2)  # [heads, T - 1]
    assert before.mean() < 0.2
    assert after[0, :63].min() > 0.9
    assert after[0, :255].mean() > 0.98
    assert after[0].mean() > 0.85  # rotations of far tokens come round again
    assert after[1:].mean() < 0.2  # the other heads stay as they were


@torch.no_grad()
def test_seeding_is_a_function_of_its_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        model = fresh(3)
        seed_previous_token_head(model, seed=seed)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    attention = "model.layers.0.self_attn"
    assert changed == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        f"{attention}.q_proj.weight",
        f"{attention}.k_proj.weight",
    }
