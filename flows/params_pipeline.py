"""Parameters of the whole pipeline, with the defaults that suit the demo; imports pydantic alone, as params.py does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from longloom.flows.params import (
    STAGES,
    STANDARD_LIBRARY,
    BySize,
    CorpusParams,
    FinetuneParams,
    IndexParams,
    InstructionsParams,
    ModelParams,
    Params,
    StageName,
    TrainingParams,
)
from longloom.flows.params_coreset import CoresetParams
from longloom.flows.params_evaluate import EvaluateParams, RetrievalParams, parsed_policies

#: How the pipeline trains on the chosen examples.
TUNING: BySize[str] = BySize("full", FinetuneParams().tuning, "TAGCOS")
RATE = BySize(1e-3, FinetuneParams().learning_rate, "TAGCOS")


class PipelineIndexParams(IndexParams):
    """How to index it; its own class, so that the default also holds where only other fields are given."""

    tokenizer: str = Field(default="base", description=IndexParams.model_fields["tokenizer"].description)


class PipelineFinetuneParams(TrainingParams):
    """How to train on the chosen examples; by default as suits the model's size."""

    tuning: Literal["lora", "full"] | None = Field(
        default=None,
        description=f"adapters on the attention, or all weights; by default {TUNING}",
    )
    learning_rate: float | None = Field(default=None, gt=0, description=f"peak; by default {RATE}")
    epochs: int = Field(default=3, ge=1, description=TrainingParams.model_fields["epochs"].description)
    batch: int = Field(default=4, ge=1, description=FinetuneParams.model_fields["batch"].description)

    def of(self, small: bool) -> dict[str, Any]:
        """The parameters of a training, with what the model's size decides."""
        return self.model_dump() | {
            "tuning": self.tuning or TUNING.of(small),
            "learning_rate": self.learning_rate or RATE.of(small),
        }


class PipelineRetrievalParams(RetrievalParams):
    """What to retrieve in place of whole contexts; by default as suits the demo's short ones."""

    sizes: list[Annotated[int, Field(ge=1)]] = Field(
        default=[20], min_length=1, description=RetrievalParams.model_fields["sizes"].description
    )
    k: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1, 2, 4], description=RetrievalParams.model_fields["k"].description
    )
    orders: list[Literal["rank", "document"]] = Field(
        default=["rank", "document"], min_length=1, description=RetrievalParams.model_fields["orders"].description
    )


class PipelineEvaluateParams(EvaluateParams):
    """What to measure, under which KV policies."""

    suite: str = Field(default="records", description=EvaluateParams.model_fields["suite"].description)
    policies: list[str] = Field(
        default=["full", "streaming:sink=4,window=252"],
        min_length=1,
        description=EvaluateParams.model_fields["policies"].description,
    )
    lengths: list[Annotated[int, Field(ge=1)]] = Field(
        default=[128, 256, 512, 768, 1000], description=EvaluateParams.model_fields["lengths"].description
    )
    style: Literal["prose", "code"] = Field(
        default="code", description=EvaluateParams.model_fields["style"].description
    )


class LongParams(Params):
    """Needles in prompts longer than the model's window."""

    policies: list[str] = Field(
        default=["full", "streaming:sink=32,window=512", "longcache"],
        min_length=1,
        description="KV policies",
    )
    lengths: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1000, 2000, 4000],
        min_length=1,
        description="tokens of prompt and answer, within the window and beyond",
    )
    depths: list[Annotated[int, Field(ge=0, le=100)]] = Field(
        default=[0, 25, 50, 75, 100], min_length=1, description=EvaluateParams.model_fields["depths"].description
    )
    samples: int = Field(default=2, ge=1, description="a cell")

    _policies = field_validator("policies")(parsed_policies)


class SmallParams(ModelParams):
    """A model of another size."""

    source: str = Field(
        default="scratch",
        min_length=1,
        description="scratch (trained on the corpus from random weights), a model folder, a hub name, or run:ID:LABEL",
    )
    size: Literal["1m", "short", "tiny"] = Field(
        default="tiny", description=ModelParams.model_fields["size"].description
    )


class TracingParams(Params):
    """What to trace back to the corpus: models' knowledge, completions, evaluation records."""

    small: SmallParams = Field(default=SmallParams(), description="the model that the pipeline's own is compared with")
    functions: int = Field(
        default=100,
        ge=1,
        description="functions of the standard library that the study of memorization asks about, of the corpus and of"
        " the held-out modules each; these have about as many",
    )
    n: list[Annotated[int, Field(ge=1, le=20)]] = Field(default=[2], min_length=1, description="words of an n-gram")
    gamma: list[Annotated[float, Field(ge=-1, le=1)]] = Field(
        default=[0.3],
        min_length=1,
        description="the least cosine of a pair, one for each n, by the model's input embeddings",
    )
    completions: int = Field(default=6, ge=1, description="completions that are explained by the corpus, at most")
    prompt_tokens: int = Field(default=512, ge=1, description="of a prompt out of the corpus, at most")
    new_tokens: int = Field(default=64, ge=1, description="of a completion, at most")
    share: float = Field(
        default=0.1, gt=0, le=1, description="spans that are kept, the rarest ones, as a share of a completion's tokens"
    )
    clean: int = Field(default=4, ge=1, description="clean evaluation records beside the one that is planted")
    batch: int = Field(default=8, ge=1, description="texts at once")
    seed: int = Field(default=0, ge=0, description="of the draws")

    @model_validator(mode="after")
    def _gammas(self) -> TracingParams:
        if len(self.n) != len(self.gamma) or len(set(self.n)) < len(self.n):
            raise ValueError(f"n is {self.n} and gamma {self.gamma}, expected different n and a gamma for each")
        return self


class PipelineParams(Params):
    """The whole pipeline; without arguments, the demo."""

    corpus: CorpusParams = CorpusParams()
    index: PipelineIndexParams = PipelineIndexParams()
    model: ModelParams = ModelParams()
    instructions: InstructionsParams = InstructionsParams()
    coreset: CoresetParams = CoresetParams()
    finetune: PipelineFinetuneParams = PipelineFinetuneParams()
    evaluate: PipelineEvaluateParams = PipelineEvaluateParams()
    records: int = Field(default=24, ge=1, description="evaluation records a task derived from held-out modules")
    retrieval: PipelineRetrievalParams = PipelineRetrievalParams()
    sweep: list[str] = Field(
        default=[
            "razor:induction=0.25,echo=0,window=28,compression=1000",
            "razor:induction=0.25,echo=0,window=92,compression=1000",
            "razor:induction=0.25,echo=0,window=220,compression=1000",
            "snapkv:budget=0.15",
            "snapkv:budget=0.3",
            "snapkv:budget=0.6",
            "recent:budget=0.15",
            "recent:budget=0.3",
            "recent:budget=0.6",
        ],
        description="further KV policies to measure on the model of the whole pool, beside evaluate.policies",
    )
    rag: bool = Field(
        default=True, description="measure retrieval against the whole context, on the model of the whole pool"
    )
    needle: bool = Field(default=True, description="measure the needle grid too")
    beyond: bool = Field(
        default=True, description="measure needles beyond the model's window, on the model of the whole pool"
    )
    long: LongParams = LongParams()
    trace: bool = Field(
        default=True,
        description="trace completions to the corpus; with the standard library as corpus also what models of two"
        " sizes know, and a planted evaluation record",
    )
    tracing: TracingParams = TracingParams()
    full_pool: bool = Field(default=True, description="train on the whole pool too, for comparison")
    from_stage: StageName = Field(default="corpus", description="stages before it must be in the store")
    until_stage: StageName = Field(default="report", description="stages after it are left out")

    @model_validator(mode="after")
    def _order(self) -> PipelineParams:
        if STAGES.index(self.from_stage) > STAGES.index(self.until_stage):
            raise ValueError(f"from_stage {self.from_stage} comes after until_stage {self.until_stage}")
        return self

    @model_validator(mode="after")
    def _own_models(self) -> PipelineParams:
        if self.evaluate.endpoint.url is not None:
            raise ValueError("evaluate.endpoint.url: a pipeline evaluates the models that it trains; expected none")
        if self.evaluate.heads is not None:
            raise ValueError("evaluate.heads: a pipeline makes the head profiles of its models itself; expected none")
        return self

    _sweep = field_validator("sweep")(parsed_policies)

    @model_validator(mode="after")
    def _has_records(self) -> PipelineParams:
        evaluates = STAGES.index(self.until_stage) >= STAGES.index("evaluate")
        derived = self.evaluate.suite == "records" and self.evaluate.data is None
        if evaluates and derived and self.corpus.sources != [STANDARD_LIBRARY]:
            raise ValueError(
                f"evaluate.suite records has no evaluate.data, and records are derived from {STANDARD_LIBRARY} alone;"
                " give a folder of records, another suite, or until_stage finetune"
            )
        return self
