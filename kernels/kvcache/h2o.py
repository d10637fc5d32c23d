"""H2O (arXiv 2306.14048): tokens that have received the most attention, and the latest ones, half of the budget each.

Notable choices, the authors' own for Llama (github.com/FMInference/H2O, h2o_hf/utils_real_drop/modify_llama.py): the
prompt meets full attention and is evicted once it is whole; the sums go over all of its queries and go on with every
new token, which sees what is kept and itself before one token is evicted (Algorithm 1, greedy); what is evicted loses
its sum; kept keys stay at their original positions. Query heads of a KV head share what it keeps, by the sum of their
attention: the authors' code chooses for each query head, and knows no grouped ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from longloom.kernels.kvcache.base import LayerState, Rope, SharedPrefillPolicy, positions_of, reserve
from longloom.kernels.kvcache.compressed import check_ended, tokens_of
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState


@dataclass(eq=False)
class H2OState(LayerState):
    """First a prompt, then C places in no order, of which row b may use the first budgets[b].

    Attributes:
        prompt: while the prompt comes in.
        keys, values: [B, Hkv, C, D], keys rotated to their positions.
        sums: [B, Hkv, C] float32, the attention that each token has received so far.
        slots: [B, Hkv, C] int32, each token's slot in the batch; -1: nobody is there.
        budgets: [B] int64.
        most: the largest of them; C never exceeds it.
        filled: tokens of the row with the most.
    """

    prompt: PromptState | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    sums: Tensor | None = None
    slots: Tensor | None = None
    budgets: Tensor | None = None
    most: int = 0
    filled: int = 0

    def bytes(self) -> int:
        return super().bytes() if self.prompt is None else self.prompt.bytes()


@dataclass(frozen=True)
class H2OPolicy(SharedPrefillPolicy[H2OState]):
    """Heavy hitters and recent tokens; the cache never holds more than its budget.

    Attributes:
        budget: tokens kept, budget // 2 of them heavy hitters: a whole number, or a share between 0 and 1 of each row's
            prompt (at least 2 tokens), which then stays what it is.
    """

    name: ClassVar[str] = "h2o"
    state_type: ClassVar[type[LayerState]] = H2OState

    budget: int | float

    def __post_init__(self) -> None:
        whole = type(self.budget) is int and self.budget >= 2
        share = type(self.budget) is float and 0 < self.budget < 1
        if not whole and not share:
            raise ValueError(
                f"KV policy 'h2o': budget must be a whole number >= 2 or a share between 0 and 1, found {self.budget!r}"
            )

    @property
    def summed(self) -> bool:
        return True

    def keep(self, prompt: PromptState, rope: Rope) -> H2OState:
        assert prompt.keys is not None
        assert prompt.values is not None
        assert prompt.sums is not None
        device = prompt.keys.device
        tokens = tokens_of(prompt)
        limits = [self.budget if isinstance(self.budget, int) else max(2, int(self.budget * n)) for n in tokens]
        counts = [min(limit, n) for limit, n in zip(limits, tokens, strict=True)]
        filled = max(counts, default=0)
        budgets = torch.tensor(limits, dtype=torch.int64, device=device)
        slots = torch.arange(prompt.seen, device=device)
        scores = prompt.sums.masked_fill(slots >= prompt.seen - _recent(budgets), torch.inf)
        if prompt.start is not None:
            scores = scores.masked_fill(slots < prompt.start[:, None, None], -torch.inf)
        # Stable: of equal sums the earlier token is kept, on every device.
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :filled]
        spare = torch.arange(filled, device=device) >= torch.tensor(counts, device=device)[:, None, None]
        index = best[..., None].expand(-1, -1, -1, prompt.keys.shape[3])
        return H2OState(
            prompt.layer,
            prompt.seen,
            layers=prompt.layers,
            keys=prompt.keys.gather(2, index).masked_fill_(spare[..., None], 0),
            values=prompt.values.gather(2, index).masked_fill_(spare[..., None], 0),
            sums=prompt.sums.gather(2, best),
            slots=best.masked_fill(spare, -1).int(),
            budgets=budgets,
            most=max(limits, default=0),
            filled=filled,
        )

    def attend(
        self,
        state: H2OState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        length = key.shape[2]
        if state.keys is None and (state.prompt is None or length > 1):
            # As in `CompressedPolicy`: the prompt ends before the first single token.
            state.prompt = state.prompt or PromptState(state.layer, layers=state.layers)
            whole = PromptPolicy(summed=True)
            output = whole.attend(state.prompt, query, key, value, rope, start=start, scaling=scaling)
            state.seen = state.prompt.seen
            return output
        if state.prompt is not None:
            check_ended(self.name, state.seen, start)
            vars(state).update(vars(self.keep(state.prompt, rope)))
        positions = positions_of(state.seen, length, start, key.device)
        query, key = rope.rotate(query, positions), rope.rotate(key, positions)
        steps = zip(query.split(1, dim=2), key.split(1, dim=2), value.split(1, dim=2), strict=True)
        outputs = [_step(state, q, k, v, scaling) for q, k, v in steps]
        return outputs[0] if length == 1 else torch.cat(outputs, dim=2)


def _recent(budgets: Tensor) -> Tensor:
    """Tokens that each row keeps for being the latest: [B, 1, 1]."""
    return (budgets - budgets // 2)[:, None, None]


def _step(state: H2OState, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """One token a row: query [B, Hq, 1, D] and key [B, Hkv, 1, D] rotated."""
    if state.slots is not None and state.filled == state.slots.shape[2] < state.most:
        _grow(state, key)
    keys, values, sums, slots = state.keys, state.values, state.sums, state.slots
    assert keys is not None
    assert values is not None
    assert sums is not None
    assert slots is not None
    assert state.budgets is not None
    # Query heads of one KV head as rows of one product: [B, Hkv, G, D].
    exact = sums.dtype  # of all products: half types would round every score before the softmax
    packed = query.reshape(*key.shape[:2], -1, key.shape[3]).to(exact)
    free = slots < 0
    logits = torch.cat((packed @ keys.to(exact).mT, packed @ key.to(exact).mT), dim=-1) * scaling  # [B, Hkv, G, C + 1]
    logits[..., :-1].masked_fill_(free[:, :, None], -torch.inf)
    weights = logits.softmax(dim=-1)
    output: Tensor = weights[..., :-1] @ values.to(exact) + weights[..., -1:] @ value.to(exact)
    paid = weights.sum(dim=2)  # [B, Hkv, C + 1]
    sums += paid[..., :-1]

    # The new token takes a place that is free, or that of the token with the least sum outside the latest ones.
    closed = torch.arange(slots.shape[2], device=slots.device) >= state.budgets[:, None, None]
    worth = sums.masked_fill(slots > state.seen - _recent(state.budgets), torch.inf)
    worth = worth.masked_fill(free, -torch.inf).masked_fill(closed, torch.inf)
    least = worth.amin(dim=-1, keepdim=True)
    place = slots.masked_fill(worth > least, -2).argmax(dim=-1, keepdim=True)  # of equal sums the later token goes
    index = place[..., None].expand_as(key)
    keys.scatter_(2, index, key)
    values.scatter_(2, index, value)
    sums.scatter_(2, place, paid[..., -1:])
    slots.scatter_(2, place, torch.full_like(place, state.seen, dtype=slots.dtype))
    state.seen += 1
    state.filled = min(state.filled + 1, state.most)
    return output.reshape(query.shape).to(query.dtype)


def _grow(state: H2OState, like: Tensor) -> None:
    """Make room for one token more at least, in all rows."""
    assert state.sums is not None
    assert state.slots is not None
    state.keys = reserve(state.keys, state.filled + 1, like, limit=state.most)
    state.values = reserve(state.values, state.filled + 1, like, limit=state.most)
    more = (0, state.keys.shape[2] - state.filled)
    state.sums, state.slots = pad(state.sums, more), pad(state.slots, more, value=-1)
