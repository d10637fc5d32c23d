"""Prefect tasks of the judge: whose answers to open-ended questions are better, by a model behind an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longloom.storage.fingerprint import fingerprint_folder
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage
from longloom.tasks.suite_data import suite_data


@stage("judge", version=1, runtime=("timeout", "retries", "at_once", "per_minute"), resumable=True, retries=True)
def _judge(
    work: Work, *, answers: str | None, against: str | None, data: str | None, task: str, **endpoint: Any
) -> Stats:
    from longloom.tasks.longcontext.backends import EndpointBackend
    from longloom.tasks.longcontext.judge import LEDGER, build

    work.take_up(LEDGER)
    places = {"answers": answers, "against": against, "data": data}
    found = {name: work.inputs.get(name) or (Path(place) if place else None) for name, place in places.items()}
    client = EndpointBackend(**endpoint, api="chat", tokenizer=None).client()
    assert found["answers"] is not None
    assert found["against"] is not None
    return build(
        found["answers"], found["against"], found["data"], work.out, task=task, client=client, progress=work.progress
    )


def judge(
    store: Store,
    answers: ArtifactRef | str,
    against: ArtifactRef | str,
    data: ArtifactRef | str | None,
    *,
    label: str,
    **options: Any,
) -> ArtifactRef:
    """Which of two models answers L-Eval's open-ended questions better, by a judge behind an endpoint.

    Args:
        store: where it goes.
        answers, against: an evaluation, or an official prediction file.
        data: L-Eval's records, which an evaluation's questions come from; None: the hub's.
        label: for the run's name.
        options: of the stage.
    """
    inputs: dict[str, ArtifactRef] = {}
    identity: dict[str, str] = {}
    places: dict[str, str | None] = {}
    for name, place in (("answers", answers), ("against", against)):
        places[name] = None
        if isinstance(place, ArtifactRef):
            inputs[name] = place
        else:
            identity[name], places[name] = fingerprint_folder(store, Path(place)), place
    if inputs:  # two prediction files hold their questions
        source = suite_data(store, "leval", data)
        inputs, identity, places["data"] = inputs | source.inputs, identity | source.identity, source.place
    else:
        places["data"] = None
    return _judge(store, inputs, label=label, identity=identity, **places, **options)
