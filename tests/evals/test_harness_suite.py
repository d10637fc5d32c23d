"""Any task of lm-eval: found by name, and its results as rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks.manager
import pytest
import yaml
from evaluate import loading
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from longloom.evals.harness_suite import Sample, Score, harness_tasks, no_hub_metrics, samples_of, scores_of
from longloom.evals.stub_lm import StubLM, fixed
from longloom.evals.suite_lm import Job

ROWS = [
    {"question": "What is 2 + 2?", "answer": "4", "right": 1, "choices": ["three", "four", "forty-five"]},
    {"question": "What is 2 + 3?", "answer": "5", "right": 2, "choices": ["three", "four", "five"]},
]

GENERATE: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 5},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
    ],
    "filter_list": [
        {"name": "all", "filter": [{"function": "take_first"}]},
        {
            "name": "number",
            "filter": [{"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}],
        },
    ],
}
CHOOSE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "right",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": metric} for metric in ("acc", "acc_mutual_info", "brier_score")],
}
ROLLING: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}],
}


class Likelihoods(LM):  # type: ignore[misc]
    """The longer a choice the likelier; without the question the other way round."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        replies = []
        for context, continuation in (request.args for request in requests):
            length = float(len(continuation) + ("better" in context) * 100)
            replies.append((length if context else -length, False))
        return replies

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [-8.0 for _ in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one's own with three tasks, a tag and a group."""
    own = tmp_path / "own"
    own.mkdir()
    data = own / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "tag": "sums",
    }
    for name, config in {"generate_sums": GENERATE, "choose_sums": CHOOSE, "rolling_sums": ROLLING}.items():
        write(own, {"task": name, **common, **config})
    return own


@pytest.fixture(autouse=True)
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the harness's own, whose files take 20 seconds to read."""
    tasks = tmp_path / "harness"
    tasks.mkdir()
    monkeypatch.setattr(lm_eval.tasks.manager, "__file__", str(tasks / "manager.py"))
    return tasks


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / f"{config.get('task') if 'group' not in config else config['group']}.yaml").write_text(yaml.dump(config))


def evaluate(lm: Any, tasks: dict[str, Any], **options: Any) -> Any:
    return evaluator.evaluate(lm, {"tasks": tasks, "groups": {}}, **{"bootstrap_iters": 0, **options})


def test_names_tags_and_patterns(folder: Path) -> None:
    assert list(harness_tasks(["choose_sums"], include_path=folder, metadata={"seen": 1})) == ["choose_sums"]
    every = ["choose_sums", "generate_sums", "rolling_sums"]
    assert sorted(harness_tasks(["sums"], include_path=folder)) == every
    assert sorted(harness_tasks(["choose_sums", "*_sums"], include_path=folder)) == every


def test_metadata_reach_the_task(folder: Path) -> None:
    (task,) = harness_tasks(["choose_sums"], include_path=folder, metadata={"tokenizer": "T"}).values()
    assert task.config.metadata["tokenizer"] == "T"


def test_the_harness_s_own_tasks_are_read_only_where_the_folder_does_not_suffice(
    folder: Path, harness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(harness, {**yaml.safe_load((folder / "choose_sums.yaml").read_text()), "task": "theirs", "tag": "sums"})
    write(folder, {"group": "both", "task": ["generate_sums", "theirs"]})
    assert sorted(harness_tasks(["theirs", "choose_sums"], include_path=folder)) == ["choose_sums", "theirs"]
    assert sorted(harness_tasks(["both"], include_path=folder)) == ["generate_sums", "theirs"]
    assert "theirs" in harness_tasks(["t*"], include_path=folder)
    assert list(harness_tasks(["theirs"], include_path=None)) == ["theirs"]

    read: list[bool] = []
    manager = lm_eval.tasks.manager.TaskManager

    def note(**options: Any) -> Any:
        read.append(options.get("include_defaults", True))
        return manager(**options)

    monkeypatch.setattr("longloom.evals.harness_suite.TaskManager", note)
    harness_tasks(["choose_sums", "sums"], include_path=folder)
    assert read == [False]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"^the suite 'lm-eval' has no tasks to run by default, expected some of the harness's by name$"),
        (["generate_sum"], r"^the harness has no task 'generate_sum'; similar ones: generate_sums$"),
        (["choose_sums", "nothing*"], r"^the harness has no task 'nothing\*'; similar ones: none$"),
        (["broken"], r"^the harness's task 'broken' cannot be loaded: .*rows\.none"),
    ],
)
def test_names_that_are_none(folder: Path, names: list[str], message: str) -> None:
    broken = yaml.safe_load((folder / "choose_sums.yaml").read_text())
    broken["dataset_kwargs"]["data_files"]["test"] = str(folder / "rows.none")
    write(folder, {**broken, "task": "broken", "tag": []})
    with pytest.raises(ValueError, match=message):
        harness_tasks(names, include_path=folder)
    with pytest.raises(ValueError, match=r"^no folder '.*rows\.jsonl' to look for tasks in$"):
        harness_tasks(["choose_sums"], include_path=folder / "rows.jsonl")


HUB = """
from evaluate import load

def late(doc, results):
    return {"acc": load("word_length").compute(data=results)}
"""


def test_a_metric_that_is_code_of_the_hub_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(name: str, **_: Any) -> None:
        fetched.append(name)
        raise ConnectionError

    monkeypatch.setattr(loading, "HubEvaluationModuleFactory", fetch)
    factory = loading.evaluation_module_factory
    (folder / "hub.py").write_text(HUB)
    config = {**yaml.safe_load((folder / "generate_sums.yaml").read_text()), "tag": []}
    asking = {
        "said": ("accuracy", {"metric_list": [{"metric": "accuracy", "hf_evaluate": True}]}),
        "unknown": ("no_such", {"metric_list": [{"metric": "no_such"}]}),
        "late": ("word_length", {"process_results": "!function hub.late", "metric_list": [{"metric": "acc"}]}),
    }
    for name, (_, change) in asking.items():
        text = yaml.dump({**config, **change, "task": name})
        (folder / f"{name}.yaml").write_text(text.replace("'!function hub.late'", "!function hub.late"))
    for name in ("said", "unknown"):
        expected = rf"^the harness's task '{name}' cannot be loaded: the metric '{asking[name][0]}' is code of the hub"
        with pytest.raises(ValueError, match=expected) as caught:
            harness_tasks([name], include_path=folder)
        assert len(str(caught.value).splitlines()) == 1
    late = harness_tasks(["late"], include_path=folder)
    with no_hub_metrics() as refused, pytest.raises(ValueError, match=r"^the metric 'word_length' is code"):
        evaluate(StubLM(fixed("4")), late)
    assert [str(error).split("'")[1] for error in refused] == ["word_length"]
    assert fetched == []
    assert loading.evaluation_module_factory is factory


def test_a_task_with_metrics_and_filters(folder: Path) -> None:
    results = evaluate(
        StubLM(fixed("It is 4. Yes")), harness_tasks(["generate_sums"], include_path=folder), bootstrap_iters=10
    )
    scores = {(score.metric, score.filter): score for score in scores_of(results, "generate_sums")}
    assert scores["exact_match", "all"][2:] == (0.0, 0.0)
    assert scores["exact_match", "number"][2:] == pytest.approx((0.5, 0.5))
    assert list(scores) == [("exact_match", "all"), ("exact_match", "number")]
    assert samples_of(results, "generate_sums") == [
        Sample(0, "exact_match", "all", 0.0, "It is 4", ["4"]),
        Sample(1, "exact_match", "all", 0.0, "It is 4", ["5"]),
        Sample(0, "exact_match", "number", 1.0, "4", ["4"]),
        Sample(1, "exact_match", "number", 0.0, "4", ["5"]),
    ]


def test_a_failed_request_scores_nothing(folder: Path) -> None:
    def fail(job: Job) -> str:
        raise RuntimeError("no")

    results = evaluate(StubLM(fail), harness_tasks(["generate_sums"], include_path=folder))
    scores = {(score.metric, score.filter): score.value for score in scores_of(results, "generate_sums")}
    assert (scores["exact_match", "all"], scores["exact_match", "number"]) == (0.0, 0.0)


def test_without_standard_errors(folder: Path) -> None:
    results = evaluate(StubLM(fixed("4")), harness_tasks(["generate_sums"], include_path=folder), limit=1)
    assert {score.stderr for score in scores_of(results, "generate_sums")} == {None}
    assert len(samples_of(results, "generate_sums")) == 2


def test_a_multiple_choice(folder: Path) -> None:
    results = evaluate(Likelihoods(), harness_tasks(["choose_sums"], include_path=folder))
    scores = {score.metric: score.value for score in scores_of(results, "choose_sums")}
    assert (scores["acc"], scores["acc_mutual_info"]) == (0.0, 0.0)
    samples = samples_of(results, "choose_sums")
    assert [sample[:4] for sample in samples if sample.sample == 0] == [
        (0, "acc", "none", 0.0),
        (0, "brier_score", "none", None),  # of all samples together
        (0, "acc_mutual_info", "none", 0.0),
    ]
    assert [(sample.prediction, sample.references) for sample in samples if sample.metric == "acc"] == [
        ("forty-five", ["four"]),
        ("three", ["five"]),
    ]


def test_contexts_to_choose_from(folder: Path) -> None:
    config = yaml.safe_load((folder / "choose_sums.yaml").read_text())
    inputs = {"doc_to_text": "right", "doc_to_target": "{{answer}} it is", "metric_list": [{"metric": "acc"}]}
    inputs["doc_to_choice"] = "{{['Sum:\nworse', 'Sum:\nbetter', 'Sum:\nbad']}}"
    write(folder, {**config, **inputs, "task": "contexts", "tag": []})
    results = evaluate(Likelihoods(), harness_tasks(["contexts"], include_path=folder))
    assert scores_of(results, "contexts") == [Score("acc", "none", 0.5, None)]
    assert [(sample.prediction, sample.references) for sample in samples_of(results, "contexts")] == [
        ("better 4 it is", ["4 it is"]),
        ("better 5 it is", ["5 it is"]),
    ]


def test_a_perplexity(folder: Path) -> None:
    results = evaluate(Likelihoods(), harness_tasks(["rolling_sums"], include_path=folder))
    (score,) = scores_of(results, "rolling_sums")
    assert (score.metric, score.filter, score.stderr) == ("word_perplexity", "none", None)
    assert score.value == pytest.approx(2.718281828 ** (16 / 10))
    assert samples_of(results, "rolling_sums")[1] == Sample(1, "word_perplexity", "none", None, "", ["What is 2 + 3?"])
