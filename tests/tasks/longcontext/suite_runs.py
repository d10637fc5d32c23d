"""What the tests of all suites share: the table of tasks and metrics, a backend of known answers, right answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from longloom.evals.stub_lm import StubLM
from longloom.evals.suite_lm import Job
from longloom.storage.stats import Stats
from longloom.tasks.longcontext.backends import Backend
from longloom.tasks.longcontext.evaluate import build

from .official import Case

ROOT = Path(__file__).resolve().parents[3]
BASE = ROOT / "tasks/training/base"
SHARED = ROOT / "../shared/data"

#: Tokens that the base model reads and writes together.
WINDOW = 1024

#: Suite -> metric -> its tasks, by the benchmarks' papers and scripts.
METRICS = {
    "longbench": {
        "qa_f1": "narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique triviaqa",
        "qa_f1_zh": "multifieldqa_zh",
        "rouge": "gov_report qmsum multi_news samsum",
        "rouge_zh": "dureader vcsum",
        "classification": "trec lsht",
        "count": "passage_count",
        "retrieval": "passage_retrieval_en",
        "retrieval_zh": "passage_retrieval_zh",
        "code_sim": "lcc repobench-p",
    },
    "longbench-e": {
        "qa_f1": "qasper multifieldqa_en hotpotqa 2wikimqa triviaqa",
        "rouge": "gov_report multi_news samsum",
        "classification": "trec",
        "count": "passage_count",
        "retrieval": "passage_retrieval_en",
        "code_sim": "lcc repobench-p",
    },
    "longbench-v2": {"accuracy": "all"},
    "records": {"qa_f1": "mills"},
    "leval": {
        "exam": "coursera quality topic_retrieval_longchat tpo gsm100 codeU sci_fi",
        "f1": "financial_qa legal_contract_qa multidoc_qa narrative_qa natural_question scientific_qa",
        "rouge": "gov_report_summ meeting_summ news_summ paper_assistant patent_summ review_summ tv_show_summ",
    },
    "infinitebench": {
        "first_int_match": "passkey number_string",
        "kv_retrieval": "kv_retrieval",
        "rougeLsum": "longbook_sum_eng",
        "qa_f1_score": "longbook_qa_eng",
        "longbook_choice_eng": "longbook_choice_eng",
        "longdialogue_qa_eng": "longdialogue_qa_eng",
        "qa_f1_score_zh": "longbook_qa_chn",
        "code_debug": "code_debug",
        "code_run": "code_run",
        "math_calc": "math_calc",
        "math_find": "math_find",
    },
    "chatrag": {
        "f1": "doc2dial quac qrecc topiocqa inscit coqa doqa_cooking doqa_travel doqa_movies hybridial sqa",
        "exact_match": "convfinqa",
    },
    "chatrag-native": {"f1": "inscit"},
    "needle": {"string_match": "single multi"},
    "ruler": {
        "string_match_all": "niah_single_1 niah_single_2 niah_single_3 niah_multikey_1 niah_multikey_2 niah_multikey_3 "
        "niah_multivalue niah_multiquery vt cwe fwe",
        "string_match_part": "qa_1 qa_2",
    },
}
#: Metrics with a fault that a variant mends.
MENDED = {
    "longbench": {"rouge", "rouge_zh", "classification"},
    "longbench-e": {"rouge", "classification"},
    "leval": {"exam", "f1", "rouge"},
    "infinitebench": {
        *("kv_retrieval", "longbook_choice_eng", "longdialogue_qa_eng", "code_debug", "code_run", "math_find"),
    },
    "chatrag": {"exact_match"},
    "needle": {"string_match"},
    "ruler": {"string_match_all", "string_match_part"},
}
#: The window of 1024 tokens is too small for RULER's most common words, whose words take many of the base tokenizer.
TOO_LARGE = {"ruler": {"cwe"}}
NAMES = list(METRICS)


@dataclass
class Stub:
    """A backend with the base model's tokenizer and window, whose answers are a function's."""

    answer: Callable[[Job], str]
    tokenizer: PreTrainedTokenizerBase | None
    name: str = "stub"
    asked: list[Job] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def open(self) -> Stub:
        return self

    def lm(self, out: Path, *, batch_size: int, progress: Any, **limits: int | None) -> StubLM:
        return StubLM(self._answer, self.tokenizer, window=WINDOW, progress=progress, **limits)

    def _answer(self, job: Job) -> str:
        self.asked.append(job)
        return self.answer(job)


def evaluated(backend: Backend, case: Case, out: Path, **change: Any) -> Stats:
    out.mkdir(exist_ok=True)
    left_out = TOO_LARGE.get(case.suite, set())
    settings: dict[str, Any] = {
        "suite": case.suite,
        "tasks": [task for task in case.tasks if task not in left_out] if left_out else None,
        "suite_options": case.options,
        "limit": None,
        "max_length": None,
        "batch_size": 8,
        "seed": 0,
    }
    return build(backend, case.data, out, **{**settings, **change})


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / f"{table}.parquet").to_pylist()
    return found


def metrics_of(name: str) -> dict[str, str]:
    """Task -> its metric, of the tasks that the base model's window has room for."""
    found = {task: metric for metric, tasks in METRICS[name].items() for task in tasks.split()}
    return {task: metric for task, metric in found.items() if task not in TOO_LARGE.get(name, set())}


def right_answer(suite: str, task: str, references: list[str], request: int) -> str:
    """What a model would have to say to be right by the official metric."""
    if suite == "longbench-v2":
        return f"The correct answer is ({references[0]})"
    if suite in ("ruler", "needle") or task == "math_calc":
        return ", ".join(references)
    if task == "sci_fi":  # by the story, and then by what is real: True [fact: False]
        return re.split(r" \[fact: |\]", references[0])[request]
    if task in ("longbook_choice_eng", "code_debug", "convfinqa"):  # the letter; the formula's value
        return references[1]
    return references[0]


def right(job: Job) -> str:
    _, suite, task = job.instance.task_name.split("_", 2)
    return right_answer(suite, task, job.instance.doc["references"], job.instance.idx)
