"""The random projection: its statistics, and that a sign depends on seed and coordinate alone."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longloom.tasks.coreset import projection
from longloom.tasks.coreset.projection import Projection, signs

DIGEST = (
    "import hashlib; from longloom.tasks.coreset.projection import signs; "
    "print(hashlib.sha256(signs(1000, 1300, dimension=513, seed=7).astype('<f4').tobytes()).hexdigest())"
)


@settings(max_examples=40, deadline=None)
@given(
    dimension=st.integers(1, 600),
    seed=st.integers(0, 2**128 - 1),
    cuts=st.lists(st.integers(0, 90), min_size=2, max_size=5),
)
def test_any_blocks_give_the_same_signs(dimension: int, seed: int, cuts: list[int]) -> None:
    whole = signs(0, 90, dimension=dimension, seed=seed)
    edges = [0, *sorted(cuts), 90]
    pieces = [signs(a, b, dimension=dimension, seed=seed) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert whole.dtype == np.float32
    assert set(np.unique(whole)) <= {-1.0, 1.0}


def test_the_stream_is_pinned() -> None:
    """Stored features are compared across machines and versions: the signs may never change."""
    digest = hashlib.sha256(signs(0, 1000, dimension=1024, seed=0).astype("<f4").tobytes()).hexdigest()
    assert digest == "0c12ec8e78bb1859127b095eb94ba9cbfafe3c7c305d7281c4b387981103909d"


def test_another_process_makes_the_same_signs() -> None:
    here = hashlib.sha256(signs(1000, 1300, dimension=513, seed=7).astype("<f4").tobytes()).hexdigest()
    assert (
        subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout.strip()
        == here
    )


def test_seeds_and_coordinates_differ() -> None:
    a, b = signs(0, 500, dimension=512, seed=0), signs(0, 500, dimension=512, seed=1)
    assert abs((a * b).mean()) < 0.01
    gram = a @ a.T / 512
    assert np.abs(gram - np.eye(500)).max() < 6 / np.sqrt(512)
    assert abs(a.mean()) < 0.01


def test_inner_products_are_kept_on_average() -> None:
    """Over seeds, <Pu, Pv> has mean <u, v> and deviation at most sqrt(2 / d) |u| |v|."""
    rng = np.random.default_rng(3)
    u, v = rng.normal(size=(2, 400))
    v += 0.5 * u
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    dimension, seeds = 128, 200
    pair = torch.tensor(np.stack([u, v]), dtype=torch.float32)
    found = np.array([float(torch.dot(*Projection(400, dimension, seed=seed)(pair))) for seed in range(seeds)])
    deviation = np.sqrt(2 / dimension)
    assert abs(found.mean() - u @ v) < 4 * deviation / np.sqrt(seeds)
    assert found.std() < 1.3 * deviation


def test_the_error_falls_with_the_root_of_the_dimension() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(40, 1000))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = vectors @ vectors.T
    errors = {}
    for dimension in (256, 4096):
        rows = Projection(1000, dimension, seed=0)(torch.tensor(vectors, dtype=torch.float32)).numpy()
        errors[dimension] = np.sqrt(((rows @ rows.T - exact) ** 2).mean())
        assert 0.7 < errors[dimension] * np.sqrt(dimension) < 1.4
    assert 3 < errors[256] / errors[4096] < 5.5


def test_equals_the_plain_product() -> None:
    vectors = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    matrix = signs(0, 300, dimension=70, seed=2) / np.sqrt(70)
    torch.testing.assert_close(Projection(300, 70, seed=2)(vectors), vectors @ torch.from_numpy(matrix).float())


def test_a_matrix_that_is_not_kept_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "BLOCK_SIGNS", 1 << 12)  # several blocks
    vectors = torch.randn(6, 900, generator=torch.Generator().manual_seed(0))
    kept = Projection(900, 64, seed=0)
    monkeypatch.setattr(projection, "KEEP_BYTES", 0)
    made = Projection(900, 64, seed=0)
    assert kept.kept
    assert not made.kept
    assert torch.equal(kept(vectors), made(vectors))


@pytest.mark.parametrize(("dimension", "seed", "word"), [(0, 0, "dimension"), (-3, 0, "dimension"), (4, -1, "seed")])
def test_bad_parameters_are_named(dimension: int, seed: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Projection(10, dimension, seed=seed)
