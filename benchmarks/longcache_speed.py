"""LongCache on a CPU: a decode step against full attention at 64K and 256K tokens, and how a prompt's time grows.

    python benchmarks/longcache_speed.py
    python benchmarks/longcache_speed.py --rounds 9 --json results.json

Through the policies themselves, one layer, float32, random tokens. Decode: Llama-3.1-8B's shape and the paper's scope
of 8,192; append, selection, rotation and attention of a token, all ways in turns, with the least, median and largest of
the rounds' ratios. With `reuse` a round is so many tokens, one selection among them. Prompts: few heads and a small
scope, so that what grows with the length shows early; the time until each length is taken on the way through one
prompt. Before a time is told, what is timed has met the definition in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import machine
from random_llama import LLAMA_3_1_8B, Shape
from torch import Tensor

from longloom.kernels.kvcache.base import KVPolicy, Rope
from longloom.kernels.kvcache.full import FullPolicy, FullState
from longloom.kernels.kvcache.key_blocks import KeyBlocks
from longloom.kernels.kvcache.key_codes import KeyCodes
from longloom.kernels.kvcache.longcache import SCORING, LongCachePolicy, LongCacheState
from longloom.kernels.kvcache.tokens import DeviceTokens

Row = dict[str, Any]

#: The paper's scope for a window of 8,192.
PAPER = LongCachePolicy(sink=32, local=4096, spans=127, span=32, k=4, chunk=512)
OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "int8 copy": {"scoring": "int8"},
    "block summaries": {"summary": 32},
    "reuse of 8": {"reuse": 8},
    "block summaries, reuse of 8": {"summary": 32, "reuse": 8},
}

#: Prompts: 4 query heads on 2 KV heads, a scope of 1,024.
FEW = Shape(1, 128, 128, 4, 2, 32, 128)
SMALL = LongCachePolicy(sink=32, local=512, spans=15, span=32, k=4, chunk=256)

#: By how much a planted key is longer than the query that it is a copy of.
PLANTED = 8.0


@dataclass
class Tokens:
    """Random tokens of one layer, those of the steps to come behind the first `context`.

    Attributes:
        query: [1, Hq, n, D], of the last n tokens.
        key, value: [1, Hkv, N, D], un-rotated.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    context: int
    rope: Rope

    @classmethod
    def random(cls, shape: Shape, context: int, steps: int, *, asked: int) -> Tokens:
        """With `asked` queries, of the last tokens."""
        key, value = (torch.randn(1, shape.kv_heads, context + steps, shape.head_dim) for _ in range(2))
        query = torch.randn(1, shape.heads, asked, shape.head_dim)
        return cls(
            query, key, value, context, Rope(500_000.0 ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim))
        )

    def attend(self, policy: KVPolicy[Any], state: Any, until: int) -> Tensor:
        """The output [1, Hq, S, D] of the tokens that the state has not seen, those before `until`."""
        now = slice(state.seen, until)
        behind = self.key.shape[2] - self.query.shape[2]
        query = self.query[:, :, now.start - behind : until - behind]
        scale = self.key.shape[3] ** -0.5
        return policy.attend(
            state, query, self.key[:, :, now], self.value[:, :, now], self.rope, start=None, scaling=scale
        )


# What is expected


def chosen_by_hand(policy: LongCachePolicy, tokens: Tokens, begin: int, seen: int) -> list[int]:
    """The scope's slots at `seen` tokens, for which the queries from `begin` on vote: the definition in float64."""
    assert policy.local is not None
    assert policy.spans is not None
    behind = tokens.key.shape[2] - tokens.query.shape[2]
    query = tokens.query[0, :, begin - behind : seen - behind].unflatten(0, (tokens.key.shape[1], -1)).double()
    end = seen - policy.local
    votes: Counter[int] = Counter()
    for asked, key in zip(query, tokens.key[0], strict=True):
        scores = asked.flatten(0, 1) @ key[policy.sink : end].double().T
        votes.update((scores.topk(policy.k).indices + policy.sink).flatten().tolist())
    kept = sorted(votes, key=lambda place: (votes[place], place), reverse=True)[: policy.spans]
    half = policy.span // 2
    chosen = {near for i in kept for near in range(max(policy.sink, i - half), min(end, i + half))}
    return [*range(policy.sink), *sorted(chosen), *range(end, seen)]


def attended_by_hand(tokens: Tokens, slots: Sequence[int], begin: int) -> Tensor:
    """The output [1, Hq, S, D] of the tokens from `begin` on, the last of `slots`, which are all that is seen."""
    behind = tokens.key.shape[2] - tokens.query.shape[2]
    size, steps = len(slots), slots[-1] + 1 - begin
    place = torch.arange(size)
    query = tokens.query[:, :, begin - behind : slots[-1] + 1 - behind].double()
    query = tokens.rope.rotate(query, place[size - steps :])[0].unflatten(0, (tokens.key.shape[1], -1))
    later = place > place[size - steps :, None]
    outputs = []
    for asked, key, value in zip(query, tokens.key[0], tokens.value[0], strict=True):
        keys = tokens.rope.rotate(key[None, None, list(slots)].double(), place)[0, 0]
        logits = (asked @ keys.T * query.shape[-1] ** -0.5).masked_fill(later, -torch.inf)
        outputs.append(logits.softmax(-1) @ value[list(slots)].double())
    return torch.cat(outputs)[None]


def agree(what: str, found: Tensor, expected: Tensor) -> None:
    """Stop where two ways disagree: then there is no speed to tell."""
    error = float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))
    if not error <= 1e-4:
        raise SystemExit(f"{what}: the two ways disagree by {error:.1e}, so there is no speed to tell")


@contextmanager
def planted(policy: LongCachePolicy, tokens: Tokens) -> Iterator[None]:
    """For the next token's query heads, k keys each that any search must find, at random places of the middle."""
    assert policy.local is not None
    query = tokens.query[0, :, 0]  # [Hq, D]
    places = policy.sink + torch.randperm(tokens.context - policy.local - policy.sink)[: len(query) * policy.k]
    heads = torch.arange(tokens.key.shape[1]).repeat_interleave(len(places) // tokens.key.shape[1])
    before = tokens.key[0, heads, places]
    tokens.key[0, heads, places] = PLANTED * query.repeat_interleave(policy.k, dim=0)
    try:
        yield
    finally:
        tokens.key[0, heads, places] = before


# A decode step


def filled(policy: LongCachePolicy, tokens: Tokens) -> LongCacheState:
    """A state that has seen the context; its tokens are those given, not a copy."""
    held = DeviceTokens()
    held.keys, held.values, held.seen = tokens.key, tokens.value, tokens.context
    state = LongCacheState(0, tokens.context, tokens=held)
    key = tokens.key[:, :, : tokens.context]
    if policy.scoring != "exact":
        state.codes = KeyCodes(SCORING[policy.scoring])
        for part in key.split(8192, dim=2):
            state.codes.append(part)
    if policy.summary:
        state.blocks = KeyBlocks(policy.summary)
        state.blocks.append(key)
    return state


def filled_full(tokens: Tokens) -> FullState:
    """The same for full attention, whose keys are rotated; its values are those given."""
    keys = torch.empty_like(tokens.key)
    for places in torch.arange(tokens.context).split(8192):
        keys[:, :, places] = tokens.rope.rotate(tokens.key[:, :, places], places)
    return FullState(0, tokens.context, keys=keys, values=tokens.value)


def check_steps(policies: dict[str, LongCachePolicy], tokens: Tokens) -> None:
    """The next token's output, and where the selection stays that of the one behind it, against the definition."""
    begin, seen = tokens.context, tokens.context + 1
    exact = policies["exact"]
    with planted(exact, tokens):
        for name, policy in policies.items():
            state = filled(policy, tokens)
            slots = chosen_by_hand(policy, tokens, begin, seen)
            agree(name, tokens.attend(policy, state, seen), attended_by_hand(tokens, slots, begin))
            if policy.reuse > 1:
                slots.append(seen)
                agree(name, tokens.attend(policy, state, seen + 1), attended_by_hand(tokens, slots, seen))
    slots = chosen_by_hand(exact, tokens, begin, seen)
    agree("exact", tokens.attend(exact, filled(exact, tokens), seen), attended_by_hand(tokens, slots, begin))


def decode_rows(shape: Shape, context: int, rounds: int, policies: dict[str, LongCachePolicy]) -> list[Row]:
    """Full attention and every policy in turns: milliseconds a token, and of them those of the selection."""
    longest = max(policy.reuse for policy in policies.values())
    steps = (rounds + 1) * longest + 1
    tokens = Tokens.random(shape, context, steps, asked=steps)
    check_steps(policies, tokens)
    whole, full = filled_full(tokens), FullPolicy()
    states = {name: filled(policy, tokens) for name, policy in policies.items()}

    def step(policy: KVPolicy[Any], state: Any, count: int) -> float:
        """Seconds a token of `count`."""
        began = time.perf_counter()
        for _ in range(count):
            tokens.attend(policy, state, state.seen + 1)
        return (time.perf_counter() - began) / count

    ratios: dict[str, list[float]] = {name: [] for name in policies}
    spent: dict[str, list[float]] = {name: [] for name in ("full", *policies)}
    for turn in range(rounds + 1):
        found = {"full": step(full, whole, 1)}
        found |= {name: step(policy, states[name], policy.reuse) for name, policy in policies.items()}
        if turn:  # before the first, memory was still being taken
            for name, seconds in found.items():
                spent[name].append(1e3 * seconds)
            for name in policies:
                ratios[name].append(found["full"] / found[name])
    rows = []
    for name, policy in policies.items():
        low, median, high = (round(f(ratios[name]), 2) for f in (min, statistics.median, max))
        row: Row = {
            "name": f"decode step, {context} tokens: {name} | full attention",
            "way": name,
            "full_ms": round(statistics.median(spent["full"]), 2),
            "ours_ms": round(statistics.median(spent[name]), 2),
            "ratio": [low, median, high],
            "selection_ms": round(1e3 * selection_time(policy, states[name], tokens, rounds) / policy.reuse, 2),
        }
        print(
            f"{row['name']:<72} {row['full_ms']:>8.2f} ms {row['ours_ms']:>8.2f} ms, selection "
            f"{row['selection_ms']:>7.2f} ms  {median:.2f}x ({low}-{high})",
            flush=True,
        )
        rows.append(row)
    return rows


def selection_time(policy: LongCachePolicy, state: LongCacheState, tokens: Tokens, rounds: int) -> float:
    """Seconds of one selection, the median."""
    assert policy.local is not None
    begin, end = (torch.tensor([place], dtype=torch.int32) for place in (policy.sink, state.seen - policy.local))
    spent = []
    for i in range(rounds):
        query = tokens.query[:, :, i : i + 1].contiguous()
        began = time.perf_counter()
        policy.choose(state, query, begin, end)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


# A prompt


def exponent(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """b of seconds = a * length ** b, by least squares on the logarithms."""
    x, y = ([math.log(value) for value in values] for values in (lengths, seconds))
    return statistics.linear_regression(x, y).slope


def prompt_times(policy: LongCachePolicy, tokens: Tokens, lengths: Sequence[int]) -> list[float]:
    """Seconds until each of the lengths on the way through one prompt, which is read as `attend` cuts it."""
    state, spent = LongCacheState(0), [0.0]
    for length in lengths:
        began = time.perf_counter()
        tokens.attend(policy, state, length)
        spent.append(spent[-1] + time.perf_counter() - began)
    return spent[1:]


def check_prompts(policies: dict[str, LongCachePolicy], tokens: Tokens, length: int) -> None:
    """A prompt's last chunk against the definition; with summaries where all blocks are looked into.

    The length is a whole number of chunks.
    """
    for name, policy in policies.items():
        assert policy.chunk is not None
        begin = length - policy.chunk
        slots = chosen_by_hand(policy, tokens, begin, length)
        whole = replace(policy, blocks=max(policy.blocks, length))
        found = tokens.attend(whole, LongCacheState(0), length)[:, :, begin:]
        agree(f"prompt, {name}", found, attended_by_hand(tokens, slots, begin))


def prompt_rows(
    shape: Shape, lengths: Sequence[int], rounds: int, policies: dict[str, LongCachePolicy], checked: int
) -> list[Row]:
    """Seconds of prompts of these lengths under each policy, in turns, and the exponents of their growth.

    The last policy chooses nothing: what the others take beyond it is their selection.
    """
    tokens = Tokens.random(shape, 0, max(lengths), asked=max(lengths))
    check_prompts(policies, tokens, checked)
    spent: dict[str, list[list[float]]] = {name: [] for name in policies}
    for _ in range(rounds):
        for name, policy in policies.items():
            spent[name].append(prompt_times(policy, tokens, lengths))
    medians = {name: [statistics.median(times) for times in zip(*found, strict=True)] for name, found in spent.items()}
    *_, attention = medians.values()
    rows = []
    for name, seconds in medians.items():
        row: Row = {
            "name": f"prompt of {lengths[0]} to {lengths[-1]} tokens: {name}",
            "lengths": list(lengths),
            "seconds": [round(value, 3) for value in seconds],
            "exponent": round(exponent(lengths, seconds), 3),
            "exponent_at_the_end": round(exponent(lengths[-2:], seconds[-2:]), 3),
        }
        told = f"n^{row['exponent']:.2f}, at the end n^{row['exponent_at_the_end']:.2f}"
        selection = [max(1e-6, all_of_it - some) for all_of_it, some in zip(seconds, attention, strict=True)]
        if policies[name].spans:
            row["selection_s"] = [round(value, 3) for value in selection]
            row["selection_exponent"] = round(exponent(lengths, selection), 3)
            told += f"; selection {selection[-1]:.2f} s, n^{row['selection_exponent']:.2f}"
        print(f"{row['name']:<72} {', '.join(f'{value:.2f}' for value in seconds)} s: {told}", flush=True)
        rows.append(row)
    return rows


def claims(decoded: dict[int, list[Row]], prompts: list[Row]) -> list[Row]:
    """What was asked, what was found, and whether it holds."""
    found: list[tuple[str, float, bool]] = []
    for context, rows in decoded.items():
        speed = {row["way"]: row["ratio"][1] for row in rows}
        exact = speed["exact"]
        best = max(median for way, median in speed.items() if "summaries" in way or "reuse" in way)
        found.append((f"exact step at {context} tokens, times as fast as full attention, >= 1.5", exact, exact >= 1.5))
        found.append((f"the best step with summaries, reuse or both at {context} tokens, >= 5", best, best >= 5))
    grown = [(row["name"], row["exponent"]) for row in prompts]
    found += [(f"{name}: seconds ~ n^b, b <= 1.1", slope, slope <= 1.1) for name, slope in grown]
    return [{"claim": text, "found": figure, "holds": holds} for text, figure, holds in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of the decode steps; of the prompts 3")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[65_536, 262_144], help="tokens before a decode step"
    )
    parser.add_argument("--longest", type=int, default=65_536, help="tokens of the longest prompt")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.manual_seed(0)
    began = time.perf_counter()
    policies = {name: replace(PAPER, **some) for name, some in OPTIONS.items()}
    assert SMALL.local is not None
    prompting = {
        "exact": SMALL,
        "block summaries": replace(SMALL, summary=32),
        "the same scope, nothing chosen": replace(SMALL, local=SMALL.local + SMALL.most_chosen, spans=0),
    }
    lengths = [options.longest >> i for i in reversed(range(5))]
    with torch.inference_mode():
        decoded = {
            context: decode_rows(LLAMA_3_1_8B, context, options.rounds, policies) for context in options.contexts
        }
        prompts = prompt_rows(FEW, lengths, 3, prompting, 2048)
    found = claims(decoded, prompts)
    for claim in found:
        print(f"{'holds' if claim['holds'] else 'FAILS':6} {claim['claim']}: {claim['found']}")
    about, elapsed = machine(), round(time.perf_counter() - began, 1)
    print(f"{elapsed} s, rounds {options.rounds}, {about}")
    if options.json:
        rows = [row for some in decoded.values() for row in some] + prompts
        results = {"rounds": options.rounds, "elapsed_s": elapsed, "machine": about, "rows": rows, "claims": found}
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
