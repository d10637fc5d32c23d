"""Indexes written from the definition of the format, in any number of shards; answers by looking everywhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from longloom.tasks.ngrams.layout import TOKEN_TYPES, Layout, Shard, pointer_width, separator

#: Token types and the vocabularies of their test indexes.
SIZES = {"u8": 256, "u16": 300, "u32": 65536}
Gram = list[int]


def write_shards(
    out: Path, documents: list[Gram], name: str, *, cuts: list[int] | None = None, deleted: list[int] | None = None
) -> Path:
    """An index of given tokens, cut into shards before the documents `cuts`."""
    out.mkdir(parents=True, exist_ok=True)
    bounds = [0, *sorted(set(cuts or []) - {0, len(documents)}), len(documents)]
    shards = []
    for number, (first, behind) in enumerate(pairwise(bounds)):
        part = documents[first:behind]
        tokens = np.array([token for row in part for token in (separator(name), *row)], dtype=TOKEN_TYPES[name])
        content, size = tokens.tobytes(), tokens.itemsize
        order = sorted(range(0, len(content), size), key=lambda place: content[place:])
        width = pointer_width(len(content))
        lengths = [len(row) + 1 for row in part]
        lines = [json.dumps({"id": f"d{first + place}", "source": f"s{number}"}) + "\n" for place in range(len(part))]
        (out / f"tokenized.{number}").write_bytes(content)
        (out / f"table.{number}").write_bytes(b"".join(place.to_bytes(width, "little") for place in order))
        (np.cumsum([0, *lengths[:-1]]) * size).astype("<u8").tofile(out / f"offset.{number}")
        np.cumsum([0, *map(len, lines[:-1])]).astype("<u8").tofile(out / f"metaoff.{number}")
        (out / f"metadata.{number}").write_text("".join(lines))
        shards.append(Shard(len(part), sum(map(len, part))))
    if name != "u8" and not (out / "tokenizer").exists():
        (out / "tokenizer").mkdir()
        vocabulary = {str(n): n for n in range(SIZES[name])}
        Tokenizer(models.WordLevel(vocabulary, unk_token="0")).save(str(out / "tokenizer" / "tokenizer.json"))
    if deleted:
        np.save(out / "deleted.npy", np.array(sorted(deleted), dtype=np.int64))
    Layout(name, SIZES[name], tuple(shards)).write(out)
    return out


@dataclass(frozen=True)
class Brute:
    """A corpus and which of its documents are deleted."""

    documents: list[Gram]
    deleted: frozenset[int] = frozenset()

    def positions(self, gram: Gram) -> list[list[int]]:
        return [
            [ordinal, start]
            for ordinal, row in enumerate(self.documents)
            if ordinal not in self.deleted
            for start in range(len(row) - len(gram) + 1)
            if row[start : start + len(gram)] == gram
        ]

    def count(self, gram: Gram) -> int:
        return len(self.positions(gram))

    def holding(self, gram: Gram) -> list[int]:
        return sorted({ordinal for ordinal, _ in self.positions(gram)})

    def together(self, first: Gram, second: Gram, within: int | None = None) -> int:
        others: dict[int, list[int]] = {}
        for ordinal, place in self.positions(second):
            others.setdefault(ordinal, []).append(place)
        found = set()
        for ordinal, start in self.positions(first):
            for place in others.get(ordinal, []):
                between = place - start - len(first) if start <= place else start - place - len(second)
                if within is None or between <= within:
                    found.add(ordinal)
        return len(found)


def corpora(top: int = 2, longest: int = 7, documents: int = 6) -> st.SearchStrategy[list[Gram]]:
    """Documents of few different tokens, 0 and empty ones among them: repeats and overlaps everywhere."""
    return st.lists(st.lists(st.integers(0, top), max_size=longest), min_size=1, max_size=documents)


def grams(documents: list[Gram], longest: int = 6) -> list[Gram]:
    """All n-grams of the documents, the same with a token put on, and some that are nowhere."""
    found = {
        tuple(row[start : start + length])
        for row in documents
        for length in range(1, longest + 1)
        for start in range(len(row) - length + 1)
    }
    found |= {(*gram, token) for gram in found for token in (0, 2)}
    found |= {(0,), (1,), (2,), (250,), (0, 0), (1, 250, 0), tuple(range(20))}
    return [list(gram) for gram in sorted(found)]
