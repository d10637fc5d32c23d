"""What shared prefills save: five KV policies in one sweep, and L-Eval's questions on one document.

    python benchmarks/prefill.py                      # documents from Python's standard library
    python benchmarks/prefill.py --leval FOLDER       # (b) on L-Eval's own documents too
    python benchmarks/prefill.py --json results.json

Each figure is a ratio of two ways in one process, run in turns; minimum, median and maximum over the rounds are shown.
Before a time is told, both ways must have given the same answers. The model is the repository's checkpoint with its
window widened, for times do not depend on what it was trained for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from machine import machine

from longloom.evals.ledger import Ledger
from longloom.evals.lm import PolicyLM
from longloom.evals.protocol import Request, encode
from longloom.evals.registry import open_suite
from longloom.evals.suite import Source
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.registry import get_policy

BASE = Path(__file__).resolve().parents[1] / "tasks" / "training" / "base"
SWEEP: list[tuple[str, dict[str, Any]]] = [
    ("full", {}),
    ("snapkv", {"budget": 512}),
    ("snapkv", {"budget": 2048}),
    ("recent", {"budget": 512}),
    ("knorm", {"budget": 2048}),
]


def documents(tokenizer: Any, tokens: int, count: int) -> list[str]:
    """Texts of so many tokens out of the standard library."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"), key=lambda path: (-path.stat().st_size, path))
    found = []
    for path in paths[:count]:
        ids = encode(tokenizer, path.read_text(encoding="utf-8", errors="replace"), special=False)[:tokens]
        assert len(ids) == tokens, path
        found.append(tokenizer.decode(ids))
    return found


def instances(requests: Sequence[Request], new_tokens: int) -> list[Instance]:
    return [
        Instance(
            "generate_until",
            {"requests": [request.to_dict()]},
            (request.prompt, {"max_gen_toks": new_tokens}),
            0,
            metadata=("bench", number, 1),
        )
        for number, request in enumerate(requests)
    ]


def compare(name: str, slow: Callable[[], Any], fast: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Times both ways in turns; they must agree."""
    times: dict[str, list[float]] = {"slow": [], "fast": []}
    for _ in range(rounds):
        answers = {}
        for way, run in (("slow", slow), ("fast", fast)):
            began = time.perf_counter()
            answers[way] = run()
            times[way].append(time.perf_counter() - began)
        if answers["slow"] != answers["fast"]:
            raise SystemExit(f"{name}: the two ways disagree, so there is no speed to tell")
    ratios = sorted(slow / fast for slow, fast in zip(times["slow"], times["fast"], strict=True))
    return {
        "name": name,
        "separate_s": round(statistics.median(times["slow"]), 2),
        "shared_s": round(statistics.median(times["fast"]), 2),
        "ratio": [round(value, 2) for value in (ratios[0], statistics.median(ratios), ratios[-1])],
    }


def sweep(model: Any, tokenizer: Any, asked: list[Instance], rounds: int, name: str) -> dict[str, Any]:
    """(a) five policies: five runs against one."""
    policies = [get_policy(policy, **options) for policy, options in SWEEP]
    settings: dict[str, Any] = {"batch_size": 1, "max_length": None}

    def separate() -> list[list[str]]:
        return [PolicyLM(model, tokenizer, policy, **settings).generate_until(asked) for policy in policies]

    def shared() -> list[list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            ledgers = [Ledger(Path(folder) / str(number), {}) for number in range(len(policies))]
            companions = dict(zip(policies[1:], ledgers[1:], strict=True))
            first = PolicyLM(model, tokenizer, policies[0], ledger=ledgers[0], companions=companions, **settings)
            replies = [first.generate_until(asked)]
            for policy, ledger in zip(policies[1:], ledgers[1:], strict=True):
                replies.append(PolicyLM(model, tokenizer, policy, ledger=ledger, **settings).generate_until(asked))
            return replies

    return compare(name, separate, shared, rounds)


def questions(
    model: Any, tokenizer: Any, asked: list[Instance], rounds: int, name: str, max_length: int | None = None
) -> dict[str, Any]:
    """(b) questions on the same documents: one prefill a question against one a document."""
    settings: dict[str, Any] = {"batch_size": 1, "max_length": max_length}

    def separate() -> list[str]:
        lm = PolicyLM(model, tokenizer, get_policy("full"), **settings)
        return [lm.generate_until([instance])[0] for instance in asked]

    def shared() -> list[str]:
        return PolicyLM(model, tokenizer, get_policy("full"), **settings).generate_until(asked)

    return compare(name, separate, shared, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192, help="of a document")
    parser.add_argument("--new-tokens", type=int, default=32, help="of an answer, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--leval", type=Path, help="folder of L-Eval's closed-ended tasks")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    model, tokenizer = load_model(BASE)
    model.config.max_position_embeddings = 65536  # the answer gets a share of the window, the prompt the rest
    new = options.new_tokens
    rows = []
    texts = documents(tokenizer, options.tokens, 4)
    ask = "\nWhat does the {nth} function of this module return? Answer with its last line."
    prompts = [Request(text + ask.format(nth="first"), cut="never") for text in texts[:2]]
    title = f"5 KV policies, 2 prompts of {options.tokens} tokens"
    rows.append(sweep(model, tokenizer, instances(prompts, new), options.rounds, title))
    many = [Request(text, after=ask.format(nth=f"{n}th"), cut="never") for text in texts[:2] for n in range(8)]
    title = f"8 questions on each of 2 documents of {options.tokens} tokens"
    rows.append(questions(model, tokenizer, instances(many, new), options.rounds, title))
    if options.leval:
        suite = open_suite("leval", Source(data=options.leval))
        for task in ("quality", "coursera", "gsm100"):
            records = suite.records(task)[:12]
            chosen = instances([Request.from_dict(record["requests"][0]) for record in records], new)
            title = f"L-Eval {task}, first {len(chosen)}, cut to {options.tokens} tokens"
            rows.append(questions(model, tokenizer, chosen, options.rounds, title, options.tokens))
    about = machine()
    print(f"new tokens at most {new}, rounds {options.rounds}, {about}")
    for row in rows:
        low, median, high = row["ratio"]
        print(f"{row['name']:<56} {row['separate_s']:>8.2f} s {row['shared_s']:>8.2f} s   {median:.2f}x ({low}-{high})")
    if options.json:
        found = {"new_tokens": new, "machine": about, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
