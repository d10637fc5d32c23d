"""Queries of an index, ours against infini-gram's engine at its best, in one run over the same files; and their growth.

    python benchmarks/ngram_queries.py                    # the standard library, as tokens and as bytes
    python benchmarks/ngram_queries.py --index FOLDER --json ngram_queries.json

Counts one at a time and in batches; infinity-gram probabilities in batches; co-occurrence of pairs against the engine's
CNF query as wide as the longest document, with a share of its answers held to what both documents' sets say. The engine
has all prefetch depths 0: with the files in memory that is several times as fast as its defaults. A speed of ours is
told only after its answers equal the engine's, or for pairs those of the plain way.

Growth: the same n-grams and pairs, of the smallest corpus, asked of larger ones that begin with it; the exponent b of
seconds = a * bytes^b of each kind of query. Postings and the table of pairs scan all occurrences, so theirs is about 1;
counts only search, so theirs is about 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from infini_gram.engine import InfiniGramEngine
from machine import machine
from ngram_build import BASE, repeated, sources, standard_library

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams.build import build
from longloom.tasks.ngrams.layout import plain_path, separator
from longloom.tasks.ngrams.query import Index, open_index

Gram = list[int]
#: Lengths of the n-grams asked for, all as likely; and of the halves of pairs, a few words each.
LENGTHS = {"u8": (1, 3, 6, 12, 24), "u16": (1, 2, 3, 5, 8), "u32": (1, 2, 3, 5, 8)}
PAIR_LENGTHS = {"u8": (12, 18, 24), "u16": (2, 3, 4), "u32": (2, 3, 4)}
#: Documents that n-grams are drawn from.
POOL = 2000
#: Tokens before the one whose infinity-gram probability is asked for.
CONTEXT = 100


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


class Sampler:
    """N-grams of documents drawn at random."""

    def __init__(self, index: Index, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.name = index.layout.token_dtype
        self.top = min(index.layout.vocab_size, separator(self.name))
        drawn = self.random.permutation(index.layout.documents)[:POOL].tolist()
        self.pool = [tokens for ordinal in drawn if len(tokens := index.document(ordinal).tokens)]

    def gram(self, document: int, length: int) -> Gram:
        tokens = self.pool[document]
        start = int(self.random.integers(0, max(1, len(tokens) - length)))
        return [int(token) for token in tokens[start : start + length].tolist()]

    def grams(self, count: int) -> list[Gram]:
        """In every fifth the last token is a random one, so that most of these are nowhere."""
        documents = self.random.integers(len(self.pool), size=count).tolist()
        lengths = self.random.choice(LENGTHS[self.name], size=count).tolist()
        found = [self.gram(*each) for each in zip(documents, lengths, strict=True)]
        for gram in found[::5]:
            gram[-1] = int(self.random.integers(self.top))
        return found

    def pairs(self, count: int) -> list[tuple[Gram, Gram]]:
        """Half of them from one document, half from anywhere."""
        documents = self.random.integers(len(self.pool), size=(count, 2))
        documents[::2, 1] = documents[::2, 0]
        lengths = self.random.choice(PAIR_LENGTHS[self.name], size=(count, 2)).tolist()
        return [
            (self.gram(first, one), self.gram(second, other))
            for (first, second), (one, other) in zip(documents.tolist(), lengths, strict=True)
        ]

    def contexts(self, count: int) -> tuple[list[Gram], Gram]:
        """Contexts of the corpus, half of them with a random token in their middle, and the tokens behind them."""
        documents = self.random.integers(len(self.pool), size=count).tolist()
        found = [self.gram(document, CONTEXT + 1) for document in documents]
        for context in found[::2]:
            context[len(context) // 2] = int(self.random.integers(self.top))
        return [context[:-1] for context in found], [context[-1] for context in found]


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
    rows: dict[int, list[Gram]] = {}
    for gram in queries:
        rows.setdefault(len(gram), []).append(gram)
    peer_seconds = one_seconds = 0.0
    by_length = {}
    for length, asked in sorted(rows.items()):
        theirs, peer_part = timed(lambda: [peer.count(gram)["count"] for gram in asked], repeats)  # noqa: B023
        ours, part = timed(lambda: [index.count(gram) for gram in asked], repeats)  # noqa: B023
        assert ours == theirs
        assert index.counts(asked).tolist() == theirs
        by_length[str(length)] = round(peer_part / part, 2)
        peer_seconds, one_seconds = peer_seconds + peer_part, one_seconds + part
    found, batch_seconds = timed(lambda: index.counts(batch), repeats)
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
        "the same by length": by_length,
        "batch: engine / ours": peer_one / many,
    }


def infgrams(index: Index, contexts: list[Gram], tokens: Gram, repeats: int) -> dict[str, Any]:
    peer = engine(index)
    asked = list(zip(contexts, tokens, strict=True))
    theirs, peer_seconds = timed(lambda: [peer.infgram_prob(prompt_ids=c, cont_id=t)["prob"] for c, t in asked], 1)
    found, seconds = timed(lambda: index.infgram_probabilities(contexts, tokens), repeats)
    assert np.allclose(found.probability, theirs, rtol=1e-12, atol=0)
    return {
        "probabilities": len(asked),
        "mean tokens of the suffix": float(found.suffix.mean()),
        "engine one at a time us": peer_seconds / len(asked) * 1e6,
        "ours in a batch us": seconds / len(asked) * 1e6,
        "engine / ours": peer_seconds / seconds,
    }


def pairs(index: Index, asked: list[tuple[Gram, Gram]], batch: list[tuple[Gram, Gram]], repeats: int) -> dict[str, Any]:
    peer = engine(index)
    width = max(int(np.diff(shard.offsets, append=shard.tokens.nbytes).max()) for shard in index._shards.shards)
    cnf = {"max_clause_freq": 10**9, "max_diff_tokens": width // index.layout.dtype.itemsize}
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
    few = batch[: max(1, len(batch) // 5)]
    near, near_seconds = timed(lambda: index.cooccurrences(few, within=20), 1)
    assert (near <= found[: len(few)]).all()
    peer_one, one = peer_seconds / len(asked), seconds / len(batch)
    return {
        "asked of the engine": len(asked),
        "batch": len(batch),
        "together in the batch": int((found > 0).sum()),
        "CNF width in tokens": cnf["max_diff_tokens"],
        "CNF answers that are wrong": wrong,
        "CNF answers of 0 that are wrong": zeros,
        "CNF us a pair": peer_one * 1e6,
        "ours us a pair": one * 1e6,
        "ours within 20 tokens us a pair": near_seconds / len(few) * 1e6,
        "CNF / ours": peer_one / one,
    }


def documents_of(index: Index, places: list[list[int]]) -> int:
    """Documents of the places (in bytes) that the engine found."""
    total = 0
    for number, found in enumerate(places):
        offsets = np.fromfile(index.path / f"offset.{number}", dtype="<i8")
        total += len(np.unique(np.searchsorted(offsets, np.array(found, dtype=np.int64), side="right")))
    return total


def indexed(texts: Sequence[str], folder: Path, name: str, jobs: int) -> Index:
    """An index of texts in a new folder."""
    corpus, out = folder / "corpus", folder / "index"
    corpus.mkdir(parents=True)
    out.mkdir()
    with ShardWriter(corpus, "documents", SCHEMA, rows_per_shard=65536) as writer:
        for number, text in enumerate(texts):
            writer.write([{"id": str(number), "source": "bench", "text": text}])
    build(corpus, None if name == "u8" else BASE, out, threads=jobs, memory_gib=2)
    return open_index(out)


def up_to(texts: Sequence[str], megabytes: float) -> list[str]:
    """The first texts, so many that they have this size."""
    sizes = list(itertools.accumulate(len(text.encode()) for text in texts))
    assert sizes[-1] >= megabytes * 1e6, f"the sources have {sizes[-1]} bytes, fewer than {megabytes} MB"
    return list(texts[: 1 + next(number for number, size in enumerate(sizes) if size >= megabytes * 1e6)])


def growth(corpora: Sequence[tuple[str, list[str]]], name: str, *, jobs: int, count: int) -> dict[str, Any]:
    """Seconds of the same queries on growing corpora, and the exponents over those named "grown"."""
    rows: list[dict[str, Any]] = []
    grams: list[Gram] = []
    table: list[tuple[Gram, Gram]] = []
    for kind, texts in corpora:
        with tempfile.TemporaryDirectory(prefix="longloom-bench-") as scratch:
            index = indexed(texts, Path(scratch), name, jobs)
            if not grams:
                sampler = Sampler(index, 4)
                grams, table = sampler.grams(count), sampler.pairs(count)
            halves = [gram for pair in table for gram in pair]
            work: dict[str, Callable[[], Any]] = {
                "count": lambda: [index.count(gram) for gram in grams],  # noqa: B023
                "counts": lambda: index.counts(grams),  # noqa: B023
                "postings": lambda: index.document_counts(halves),  # noqa: B023
                "table": lambda: index.cooccurrences(table),  # noqa: B023
            }
            for query in work.values():
                query()  # maps the files
            seconds = {query: timed(asked, 3)[1] for query, asked in work.items()}
            occurrences = int(index.counts(sorted({tuple(gram) for gram in halves})).sum())
            layout = index.layout
        size = sum(len(text.encode()) for text in texts)
        sizes = {"text_bytes": size, "tokens": layout.tokens, "shards": len(layout.shards), "occurrences": occurrences}
        rows.append({"kind": kind, **sizes, "seconds": seconds})
        told = "  ".join(f"{query} {value:.3f} s" for query, value in seconds.items())
        print(f"growth {name:<4} {kind:<8} {size / 1e6:>7.1f} MB  {occurrences:>11} occurrences  {told}", flush=True)
    grown = [row for row in rows if row["kind"] == "grown"]
    fits = {}
    for query in rows[0]["seconds"]:
        logs = np.log([[row["text_bytes"], row["seconds"][query]] for row in grown])
        exponent, scale = np.polyfit(*logs.T, 1)
        fits[query] = {"exponent": round(float(exponent), 3), "scale": math.exp(scale)}
        print(f"growth {name:<4} {query:<9} seconds = {math.exp(scale):.3g} * bytes^{exponent:.3f}", flush=True)
    return {"token_dtype": name, "queries": count, "rows": rows, "fits": fits}


def measured(index: Index, options: argparse.Namespace) -> dict[str, Any]:
    """All comparisons over one index."""
    layout, repeats = index.layout, options.repeats
    sampler = Sampler(index, 0)
    figures: dict[str, Any] = {
        "index": {"token_dtype": layout.token_dtype, "documents": layout.documents, "tokens": layout.tokens}
        | {"shards": len(layout.shards)},
        "counts": counts(index, sampler.grams(options.queries), sampler.grams(options.batch), repeats),
        "infgrams": infgrams(index, *sampler.contexts(options.queries), repeats),
    }
    if layout.token_dtype != "u8":  # of bytes most would be runs of blanks, on which the CNF query takes minutes
        figures["pairs"] = pairs(index, sampler.pairs(options.cnf), sampler.pairs(options.pairs), repeats)
    for part, rows in figures.items():
        print(part)
        for name, value in rows.items():
            print(f"  {name:<34} {value:,.2f}" if isinstance(value, float) else f"  {name:<34} {value}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--index", type=Path, help="folder of an index without deleted documents, to ask in their place"
    )
    parser.add_argument("--queries", type=int, default=10_000, help="counts and probabilities one at a time")
    parser.add_argument("--batch", type=int, default=1_000_000, help="counts in a batch")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs in a batch")
    parser.add_argument("--cnf", type=int, default=200, help="pairs asked of the engine")
    parser.add_argument("--repeats", type=int, default=3, help="medians are of so many runs")
    parser.add_argument("--sizes", type=float, nargs="*", default=[1, 4, 16, 64], help="MB of the growing corpus")
    parser.add_argument("--large", type=float, default=200, help="MB of one more, which repeats texts; 0: none")
    parser.add_argument("--growth", type=int, default=2000, help="n-grams and pairs asked of the growing corpus")
    parser.add_argument("--books", type=Path, help="folder of .md and .txt files that join the repeated texts")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="of the builds")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    library = standard_library(1e3)
    figures: dict[str, Any] = {"machine": machine(), "indexes": [], "growth": []}
    if options.index:
        index = open_index(options.index)
        if len(index.deleted):
            parser.error(f"{options.index}: has deleted documents, of which the engine knows nothing")
        figures["indexes"].append(measured(index, options))
    for name in () if options.index else ("u16", "u8"):
        with tempfile.TemporaryDirectory(prefix="longloom-bench-") as scratch:
            figures["indexes"].append(measured(indexed(library, Path(scratch), name, options.jobs), options))
    if options.sizes:
        many = library + sources([Path(sysconfig.get_paths()["purelib"])], max(options.sizes))
        corpora = [("grown", up_to(many, size)) for size in options.sizes]
        books = sources([options.books], 1e3, (".md", ".txt")) if options.books else []
        large = [("repeated", repeated(books + library, options.large))] if options.large else []
        for name, asked in (("u16", corpora), ("u8", corpora + large)):
            figures["growth"].append(growth(asked, name, jobs=options.jobs, count=options.growth))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
