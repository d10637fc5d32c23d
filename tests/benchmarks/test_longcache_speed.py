"""LongCache's benchmark of speed at tiny sizes: its rows, its arithmetic, and that wrong results stop it."""

from dataclasses import replace

import longcache_speed
import pytest
import torch
from random_llama import Shape

from longloom.kernels.kvcache.held_scope import HeldScope
from longloom.kernels.kvcache.key_blocks import KeyBlocks
from longloom.kernels.kvcache.longcache import LongCachePolicy

SHAPE = Shape(1, 32, 48, 4, 2, 16, 64)
EXACT = LongCachePolicy(sink=4, local=40, spans=5, span=8, k=4, chunk=16)
POLICIES = {
    "exact": EXACT,
    "int8 copy": replace(EXACT, scoring="int8"),
    "block summaries": replace(EXACT, summary=8),
    "reuse of 3": replace(EXACT, reuse=3),
}
PROMPTS = {"exact": EXACT, "block summaries": replace(EXACT, summary=8), "nothing": replace(EXACT, local=80, spans=0)}


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def test_a_decode_steps_rows():
    rows = longcache_speed.decode_rows(SHAPE, 700, 2, POLICIES)
    assert [row["way"] for row in rows] == list(POLICIES)
    assert rows[2]["name"] == "decode step, 700 tokens: block summaries | full attention"
    for row in rows:
        assert row["ratio"] == sorted(row["ratio"])
        assert row["full_ms"] == rows[0]["full_ms"] > 0
        assert row["ours_ms"] > 0
        assert row["selection_ms"] > 0


def test_planted_keys_are_found_and_taken_away():
    tokens = longcache_speed.Tokens.random(SHAPE, 300, 4, asked=4)
    before = tokens.key.clone()
    with longcache_speed.planted(EXACT, tokens):
        changed = (tokens.key != before).any(-1)[0]
        assert changed.sum(-1).tolist() == [8, 8]
        assert not changed[:, :4].any()
        assert not changed[:, 260:].any()
        best = (tokens.query[0, 3, 0] @ tokens.key[0, 1].T).topk(4)
        assert changed[1, best.indices].all()
        assert best.values.tolist() == pytest.approx([8 * float(tokens.query[0, 3, 0] @ tokens.query[0, 3, 0])] * 4)
    assert torch.equal(tokens.key, before)


def _wrong_spans(monkeypatch):
    choose = LongCachePolicy.choose
    monkeypatch.setattr(LongCachePolicy, "choose", lambda p, *given: choose(replace(p, span=p.span - 2), *given))


def _wrong_blocks(monkeypatch):
    votes = KeyBlocks.votes
    monkeypatch.setattr(KeyBlocks, "votes", lambda blocks, query, *given: votes(blocks, -query, *given))


def _nothing_new(monkeypatch):
    append = HeldScope.append
    monkeypatch.setattr(HeldScope, "append", lambda held, key, value, *given: append(held, key, 0 * value, *given))


@pytest.mark.parametrize(
    ("break_it", "what"), [(_wrong_spans, "exact"), (_wrong_blocks, "block summaries"), (_nothing_new, "reuse of 3")]
)
def test_no_speed_is_told_of_a_wrong_step(break_it, what, monkeypatch):
    break_it(monkeypatch)
    with pytest.raises(SystemExit, match=rf"^{what}: the two ways disagree"):
        longcache_speed.decode_rows(SHAPE, 700, 1, POLICIES)


def test_a_prompts_rows():
    rows = longcache_speed.prompt_rows(SHAPE, [160, 320, 640], 2, PROMPTS, 208)
    assert rows[1]["name"] == "prompt of 160 to 640 tokens: block summaries"
    for row in rows:
        assert row["seconds"] == sorted(row["seconds"])
        assert row["lengths"] == [160, 320, 640]
    assert len(rows[0]["selection_s"]) == 3
    assert "selection_s" not in rows[2]


def test_no_time_is_told_of_a_wrong_prompt(monkeypatch):
    _wrong_blocks(monkeypatch)
    with pytest.raises(SystemExit, match=r"^prompt, block summaries: the two ways disagree"):
        longcache_speed.prompt_rows(SHAPE, [160, 320], 1, PROMPTS, 208)


def test_exponents_are_slopes_of_logarithms():
    assert longcache_speed.exponent([10, 20, 40], [3.0, 12.0, 48.0]) == pytest.approx(2)
    # An outlier in the middle does not turn the line.
    assert longcache_speed.exponent([1, 10, 100], [1.0, 100.0, 100.0]) == pytest.approx(1)


def test_claims():
    ways = {"exact": 1.6, "int8 copy": 9.0, "block summaries": 4.2, "reuse of 8": 5.0}
    decoded = {64: [{"way": way, "ratio": [0.1, median, 99.0]} for way, median in ways.items()]}
    prompts = [{"name": "a prompt", "exponent": 1.2}]
    found = [(claim["found"], claim["holds"]) for claim in longcache_speed.claims(decoded, prompts)]
    assert found == [(1.6, True), (5.0, True), (1.2, False)]
