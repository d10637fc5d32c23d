"""The parameters of the flow `tune`; imports pydantic alone, as params.py does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from longloom.flows.params import BySize, Params

RATE = BySize(5e-4, 3e-5, "ChatQA 2's of the third stage")

#: Sets that are made here: of the standard library, and long documents of another set's conversations.
POOL, DIALOGUES, SYNTHESIS = "stdlib:instructions", "stdlib:conversations", "synthesis:"


class StageParams(Params):
    """What a stage trains on; its subclasses have the defaults of the demo's model of 1 M parameters."""

    blend: list[str] = Field(
        default=["sft:1"],
        min_length=1,
        description="sets with their weights, NAME:WEIGHT, which need not sum to one, or one of ChatQA 2's lists:"
        " chatqa2-stage1, chatqa2-stage2, chatqa2-stage3",
    )
    examples: int = Field(default=1600, ge=1, description="to train on; a set that is too small is used again")
    max_length: int = Field(
        default=512,
        ge=16,
        description="tokens of an example; a longer one loses the end of its context, then the dialogue its beginning",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description=f"peak; by default {RATE}",
    )


class ConversationStageParams(StageParams):
    """Conversations with a context."""

    blend: list[str] = Field(
        default=["qa:0.8", "sft:0.2"], min_length=1, description=StageParams.model_fields["blend"].description
    )


class LongStageParams(StageParams):
    """The short conversations, and long documents among them."""

    blend: list[str] = Field(
        default=["qa:0.8", "sft:0.2", "long_qa:6"],
        min_length=1,
        description=StageParams.model_fields["blend"].description,
    )
    max_length: int = Field(default=1024, ge=16, description=StageParams.model_fields["max_length"].description)


class LibraryParams(Params):
    """The sets that are made of the standard library."""

    examples: int = Field(default=2000, ge=10, description="of each")
    characters: int = Field(default=600, ge=600, description="of the longest context, its facts aside")
    seed: int = Field(default=0, ge=0, description="of the derivation")


class SynthesisParams(Params):
    """Long documents with short contexts put between their sentences; ChatQA 2's have 32K to 128K tokens."""

    examples: int = Field(default=1600, ge=1, description="to make")
    least: int = Field(default=300, ge=1, description="tokens of the shortest context")
    most: int = Field(default=760, ge=1, description="tokens of the longest; the prompt has some 180 besides")
    seed: int = Field(default=0, ge=0, description="of documents, lengths and places")

    @model_validator(mode="after")
    def _order(self) -> SynthesisParams:
        if self.least > self.most:
            raise ValueError(f"least is {self.least} and most {self.most} tokens, expected least <= most")
        return self


class TuneParams(Params):
    """Three stages of instruction tuning: instructions, conversations with a context, long documents (ChatQA 2)."""

    sets: list[str] = Field(
        default=[f"sft={POOL}", f"qa={DIALOGUES}", f"long_qa={SYNTHESIS}qa"],
        min_length=1,
        description="NAME=PLACE: a file, a folder or hub:NAME?split=train of ChatQA's formats or of instructions;"
        f" {POOL}; {DIALOGUES}; or {SYNTHESIS}NAME, another set's conversations in long documents of the corpus",
    )
    kinds: list[str] = Field(
        default=[],
        description="NAME=KIND of a set's answers: full, span, span_or_full, list, number or none; ChatQA's sets have"
        " their own by their names, others full where there is a context",
    )
    on_bad_record: Literal["stop", "skip"] = Field(
        default="stop", description="stop at a bad record, or skip and count it"
    )
    instruct: StageParams = StageParams()
    conversation: ConversationStageParams = ConversationStageParams()
    long: LongStageParams = LongStageParams()
    compare: list[Literal["no-long", "all-in-one"]] = Field(
        default=[],
        description="also train: no-long, a third stage without the sets that the second has not; all-in-one, the"
        " examples of all stages in one random order, as the third stage trains",
    )
    batch: int = Field(default=8, ge=1, description="examples a step; ChatQA 2's is 32")
    tuning: Literal["full", "lora"] = Field(
        default="full",
        description="all weights, as ChatQA 2, or adapters on the attention, merged at the end of each stage",
    )
    rank: int = Field(default=16, ge=1, description="of LoRA")
    alpha: int = Field(default=32, ge=1, description="of LoRA")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of LoRA")
    accumulate: int = Field(default=1, ge=1, description="parts that a step's examples are read in")
    recompute: bool = Field(
        default=False, description="keep each layer's input alone and compute the rest again (gradient checkpointing)"
    )
    offload: bool = Field(default=False, description="keep the layers' inputs in host memory")
    seed: int = Field(default=0, ge=0, description="of the draws and the order")
    library: LibraryParams = LibraryParams()
    synthesis: SynthesisParams = SynthesisParams()

    @field_validator("sets", "kinds")
    @classmethod
    def _pairs(cls, value: list[str]) -> list[str]:
        names = []
        for entry in value:
            name, equals, text = entry.partition("=")
            if not (name and equals and text):
                raise ValueError(f"found {entry!r}, expected NAME=...")
            if name in names:
                raise ValueError(f"{name!r} is given twice, expected once")
            names.append(name)
        return value

    @model_validator(mode="after")
    def _fits(self) -> TuneParams:
        places = pairs(self.sets)
        for name, place in places.items():
            other = place.removeprefix(SYNTHESIS)
            if place.startswith(SYNTHESIS) and (other not in places or places[other].startswith(SYNTHESIS)):
                raise ValueError(f"set {name}: found {place!r}, expected the name of another set, which is not made so")
        unknown = [name for name in pairs(self.kinds) if name not in places]
        if unknown:
            raise ValueError(f"kinds: no set {unknown[0]!r}, expected one of {', '.join(places)}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch is {self.batch} and accumulate {self.accumulate}, expected a divisor of the batch")
        if self.offload and not self.recompute:
            raise ValueError("offload without recompute, whose checkpoints wait in host memory; expected both")
        return self


def pairs(entries: list[str]) -> dict[str, str]:
    """`NAME=TEXT` -> {NAME: TEXT}."""
    return {name: text for name, _, text in (entry.partition("=") for entry in entries)}
