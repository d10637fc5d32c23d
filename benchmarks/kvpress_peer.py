"""Which tokens kvpress keeps, and which ours do, of the same prompts on one random Llama.

kvpress 0.5.5 needs transformers < 5.3, so this runs in an environment of its own:

    python3 -m venv /tmp/kvpress
    /tmp/kvpress/bin/pip install kvpress==0.5.5 torch==2.13.0 'transformers<5.3'
    /tmp/kvpress/bin/pip install --no-deps -e .
    /tmp/kvpress/bin/python benchmarks/kvpress_peer.py --json benchmarks/results/kvpress.json

kvpress compresses a layer once it has read the whole prompt, as ours do, so both choose from the same keys. Agreement
is the share of our tokens that it keeps too. Pairs that define the same choice must agree in every token, or the run
fails; the others show how far the definitions are apart: kvpress pools votes by the mean over 5 (ours by the maximum
over 7), counts PyramidKV's window within its layers' budgets, and has another split in Ada-KV.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from kvpress import AdaKVPress, KnormPress, PyramidKVPress, SnapKVPress
from machine import machine
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from longloom.kernels.kvcache import snapkv
from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState
from longloom.kernels.kvcache.registry import get_policy

LAYERS, HEADS, GROUPS, SIZE = 4, 4, 2, 32  # HEADS of KV
TOKENS, BUDGET, WINDOW = 1024, 256, 16
RATIO = 1 - BUDGET / TOKENS

Kept = list[list[set[int]]]  # tokens of each layer and KV head


def snap(pool: int) -> SnapKVPress:
    return SnapKVPress(RATIO, window_size=WINDOW, kernel_size=pool)


def pyramid(pool: int, beta: int) -> PyramidKVPress:
    return PyramidKVPress(RATIO, window_size=WINDOW, kernel_size=pool, beta=beta)


#: Name, our policy's options, our pooling, kvpress's press, and whether they define the same choice.
PAIRS: list[tuple[str, dict[str, Any], int, Any, bool]] = [
    ("knorm", {}, 7, KnormPress(RATIO), True),
    ("snapkv", {"window": WINDOW}, 1, snap(1), True),
    ("snapkv", {"window": WINDOW}, 7, snap(5), False),
    # K / 4 of all tokens is as much as the window and (K - W) / 5 of those beside it.
    ("pyramidkv", {"window": WINDOW, "beta": 5}, 1, pyramid(1, 4), True),
    ("pyramidkv", {"window": WINDOW, "beta": 4}, 1, pyramid(1, 4), False),
    ("pyramidkv", {"window": WINDOW, "beta": 20}, 7, pyramid(5, 20), False),
    ("adakv", {"window": WINDOW, "safeguard": 0}, 1, AdaKVPress(snap(1), alpha_safeguard=0), True),
    ("adakv", {"window": WINDOW, "safeguard": 1}, 1, AdaKVPress(snap(1), alpha_safeguard=1), True),
    ("adakv", {"window": WINDOW, "safeguard": 0.2}, 1, AdaKVPress(snap(1), alpha_safeguard=0.2), False),
    ("adakv", {"window": WINDOW, "safeguard": 0.2}, 7, AdaKVPress(snap(5), alpha_safeguard=0.2), False),
]


def theirs(model: LlamaForCausalLM, ids: torch.Tensor, press: Any) -> Kept:
    """What is left in kvpress's cache, found by its keys; Ada-KV's says what it masks."""
    whole, cache = DynamicCache(), DynamicCache()
    model(ids, past_key_values=whole)
    with press(model):
        model(ids, past_key_values=cache)
    kept = []
    for layer, (before, after) in enumerate(zip(whole.layers, cache.layers, strict=True)):
        heads = [set(range(TOKENS)) for _ in range(HEADS)]
        if isinstance(press, AdaKVPress):
            _, masked_heads, masked = model.model.layers[layer].self_attn.masked_key_indices
            for head, token in zip(masked_heads.tolist(), masked.tolist(), strict=True):
                heads[head].remove(token)
        else:
            equal = (before.keys[0, :, None] == after.keys[0, :, :, None]).all(-1)  # [Hkv, kept, N]
            assert (equal.sum(-1) == 1).all()
            heads = [set(head.int().argmax(-1).tolist()) for head in equal]
        kept.append(heads)
    return kept


def ours(model: LlamaForCausalLM, ids: torch.Tensor, policy: Any) -> Kept:
    """What is left in our cache, found by values that are the tokens' numbers."""
    rope = Rope(model.model.rotary_emb.inv_freq.float(), model.model.rotary_emb.attention_scaling)
    numbers = torch.arange(float(TOKENS))[None, None, :, None].expand(1, HEADS, -1, SIZE).contiguous()
    kept = []
    for layer, (query, key) in enumerate(projections(model, ids)):
        prompt = PromptState(layer, layers=LAYERS)
        reader = PromptPolicy(observed=policy.observed)
        reader.attend(prompt, query, key, numbers, rope, start=None, scaling=SIZE**-0.5)
        cache = policy.keep(prompt, rope).cache
        rows = zip(cache.table[0], cache.kv_len[0].tolist(), strict=True)
        kept.append([set(cache.values[pages, :, 0].flatten()[:count].int().tolist()) for pages, count in rows])
    return kept


def projections(model: LlamaForCausalLM, ids: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Un-rotated queries [1, Hq, N, D] and keys [1, Hkv, N, D] of each layer."""
    found: dict[Any, torch.Tensor] = {}
    modules = [(layer.self_attn.q_proj, layer.self_attn.k_proj) for layer in model.model.layers]
    hooks = [
        module.register_forward_hook(lambda module, _, output: found.update({module: output}))
        for pair in modules
        for module in pair
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    for pair in modules:
        query, key = (found[module].unflatten(-1, (-1, SIZE)).transpose(1, 2) for module in pair)
        yield query, key


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--json", type=Path, help="writes the table there too")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=HEADS * GROUPS * SIZE,
            intermediate_size=256,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS * GROUPS,
            num_key_value_heads=HEADS,
            initializer_range=0.1,  # attention that is not even
            attn_implementation="sdpa",
        )
    ).eval()
    # No token twice: equal keys would be equally good, and which of them is kept a matter of rounding.
    prompts = [torch.randperm(4096)[None, :TOKENS] for _ in range(options.prompts)]
    rows = []
    print(f"{'policy':44}{'pool':>6}{'agreement':>10}{'a head has':>14}{'kvpress':>14}")
    for name, settings, pool, press, same in PAIRS:
        policy = get_policy(name, budget=BUDGET, **settings)
        with patch.object(snapkv, "POOL", pool):
            mine = [head for ids in prompts for layer in ours(model, ids, policy) for head in layer]
        other = [head for ids in prompts for layer in theirs(model, ids, press) for head in layer]
        common = sum(len(one & two) for one, two in zip(mine, other, strict=True))
        row: dict[str, Any] = {
            "policy": name,
            **settings,
            "pool": pool,
            "kvpress": repr(press),
            "same_definition": same,
        }
        for who, heads in (("tokens", mine), ("kvpress_tokens", other)):
            row[who] = sum(map(len, heads))
            row[f"{who}_of_a_head"] = [min(map(len, heads)), max(map(len, heads))]
        row["agreement"] = common / row["tokens"]
        rows.append(row)
        told = name + "".join(f" {option}={value}" for option, value in settings.items()) + (" (same)" if same else "")
        least, most = row["tokens_of_a_head"]
        their_least, their_most = row["kvpress_tokens_of_a_head"]
        print(f"{told:44}{pool:6}{row['agreement']:10.4f}{least:10}-{most}{their_least:10}-{their_most}", flush=True)
        if same and mine != other:
            raise SystemExit(f"{name}: not the tokens that kvpress keeps")
    if options.json:
        about = {**machine(), "kvpress": version("kvpress"), "transformers": version("transformers")}
        sizes = {"prompts": options.prompts, "prompt_tokens": TOKENS, "budget": BUDGET, "layers": LAYERS}
        options.json.write_text(json.dumps({**sizes, "machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
