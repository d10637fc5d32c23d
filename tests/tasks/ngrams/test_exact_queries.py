"""Every query against looking everywhere: any number of shards, every token width, deleted documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from infini_gram.engine import InfiniGramEngine

from longloom.tasks.ngrams import infgram, postings, search, shard
from longloom.tasks.ngrams.query import Index, open_index

from .brute import SIZES, Brute, Gram, corpora, grams, write_shards

CHECKS = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
widths = st.sampled_from(["u8", "u16", "u32"])
cuts = st.lists(st.integers(1, 5), max_size=3)
ordinals = st.sets(st.integers(0, 5), max_size=3)


def opened(folder: Path, documents: list[Gram], name: str, cuts: list[int], deleted: set[int]) -> tuple[Index, Brute]:
    gone = {ordinal for ordinal in deleted if ordinal < len(documents)}
    inside = [cut for cut in cuts if cut < len(documents)]
    return open_index(write_shards(folder, documents, name, cuts=inside, deleted=sorted(gone))), Brute(
        documents, frozenset(gone)
    )


@CHECKS
@given(documents=corpora(), name=widths, cuts=cuts, deleted=ordinals)
def test_counts_positions_and_documents(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Gram], name: str, cuts: list[int], deleted: set[int]
) -> None:
    index, brute = opened(tmp_path_factory.mktemp("index"), documents, name, cuts, deleted)
    queries = grams(documents)
    batch = index.counts(queries * 2)
    assert batch.tolist() == [brute.count(gram) for gram in queries] * 2
    assert index.document_counts(queries).tolist() == [len(brute.holding(gram)) for gram in queries]
    for gram in queries:
        assert index.count(gram) == brute.count(gram), gram
        assert index.positions(gram).tolist() == brute.positions(gram), gram
        assert index.documents(gram).tolist() == brute.holding(gram), gram


@CHECKS
@given(documents=corpora(top=1, longest=40, documents=4), name=widths, cuts=cuts, seed=st.integers(0, 99))
def test_small_samples_and_slices_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Gram], name: str, cuts: list[int], seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SAMPLE", 3)
        patch.setattr(shard, "BEGINNINGS", 3)
        patch.setattr(shard, "KEPT", 2)
        patch.setattr(postings, "SLICE", 4)
        index, brute = opened(tmp_path_factory.mktemp("index"), documents, name, cuts, {seed % 5})
        pool = grams(documents, longest=20)
        queries = [pool[place] for place in np.random.default_rng(seed).integers(0, len(pool), 40)]
        assert index.counts(queries).tolist() == [brute.count(gram) for gram in queries]
        assert index.document_counts(queries).tolist() == [len(brute.holding(gram)) for gram in queries]
        for gram in queries:
            assert index.count(gram) == brute.count(gram), gram
            assert index.positions(gram).tolist() == brute.positions(gram), gram
            assert index.documents(gram).tolist() == brute.holding(gram), gram


@pytest.mark.parametrize("name", list(SIZES))
def test_counts_equal_the_engines_on_a_larger_corpus(tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(1)
    documents = [np.minimum(random.zipf(1.4, size=size), 250).tolist() for size in random.integers(0, 90, 60)]
    index = open_index(write_shards(tmp_path, documents, name))
    engine = InfiniGramEngine(
        index_dir=str(tmp_path), eos_token_id=251, vocab_size=252, token_dtype=name, ds_prefetch_depth=0
    )
    queries = [gram for length in (1, 2, 5, 11) for row in documents for gram in [row[3 : 3 + length]] if gram]
    queries += [[*gram[:-1], 249] for gram in queries]
    expected = [engine.count(input_ids=gram)["count"] for gram in queries]
    assert index.counts(queries).tolist() == expected
    assert [index.count(gram) for gram in queries] == expected
    array = np.array([gram for gram in queries if len(gram) == 5])
    assert index.counts(array).tolist() == [index.count(gram) for gram in array.tolist()]


@CHECKS
@given(documents=corpora(), name=widths, cuts=cuts, deleted=ordinals, context=st.lists(st.integers(0, 3), max_size=5))
def test_infinity_grams(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[Gram],
    name: str,
    cuts: list[int],
    deleted: set[int],
    context: Gram,
) -> None:
    index, brute = opened(tmp_path_factory.mktemp("index"), documents, name, cuts, deleted)
    size = max(size for size in range(len(context) + 1) if not size or brute.count(context[-size:]))
    suffix = context[len(context) - size :]
    kept = [row for ordinal, row in enumerate(documents) if ordinal not in brute.deleted]
    occurrences = brute.count(suffix) if suffix else sum(len(row) + 1 for row in kept)
    following = {token: brute.count([*suffix, token]) for token in range(4)}
    for token, continued in following.items():
        found = index.infgram_probability(context, token)
        assert (found.suffix, found.occurrences, found.continued) == (size, occurrences, continued)
        assert found.probability == (continued / occurrences if occurrences else 0)
    asked = [(context[: len(context) - cut], token) for cut in range(len(context) + 1) for token in range(4)]
    batch = index.infgram_probabilities([before for before, _ in asked], [token for _, token in asked])
    singles = [index.infgram_probability(before, token) for before, token in asked]
    for field in ("probability", "suffix", "occurrences", "continued"):
        assert getattr(batch, field).tolist() == [getattr(single, field) for single in singles], field
    answer = index.infgram_next(context)
    assert (answer.suffix, answer.occurrences) == (size, occurrences)
    expected = {token: count for token, count in following.items() if count}
    assert dict(zip(answer.tokens.tolist(), answer.counts.tolist(), strict=True)) == expected
    query = [*context, 0]
    assert index.longest_prefix(query) == max(n for n in range(len(query) + 1) if not n or brute.count(query[:n]))


def test_documents_come_with_their_metadata(tmp_path: Path) -> None:
    documents = [[1, 2], [], [3], [4, 4]]
    index = open_index(write_shards(tmp_path, documents, "u16", cuts=[2], deleted=[0]))
    for ordinal in (1, 2, 3):
        found = index.document(ordinal)
        assert (found.ordinal, found.id, found.tokens.tolist()) == (ordinal, f"d{ordinal}", documents[ordinal])
        assert found.source == ("s0" if ordinal < 2 else "s1")
    with pytest.raises(ValueError, match="document 0: is deleted"):
        index.document(0)
    for ordinal in (-1, 4):
        with pytest.raises(ValueError, match=f"document {ordinal}: is not there, expected 0 to 3"):
            index.document(ordinal)


def test_all_documents_deleted(tmp_path: Path) -> None:
    index = open_index(write_shards(tmp_path, [[1, 2], [1]], "u8", cuts=[1], deleted=[0, 1]))
    assert index.count([1]) == 0
    assert index.positions([1]).shape == (0, 2)
    assert index.documents([1]).tolist() == []
    assert index.cooccurrences([([1], [2])]).tolist() == [0]
    assert index.infgram_probability([1], 2).probability == 0
    assert index.infgram_probabilities([[1], []], [2, 1]).probability.tolist() == [0, 0]
    assert index.infgram_next([1]).tokens.tolist() == []


def test_batches_are_checked(tmp_path: Path) -> None:
    index = open_index(write_shards(tmp_path, [[1, 2], [3]], "u8"))
    assert index.counts([]).tolist() == []
    assert index.document_counts([]).tolist() == []
    assert index.cooccurrences([]).tolist() == []
    with pytest.raises(ValueError, match="query 1 holds no tokens, expected at least one"):
        index.counts([[1], []])
    with pytest.raises(ValueError, match="query 2: token 255 is not in the vocabulary, expected 0 to 254"):
        index.counts([[1], [2, 3], [1, 255]])
    with pytest.raises(ValueError, match="query 0: token -1"):
        index.counts(np.array([[-1, 2]]))
    for wrong in ([[1.0]], np.array([[1.0]])):
        with pytest.raises(TypeError):
            index.counts(wrong)  # type: ignore[arg-type]


def test_long_contexts_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suffixes of all lengths up to a whole document, some beyond what stands there."""
    generator = np.random.default_rng(0)
    documents = generator.integers(0, 3, size=(4, 70)).tolist()
    rows = [
        [*generator.integers(0, 3, size=generator.integers(0, 9)).tolist(), *documents[number % 4][first:last]]
        for number, (first, last) in enumerate(np.sort(generator.integers(0, 71, size=(80, 2))).tolist())
    ]
    tokens = generator.integers(0, 4, size=len(rows)).tolist()
    for name in ("u8", "u16", "u32"):
        index = open_index(write_shards(tmp_path / name, documents, name, cuts=[1]))
        singles = [index.infgram_probability(*query) for query in zip(rows, tokens, strict=True)]
        assert max(single.suffix for single in singles) > 40
        for block in (1, 100, 2**20):
            monkeypatch.setattr(infgram, "BLOCK", block)
            batch = index.infgram_probabilities(rows, tokens)
            assert batch.suffix.tolist() == [single.suffix for single in singles]
            assert batch.occurrences.tolist() == [single.occurrences for single in singles]
            assert batch.probability.tolist() == [single.probability for single in singles]
    with pytest.raises(ValueError, match="found 1 tokens for 2 contexts, expected one for each"):
        index.infgram_probabilities([[1], [2]], [1])
    with pytest.raises(ValueError, match="query 1: token 65535 is not in the vocabulary"):
        open_index(tmp_path / "u16").infgram_probabilities([[1], [2]], [1, 65535])
    assert index.infgram_probabilities([], []).probability.tolist() == []


def test_decoding_is_the_way_back(tmp_path: Path) -> None:
    index = open_index(write_shards(tmp_path, [list("Fäden".encode())], "u8"))
    assert index.decode(index.encode("Fäden 🧵")) == "Fäden 🧵"
    assert index.decode(index.encode("ä")[:1]) == "\ufffd"
