"""Flow `preference`: a reward model that reads the criterion, trained on comparisons; and scores by one."""

from __future__ import annotations

from prefect import flow

from longloom.flows.checks import check_model, check_sources
from longloom.flows.coreset import coreset_of
from longloom.flows.model import is_small, label_of, model_of
from longloom.flows.params import DEFAULT_STORE, STANDARD_LIBRARY, ModelParams
from longloom.flows.params_preference import ComparisonsParams, RewardParams, ScoreParams
from longloom.flows.sources import RUN_PREFIX, of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.preference.task import (
    check_template,
    choose_comparisons,
    import_reward_model,
    read_comparisons,
    score_responses,
    split_comparisons,
    train_reward_model,
)

#: What of the standard library is held out: its modules, and besides them the wordings or the traits of the criteria.
SIDES = ("modules", "wordings", "criteria")


def comparisons_of(store: Store, log: RunLog, params: ComparisonsParams) -> tuple[ArtifactRef, dict[str, ArtifactRef]]:
    """The comparisons to train on, and the held-out sets by their names."""
    options = params.model_dump(include={"sources", "contexts", "on_bad_record", "seed"})
    whole = log.add("comparisons", read_comparisons(store, side="train", rows=params.rows, **options))
    if params.sources == [STANDARD_LIBRARY]:
        return whole, {
            side: log.add(
                f"comparisons/{side}", read_comparisons(store, side=side, rows=params.held_out_rows, **options)
            )
            for side in SIDES
        }
    train, held_out = (
        log.add(
            f"comparisons/{part}",
            split_comparisons(store, whole, part=part, share=params.held_out, seed=params.seed),
        )
        for part in ("train", "held-out")
    )
    return train, {"held-out": held_out}


def reward_model_of(store: Store, source: str) -> ArtifactRef:
    """A reward model `run:ID:LABEL`, of a folder, or of the hub."""
    if source.startswith(RUN_PREFIX):
        return of_run(store, source, "reward-model")
    return import_reward_model(store, source)


@flow(name="preference", flow_run_name="preference-{model.source}")
def preference(
    comparisons: ComparisonsParams = ComparisonsParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    model: ModelParams = ModelParams(),  # noqa: B008
    reward: RewardParams = RewardParams(),  # noqa: B008
    on: str | None = None,
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Trains a reward model on comparisons that tell the context of the preference.

    `on`: run:ID:coreset/METHOD, of which the training gets but those that it chose.
    """
    place = Store(store)
    check_template(reward.template)
    check_sources(comparisons.sources)
    check_model(place, model, trained=False)
    if on is not None:
        of_run(place, on, "coreset")
    given = {
        "comparisons": comparisons.model_dump(),
        "model": model.model_dump(),
        "reward": reward.model_dump(),
        "on": on,
    }
    with RunLog(place, "preference", given) as log:
        train, held_out = comparisons_of(place, log, comparisons)
        if on is not None:
            coreset = coreset_of(place, on, log.run.stages["comparisons"])
            train = log.add("chosen", choose_comparisons(place, train, coreset))
        network = log.add("model", model_of(place, model, None, None))
        options = reward.of(is_small(place, network))
        trained = log.add("reward-model", train_reward_model(place, network, train, label=label_of(model), **options))
        return {
            "comparisons": train,
            **{f"comparisons/{name}": ref for name, ref in held_out.items()},
            "reward-model": trained,
        }


@flow(name="preference-score", flow_run_name="preference-score-{score.model}")
def score(score: ScoreParams, store: str = DEFAULT_STORE) -> dict[str, ArtifactRef]:
    """Scores the responses of files by a reward model."""
    place = Store(store)
    check_sources(score.data)
    with RunLog(place, "preference-score", score.model_dump()) as log:
        model = log.add("reward-model", reward_model_of(place, score.model))
        options = score.model_dump(include={"on_bad_record", "on_too_long"})
        return {
            "reward-model": model,
            "scores": log.add(
                "scores", score_responses(place, model, label="responses", sources=score.data, **options)
            ),
        }
