"""Flow `judge`: two models' answers to L-Eval's open-ended questions, compared by a language model."""

from __future__ import annotations

from prefect import flow

from longloom.flows.artifacts import publish_judgement
from longloom.flows.checks import check_place
from longloom.flows.params import DEFAULT_STORE
from longloom.flows.params_evaluate import JudgeParams
from longloom.flows.sources import RUN_PREFIX, of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.longcontext.asked import check_judged
from longloom.tasks.longcontext.judge_task import judge as judge_task


def check_judge(params: JudgeParams) -> None:
    """Finds a missing server and a task without answers to judge (ValueError)."""
    if params.endpoint.url is None:
        raise ValueError("endpoint.url is missing, expected the judge's server, such as http://127.0.0.1:8000/v1")
    check_judged(params.task)


@flow(name="judge", flow_run_name="judge-{judge.task}")
def judge(judge: JudgeParams, store: str = DEFAULT_STORE) -> ArtifactRef:
    """Has a language model behind an endpoint compare two models' answers, in both orders."""
    check_judge(judge)
    place = Store(store)
    check_place(judge.data)
    with RunLog(place, "judge", judge.model_dump()) as log:
        ref = judge_task(
            place,
            _answers(place, judge.answers),
            _answers(place, judge.against),
            judge.data,
            label=judge.task,
            task=judge.task,
            model=judge.model,
            **judge.endpoint.model_dump(),
        )
        publish_judgement(place, ref, key=judge.task)
        return log.add(f"judge/{judge.task}", ref)


def _answers(store: Store, source: str) -> ArtifactRef | str:
    return of_run(store, source, "evaluation") if source.startswith(RUN_PREFIX) else source
