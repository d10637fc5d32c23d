"""Flow `contamination`: how much of each evaluation record stands in the corpus; and what evaluate leaves out by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from longloom.flows.artifacts import publish_contamination
from longloom.flows.params import DEFAULT_STORE
from longloom.flows.params_sources import ContaminationParams
from longloom.flows.sources import RUN_PREFIX, index_of, of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.longcontext.asked import check_names, makes_prompts
from longloom.tasks.sources.task import contamination as contamination_task
from longloom.tasks.sources.task import is_contamination, is_index
from longloom.tasks.suite_data import HARNESS


def check_records(suite: str) -> None:
    """Raises ValueError for an unknown suite, and for one without records that a corpus could hold."""
    if suite == HARNESS:
        raise ValueError(f"suite {HARNESS!r} tells no records from its prompts; expected another suite, or JSON Lines")
    check_names(suite, [])
    if makes_prompts(suite):
        raise ValueError(f"suite {suite!r} makes its prompts itself, so no corpus holds its records")


@flow(name="contamination", flow_run_name="contamination-{contamination.suite}")
def contamination(contamination: ContaminationParams, store: str = DEFAULT_STORE) -> ArtifactRef:
    """Looks for evaluation records in the corpus and flags those that stand in it."""
    if contamination.suite is not None:
        check_records(contamination.suite)
    place = Store(store)
    with RunLog(place, "contamination", contamination.model_dump()) as log:
        label = contamination.suite or Path(contamination.data or "").stem
        evaluation: ArtifactRef | str | None = contamination.evaluation
        if contamination.evaluation is not None and contamination.evaluation.startswith(RUN_PREFIX):
            evaluation = of_run(place, contamination.evaluation, "evaluation")
        ref = contamination_task(
            place,
            index_of(place, contamination.index),
            contamination.data,
            evaluation,
            suite=contamination.suite,
            label=label,
            tasks=contamination.tasks or None,
            suite_options={},
            seed=0,
            fields=contamination.fields,
            limit=contamination.limit,
            by=contamination.by,
        )
        publish_contamination(place, ref, key=label)
        return log.add(f"contamination/{label}", ref)


def contamination_of(
    store: Store,
    log: RunLog,
    given: str,
    *,
    suite: str,
    data: ArtifactRef | str | None,
    tasks: list[str] | None,
    suite_options: Mapping[str, Any],
    limit: int | None,
    seed: int,
) -> ArtifactRef | str:
    """What tells which records an evaluation leaves out: as given, or made now by an index that is given.

    Args:
        store: where it goes.
        log: of the run.
        given: run:ID:LABEL or folder of a contamination artifact, or of an index.
        suite, data, tasks, suite_options, limit, seed: of the evaluation.

    Raises:
        ValueError: neither of the two is there.
    """
    index: ArtifactRef | str
    if given.startswith(RUN_PREFIX):
        try:
            return log.add(f"contamination/{suite}", of_run(store, given, "contamination"))
        except ValueError as error:
            try:
                index = of_run(store, given, "index")
            except ValueError:
                raise error from None
    elif is_contamination(Path(given)):
        return given
    elif is_index(Path(given)):
        index = given
    else:
        raise ValueError(f"{given}: is neither a contamination artifact nor an n-gram index")
    made = contamination_task(
        store,
        index,
        data,
        None,
        suite=suite,
        label=suite,
        tasks=tasks,
        suite_options=suite_options,
        seed=seed,
        fields=[],
        limit=limit,
        by=ContaminationParams.model_fields["by"].default,
    )
    return log.add(f"contamination/{suite}", made)
