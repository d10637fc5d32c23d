"""The form models: defaults hold wherever only some fields are given, and what is out of range is refused."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from longloom.flows.model import is_small
from longloom.flows.params import (
    SMALL,
    STAGES,
    CorpusParams,
    FinetuneParams,
    IndexParams,
    InstructionsParams,
    ModelParams,
    Params,
    PretrainParams,
)
from longloom.flows.params_coreset import CoresetParams
from longloom.flows.params_evaluate import EvaluateParams, HeadsParams, parse_policy
from longloom.flows.params_extend import ExtendParams
from longloom.flows.params_pipeline import PipelineFinetuneParams, PipelineParams
from longloom.flows.params_tune import TuneParams
from longloom.storage.refs import ArtifactRef

ALL = (
    *(CorpusParams, IndexParams, ModelParams, PretrainParams, InstructionsParams),
    *(CoresetParams, FinetuneParams, TuneParams, EvaluateParams, HeadsParams, PipelineParams),
)


@pytest.mark.parametrize("model", ALL)
def test_every_field_has_a_default_and_a_description(model: type[Params]) -> None:
    defaults = model()
    for name, field in model.model_fields.items():
        assert field.description or isinstance(getattr(defaults, name), Params), name
    assert model.model_validate(json.loads(defaults.model_dump_json())) == defaults


@pytest.mark.parametrize("model", ALL)
def test_unknown_fields_are_refused_and_values_stay(model: type[Params]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate({"sourcs": 1})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model(), next(iter(model.model_fields)), None)


def test_a_part_of_a_nested_form_leaves_the_pipelines_own_defaults() -> None:
    whole = PipelineParams()
    part = PipelineParams.model_validate({"evaluate": {"limit": 3}, "index": {"threads": 1}})
    assert part.evaluate == whole.evaluate.model_copy(update={"limit": 3})
    assert part.index == whole.index.model_copy(update={"threads": 1})
    assert (part.evaluate.suite, part.index.tokenizer) == ("records", "base")
    assert PretrainParams(size="1m").source == "scratch"


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (CorpusParams, "sources", []),
        (CorpusParams, "on_bad_record", "ignore"),
        (IndexParams, "vocab_size", 259),
        (IndexParams, "threads", 0),
        (IndexParams, "memory_gib", 0),
        (IndexParams, "memory_gib", float("inf")),
        (ModelParams, "source", ""),
        (ModelParams, "tokens", 9_999),
        (ModelParams, "seed", -1),
        (PretrainParams, "source", ""),
        (InstructionsParams, "examples", 9),
        (CoresetParams, "methods", []),
        (CoresetParams, "share", 0),
        (CoresetParams, "share", 1.01),
        (CoresetParams, "share", float("nan")),
        (CoresetParams, "count", 0),
        (FinetuneParams, "dropout", 1),
        (FinetuneParams, "learning_rate", 0),
        (FinetuneParams, "tuning", "qlora"),
        (EvaluateParams, "limit", 0),
        (EvaluateParams, "policies", []),
        (EvaluateParams, "policies", ["streaming:sink"]),
        (EvaluateParams, "lengths", [0]),
        (EvaluateParams, "depths", [101]),
        (PipelineParams, "from_stage", "train"),
    ],
)
def test_out_of_range(model: type[Params], field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate({field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_the_order_of_stages_is_checked() -> None:
    assert PipelineParams(from_stage="report", until_stage="report").until_stage == STAGES[-1]
    with pytest.raises(ValidationError, match="from_stage model comes after until_stage index"):
        PipelineParams(from_stage="model", until_stage="index")


def test_records_are_derived_from_the_standard_library_alone() -> None:
    docs = {"sources": ["docs"]}
    with pytest.raises(ValidationError, match=r"evaluate.suite records has no evaluate.data"):
        PipelineParams.model_validate({"corpus": docs})
    PipelineParams.model_validate({"corpus": docs, "until_stage": "finetune"})
    PipelineParams.model_validate({"corpus": docs, "evaluate": {"data": "records"}})
    PipelineParams.model_validate({"corpus": docs, "evaluate": {"suite": "needle"}})


@pytest.mark.parametrize(("of_bytes", "small"), [(4_500_000, True), (SMALL, True), (SMALL + 1, False)])
def test_the_size_of_a_model_decides_how_it_is_trained(of_bytes: int, small: bool) -> None:
    half = of_bytes // 2
    files = [SimpleNamespace(bytes=half), SimpleNamespace(bytes=of_bytes - half)]
    store: Any = SimpleNamespace(manifest=lambda ref: SimpleNamespace(files=files))
    ref = ArtifactRef(kind="model", uri="", digest="", schema_version=1)
    assert is_small(store, ref) is small


def test_what_suits_the_demos_model_is_no_default_for_large_ones() -> None:
    pipeline = PipelineParams()
    (small, large) = (pipeline.finetune.of(size) for size in (True, False))
    assert (small["tuning"], small["learning_rate"]) == ("full", 1e-3)
    assert (large["tuning"], large["learning_rate"]) == ("lora", 2e-5)
    assert set(small) == set(FinetuneParams().model_dump())
    assert [ExtendParams().of(size)["learning_rate"] for size in (True, False)] == [4e-4, 3e-5]
    given = PipelineFinetuneParams(tuning="full", learning_rate=3e-6)
    assert all((one["tuning"], one["learning_rate"]) == ("full", 3e-6) for one in map(given.of, (True, False)))
    assert ExtendParams(learning_rate=1e-5).of(True)["learning_rate"] == 1e-5


def test_every_n_of_a_trace_has_a_gamma() -> None:
    part = PipelineParams.model_validate({"tracing": {"small": {"tokens": 20_000}}})
    assert (part.tracing.small.source, part.tracing.small.size) == ("scratch", "tiny")
    for given in ({"n": [2, 3]}, {"gamma": [0.1, 0.2]}, {"n": [2, 2], "gamma": [0.1, 0.2]}):
        with pytest.raises(ValidationError, match="expected different n and a gamma for each"):
            PipelineParams.model_validate({"tracing": given})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", ("full", {})),
        ("streaming:sink=4,window=252", ("streaming", {"sink": 4, "window": 252})),
        ("streaming: sink = -1", ("streaming", {"sink": -1})),
        ("snapkv:budget=0.3", ("snapkv", {"budget": 0.3})),
        ("snapkv:budget=.30", ("snapkv", {"budget": 0.3})),
        ("longcache:scoring= fp8,reuse=8", ("longcache", {"scoring": "fp8", "reuse": 8})),
        ("razor:echo=1e-3,window=4E2,sink=4.0", ("razor", {"echo": 0.001, "window": 400.0, "sink": 4.0})),
    ],
)
def test_policies_are_parsed(text: str, expected: tuple[str, dict[str, int | float | str]]) -> None:
    name, options = parse_policy(text)
    assert (name, options) == expected
    assert [type(value) for value in options.values()] == [type(value) for value in expected[1].values()]


@pytest.mark.parametrize(
    "option", ["sink", "sink=", "sink=4a", "sink=--4", "sink=4.5.", "sink=1e999", "sink=nan", "sink=inf"]
)
def test_policies_with_other_than_numbers_and_words_are_refused(option: str) -> None:
    text = f"streaming:window=9,{option}"
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'KV policy {text!r}: found option {option!r}')}, expected NAME"
    ):
        parse_policy(text)


def test_a_head_profile_is_no_option_in_a_text() -> None:
    expected = "KV policy 'razor:heads=a.json': found option 'heads=a.json', expected it as parameter `heads`"
    with pytest.raises(ValidationError, match=re.escape(expected)):
        EvaluateParams(policies=["razor:heads=a.json"])


def test_a_pipeline_makes_its_head_profiles_itself() -> None:
    with pytest.raises(ValidationError, match=r"evaluate\.heads: a pipeline makes the head profiles of its models"):
        PipelineParams.model_validate({"evaluate": {"policies": ["razor"], "heads": "run:latest:heads"}})
