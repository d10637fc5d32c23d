"""Queries of an n-gram index, ours against infini-gram's engine at its best, in one run over the same files.

Counts one at a time and in batches; co-occurrence of pairs against the engine's CNF query as wide as the longest
document, with a share of its answers held to what both documents' sets say. The engine has all prefetch depths 0: with
the files in memory that is several times as fast as its defaults. A speed of ours is told only after its answers equal
the engine's counts, or for pairs those of the plain way.

    python benchmarks/ngram_queries.py --index .longloom/artifacts/index/... --json ngram_queries.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from infini_gram.engine import InfiniGramEngine
from machine import machine

from longloom.tasks.ngrams.layout import plain_path, separator
from longloom.tasks.ngrams.query import Index, open_index

Gram = list[int]
#: Lengths of the n-grams asked for, all as likely.
LENGTHS = (1, 2, 3, 5, 8)


def engine(index: Index) -> InfiniGramEngine:
    top = separator(index.layout.token_dtype)
    with plain_path(index.path) as link:
        return InfiniGramEngine(
            index_dir=str(link),
            eos_token_id=min(index.layout.vocab_size, top - 1),
            vocab_size=min(index.layout.vocab_size + 1, top),
            token_dtype=index.layout.token_dtype,
            ds_prefetch_depth=0,
            sa_prefetch_depth=0,
            od_prefetch_depth=0,
        )


def sampled_grams(index: Index, count: int, seed: int) -> list[Gram]:
    """N-grams of random documents; in every fifth the last token is a random one, so that most of these are nowhere."""
    random = np.random.default_rng(seed)
    found: list[Gram] = []
    while len(found) < count:
        tokens = index.document(int(random.integers(index.layout.documents))).tokens
        length = int(random.choice(LENGTHS))
        for start in random.integers(0, max(1, len(tokens) - length), min(20, count - len(found))).tolist():
            gram = tokens[start : start + length].tolist()
            if gram:
                found.append(gram)
    for gram in found[::5]:
        gram[-1] = int(random.integers(min(index.layout.vocab_size, separator(index.layout.token_dtype))))
    order = random.permutation(len(found))
    return [found[place] for place in order.tolist()]


def sampled_pairs(index: Index, count: int, seed: int) -> list[tuple[Gram, Gram]]:
    """Pairs of short n-grams: half from one document, half from anywhere."""
    random = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        ordinals = random.integers(index.layout.documents, size=2).tolist()
        grams = []
        for ordinal in (ordinals[0], ordinals[number % 2]):
            tokens = index.document(ordinal).tokens
            length = int(random.integers(2, 5))
            start = int(random.integers(0, max(1, len(tokens) - length)))
            grams.append(tokens[start : start + length].tolist() or [0])
        pairs.append((grams[0], grams[1]))
    return pairs


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The last answer, and the median seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - start)
    return answer, statistics.median(seconds)


def counts(index: Index, queries: list[Gram], batch: list[Gram], repeats: int) -> dict[str, Any]:
    peer = engine(index)
    peer.count(queries[0]), index.count(queries[0])
    theirs, peer_seconds = timed(lambda: [peer.count(gram)["count"] for gram in queries], repeats)
    ours, one_seconds = timed(lambda: [index.count(gram) for gram in queries], repeats)
    assert ours == theirs
    index.counts(queries[:2])  # makes the sample
    found, batch_seconds = timed(lambda: index.counts(batch), repeats)
    assert index.counts(queries).tolist() == theirs
    peer_one, one, many = peer_seconds / len(queries), one_seconds / len(queries), batch_seconds / len(batch)
    return {
        "queries": len(queries),
        "batch": len(batch),
        "distinct in the batch": len({tuple(gram) for gram in batch}),
        "found in the batch": int((found > 0).sum()),
        "engine one at a time us": peer_one * 1e6,
        "ours one at a time us": one * 1e6,
        "ours in a batch us": many * 1e6,
        "one at a time: engine / ours": peer_one / one,
        "batch: engine / ours": peer_one / many,
    }


def pairs(index: Index, asked: list[tuple[Gram, Gram]], batch: list[tuple[Gram, Gram]], repeats: int) -> dict[str, Any]:
    peer = engine(index)
    width = max(len(index.document(ordinal).tokens) for ordinal in range(index.layout.documents))
    cnf = {"max_clause_freq": 10**9, "max_diff_tokens": width}
    answers, peer_seconds = timed(lambda: [peer.find_cnf([[a], [b]], **cnf) for a, b in asked], 1)
    holding = {tuple(gram): set(index.documents(gram).tolist()) for pair in asked for gram in pair}
    right = [len(holding[tuple(a)] & holding[tuple(b)]) for a, b in asked]
    assert index.cooccurrences(asked).tolist() == right
    wrong = zeros = 0
    for answer, expected in zip(answers, right, strict=True):
        # A document may be found more than once: its places are taken to documents, to the engine's favour.
        found = documents_of(index, answer["ptrs_by_shard"])
        wrong += found != expected
        zeros += found == 0 and expected > 0
    found, seconds = timed(lambda: index.cooccurrences(batch), repeats)
    near, near_seconds = timed(lambda: index.cooccurrences(batch, within=20), repeats)
    assert (near <= found).all()
    peer_one, one = peer_seconds / len(asked), seconds / len(batch)
    return {
        "asked of the engine": len(asked),
        "batch": len(batch),
        "together in the batch": int((found > 0).sum()),
        "CNF width in tokens": width,
        "CNF answers that are wrong": wrong,
        "CNF answers of 0 that are wrong": zeros,
        "CNF us a pair": peer_one * 1e6,
        "ours us a pair": one * 1e6,
        "ours within 20 tokens us a pair": near_seconds / len(batch) * 1e6,
        "CNF / ours": peer_one / one,
    }


def documents_of(index: Index, places: list[list[int]]) -> int:
    """Documents of the places (in bytes) that the engine found."""
    total = 0
    for number, found in enumerate(places):
        offsets = np.fromfile(index.path / f"offset.{number}", dtype="<i8")
        total += len(np.unique(np.searchsorted(offsets, np.array(found, dtype=np.int64), side="right")))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="folder of an index without deleted documents")
    parser.add_argument("--queries", type=int, default=10_000, help="counts one at a time")
    parser.add_argument("--batch", type=int, default=1_000_000, help="counts in a batch")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs in a batch")
    parser.add_argument("--cnf", type=int, default=200, help="pairs asked of the engine")
    parser.add_argument("--repeats", type=int, default=5, help="medians are of so many runs")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    index = open_index(options.index)
    if len(index.deleted):
        parser.error(f"{options.index}: has deleted documents, of which the engine knows nothing")
    layout = index.layout
    figures: dict[str, Any] = {
        "machine": machine(),
        "index": {"token_dtype": layout.token_dtype, "documents": layout.documents, "tokens": layout.tokens}
        | {"shards": len(layout.shards)},
        "counts": counts(
            index, sampled_grams(index, options.queries, 0), sampled_grams(index, options.batch, 1), options.repeats
        ),
        "pairs": pairs(
            index, sampled_pairs(index, options.cnf, 2), sampled_pairs(index, options.pairs, 3), options.repeats
        ),
    }
    for part in ("index", "counts", "pairs"):
        print(part)
        for name, value in figures[part].items():
            print(f"  {name:<34} {value:,.2f}" if isinstance(value, float) else f"  {name:<34} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
