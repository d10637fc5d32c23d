"""What a model can do in context, probed on random tokens: copying, and which heads copy.

Definitions: RazorAttention (arXiv 2407.15891), section on retrieval heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longloom.kernels.attention.head_probe import head_probe
from longloom.kernels.attention.prefill import prefill
from longloom.kernels.huggingface.attention import attention_function, sliding_windows

#: Places after an earlier occurrence that are looked at, at most.
DISPLACEMENTS = 17

#: Sequences a forward pass: bounds the logits.
_BATCH = 8


class HeadScores(NamedTuple):
    """Mean attention, float32 in 0..1, from a token to what stands at or after its earlier occurrences.

    Attributes:
        at: [layers, query heads, DISPLACEMENTS], to the tokens 0, 1, 2, ... after them. A circuit can copy from a few
            tokens further on, when its first layers carry what stood before that far; induction does not show it.
    """

    at: Tensor

    @property
    def echo(self) -> Tensor:
        """[layers, query heads], to the occurrences themselves."""
        return self.at[..., 0]

    @property
    def induction(self) -> Tensor:
        """[layers, query heads], to the tokens that followed them."""
        return self.at[..., 1]


@torch.inference_mode()
def copy_accuracy(
    model: PreTrainedModel,
    *,
    bos: int,
    special: Collection[int],
    seed: int,
    length: int = 64,
    gap: int = 0,
    samples: int = 32,
) -> float:
    """How much of a random sequence a model copies when it meets it again.

    Fed: bos, `length` random tokens, `gap` other random tokens, the first `length` again. The tokens are drawn
    uniformly with replacement. Every token of the second occurrence but its first, which nothing foretells, is
    predicted from the true ones before it.

    Args:
        model: any causal language model.
        bos: a token that begins each sequence.
        special: tokens never drawn (end, pad, roles, ...).
        seed: of the draws.
        length: tokens to copy, at least 2.
        gap: tokens between the occurrences.
        samples: sequences.

    Returns:
        The share of tokens for which the true one is the likeliest, over samples * (length - 1) tokens.
    """
    if length < 2 or gap < 0 or samples < 1:
        raise ValueError(
            f"copy accuracy needs length >= 2, gap >= 0 and samples >= 1, found {length}, {gap} and {samples}"
        )
    drawn = _random_tokens(model, special, (samples, length + gap), seed)
    sequences = torch.cat((torch.full((samples, 1), bos), drawn, drawn[:, :length]), dim=1)
    right = 0
    for batch in sequences.split(_BATCH):
        logits = model(input_ids=batch.to(model.device), use_cache=False, logits_to_keep=length).logits
        right += int((logits[:, :-1].argmax(dim=-1).cpu() == batch[:, 1 - length :]).sum())
    return right / (samples * (length - 1))


@torch.inference_mode()
def induction_scores(
    model: PreTrainedModel,
    *,
    bos: int,
    special: Collection[int],
    length: int,
    repeats: int,
    seed: int,
    on_layer: Callable[[int], None] = lambda done: None,
) -> HeadScores:
    """Score every query head on one sequence: bos, then `length` random tokens `repeats` times.

    A token's earlier occurrences are those in all earlier repeats; attention to them is summed, then averaged over the
    tokens of the repeats after the first. Attention to bos counts in the softmax, but bos is no token here. Neither
    T x T weights are held, T = 1 + length * repeats (`attention.head_probe`), nor keys of other layers, nor logits.

    Heads that attend to a sliding window score 0: KV policies leave them alone, and earlier occurrences are to be far.

    Args:
        model: any with rotary positions that KV policies fit.
        bos: the token that begins the sequence.
        special: tokens never drawn.
        length: tokens a repeat, at least 2.
        repeats: at least 2.
        seed: of the draws.
        on_layer: called with the layers done.

    Raises:
        ValueError: too short a sequence, or a model that KV policies do not fit.
    """
    if length < 2 or repeats < 2:
        raise ValueError(f"induction scores need length >= 2 and repeats >= 2, found {length} and {repeats}")
    tokens = _random_tokens(model, special, (length,), seed)
    ids = torch.cat((torch.tensor([bos]), tokens.repeat(repeats)))[None].to(model.device)
    ends = torch.tensor([0, ids.shape[1]], dtype=torch.int32)
    offsets = range(min(DISPLACEMENTS, length))
    windows = sliding_windows(model)
    scores: list[Tensor] = []

    def score(
        module: Any, query: Tensor, key: Tensor, value: Tensor, start: None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        window = None
        if module.layer_idx in windows:
            window = torch.full(key.shape[1:2], windows[module.layer_idx], dtype=torch.int32, device=key.device)
            scores.append(torch.zeros(query.shape[1], len(offsets)))
        else:
            found = head_probe(query[0], key[0], length, scale=scaling, offsets=offsets)
            scores.append(found.to("cpu", torch.float32))
        on_layer(len(scores))
        # Not torch's attention: for some types its only way on CUDA holds T x T logits.
        q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))  # [T, H, D]
        return prefill(q, k, v, ends, ends, scale=scaling, window=window)[None], None

    with attention_function(model, score):
        model.get_decoder()(input_ids=ids, use_cache=False)
    return HeadScores(at=torch.stack(scores))


def _random_tokens(model: PreTrainedModel, special: Collection[int], shape: tuple[int, ...], seed: int) -> Tensor:
    """Ids drawn uniformly, with replacement, from the model's vocabulary without the special tokens."""
    excluded = set(special)
    size = model.config.get_text_config().vocab_size
    ordinary = torch.tensor([token for token in range(size) if token not in excluded])
    if not len(ordinary):
        raise ValueError(f"no token of the vocabulary of {size} is left without the special ones")
    return ordinary[torch.randint(len(ordinary), shape, generator=torch.Generator().manual_seed(seed))]
