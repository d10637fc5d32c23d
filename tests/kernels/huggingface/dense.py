"""A model's attention in float64 loops over heads, each head with a rule of its own: what KV policies are held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longloom.kernels.huggingface.attention import attention_function

#: What a KV head's queries see of T tokens: bool [T, T], and the tokens whose mean is seen by those from `prompt` on.
Rule = tuple[Tensor, list[int], int]


def causal(tokens: int, window: int | None = None) -> Rule:
    """All tokens before, or the last `window` of them, the query's own included."""
    slots = torch.arange(tokens)
    seen = slots <= slots[:, None]
    if window is not None:
        seen &= slots > slots[:, None] - window
    return seen, [], tokens


def razor(tokens: int, prompt: int, sink: int, window: int) -> Rule:
    """RazorAttention's: of the prompt, those behind it see the first and last tokens and the mean of the others."""
    seen, _, _ = causal(tokens)
    dropped = [*range(sink, max(sink, prompt - window))]
    seen[prompt:, dropped] = False
    return seen, dropped, prompt


@torch.no_grad()
def dense_logits(model: PreTrainedModel, ids: list[int], rule: Callable[[int, int, int], Rule]) -> Tensor:
    """Logits [T, vocabulary] of all tokens in one pass, the model's own rotation; rule(layer, KV head, T)."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, start: None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        output = torch.empty_like(query)
        group, tokens = query.shape[1] // key.shape[1], query.shape[2]
        for head in range(query.shape[1]):
            seen, dropped, prompt = rule(module.layer_idx, head // group, tokens)
            q, k, v = query[0, head].double(), key[0, head // group].double(), value[0, head // group].double()
            scores = (q @ k.T * scaling).masked_fill(~seen, -torch.inf)
            if dropped:
                mean = q @ k[dropped].mean(0) * scaling + math.log(len(dropped))
                mean[:prompt] = -torch.inf
                scores = torch.cat((scores, mean[:, None]), dim=1)
                v = torch.cat((v, v[dropped].mean(0, keepdim=True)))
            output[0, head] = (scores.softmax(-1) @ v).to(output.dtype)
        return output.transpose(1, 2).contiguous(), None

    with attention_function(model, attend):
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def greedy(model: PreTrainedModel, ids: list[int], new: int, rule: Callable[[int, int, int], Rule]) -> list[int]:
    """The likeliest next tokens, each from a pass over everything."""
    ids = list(ids)
    for _ in range(new):
        ids.append(int(dense_logits(model, ids, rule)[-1].argmax()))
    return ids[-new:]
