"""Novel pairs of a generation: n-grams of prompt and answer that no document of the corpus holds together.

Source: arXiv 2407.14985, section 5: what larger models write of them more, where they generalise.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.trace.embedding import Embed
from longloom.tasks.trace.lookups import Corpus, together, tokens_of
from longloom.tasks.trace.mining import mine, ngrams
from longloom.tasks.trace.records import load
from longloom.tasks.trace.scores import read_generations

#: One row a pair of a record's input and what the model wrote; `together` is the documents that hold both, null where
#: the index's tokenizer does not know one of them.
NOVELTY = pa.schema(
    [
        *(("task", pa.string()), ("record", pa.int64()), ("x", pa.string()), ("y", pa.string())),
        *(("cosine", pa.float64()), ("together", pa.int64())),
    ]
)


def build(
    records: Path,
    scores: Path,
    index: Corpus,
    embed: Embed,
    out: Path,
    *,
    n: int,
    gamma: float,
    progress: Progress = silent,
) -> Stats:
    """Writes `novelty.parquet`.

    Args:
        records, scores: from `records.build` and `scores.build`.
        index: over the corpus.
        embed: of n-grams.
        out: an empty folder.
        n: words of an n-gram.
        gamma: the least cosine, exclusive.
        progress: called with records done and in all.

    Returns:
        Counts of generations, of their pairs, of novel and of unknown ones.
    """
    examples, generations = load(records), read_generations(scores)
    novel = unknown = 0
    with FileWriter(out / "novelty.parquet", NOVELTY) as writer:
        for done, generation in enumerate(generations, start=1):
            record = examples[generation["record"]]
            xs, ys = ngrams(record.input, n), ngrams(generation["text"], n)
            texts = sorted({gram.text for gram in (*xs, *ys)})
            vectors = dict(zip(texts, embed(texts), strict=True)) if xs and ys else {}
            mined = mine(xs, ys, vectors, n=n, gamma=gamma, floor=gamma)
            surfaces = {gram.surface: tokens_of(index, gram.surface) for pair in mined for gram in (pair.x, pair.y)}
            asked = [(surfaces[pair.x.surface], surfaces[pair.y.surface]) for pair in mined]
            found = together(index, list(dict.fromkeys((x, y) for x, y in asked if x and y)))
            counts = [found[x, y] if x and y else None for x, y in asked]
            novel += counts.count(0)
            unknown += counts.count(None)
            head = {"task": record.task, "record": generation["record"]}
            writer.write(
                [
                    {**head, "x": pair.x.text, "y": pair.y.text, "cosine": pair.cosine, "together": count}
                    for pair, count in zip(mined, counts, strict=True)
                ]
            )
            progress(done, len(generations))
        rows = writer.rows
    return Stats(counts={"generations": len(generations), "pairs": rows, "novel": novel, "unknown": unknown})
