"""LongCache's claims in miniature: models of a window of 512, asked at 2 to 256 times of it.

    python benchmarks/longcache.py          # three trainings of 30 minutes, then hours, on a core each
    python benchmarks/longcache.py --seeds 0 --most 8192 --json /tmp/some.json --picture /tmp/some.png

For each seed a small Llama is trained on the standard library in a window of 512, from random weights and then further
(`longloom pretrain stdlib --model.size short`, then the same with `--model.source`), and never sees a longer sequence.
Then, with held-out modules as text:

- needles, a pass key at five depths: within the window and beyond it, under several KV policies;
- perplexity of the same tokens, behind what the window holds and behind ever longer contexts;
- the same pass keys as records of LongBench's and L-Eval's formats, beside prompts cut in the middle to the window;
- RULER's niah_multikey_3, where the paper's method is known to fail, and its like in sentences that the models know,
  with settings that may help.

What was asked is kept, so that a run that was stopped goes on. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from longcache_results import (
    ASKING,
    DEPTHS,
    DIVIDED,
    FIVE_AT,
    HAYSTACKS,
    LONGCACHE,
    STREAMING,
    WINDOW,
    claims,
    draw,
    summary,
)
from machine import machine
from over_seeds import show

from longloom.flows.runtime import prepare, quiet, start_server

FIVE = 2
#: Prompts read together. Those of a length differ by a few tokens, and all are cut into chunks where the longest is.
BATCH = 5
QUESTION = "The pass key for {key} is"
#: Policy -> the longest prompts that it is asked about; all of them have scopes of the window's size.
POLICIES = {"full": 8192, STREAMING: 32_768, LONGCACHE: 8192, DIVIDED: 8192, ASKING: 131_072}
#: What options, the baseline and half the memory cost: asked at this length, once a depth.
OPTIONS_AT = 2048
OPTIONS = [
    "longcache:scoring=int8",
    "longcache:scoring=fp8",
    "longcache:block=128",
    "longcache:summary=32",
    "longcache:spans=6,reuse=8",
    "infllm:local=128,block=32",
]
#: Of the records in LongBench's and L-Eval's formats.
RECORDS_AT = 4096
RULER_AT = [512, 2048]
RULER = ["full", STREAMING, LONGCACHE, "longcache:k=16", DIVIDED, ASKING]
#: Predicted tokens at a place, places of each length, one behind the other, and texts.
PREDICTED = 256
PLACES = 8
TEXTS = {1024: 4, 2048: 4, 8192: 2, 32_768: 1}


def asked(
    model: Path,
    data: Path | None,
    out: Path,
    policy: str,
    *,
    suite: str,
    tasks: Sequence[str],
    options: dict[str, Any],
    limit: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The samples of an evaluation."""
    from longloom.flows.params_evaluate import parse_policy
    from longloom.tasks.longcontext.backends import PolicyBackend
    from longloom.tasks.longcontext.evaluate import build

    if not (out / "samples.parquet").exists():
        out.mkdir(parents=True, exist_ok=True)
        name, settings = parse_policy(policy)
        build(
            PolicyBackend(model, name, settings),
            data,
            out,
            suite=suite,
            tasks=tasks,
            suite_options=options,
            limit=limit,
            max_length=max_length,
            batch_size=BATCH,
            seed=seed,
        )
    rows: list[dict[str, Any]] = pq.read_table(out / "samples.parquet").to_pylist()
    return rows


def needles(model: Path, corpus: Path, root: Path, seed: int, length: int) -> dict[str, Any]:
    """Policy -> depth -> how many of how many were found."""
    policies = dict.fromkeys((each for each, longest in POLICIES.items() if length <= longest), HAYSTACKS[length])
    if length == OPTIONS_AT:
        policies |= dict.fromkeys(OPTIONS, 1)
    found: dict[str, Any] = {}
    for policy, haystacks in policies.items():
        ask = functools.partial(asked, model, out=root / "needle" / f"{policy}-{length}-{haystacks}", policy=policy)
        options = {"lengths": [length], "depths": DEPTHS, "samples": haystacks, "style": "code", "question": QUESTION}
        rows = ask(data=corpus, suite="needle", tasks=["single"], options=options, max_length=length, seed=seed)
        for row in rows:
            cell = found.setdefault(policy, {}).setdefault(f"{row['depth']:g}", [0.0, 0])
            cell[0] += row["score"]
            cell[1] += 1
    return found


def five_needles(model: Path, corpus: Path, root: Path, seed: int) -> dict[str, Any]:
    """Policy -> of how many it gave the number asked for, and of how many that of another needle, of all."""
    data, found = root / "five-needles", {}
    write_five_needles(model, corpus, data, seed)
    for policy in (STREAMING, ASKING):
        rows = asked(
            model,
            data,
            root / "five" / policy,
            policy,
            suite="records",
            tasks=["passkey"],
            options={},
            max_length=2 * FIVE_AT,
            seed=seed,
        )
        keys = [row["references"][0] for row in rows]
        others = [any(key in row["prediction"] for key in keys if key not in row["references"]) for row in rows]
        found[policy] = {"right": sum(row["score"] for row in rows), "another's": sum(others), "asked": len(rows)}
    return found


def write_five_needles(model: Path, corpus: Path, data: Path, seed: int) -> None:
    """Records in LongBench's format: of each haystack, a needle at each depth."""
    from transformers import AutoTokenizer

    from longloom.evals.needle.haystack import Stream, insert_all
    from longloom.evals.needle.suite import ADJECTIVES, NOUNS, TEMPLATES

    tokenizer = AutoTokenizer.from_pretrained(model)
    stream, chance, rows = Stream(corpus), random.Random(1000 * seed + FIVE_AT), []
    for number in range(FIVE):
        text = ""
        while len(ids := tokenizer(text, add_special_tokens=False, verbose=False).input_ids) < FIVE_AT:
            text += stream.next() + "\n\n"
        text = str(tokenizer.decode(ids[: FIVE_AT - 400]))
        names = chance.sample([f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS], len(DEPTHS))
        keys = [str(key) for key in chance.sample(range(10_000, 100_000), len(DEPTHS))]
        facts = [
            TEMPLATES["single"]["needle"].format(key=name, value=key) for name, key in zip(names, keys, strict=True)
        ]
        places = [len(text) * depth // 100 for depth in DEPTHS]
        context = insert_all(text, facts, at=places, depth=DEPTHS[0], style="code")
        rows += [
            {"input": QUESTION.format(key=name), "context": context, "answers": [key], "_id": f"{number}-{key}"}
            for name, key in zip(names, keys, strict=True)
        ]
    write_longbench(data, rows)


def write_longbench(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Records in LongBench's format, to be completed."""
    (folder / "config").mkdir(parents=True, exist_ok=True)
    forms = {
        "dataset2prompt": "{context}\n\n{input}",
        "dataset2maxlen": 32,
        "dataset2metric": "string_match",
        "dataset2chat": False,
    }
    for name, form in forms.items():
        (folder / "config" / f"{name}.json").write_text(json.dumps({"passkey": form}))
    common = {"language": "en", "all_classes": None, "dataset": "passkey"}
    lines = [json.dumps({**row, **common, "length": len(row["context"].split())}) + "\n" for row in rows]
    (folder / "passkey.jsonl").write_text("".join(lines))


def perplexities(model_folder: Path, corpus: Path, seed: int, length: int) -> dict[str, Any]:
    """Perplexity of the same tokens: behind what the window holds, and behind `length` tokens under each policy."""
    from longloom.evals.needle.haystack import documents
    from longloom.kernels.huggingface.load import load_model
    from longloom.kernels.kvcache.registry import get_policy
    from longloom.tasks.longcontext.perplexity import perplexity_at

    model, tokenizer = load_model(model_folder)
    stream: list[int] = []
    for text in documents(corpus):
        stream += [*tokenizer(text, add_special_tokens=False, verbose=False).input_ids, tokenizer.eos_token_id]
    full = get_policy("full")
    ways = {
        "full": full,
        STREAMING: get_policy("streaming", sink=32, window=480),
        LONGCACHE: get_policy("longcache"),
        DIVIDED: get_policy("longcache", local=128, span=16),
        ASKING: get_policy("longcache", local=128, span=16, asking=16),
    }
    chance = random.Random(1000 * seed + length)
    ends = [length + place * PREDICTED for place in range(PLACES)]
    texts = []
    for _ in range(TEXTS[length]):
        begin = chance.randrange(len(stream) - ends[-1])
        texts.append(stream[begin : begin + ends[-1]])
    within = [
        perplexity_at(model, [text[end - WINDOW : end] for text in texts], [WINDOW], tokens=PREDICTED, policy=full)
        for end in ends
    ]
    found = {"tokens": len(texts) * PLACES * PREDICTED, "in the window": _mean(each[0] for each in within)}
    for name, policy in ways.items():
        if length <= POLICIES[name]:
            found[name] = _mean(perplexity_at(model, texts, ends, tokens=PREDICTED, policy=policy))
    return found


def _mean(perplexities: Any) -> float:
    """Of equally many tokens each."""
    return math.exp(statistics.mean(math.log(each) for each in perplexities))


def records(model: Path, corpus: Path, root: Path, seed: int) -> dict[str, Any]:
    """Format -> way -> score of pass keys in text of 8 times the window."""
    from transformers import AutoTokenizer

    from longloom.evals.needle.suite import Needle
    from longloom.evals.suite import Source

    tokenizer = AutoTokenizer.from_pretrained(model)
    options = {"lengths": [RECORDS_AT], "depths": DEPTHS, "samples": 1, "style": "code", "question": QUESTION}
    made = Needle(Source(data=corpus, tokenizer=tokenizer, seed=100 + seed, options=options)).records("single")
    longbench, leval = root / "longbench", root / "leval"
    leval.mkdir(parents=True, exist_ok=True)
    bench, exam = [], []
    for number, record in enumerate(made):
        (request,), answers = record["requests"], record["references"]
        begin, end = request["context"]
        context, question = request["document"][begin:end], request["query"]
        bench.append({"input": question, "context": context, "answers": answers, "_id": str(number)})
        exam.append({"instructions": [question], "outputs": answers, "input": context, "evaluation": "f1"})
    write_longbench(longbench, bench)
    (leval / "natural_question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))

    found: dict[str, Any] = {}
    for suite, task, data in (("records", "passkey", longbench), ("leval", "natural_question", leval)):
        for policy, max_length in (("full", None), *((policy, 2 * RECORDS_AT) for policy in POLICIES)):
            way = "full, cut in the middle" if max_length is None else policy
            out = root / "records" / f"{suite}-{way}"
            rows = asked(
                model, data, out, policy, suite=suite, tasks=[task], options={}, max_length=max_length, seed=seed
            )
            # F1 says little of an answer that goes on after the number: what counts is whether that is there.
            hits = [any(answer in row["prediction"] for answer in row["references"]) for row in rows]
            score = 100 * statistics.mean(row["score"] for row in rows)
            found.setdefault(suite, {})[way] = {
                "score": round(score, 2),
                "found": round(100 * statistics.mean(hits), 2),
                "samples": len(rows),
                "truncated": sum(row["truncated"] for row in rows),
            }
    return found


def ruler(model: Path, root: Path, seed: int) -> dict[str, Any]:
    """Task -> setting -> length -> score: niah_multikey_3, and the same in sentences that these models know."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    found: dict[str, Any] = {}
    for length in RULER_AT:
        data = root / f"nothing-but-needles-{length}"
        nothing_but_needles(tokenizer, data, seed, length)
        for policy in RULER if length > WINDOW else RULER[:1]:
            ask = functools.partial(asked, model, policy=policy, max_length=length, seed=seed)
            ways: dict[str, dict[str, Any]] = {
                "niah_multikey_3": {"data": None, "suite": "ruler", "options": {"lengths": [length], "samples": 10}},
                "passkey": {"data": data, "suite": "records", "options": {}},
            }
            for task, way in ways.items():
                rows = ask(out=root / task / f"{policy}-{length}", tasks=[task], **way)
                score = 100 * statistics.mean(row["score"] for row in rows)
                found.setdefault(task, {}).setdefault(policy, {})[str(length)] = [round(score, 2), len(rows)]
    return found


def nothing_but_needles(tokenizer: Any, data: Path, seed: int, length: int) -> None:
    """Ten records of a haystack that is pass keys and nothing else, one of which is asked for."""
    from longloom.evals.needle.suite import ADJECTIVES, NOUNS, TEMPLATES

    chance, rows = random.Random(1000 * seed + length), []
    names = [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS]
    for number in range(10):
        keys = [str(key) for key in chance.sample(range(10_000, 100_000), len(names))]
        facts = dict(zip(chance.sample(names, len(names)), keys, strict=True))
        lines = [f"# {TEMPLATES['single']['needle'].format(key=name, value=key)}\n" for name, key in facts.items()]
        sizes = itertools.accumulate(len(tokenizer(line, add_special_tokens=False).input_ids) for line in lines)
        kept = sum(size < length - 64 for size in sizes)
        name = chance.choice(list(facts)[:kept])
        rows.append({"input": QUESTION.format(key=name), "context": "".join(lines[:kept]), "answers": [facts[name]]})
        rows[-1]["_id"] = str(number)
    write_longbench(data, rows)


def one_seed(root: str, seed: int, most: int) -> dict[str, Any]:
    """Everything of one training."""
    from longloom.flows.model import pretrain
    from longloom.flows.params import STANDARD_LIBRARY, CorpusParams, IndexParams, PretrainParams
    from longloom.storage.store import Store
    from longloom.tasks.corpus.task import read_corpus

    store = Store(root)
    given = CorpusParams(), IndexParams(tokenizer="base")
    first = pretrain(*given, PretrainParams(size="short", seed=seed), store=root)
    further = PretrainParams(source=str(store.open(first)), size="short", seed=seed)
    trained = pretrain(*given, further, store=root)
    model = store.open(trained)
    corpus = store.open(read_corpus(store, sources=[STANDARD_LIBRARY], held_out=True))
    place = Path(root) / "longcache" / trained.digest[:12]
    result: dict[str, Any] = {"seed": seed, "model": trained.digest}
    grid: dict[str, Any] = {}
    text: dict[str, Any] = {}
    for length in (each for each in HAYSTACKS if each <= most):
        for policy, depths in needles(model, corpus, place, seed, length).items():
            grid.setdefault(policy, {})[str(length)] = depths
        if length in TEXTS:
            make = functools.partial(perplexities, model, corpus, seed, length)
            text[str(length)] = kept(place / f"perplexity-{length}.json", make)
    result |= {"needles": grid, "perplexity": text}
    result["five needles"] = five_needles(model, corpus, place, seed)
    result["records"] = records(model, corpus, place, seed)
    result["ruler"] = ruler(model, place, seed)
    return result


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, made once."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--store", default=".longloom/longcache", help="where what is made is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--most", type=int, default=32_768, help=f"the longest prompts, in tokens; at most {max(HAYSTACKS)}"
    )
    parser.add_argument("--json", type=Path, default=here / "results" / "longcache.json")
    parser.add_argument("--picture", type=Path, default=here.parent / "docs" / "images" / "longcache.png")
    options = parser.parse_args()
    prepare(options.store)
    quiet()
    start_server()
    seeds = [one_seed(options.store, seed, options.most) for seed in options.seeds]
    table = summary(seeds)
    result = {"machine": machine(), "claims": claims(table), "summary": table, "seeds": seeds}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    draw(seeds, options.picture)
    show(table, result["claims"])


if __name__ == "__main__":
    main()
