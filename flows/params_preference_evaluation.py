"""Parameters of the evaluation of reward models; imports pydantic alone, as params.py does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longloom.flows.params import Params
from longloom.flows.params_evaluate import ServerParams


class PreferenceEvaluationParams(Params):
    """Which reward model to judge, by which comparisons."""

    model: str = Field(
        default="run:latest:reward-model",
        min_length=1,
        description="a reward model: run:ID:LABEL of an earlier run, a folder, or a hub name",
    )
    on: list[str] = Field(
        default=[],
        description="comparisons to judge it by, each a set of its own: files, folders, hub:microsoft/rpr?split=test,"
        " run:ID:comparisons/NAME; by default all that the model's own run held out",
    )
    train: str | None = Field(
        default=None,
        min_length=1,
        description="other comparisons, likewise, whose contexts are the candidates; by default what the model was"
        " trained on, and without that the judged ones",
    )
    contexts: Literal["criteria", "scenario"] = Field(
        default="criteria", description="of RPR's records: the criterion itself, or the scenario that implies it"
    )
    on_bad_record: Literal["stop", "skip"] = Field(
        default="stop", description="stop at a bad record, or skip and count it"
    )
    negations: str | None = Field(
        default=None,
        min_length=1,
        description="a JSON file of criterion: negation; what it does not list is negated by a rule of words",
    )
    samples: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1, 2, 4, 8], min_length=1, description="preferences of a profile that its context is inferred from"
    )
    selector: Literal["prior", "trained", "endpoint"] | None = Field(
        default=None,
        description="what infers the context from the prompt: how often each candidate is in training, a classifier"
        " trained there, or the language model at the endpoint; by default trained, where there is training data",
    )
    candidates: int = Field(default=32, ge=1, description="contexts to choose from, every category's by turns")
    sampled: int = Field(
        default=200,
        ge=0,
        description="comparisons of each set for the two-step model, which scores them in every candidate context, and"
        " for the judge; 0 leaves both out",
    )
    judge: bool = Field(default=False, description="have the language model at the endpoint judge the comparisons too")
    language_model: str | None = Field(default=None, min_length=1, description="its name at the endpoint")
    endpoint: ServerParams = Field(default=ServerParams(), description="its server")
    best_of: list[str] = Field(
        default=[],
        description="prompts with several responses in RewardBench 2's form, files or"
        " hub:allenai/reward-bench-2?split=test",
    )
    seed: int = Field(default=0, ge=0, description="of the samples and of the nonsense criteria")

    @model_validator(mode="after")
    def _asked(self) -> PreferenceEvaluationParams:
        asks = self.judge or self.selector == "endpoint"
        known = self.endpoint.url is not None and self.language_model is not None
        if asks and not known:
            missing = "endpoint.url" if self.endpoint.url is None else "language_model"
            raise ValueError(f"{missing} is missing, expected the language model's for the judge or the selector")
        return self
