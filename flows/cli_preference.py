"""The commands of preference data and reward models, `longloom prefer ...`, registered by cli.py."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App

from longloom.flows.command import Flat, Json, Store, begin
from longloom.flows.params import DEFAULT_STORE, ModelParams
from longloom.flows.params_preference import ComparisonsParams, RewardParams, ScoreParams
from longloom.flows.params_preference_evaluation import PreferenceEvaluationParams

prefer = App(name="prefer", help="Train, use and judge reward models that read the criterion.")


@prefer.command
def train(
    *,
    reward: Annotated[RewardParams, Flat] = RewardParams(),  # noqa: B008
    comparisons: ComparisonsParams = ComparisonsParams(),  # noqa: B008
    model: ModelParams = ModelParams(),  # noqa: B008
    on: str | None = None,
    export: str | None = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Train a reward model on comparisons that tell the context of the preference.

    Args:
        on: run:ID:coreset/METHOD, what `longloom coreset --preferences` chose of the comparisons; all by default.
        export: Also copy the reward model and its manifest into this folder.
    """
    from longloom.flows.show import check_export, export_artifact

    check_export(export, store)
    begin(store)
    from longloom.flows.preference import preference as flow
    from longloom.flows.show_preference import show_training

    refs = flow(comparisons, model, reward, on, store=store)
    if export is not None:
        export_artifact(refs["reward-model"], store, export)
    show_training(refs, store, as_json=json)


@prefer.command
def score(*, score: Annotated[ScoreParams, Flat], store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Score the responses in files by a reward model."""
    begin(store)
    from longloom.flows.preference import score as flow
    from longloom.flows.show_preference import show_scores

    show_scores(flow(score, store=store), store, as_json=json)


@prefer.command
def evaluate(
    *,
    evaluation: Annotated[PreferenceEvaluationParams, Flat] = PreferenceEvaluationParams(),  # noqa: B008
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Judge whether a reward model listens to the context, by comparisons it was not trained on."""
    begin(store)
    from longloom.flows.preference_evaluation import preference_evaluation as flow
    from longloom.flows.show_preference_evaluation import show_evaluation

    show_evaluation(flow(evaluation, store=store), store, as_json=json)
