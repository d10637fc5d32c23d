"""The parameters of the flow `trace`; imports pydantic alone, as params.py does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from longloom.flows.params import Params


class TraceParams(Params):
    """What to trace, and how; the defaults are those of Generalization v.s. Memorization (arXiv 2407.14985)."""

    data: list[str] = Field(
        min_length=1,
        description="evaluation sets: JSON Lines with input and output (task, id), a file or a folder, or"
        " run:ID:LABEL of an evaluation, such as run:latest:evaluation/base/records/full",
    )
    models: list[str] = Field(
        default=["base"],
        min_length=1,
        description="model folders, hub names, base, or run:ID:LABEL of earlier runs; several sizes make the curves",
    )
    index: str | None = Field(
        default=None, description="folder of an index, or run:ID:LABEL; that of the newest run with one by default"
    )
    evaluated: str | None = Field(
        default=None, description="folder or file that an evaluation read, where that is not in the store"
    )
    prompt: str = Field(
        default="{input} ", description="of JSON Lines: what a model reads before the output, with {input} in it"
    )
    limit: int | None = Field(default=None, ge=1, description="at most so many records a task, the first ones")
    n: list[Annotated[int, Field(ge=1, le=20)]] = Field(default=[3, 5], min_length=1, description="words of an n-gram")
    gamma: list[Annotated[float, Field(ge=-1, le=1)]] = Field(
        default=[],
        description="the least cosine of a pair, one for each n; the paper's by default, which it chose for LASER and"
        " E5: look at the sensitivity",
    )
    thresholds: Literal["knowledge", "translation"] = Field(
        default="knowledge",
        description="which of the paper's gammas: knowledge (.75 for n = 3, .65 for 5) or translation (.85, .80, .75,"
        " .70 for 2 to 5)",
    )
    embeddings: list[str] = Field(
        default=["input-embeddings"],
        min_length=1,
        description="of n-grams: input-embeddings (the first model's, averaged and centred: nothing to download) or"
        " sentence-transformers folders and hub names; the first is used, the others are compared with it",
    )
    mode: Literal["paper", "released"] = Field(
        default="paper", description="as the paper defines it, or as the authors' code does"
    )
    least: int = Field(default=1, ge=1, description="occurrences of an input n-gram below which its pairs are left out")
    new_tokens: int = Field(
        default=32, ge=0, description="of the generations, whose novelty and performance are measured; 0: none"
    )
    influence: int = Field(
        default=0, ge=0, description="pairs a set and n whose documents' influence is measured; 0: none"
    )
    documents: int = Field(default=50, ge=1, description="documents of a pair and kind whose influence is measured")
    batch: int = Field(default=8, ge=1, description="texts at once")
    seed: int = Field(default=0, ge=0, description="of the draw of pairs and documents")

    @field_validator("data", "models", "embeddings", "n")
    @classmethod
    def _once(cls, value: list[object]) -> list[object]:
        twice = [entry for entry in value if value.count(entry) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is listed twice, expected each once")
        return value
