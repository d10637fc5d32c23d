"""What the evicting KV policies keep by their papers' definitions: lists and loops in float64, for one row."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from .tokens import HEADS, SCALING, SIZE, Tokens, turn


def turned(x: Tensor, begin: int = 0) -> Tensor:
    """[n, SIZE] rotated to positions begin, begin + 1, ..., in float64."""
    return turn(x, torch.arange(begin, begin + len(x)))


def votes(tokens: Tokens, prompt: int, head: int, window: int) -> list[float]:
    """SnapKV's scores of what precedes the window: the group's summed attention, then the maximum over 7."""
    first, groups = max(0, prompt - window), tokens.query.shape[1] // HEADS
    keys = turned(tokens.key[0, head, :prompt])
    total = torch.zeros(prompt, dtype=torch.float64)
    for voter in range(first, prompt):
        for group in range(groups):
            q = turned(tokens.query[0, head * groups + group, voter : voter + 1], voter)
            total[: voter + 1] += (keys @ q[0] * SCALING)[: voter + 1].softmax(0)
    return [float(total[max(0, slot - 3) : min(first, slot + 4)].max()) for slot in range(first)]


def preferred(policy: Any, tokens: Tokens, prompt: int, head: int) -> list[int]:
    """The prompt's tokens of one head, from the one that is kept first on."""
    if policy.name == "knorm":
        keys = tokens.key[0, head, :prompt].double()
        return sorted(range(prompt), key=lambda slot: float(keys[slot].norm()))
    if policy.name == "recent":
        sinks = [*range(min(policy.sink, prompt - 1))]
        return [prompt - 1, *sinks, *reversed(range(len(sinks), prompt - 1))]
    scores = votes(tokens, prompt, head, policy.window)
    window = [*reversed(range(len(scores), prompt))]  # the newest first
    return [*window, *sorted(range(len(scores)), key=lambda slot: -scores[slot])]


def mean_kept(policy: Any, prompt: int) -> int:
    budget = policy.budget if isinstance(policy.budget, int) else max(1, int(policy.budget * prompt))
    return min(budget, prompt)


def pyramid(policy: Any, prompt: int, layer: int, layers: int) -> Fraction:
    """PyramidKV's budget of a layer before it is rounded, the window included."""
    kept = mean_kept(policy, prompt)
    if kept <= policy.window or layers == 1:
        return Fraction(kept)
    mean, beside = kept - policy.window, prompt - policy.window
    last = mean / Fraction(policy.beta)
    first = 2 * mean - last
    if first > beside:
        first, last = Fraction(beside), Fraction(2 * mean - beside)
    return policy.window + first - (first - last) * layer / (layers - 1)


def shared_out(policy: Any, tokens: Tokens, prompt: int) -> list[int]:
    """Ada-KV's budgets of a layer's heads."""
    kept = mean_kept(policy, prompt)
    beside = max(0, kept - policy.window)
    pool = [
        (-score, head, slot)
        for head in range(HEADS)
        for slot, score in enumerate(votes(tokens, prompt, head, policy.window))
    ]
    winners = [head for _, head, _ in sorted(pool)[: HEADS * beside]]
    safeguard = Fraction(str(policy.safeguard))
    exact = [(1 - safeguard) * winners.count(head) + safeguard * beside for head in range(HEADS)]
    budgets = [budget.numerator // budget.denominator for budget in exact]
    for head in sorted(range(HEADS), key=lambda head: budgets[head] - exact[head]):
        if sum(budgets) < HEADS * beside:
            budgets[head] += 1
    return [kept - beside + budget for budget in budgets]


def chosen(policy: Any, tokens: Tokens, prompt: int, *, layer: int = 0, layers: int = 1) -> list[list[int]]:
    """What each KV head keeps."""
    counts = [mean_kept(policy, prompt)] * HEADS
    if policy.name == "pyramidkv":
        counts = [counts[0] + round(pyramid(policy, prompt, layer, layers) - counts[0])] * HEADS
    if policy.name == "adakv":
        counts = shared_out(policy, tokens, prompt)
    return [sorted(preferred(policy, tokens, prompt, head)[: counts[head]]) for head in range(HEADS)]


def by_definition(policy: Any, tokens: Tokens, prompt: int, *, layer: int = 0, layers: int = 1) -> Tensor:
    """Answers [1, Hq, n, SIZE] to the tokens behind the prompt, from what is kept of it."""
    query, key, value = tokens.query, tokens.key, tokens.value
    length, groups = query.shape[2], query.shape[1] // HEADS
    output = torch.empty(1, groups * HEADS, length - prompt, SIZE, dtype=torch.float64)
    for head, kept in enumerate(chosen(policy, tokens, prompt, layer=layer, layers=layers)):
        rotated = turned(key[0, head])
        for now in range(prompt, length):
            slots = [*kept, *range(prompt, now + 1)]
            for member in range(groups):
                q = turned(query[0, head * groups + member, now : now + 1], now)[0]
                weights = (rotated[slots] @ q * SCALING).softmax(0)
                output[0, head * groups + member, now - prompt] = weights @ value[0, head, slots].double()
    return output
