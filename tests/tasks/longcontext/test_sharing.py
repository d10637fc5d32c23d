"""Prefills shared in an evaluation, by KV policies and by prompts that begin alike, give the same bytes as alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import longloom.evals.beginnings as beginnings
import longloom.evals.lm as lm_module
import longloom.kernels.huggingface.reading as reading
from longloom.evals.beginnings import alike, common_beginning
from longloom.evals.ledger import Ledger
from longloom.evals.lm import PolicyLM
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy
from longloom.storage.manifest import MANIFEST
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store
from longloom.tasks.longcontext.backends import LEDGER, Companion, PolicyBackend
from longloom.tasks.longcontext.evaluate import build
from longloom.tasks.stage import _Plan, _run

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
SWEEP: dict[str, dict[str, Any]] = {
    "full": {},
    "snapkv": {"budget": 40, "window": 8},
    "recent": {"budget": 40},
    "knorm": {"budget": 40},
}
SETTINGS: dict[str, Any] = {
    "suite": "records",
    "tasks": None,
    "suite_options": {},
    "limit": None,
    "max_length": None,
    "batch_size": 2,
    "seed": 0,
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (beginnings, reading):
        monkeypatch.setattr(module, "CHUNK", 16)


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> Loaded:
    return load_model(model_folder, device="cpu")


def array(*ids: int) -> Any:
    return np.array(ids, dtype=np.int32)


def test_the_common_beginning_is_whole_chunks_and_worth_it() -> None:
    document = np.arange(40, dtype=np.int32)
    one, other = np.append(document, array(1, 2)), np.append(document, array(3))
    assert common_beginning([one, other]) == 32
    assert common_beginning([one, other, np.append(document[:20], array(9))]) == 0  # 16 of 42 tokens are too few
    assert common_beginning([document[:16], document[:17]]) == 0  # a token of each must stay outside
    assert common_beginning([document[:17], document[:17]]) == 16
    assert common_beginning([one]) == 32


def test_groups_of_prompts_that_begin_alike() -> None:
    first, second = np.arange(64, dtype=np.int32), np.arange(64, dtype=np.int32)[::-1].copy()
    prompts = [
        np.append(second, array(5)),
        np.append(first, array(7)),
        array(1, 2, 3),
        np.append(second, array(4, 4)),
        np.append(first, array(6)),
        np.append(first[:50], array(99)),
        np.append(second, array(5)),
    ]
    assert alike(prompts) == [[0, 3, 6], [1, 4, 5], [2]]
    assert alike([]) == []


def instances(texts: list[str]) -> list[Instance]:
    return [
        Instance("generate_until", {}, (text, {"max_gen_toks": 9}), 0, metadata=("task", number, 1))
        for number, text in enumerate(texts)
    ]


def build_lm(loaded: Loaded, name: str, **change: Any) -> PolicyLM:
    return PolicyLM(*loaded, get_policy(name, **SWEEP[name]), **{"batch_size": 3, "max_length": None, **change})


TEXTS = [*(f"the key of the value is {'x' * 40} question {n}" for n in range(4)), "short", "key " * 30]


@pytest.mark.parametrize("name", list(SWEEP))
def test_questions_on_one_document_read_it_once(
    loaded: Loaded, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reads: list[int] = []
    real = lm_module.read_prefix

    def note(*args: Any, **options: Any) -> Any:
        reads.append(options["prompts"])
        return real(*args, **options)

    monkeypatch.setattr(lm_module, "read_prefix", note)
    ledger = Ledger(tmp_path / "a", {})
    together = build_lm(loaded, name, ledger=ledger).generate_until(instances(TEXTS))
    assert reads == [4]
    for number, text in enumerate(TEXTS[:4]):
        assert build_lm(loaded, name).generate_until(instances([text])) == [together[number]]
    # Taken up again, nothing is generated, and nothing is read.
    monkeypatch.setattr(lm_module, "generate", lambda *args, **options: pytest.fail("generated again"))
    assert build_lm(loaded, name, ledger=Ledger(tmp_path / "a", {})).generate_until(instances(TEXTS)) == together
    assert reads == [4]


def test_companions_get_the_answers_that_they_would_give(loaded: Loaded, tmp_path: Path) -> None:
    names = list(SWEEP)
    ledgers = {name: Ledger(tmp_path / name, {}) for name in names}
    companions = {get_policy(name, **SWEEP[name]): ledgers[name] for name in names[1:]}
    first = build_lm(loaded, names[0], ledger=ledgers[names[0]], companions=companions)
    replies = {names[0]: first.generate_until(instances(TEXTS))}
    for name in names[1:]:
        alone = build_lm(loaded, name, ledger=Ledger(tmp_path / f"alone-{name}", {}))
        replies[name] = alone.generate_until(instances(TEXTS))
        for which in (name, f"alone-{name}"):
            lines = Ledger(tmp_path / which, {})
            assert len(lines._rows) == len(TEXTS)
        shared = {key: row["text"] for key, row in ledgers[name]._rows.items()}
        assert shared == {key: row["text"] for key, row in alone._ledger._rows.items()}  # type: ignore[union-attr]
    assert len({tuple(found) for found in replies.values()}) == 4


def test_a_companion_that_fails_costs_only_itself(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build_lm(loaded, "full").generate_until(instances(TEXTS))
    broken = get_policy("knorm", budget=40)
    monkeypatch.setattr(type(broken), "scores", lambda *args: (_ for _ in ()).throw(MemoryError("too large")))
    ledger = Ledger(tmp_path / "broken", {})
    lm = build_lm(loaded, "full", companions={broken: ledger})
    assert lm.generate_until(instances(TEXTS)) == expected
    assert not any(outcome.error for outcome in lm.outcomes.values())
    assert ledger._rows == {}


def test_a_policy_that_changes_the_prefill_takes_no_companions(loaded: Loaded, tmp_path: Path) -> None:
    streaming = get_policy("streaming", sink=2, window=9)
    with pytest.raises(ValueError, match="KV policy 'streaming' changes the prefill and shares it with no other"):
        build_lm(loaded, "full", companions={streaming: Ledger(tmp_path / "a", {})})


RAZOR = {"induction": 0.25, "echo": 0.0, "window": 20, "compression": 4.0}


@pytest.mark.parametrize("order", [("full", "razor"), ("razor", "full")])
def test_a_policy_with_a_head_profile_shares_too(
    model_folder: Path, records_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    profile = profile_of(model_folder)
    options: dict[str, Any] = {"full": {}, "razor": RAZOR}
    outs = {f"{how}-{name}": tmp_path / f"{how}-{name}" for how in ("alone", "shared") for name in order}
    for out in outs.values():
        out.mkdir()
    for name in order:
        backend = PolicyBackend(model_folder, name, options[name], device="cpu", heads=profile)
        build(backend, records_folder, outs[f"alone-{name}"], **SETTINGS)
    first, second = order
    companion = Companion(second, options[second], outs[f"shared-{second}"])
    first_backend = PolicyBackend(model_folder, first, options[first], "cpu", None, [companion], profile)
    build(first_backend, records_folder, outs[f"shared-{first}"], **SETTINGS)
    monkeypatch.setattr(lm_module, "generate", lambda *args, **options: pytest.fail("generated again"))
    backend = PolicyBackend(model_folder, second, options[second], device="cpu", heads=profile)
    build(backend, records_folder, outs[f"shared-{second}"], **SETTINGS)
    for name in order:
        assert result(outs[f"shared-{name}"]) == result(outs[f"alone-{name}"])
    assert result(outs["alone-full"]) != result(outs["alone-razor"])


def test_a_ledger_of_another_head_profile_is_not_taken(
    model_folder: Path, records_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same heads in another order: other ones are protected."""
    calls: list[int] = []
    real = lm_module.generate

    def note(*args: Any, **options: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(lm_module, "generate", note)
    profile = profile_of(model_folder)
    other = replace(profile, induction=profile.induction[::-1])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        build(PolicyBackend(model_folder, "razor", RAZOR, "cpu", heads=profile), records_folder, out, **SETTINGS)
    calls.extend(range(10))
    before = len(calls)
    build(PolicyBackend(model_folder, "razor", RAZOR, "cpu", heads=other), records_folder, out, **SETTINGS)
    assert len(calls) == before + 6  # all batches


@pytest.mark.parametrize("name", ["razor", "full"])
def test_a_profile_of_another_model_is_refused_before_anything_is_generated(
    model_folder: Path, records_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(lm_module, "generate", lambda *args, **options: pytest.fail("generated"))
    wrong = replace(profile_of(model_folder), weights="0123456789abcdef")
    backend = PolicyBackend(model_folder, name, {}, device="cpu", heads=wrong)
    message = r"^the head profile was made of weights 0123456789ab, this model has [0-9a-f]{12}; `longloom heads` makes"
    with pytest.raises(ValueError, match=message):
        build(backend, records_folder, tmp_path, **SETTINGS)


def profile_of(model_folder: Path) -> HeadProfile:
    """Made up: the first KV head of the second layer is the strongest."""
    model, _ = load_model(model_folder, device="cpu")
    scores = ((0.1, 0.2), (0.9, 0.3))
    return HeadProfile(source="probe", weights=fingerprint(model), induction=scores, settings=(("list", [1]),))


def result(folder: Path) -> list[bytes]:
    return [(folder / f"{table}.parquet").read_bytes() for table in ("samples", "scores")]


def test_an_evaluation_finds_what_another_did_for_it(
    model_folder: Path, records_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs = {}
    for name, options in SWEEP.items():
        outs[name] = tmp_path / f"alone-{name}"
        outs[name].mkdir()
        build(PolicyBackend(model_folder, name, options, device="cpu"), records_folder, outs[name], **SETTINGS)
    shared = {name: tmp_path / f"shared-{name}" for name in SWEEP}
    for folder in shared.values():
        folder.mkdir()
    names = list(SWEEP)
    companions = [Companion(name, SWEEP[name], shared[name]) for name in names[1:]]
    first = PolicyBackend(model_folder, names[0], SWEEP[names[0]], device="cpu", companions=companions)
    build(first, records_folder, shared[names[0]], **SETTINGS)
    monkeypatch.setattr(lm_module, "generate", lambda *args, **options: pytest.fail("generated again"))
    for name in names[1:]:
        assert (shared[name] / LEDGER).exists()
        build(PolicyBackend(model_folder, name, SWEEP[name], device="cpu"), records_folder, shared[name], **SETTINGS)
    for name in names:
        assert result(shared[name]) == result(outs[name])
        assert not (shared[name] / LEDGER).exists()


def test_siblings_are_opened_unless_they_are_there_or_being_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGLOOM_QUIET", "1")
    store = Store(tmp_path / "store")
    opened: dict[str, Any] = {}

    def body(work: Any, *, policy: str, together: list[str]) -> Any:
        from longloom.storage.stats import Stats

        for other in together:
            with work.sibling({"heads": "e" * 64 if other == "p" else None}, policy=other) as folder:
                opened[other] = folder
                if folder is not None:
                    (folder / "left").write_text(f"by {policy}")
        (work.out / "answer").write_text(policy)
        text = (work.out / "left").read_text() if (work.out / "left").exists() else ""
        (work.out / "left").unlink(missing_ok=True)
        return Stats(counts={"found": len(text)}, values={"left": text})

    plan = _Plan(body, "sweep", "sweep", 1, frozenset({"together"}), resumable=True)

    def go(policy: str, together: list[str]) -> ArtifactRef:
        parameters: Mapping[str, Any] = {"policy": policy, "together": together}
        identity = {"data": "d" * 64} | ({"heads": "e" * 64} if policy == "p" else {})
        return _run(plan, store, {}, f"sweep-{policy}", identity, dict(parameters))

    go("a", ["b", "c"])
    assert opened["b"].parent == opened["c"].parent == store.root / "work"
    ref = go("b", ["a", "c"])
    assert opened["a"] is None  # in the store
    assert opened["c"] is not None
    assert store.verify(store.open(ref)).values == {"left": "by a"}
    key = opened["c"].name.removeprefix("sweep-")
    with store.lock("sweep", key):
        go("d", ["c"])
    assert opened["c"] is None  # being built
    assert not (store.open(ref) / LEDGER).exists()
    assert (store.open(ref) / MANIFEST).exists()
    # One that has an input of its own is found by the others, and finds them.
    go("e", ["p"])
    assert store.verify(store.open(go("p", ["f"]))).values == {"left": "by e"}
    assert store.verify(store.open(go("f", []))).values == {"left": "by p"}
