"""What a ragged cache should answer: one loop a head and a query, in float64, over what that head still has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longloom.kernels.attention.pages import RaggedKV

from .tokens import HEADS, SCALING, Tokens, turn

#: KV head, tokens seen -> the tokens that it keeps, and those that one slot stands for.
Keeps = Callable[[int, int], tuple[Sequence[int], Sequence[int]]]


def razor(protected: set[int], prompt: int, *, sink: int, window: int, compression: float, fold: bool = False) -> Keeps:
    """RazorAttention's, of a prompt of so many tokens; a window is of the prompt's length whether it folds or not."""
    width = max(window, int(prompt / compression))

    def keeps(head: int, seen: int) -> tuple[list[int], list[int]]:
        end = seen if fold else min(seen, prompt)  # where the window ends
        gone = [] if head in protected else [*range(sink, end - width)]
        return [token for token in range(seen) if token not in gone], gone

    return keeps


def answers(
    tokens: Tokens, prompt: int, keeps: Keeps, *, compensate: bool = True, count: str = "after scaling"
) -> Tensor:
    """Attention of the tokens behind a prompt, a row without padding: [B, Hq, N - prompt, SIZE].

    Args:
        tokens: N of them.
        prompt: how many came in first.
        keeps: what each head has of those it has seen.
        compensate: whether the mean of the others answers for them.
        count: where their number's logarithm goes: "after scaling", as it should be; "before scaling" or "nowhere".
    """
    places = torch.arange(tokens.key.shape[2])
    groups = tokens.query.shape[1] // HEADS
    output = torch.empty(*tokens.query.shape[:2], len(places) - prompt, tokens.query.shape[3], dtype=torch.float64)
    for row in range(len(tokens.key)):
        for head in range(tokens.query.shape[1]):
            query = turn(tokens.query[row, head], places)
            key, value = turn(tokens.key[row, head // groups], places), tokens.value[row, head // groups].double()
            for now in range(prompt, len(places)):
                kept, gone = keeps(head // groups, now + 1)
                logits = [SCALING * (query[now] @ key[token]) for token in kept]
                values = [value[token] for token in kept]
                if gone and compensate:
                    product = query[now] @ key[gone].mean(dim=0)
                    number = torch.tensor(len(gone)).double().log()
                    logits.append(
                        {
                            "after scaling": SCALING * product + number,
                            "before scaling": SCALING * (product + number),
                            "nowhere": SCALING * product,
                        }[count]
                    )
                    values.append(value[gone].mean(dim=0))
                output[row, head, now - prompt] = torch.stack(logits).softmax(dim=0) @ torch.stack(values)
    return output


def held(cache: RaggedKV, pool: Tensor, row: int, head: int) -> Tensor:
    """What one head holds of keys or values, slot after slot: [n, D]."""
    pages = cache.table[row, head].long().clamp(min=0)
    return pool[pages].flatten(0, 1)[: int(cache.kv_len[row, head])]
