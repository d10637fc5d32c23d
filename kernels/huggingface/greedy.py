"""The likeliest next tokens by transformers' own `generate`, whatever a checkpoint's generation_config.json asks for.

`generate` fills what the configuration that it is given leaves open from the model's own: a repetition penalty, beams
or n-grams that must not come again would go on deciding. So the model's own is set aside while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: Sequence[int], *, new_tokens: int, pad_token_id: int) -> list[int]:
    """The tokens that follow a prompt, up to and including one of the checkpoint's end tokens.

    Args:
        model: causal.
        prompt: token ids, at least one.
        new_tokens: at most.
        pad_token_id: `generate` wants one; one prompt is not padded.
    """
    own = model.generation_config
    plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=None if own is None else own.eos_token_id,
        pad_token_id=pad_token_id,
    )
    ids = torch.tensor([list(prompt)], device=model.device)
    model.generation_config = plain
    try:
        written: Any = model.generate(  # type: ignore[operator]  # a method of every causal model
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plain
        )
    finally:
        model.generation_config = own
    found: list[int] = written[0, len(prompt) :].tolist()
    return found
