"""RazorAttention's benchmark on a CPU at tiny sizes: its rows, its arithmetic, and that wrong results stop it."""

from dataclasses import replace

import pytest
import razorattention
import torch
from random_llama import Shape

from longloom.kernels.kvcache.razor import RazorPolicy

SHAPE = Shape(3, 32, 48, 4, 2, 16, 64)
POLICY = RazorPolicy(window=100)


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def test_a_decode_steps_rows():
    full, sdpa = razorattention.decode_rows(SHAPE, 1500, 2, POLICY)
    assert full["name"] == f"decode step, 1500 tokens, 3 layers: razor {full['smaller']}x | full cache"
    assert sdpa["name"].endswith("| torch SDPA on the full cache")
    assert full["target"] == {
        "found": full["ratio"][1],
        "at_least": 2.2,
        "met": full["ratio"][1] >= 2.2,
    }
    assert full["smaller"] > 1.5
    assert len(full["room_ms_a_token"]) == 2
    assert sdpa["ratio"] == sorted(sdpa["ratio"])


@pytest.mark.parametrize(
    ("wrong", "what"), [({"compensate": False}, "razor, by hand"), ({"window": 3000}, "all heads protected")]
)
def test_no_speed_is_told_of_a_wrong_cache(monkeypatch, wrong, what):
    keep = RazorPolicy.keep

    def kept(policy, prompt, rope):
        if "compensate" in wrong:
            policy = replace(policy, **wrong)
        elif policy.induction == 1.0:
            policy = replace(policy, induction=0.0)
        return keep(policy, prompt, rope)

    monkeypatch.setattr(RazorPolicy, "keep", kept)
    with pytest.raises(SystemExit, match=what):
        razorattention.decode_rows(SHAPE, 1500, 2, POLICY)


def test_bytes_beside_the_papers_arithmetic():
    policy = RazorPolicy()
    shares = [razorattention.kept_share(policy, tokens, 0.15) for tokens in (32_768, 20_000, 8000, 4000, 100)]
    assert shares == pytest.approx([0.32, 0.32, 0.575, 1.0, 1.0])
    [row] = razorattention.bytes_rows(SHAPE, [64_000], replace(POLICY, window=640))
    assert row["full"] == 3 * 2 * 2 * 64_000 * 16 * 4
    assert row["predicted_share"] == pytest.approx(2 / 6 + 4 / 6 / 5, abs=1e-4)
    assert row["share"] == pytest.approx(row["predicted_share"], rel=0.02)
    assert row["target"]["met"]
    assert row["smaller"] == pytest.approx(1 / row["share"], rel=1e-3)


def test_resident_memory_is_that_of_the_call():
    kept = torch.ones(4_000_000)  # before it
    found, seconds, extra = razorattention.resident(lambda: float(torch.ones(20_000_000).sum()))
    assert found == 2e7
    assert seconds > 0
    assert 75e6 < extra < 120e6
    assert kept.sum() == 4e6


def test_the_dense_scores_are_the_definition():
    query, key = torch.randn(2, 12, 16)
    logits = (query @ key.T * 0.3).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
    weights = logits.softmax(-1)
    for offset, found in enumerate(razorattention.dense_scores(query, key, 3, 0.3).tolist()):
        sums = [sum(float(weights[1 + r, 1 + c + offset]) for c in range(r - 3, -1, -3)) for r in range(3, 11)]
        assert found == pytest.approx(sum(sums) / len(sums), rel=1e-5)


def test_a_profiles_rows():
    probe, profile = razorattention.profile_rows(replace(SHAPE, layers=8), 2, 40, 4, (0, 1))
    assert probe["name"] == "head probe of a layer, 161 tokens, 4 heads"
    assert probe["one_matrix_bytes"] == 4 * 161 * 161
    assert profile["name"] == "head profile, 161 tokens, 2 of 8 layers of a 1B model"
    assert profile["all_layers_s"] == pytest.approx(4 * profile["seconds"][1], abs=0.06)
    assert profile["seconds"] == sorted(profile["seconds"])
    assert profile["target"]["at_most"] == 2.2


def test_no_time_is_told_of_a_wrong_probe(monkeypatch):
    monkeypatch.setattr(razorattention, "dense_scores", lambda *given: torch.tensor([0.5, 0.5]))
    with pytest.raises(SystemExit, match="head probe, dense"):
        razorattention.profile_rows(SHAPE, 1, 20, 4, (0,))


def test_compressions_share_of_a_prefill():
    row = razorattention.compression_row(replace(SHAPE, layers=9), 3, 700, 2, POLICY)
    assert row["name"] == "compression after a prefill, 700 tokens, 3 of 9 layers of a 1B model"
    assert row["share"] == sorted(row["share"])
    assert row["target"]["found"] == row["share"][2]


def test_no_share_is_told_of_a_wrong_compression(monkeypatch):
    compress = RazorPolicy.compress
    monkeypatch.setattr(
        RazorPolicy, "compress", lambda policy, prompt, rope: compress(replace(policy, sink=0), prompt, rope)
    )
    with pytest.raises(SystemExit, match="compression: kept"):
        razorattention.compression_row(SHAPE, 2, 700, 1, POLICY)


@pytest.mark.parametrize(
    ("found", "most", "met"), [(2.0, False, True), (2.0, True, True), (1.9, False, False), (2.1, True, False)]
)
def test_targets(found, most, met):
    assert razorattention.held_to({}, found, 2.0, most=most)["target"]["met"] is met
