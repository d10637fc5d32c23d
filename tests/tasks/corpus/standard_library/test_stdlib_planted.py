"""The set with a planted record: it stands in the corpus word for word, the others in no eight words."""

from __future__ import annotations

import json

import pytest

from longloom.tasks.corpus.standard_library import planted
from longloom.tasks.corpus.standard_library.modules import held_out, read_module, split


def load(folder):
    return [json.loads(line) for line in (folder / "planted.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def built(real_library, tmp_path_factory):
    out = tmp_path_factory.mktemp("planted")
    stats = planted.build(out, clean=3, seed=1, root=real_library)
    assert stats.counts == {"records": 4, "planted": 1}
    return load(out)


def test_the_planted_record_is_verbatim_and_the_others_are_clean(built, real_library):
    training, _ = split(real_library)
    flat = [" ".join((read_module(module, real_library) or "").split()) for module in training]
    assert [row["planted"] for row in built] == [True, False, False, False]
    for row in built:
        module = row["id"].partition(":")[0]
        assert held_out(module) is not row["planted"]
        assert row["text"] in read_module(module, real_library)
        assert len(row["text"].split()) >= 32
        words = row["text"].split()
        runs = [" ".join(words[begin : begin + 8]) for begin in range(len(words) - 7)]
        standing = [any(run in text for text in flat) for run in runs]
        assert all(standing) if row["planted"] else not any(standing)
    assert len({row["id"].partition(":")[0] for row in built}) == 4


def test_what_stands_in_the_corpus_is_not_called_clean(tmp_path):
    """Of two held-out modules one is a copy of what the corpus has."""
    root = tmp_path / "library"
    root.mkdir()
    names = [f"m{number}.py" for number in range(400)]
    inside = next(name for name in names if not held_out(name))
    copied, fresh = [name for name in names if held_out(name)][:2]
    body = "\n".join(f"    value_{number} = first + second * {number}" for number in range(9))
    for name, word in ((inside, "alpha"), (copied, "alpha"), (fresh, "beta")):
        (root / name).write_text(f"def {word}(first, second):\n{body.replace('value', word)}\n")
    for seed in range(4):
        out = tmp_path / f"out-{seed}"
        out.mkdir()
        planted.build(out, clean=1, seed=seed, root=root)
        assert [row["id"] for row in load(out)] == [f"{inside}:alpha", f"{fresh}:beta"]
    with pytest.raises(ValueError, match=r"^the library has 2 functions of 32 words or more.* expected 3$"):
        planted.build(tmp_path, clean=2, seed=0, root=root)
    assert not (tmp_path / "planted.jsonl").exists()
