"""The commands of evaluation, registered by cli.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from longloom.flows.command import Flat, Json, Store, begin, show
from longloom.flows.params import DEFAULT_STORE, ModelParams
from longloom.flows.params_evaluate import EvaluateParams, HeadsParams, JudgeParams, RetrievalParams

EvaluatedModel = Annotated[
    str,
    Parameter(
        help="A model folder, a hub name, base, run:ID:LABEL of an earlier run (run:latest:finetune/tagcos), or a"
        " model's name behind an endpoint."
    ),
]


def evaluate(
    *,
    evaluate: Annotated[EvaluateParams, Flat] = EvaluateParams(),  # noqa: B008
    model: EvaluatedModel = "base",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Evaluate a model on a long-context suite, or on any task of lm-eval, under KV policies or behind an endpoint."""
    begin(store, "torch", "pyarrow.parquet")
    from longloom.flows.evaluate import evaluate as flow
    from longloom.flows.show import show_evaluations

    show_evaluations(flow(ModelParams(source=model), evaluate, store=store), store, as_json=json)


def rag(
    *,
    evaluate: Annotated[EvaluateParams, Flat] = EvaluateParams(),  # noqa: B008
    retrieval: Annotated[RetrievalParams, Parameter(name="*", group="Retrieval")] = RetrievalParams(),  # noqa: B008
    model: EvaluatedModel = "base",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Evaluate a model with whole contexts and with what is retrieved of them: chunkings, rankings, k and orders."""
    begin(store, "torch", "pyarrow.parquet")
    from longloom.flows.rag import rag as flow
    from longloom.flows.show import show_evaluations

    show_evaluations(flow(ModelParams(source=model), evaluate, retrieval, store=store), store, as_json=json)


def judge(*, judge: Annotated[JudgeParams, Flat], store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Compare two models' answers to L-Eval's open-ended questions by a language model, in both orders."""
    begin(store)
    from longloom.flows.judge import judge as flow
    from longloom.flows.show import show_judgement

    show_judgement(flow(judge, store=store), store, as_json=json)


def heads(
    *,
    heads: Annotated[HeadsParams, Flat] = HeadsParams(),  # noqa: B008
    model: Annotated[
        str, Parameter(help="A model folder, a hub name, base, or run:ID:LABEL of an earlier run.")
    ] = "base",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Find the KV heads that look things up, without any data or from published scores: the profile of KV policies."""
    begin(store)
    from longloom.flows.heads import heads as flow
    from longloom.flows.show import show_heads

    show_heads(flow(ModelParams(source=model), heads, store=store), store, as_json=json)


def score(*, suite: str, task: str, predictions: str, data: str | None = None, json: Json = False) -> None:
    """Score a file of predictions in a suite's official format.

    Args:
        suite: longbench, longbench-e, longbench-v2, leval, infinitebench, chatrag or ruler.
        task: The task that the predictions belong to.
        predictions: JSON Lines; chatrag also takes the official text files.
        data: Folder of the records, where predictions come without them (chatrag's text files).
    """
    from pathlib import Path

    from longloom.evals.scoring import score_file

    show(score_file(suite, task, Path(predictions), data=None if data is None else Path(data)), json)


COMMANDS: tuple[Callable[..., None], ...] = (evaluate, rag, judge, heads, score)
