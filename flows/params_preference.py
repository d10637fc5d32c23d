"""Parameters of preference data and of reward models; imports pydantic alone, as params.py does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longloom.flows.params import STANDARD_LIBRARY, BySize, Params

#: Peak learning rate for all weights, and for adapters as trl's RewardConfig has it.
RATE, ADAPTER_RATE = BySize(5e-4, 6e-6, "3e-6 to 9e-6 suit models of billions of parameters"), 1e-4


class ComparisonsParams(Params):
    """Which preference data to read."""

    sources: list[str] = Field(
        default=[STANDARD_LIBRARY],
        min_length=1,
        description="files (RPR, HH, HHH with rubrics, Auto-J, chosen and rejected), hub:microsoft/rpr?split=train, or"
        " stdlib: reversal pairs made from the standard library's functions",
    )
    contexts: Literal["criteria", "scenario"] = Field(
        default="criteria", description="of RPR's records: the criterion itself, or the scenario that implies it"
    )
    on_bad_record: Literal["stop", "skip"] = Field(
        default="stop", description="stop at a bad record, or skip and count it"
    )
    held_out: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="of each source's comparisons, whole conversations; the standard library holds out whole modules",
    )
    rows: int = Field(default=6000, ge=10, description="reversal pairs made from the standard library to train on")
    held_out_rows: int = Field(default=500, ge=10, description="reversal pairs of its held-out modules")
    seed: int = Field(default=0, ge=0, description="of the split, and of the pairs that are made")


class RewardParams(Params):
    """How to train the reward model: Bradley-Terry on pairs, by trl."""

    tuning: Literal["lora", "full"] = Field(
        default="full", description="adapters on the attention and the head, or all weights"
    )
    epochs: int = Field(default=1, ge=1, description="passes over the comparisons")
    batch: int = Field(default=16, ge=1, description="comparisons a step")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description=f"peak; by default {ADAPTER_RATE} for adapters; for all weights {RATE}",
    )
    rank: int = Field(default=16, ge=1, description="of LoRA")
    alpha: int = Field(default=32, ge=1, description="of LoRA")
    margin: float = Field(default=0.0, ge=0, description="by which a chosen response is to score higher")
    centre: float = Field(
        default=0.01, ge=0, description="weight of the squared sum of a pair's scores, which keeps them around 0"
    )
    template: str = Field(
        default="{prompt}\n\n[criteria] {context}", description="how the context is put into the prompt's last turn"
    )
    max_length: int = Field(
        default=1024, ge=8, description="tokens of prompt, context and response, no more than the model's window"
    )
    on_too_long: Literal["stop", "skip"] = Field(
        default="stop", description="stop at a comparison that is longer, or skip and count it; none is cut"
    )
    seed: int = Field(default=0, ge=0, description="of the head and the order")

    def of(self, small: bool) -> dict[str, object]:
        """The parameters of the training, with the learning rate that the model's size decides."""
        default = RATE.of(small) if self.tuning == "full" else ADAPTER_RATE
        return self.model_dump() | {"learning_rate": self.learning_rate or default}


class ScoreParams(Params):
    """Which responses to score, and by which reward model."""

    data: list[str] = Field(
        min_length=1,
        description="files of records with prompt and response or responses, and perhaps context; or of comparisons",
    )
    model: str = Field(
        default="run:latest:reward-model",
        min_length=1,
        description="a reward model: run:ID:LABEL of an earlier run, a folder, or a hub name",
    )
    on_bad_record: Literal["stop", "skip"] = Field(
        default="stop", description="stop at a bad record, or skip and count it"
    )
    on_too_long: Literal["stop", "skip"] = Field(
        default="stop", description="stop at a response that is longer than the model can read, or leave it unscored"
    )
