"""A model that reads more than text: what is generated, scored and probed is that of its text part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, PreTrainedModel

from longloom.kernels.huggingface.generate import generate
from longloom.kernels.huggingface.loglikelihood import loglikelihood
from longloom.kernels.huggingface.probes import copy_accuracy, induction_scores
from longloom.kernels.kvcache.registry import get_policy

from .models import SHAPE, VOCABULARY, prompts

TEXT = {
    **SHAPE,
    "query_pre_attn_scalar": 6,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*sliding window of:UserWarning")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    assert not hasattr(model.config, "vocab_size")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


@torch.no_grad()
def own_answer(model: PreTrainedModel, prompt: list[int], new: int) -> tuple[list[int], float]:
    """By the model's own forward pass, without a cache; and its log-likelihood."""
    ids, total = list(prompt), 0.0
    for _ in range(new):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        ids.append(int(logits.argmax()))
        total += float(logits[ids[-1]])
    return ids[len(prompt) :], total


def test_it_is_generated_and_scored(model: PreTrainedModel) -> None:
    full = get_policy("full")
    for prompt in prompts(21, 5):
        expected, total = own_answer(model, prompt, 9)
        [answer] = generate(model, [prompt], policies=[full], max_new_tokens=9, eos_token_ids=[])[0]
        assert answer.ids == expected
        assert loglikelihood(model, prompt, expected, policy=full) == (pytest.approx(total, abs=1e-3), True)
    with pytest.raises(ValueError, match=r"prompt 0 holds token 61: the model's vocabulary is 0\.\.60"):
        generate(model, [[VOCABULARY]], policies=[full], max_new_tokens=1, eos_token_ids=[])


def test_it_is_probed(model: PreTrainedModel) -> None:
    drawn: dict[str, Any] = {"bos": 1, "special": [0, 1], "seed": 0}
    assert 0 <= copy_accuracy(model, length=8, samples=4, **drawn) <= 1
    scores = induction_scores(model, length=6, repeats=3, **drawn)
    assert scores.at.shape[:2] == (2, 4)
    assert scores.induction[1].min() > 0 == scores.induction[0].max()  # the first layer slides
    with pytest.raises(ValueError, match="no token of the vocabulary of 61 is left without the special ones"):
        copy_accuracy(model, bos=1, special=range(VOCABULARY), seed=0)
