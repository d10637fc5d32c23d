"""The parameters of the flow `replicate`; imports pydantic alone, as params.py does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from longloom.flows.params import Params
from longloom.flows.params_coreset import CoresetParams
from longloom.flows.params_evaluate import EvaluateParams, parsed_policies
from longloom.flows.params_extend import ExtendParams, PackParams
from longloom.flows.params_preference import ComparisonsParams
from longloom.flows.params_prove import ProveFinetuneParams, ProveParams

#: The papers, by what their method is called here, in the order of the pipeline.
Paper = Literal["ngrams", "tagcos", "minisequence", "chatqa2", "razor", "longcache", "preferences"]
PAPERS: tuple[Paper, ...] = ("ngrams", "tagcos", "minisequence", "chatqa2", "razor", "longcache", "preferences")


class ReplicateFinetuneParams(ProveFinetuneParams):
    """How to train on the chosen examples and on all of them; these models answer the needles too."""

    epochs: int = Field(default=3, ge=1, description=ProveFinetuneParams.model_fields["epochs"].description)


class ReplicateComparisonsParams(ComparisonsParams):
    """Which preference data to read; fewer than `longloom prefer train` makes, for there are several trainings."""

    rows: int = Field(default=2500, ge=10, description=ComparisonsParams.model_fields["rows"].description)
    held_out_rows: int = Field(
        default=200, ge=10, description=ComparisonsParams.model_fields["held_out_rows"].description
    )


class ReplicatePackParams(PackParams):
    """What the window is extended on."""

    length: int = Field(default=2048, ge=2, description=PackParams.model_fields["length"].description)
    separator: Literal["text", "special", "mask"] = Field(
        default="special", description=PackParams.model_fields["separator"].description
    )
    tokens: int | None = Field(default=800_000, ge=1, description=PackParams.model_fields["tokens"].description)


class ReplicateExtendParams(ExtendParams):
    """How the window is extended; as suits the demo's model."""

    recompute: bool = Field(default=False, description=ExtendParams.model_fields["recompute"].description)
    texts: int = Field(default=16, ge=0, description=ExtendParams.model_fields["texts"].description)


class NeedleParams(Params):
    """The needles that models are asked for, under KV policies."""

    within: int = Field(default=1000, ge=1, description="tokens of prompt and answer within the model's window")
    beyond: list[Annotated[int, Field(ge=1)]] = Field(
        default=[2000, 4000], min_length=1, description="tokens of prompt and answer beyond it"
    )
    depths: list[Annotated[int, Field(ge=0, le=100)]] = Field(
        default=[10, 30, 50, 70, 90], min_length=1, description=EvaluateParams.model_fields["depths"].description
    )
    samples: int = Field(default=6, ge=1, description="a depth within the window, for each seed")
    samples_beyond: int = Field(default=4, ge=1, description="a depth and length beyond it, for each seed")
    style: Literal["prose", "code"] = Field(
        default="code", description=EvaluateParams.model_fields["style"].description
    )
    razor: str = Field(
        default="razor:induction=0.25,echo=0,window=28,compression=1000",
        description="RazorAttention's settings; `razor` alone is the paper's, which compresses beyond 4,000 tokens",
    )
    scope: str = Field(
        default="longcache:local=256,spans=7",
        description="LongCache with a scope smaller than the needles within the window; by default half of the demo's",
    )
    longcache: str = Field(
        default="longcache:local=256,span=16",
        description="LongCache beyond the window; `longcache` alone has the paper's spans of 32 tokens",
    )
    streaming: str = Field(
        default="streaming:sink=32,window=992",
        description="what it is compared with there, and a window's worth of text; by default the demo's window",
    )

    @field_validator("razor", "scope", "longcache", "streaming")
    @classmethod
    def _policies(cls, value: str) -> str:
        return parsed_policies([value])[0]


class ReplicateParams(Params):
    """Which claims to measure, how often, and how."""

    papers: list[Paper] = Field(default=list(PAPERS), min_length=1, description="whose claims to measure")
    seeds: int = Field(default=3, ge=1, description="runs of each measure, whose spread the table shows")
    functions: int = Field(
        default=40,
        ge=1,
        description="held-out functions of the standard library that each run of the study of memorization asks about;"
        " there are about ninety, and runs of as many would ask the same",
    )
    coreset: CoresetParams = CoresetParams()
    finetune: ReplicateFinetuneParams = ReplicateFinetuneParams()
    needle: NeedleParams = NeedleParams()
    records: int = Field(default=24, ge=1, description="evaluation records a task, for retrieval")
    characters: list[Annotated[int, Field(ge=600)]] = Field(
        default=[3000, 4000, 4500],
        min_length=1,
        description="of the records' contexts, in turn; more than the old window holds, less than the extended one",
    )
    chunks: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1, 2, 4, 6], min_length=2, description="retrieved chunks that the model reads, fewest to most"
    )
    chunk_words: int = Field(default=20, ge=1, description="words of a chunk")
    pack: ReplicatePackParams = ReplicatePackParams()
    extend: ReplicateExtendParams = ReplicateExtendParams()
    batch: int = Field(default=8, ge=1, description="prompts at once")

    @field_validator("papers")
    @classmethod
    def _once(cls, value: list[Paper]) -> list[Paper]:
        if len(set(value)) < len(value):
            raise ValueError(f"found {', '.join(value)}, expected each paper once")
        return [paper for paper in PAPERS if paper in value]

    @model_validator(mode="after")
    def _possible(self) -> ReplicateParams:
        if self.chunks != sorted(set(self.chunks)):
            raise ValueError(f"chunks are {self.chunks}, expected rising numbers")
        self.proof()
        return self

    def proof(self) -> ProveParams:
        """The proof of coresets that it runs: 5% by the paper's method, and at random."""
        return ProveParams(
            methods=["tagcos", "random"],
            shares=[0.05],
            seeds=self.seeds,
            coreset=self.coreset,
            finetune=self.finetune,
        )
