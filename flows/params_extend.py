"""The parameters of the flow `extend`; imports pydantic alone, as params.py does."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from longloom.flows.params import BySize, Params

RATE = BySize(4e-4, 3e-5, "ChatQA 2")


class PackParams(Params):
    """What to train on: long documents upsampled, and all packed into rows."""

    length: int = Field(default=4096, ge=2, description="tokens of the new window and of every row")
    separator: Literal["text", "special", "mask"] = Field(
        default="text",
        description="what parts documents: a text, as in ChatQA 2; the tokenizer's begin and end tokens; or these with"
        " a mask, so that no token sees another document and positions begin anew in each",
    )
    text: str = Field(default="<s>", min_length=1, description="of the separator text, encoded as characters")
    long: int | None = Field(
        default=None, ge=1, description="tokens from which a document is long; the model's window by default"
    )
    short_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="of the shorter documents that each pass over a source takes, while it takes all long ones, until"
        " the source has its share of the tokens (Fu et al. 2024); 1 upsamples nothing",
    )
    tokens: int | None = Field(
        default=None, ge=1, description="of documents in the pool; as many as the corpus has by default"
    )
    seed: int = Field(default=0, ge=0, description="of the draws of documents")


class ExtendParams(Params):
    """How to train for the longer window; steps, batch and learning rate of ChatQA 2 were 2000, 32 and 3e-5."""

    rope: Literal["base", "linear", "yarn", "llama3"] = Field(
        default="base", description="of the rotary positions: a larger base, or a scaling"
    )
    base: float | None = Field(
        default=None,
        gt=0,
        description="theta of the rotary positions; with rope base by default NTK-aware, theta x s^(d/(d-2)) for a"
        " window s times as long and heads of d; else as it is",
    )
    steps: int | None = Field(default=None, ge=1, description="optimizer steps; one pass over the rows by default")
    batch: int = Field(default=4, ge=1, description="rows a step, read one by one")
    learning_rate: float | None = Field(default=None, gt=0, description=f"peak; by default {RATE}")
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the steps that warm up")
    recompute: bool = Field(
        default=True, description="keep each layer's input alone and compute the rest again (gradient checkpointing)"
    )
    offload: bool = Field(default=False, description="keep the layers' inputs in host memory")
    seed: int = Field(default=0, ge=0, description="of the order of the rows")
    texts: int = Field(
        default=4,
        ge=0,
        description="held-out texts of the new window's length, for the perplexity by position before and after;"
        " 0: none",
    )

    @model_validator(mode="after")
    def _possible(self) -> ExtendParams:
        if self.offload and not self.recompute:
            raise ValueError("offload without recompute, whose checkpoints wait in host memory; expected both")
        return self

    def of(self, small: bool) -> dict[str, Any]:
        """The parameters of the training, with the learning rate that the model's size decides."""
        return self.model_dump(exclude={"texts"}) | {"learning_rate": self.learning_rate or RATE.of(small)}
