"""Scores of prompts by hand; both directions of a model that rewrites; what fails and what is taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from longloom.evals.endpoint import Endpoint
from longloom.storage.stats import Stats
from longloom.tasks.sources.located import open_corpus
from longloom.tasks.sources.prompts import LEDGER, build, score

from ...chat_server import Asked, ChatServer
from .conftest import MakeIndex

DOCUMENTS = ["answer the question now. answer the question again.", "answer the question now, or solve the puzzle"]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    running = ChatServer()
    yield running
    running.close()


def client(server: ChatServer) -> Endpoint:
    return Endpoint(base_url=server.url, model="m", api="chat", timeout=10, retries=0, at_once=1, per_minute=None)


def ranked(index: Path, out: Path, **changes: Any) -> tuple[Stats, list[dict[str, Any]]]:
    out.mkdir(exist_ok=True)
    candidates = changes.pop("candidates", None)
    options: dict[str, Any] = {"prompt": None, "n": 3, "rounds": 0, "client": None}
    stats = build(index, candidates, out, **{**options, **changes})
    rows: list[dict[str, Any]] = pq.read_table(out / "prompts.parquet").to_pylist()
    return stats, rows


def test_a_score_is_the_mean_over_all_ngrams(make_index: MakeIndex) -> None:
    found = score(open_corpus(make_index(DOCUMENTS, "bytes")), "answer the question kindly", 3)
    # "answer the question" 3 times in 2 documents, "the question kindly" never
    assert found == (2, 1, 1.5, 1.0)
    assert score(open_corpus(make_index(DOCUMENTS, "bytes")), "too short", 3) == (0, 0, None, None)


def test_the_first_words_of_a_prompt_are_looked_up_as_within_a_line(make_index: MakeIndex) -> None:
    corpus = open_corpus(make_index(DOCUMENTS, "bpe"))
    assert score(corpus, "the question", 2) == (1, 0, 3, 2)
    assert score(corpus, "answer the question", 3) == (1, 0, 3, 2)  # one document has it at its beginning and within
    assert score(corpus, "answer a question", 3) == (1, 1, 0, 0)


def test_a_chinese_prompt_has_ngrams_of_characters(make_index: MakeIndex) -> None:
    corpus = open_corpus(make_index(["请回答问题。", "请回答这个问题"], "bytes"))
    assert score(corpus, "请回答问题", 3) == (3, 0, 4 / 3, 4 / 3)  # 请回答 in both documents, the others in one


def test_candidates_are_ranked_from_frequent_to_rare(make_index: MakeIndex, tmp_path: Path) -> None:
    path = tmp_path / "candidates.txt"
    path.write_text("solve the puzzle\n\nunheard of words\nanswer the question\nno\nsolve the puzzle\n")
    stats, rows = ranked(make_index(DOCUMENTS, "bytes"), tmp_path / "out", candidates=path)
    expected = ["answer the question", "solve the puzzle", "unheard of words", "no"]
    assert [row["prompt"] for row in rows] == expected
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["mean_count"] for row in rows] == [3, 1, 0, None]
    assert stats.counts == {"prompts": 4, "too_short": 1, "failed": 0}
    assert (stats.values["most_frequent"], stats.values["rarest"]) == ("answer the question", "unheard of words")


def test_a_model_is_asked_in_both_directions_and_told_the_scores(
    make_index: MakeIndex, tmp_path: Path, server: ChatServer
) -> None:
    def answer(asked: Asked) -> str:
        higher = "higher" in asked.messages[0]["content"]
        return '"answer the question"' if higher else "solve\nthe riddle"

    server.answer = answer
    index = make_index(DOCUMENTS, "bytes")
    stats, rows = ranked(index, tmp_path / "out", prompt="solve the puzzle", rounds=2, client=client(server))
    assert [(row["prompt"], row["origin"], row["round"]) for row in rows] == [
        ("answer the question", "frequent", 1),
        ("solve the puzzle", "prompt", None),
        ("solve the riddle", "rare", 1),
    ]
    assert len(server.asked) == 4
    assert "solve the puzzle\nscore: 1.00" in server.asked[0].prompt
    assert "answer the question\nscore: 3.00" in server.asked[1].prompt
    assert stats.volatile == ()
    assert not (tmp_path / "out" / LEDGER).exists()


def test_a_failed_rewrite_ends_its_direction_and_what_is_there_is_kept(
    make_index: MakeIndex, tmp_path: Path, server: ChatServer
) -> None:
    def answer(asked: Asked) -> str | tuple[int, str]:
        return "answer the question" if "higher" in asked.messages[0]["content"] else (400, "no")

    server.answer = answer
    index = make_index(DOCUMENTS, "bytes")
    options: dict[str, Any] = {"prompt": "solve the puzzle", "rounds": 1}
    stats, rows = ranked(index, tmp_path / "out", **options, client=client(server))
    assert stats.counts["failed"] == 1
    assert stats.volatile == (LEDGER,)
    assert len(rows) == 2
    server.answer = lambda asked: "solve the riddle"
    before = len(server.asked)
    stats, rows = ranked(index, tmp_path / "out", **options, client=client(server))
    assert len(server.asked) == before + 1  # only what had failed
    assert [row["origin"] for row in rows] == ["frequent", "prompt", "rare"]


def test_nothing_to_rank_and_nothing_rewritten_are_refused(
    make_index: MakeIndex, tmp_path: Path, server: ChatServer
) -> None:
    index = make_index(DOCUMENTS, "bytes")
    with pytest.raises(ValueError, match="none of 1 prompts has 3 words"):
        ranked(index, tmp_path / "short", prompt="hello")
    server.answer = lambda asked: " "
    with pytest.raises(ValueError, match="no rewrite succeeded, the first failed with: the answer is blank"):
        ranked(index, tmp_path / "blank", prompt="solve the puzzle", rounds=1, client=client(server))
