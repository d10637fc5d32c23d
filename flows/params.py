"""Parameters of the flows: one definition gives the Prefect form, the CLI's options and a deployment's defaults.

Imports pydantic alone: a form model in a module that misses a heavy library silently loses its form in the UI.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from longloom.flows.folder import enter_folder

enter_folder()  # every flow imports this module, and none does anything before that
#: Where artifacts go unless told otherwise: a folder beside the work, not in the home folder.
DEFAULT_STORE = os.environ.get("LONGLOOM_STORE") or ".longloom"
#: Stands for the source of the running Python's standard library.
STANDARD_LIBRARY = "stdlib"
STAGES = ("corpus", "index", "model", "trace", "instructions", "coreset", "finetune", "evaluate", "report")
StageName = Literal["corpus", "index", "model", "trace", "instructions", "coreset", "finetune", "evaluate", "report"]
#: The largest whole numbers: of seeds, as NumPy takes them; of all else, as every reader of JSON takes them.
LARGEST_SEED, LARGEST = 2**32 - 1, 2**53 - 1
#: Texts that say something when they are empty.
MAY_BE_EMPTY = ("query_prefix",)
#: Who does a stage's pieces (longloom.tasks.workers).
WORKERS = r"^(threads|processes|cluster|\S+:\S+)$"
#: Bytes of a model (25 M float32 parameters) up to which trainings have defaults that suit the demo's, of 4.5 MB. Its
#: learning rates would destroy models of billions of parameters.
SMALL = 100_000_000
Value = TypeVar("Value", float, str)
#: What the option of a training says.
KEPT_CHECKPOINTS = "weights to keep at equal distances, for `trace --influence`; none by default"


@dataclass(frozen=True)
class BySize(Generic[Value]):
    """A default that the model's size decides; as text, for descriptions.

    Attributes:
        small: for models of at most `SMALL` bytes.
        large: for the others.
        source: whose choice that is.
    """

    small: Value
    large: Value
    source: str

    def of(self, small: bool) -> Value:
        """The default for a model of this size."""
        return self.small if small else self.large

    def __str__(self) -> str:
        return (
            f"{self.small} for models of at most {SMALL // 10**6} MB, such as base, else {self.large} ({self.source})"
        )


class Params(BaseModel):
    """The common manner: unknown names are refused, values are not changed after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        model_title_generator=lambda model: model.__name__.removesuffix("Params"),
    )

    @field_validator("*")
    @classmethod
    def _usable(cls, value: object, info: ValidationInfo) -> object:
        """An empty name would stand for the current folder, and Prefect's JSON ends at 64 bits."""
        name = info.field_name or ""
        most = LARGEST_SEED if name.endswith("seed") else LARGEST
        for entry in value if isinstance(value, list) else [value]:
            if entry == "" and name not in MAY_BE_EMPTY:
                raise ValueError("is empty, expected some text")
            if isinstance(entry, str) and ("\0" in entry or any("\ud800" <= letter <= "\udfff" for letter in entry)):
                raise ValueError(f"found {entry[:80]!a}, which no file's name and no UTF-8 text can be")
            if isinstance(entry, int) and abs(entry) > most:
                raise ValueError(f"found {entry:.3g}, expected at most {most}")
        return value


class CorpusParams(Params):
    """What to read."""

    sources: list[str] = Field(
        default=[STANDARD_LIBRARY],
        min_length=1,
        description="files or folders (JSONL, .gz/.zst, Parquet, text, Markdown, source code), hub:NAME?split=train,"
        " or stdlib",
    )
    text_field: str = Field(default="text", description="the field or column that holds a document's text")
    id_field: str = Field(
        default="id", description="the field that names a document; file and line where it is missing"
    )
    on_bad_record: Literal["stop", "skip"] = Field(
        default="stop", description="stop at a bad record, or skip and count it"
    )


class IndexParams(Params):
    """How to index it."""

    tokenizer: str = Field(
        default="train",
        description="train (on the corpus), bytes, base (the repository's), a tokenizer folder or a hub name",
    )
    vocab_size: int = Field(default=1024, ge=260, le=1_000_000, description="tokens of a tokenizer that is trained")
    threads: int = Field(default=2, ge=1, description="threads and processes of the index builder")
    memory_gib: float = Field(
        default=2.0, gt=0, description="memory that the builder may use; what does not fit is cut into shards"
    )
    shard_tokens: int | None = Field(
        default=None, ge=1, description="tokens of a shard at most; as many as the memory allows by default"
    )
    workers: str = Field(
        default="processes",
        pattern=WORKERS,
        description="who sorts the shards: threads, processes or a Dask cluster of this host, or the address of a Dask"
        " scheduler whose workers see the store",
    )


class ModelParams(Params):
    """Which model to start from."""

    source: str = Field(
        default="base",
        min_length=1,
        description="base (the repository's checkpoint; pipeline and pretrain train it further on the corpus), scratch"
        " (trained on the corpus from random weights), a model folder, a hub name, or run:ID:LABEL, a model of an"
        " earlier run, such as run:latest:finetune/tagcos",
    )
    size: Literal["1m", "short", "tiny"] = Field(
        default="1m",
        description="shape of a model that is trained: 1m; short, with a window of 512; or tiny, which starts from"
        " random weights alone",
    )
    tokens: int | None = Field(
        default=None, ge=10_000, description="tokens to train on; the recipe's own number by default"
    )
    seed: int = Field(default=0, ge=0, description="of weights and batches")


class PretrainParams(ModelParams):
    """Which model to train."""

    source: str = Field(
        default="scratch",
        min_length=1,
        description="scratch (from random weights), or what to train further: base (the repository's checkpoint),"
        " run:ID:LABEL or a model folder",
    )
    checkpoints: int = Field(default=0, ge=0, description=KEPT_CHECKPOINTS)


class InstructionsParams(Params):
    """The instruction pool."""

    sources: list[str] = Field(
        default=[STANDARD_LIBRARY],
        min_length=1,
        description="files (messages, ShareGPT, Alpaca, prompt and completion, FLAN TSV), or stdlib",
    )
    on_bad_record: Literal["stop", "skip"] = Field(
        default="stop", description="stop at a bad record, or skip and count it"
    )
    examples: int = Field(default=1600, ge=10, description="examples derived from the standard library")
    characters: int = Field(default=2000, ge=600, description="characters of its longest example")
    seed: int = Field(default=0, ge=0, description="of the derivation")


class TrainingParams(Params):
    """What is the same for every training on chosen examples; the defaults are TAGCOS's (arXiv 2407.15235)."""

    epochs: int = Field(default=4, ge=1, description="passes over the examples")
    rank: int = Field(default=128, ge=1, description="of LoRA")
    alpha: int = Field(default=512, ge=1, description="of LoRA")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="of LoRA")
    max_length: int = Field(default=2048, ge=8, description="tokens of an example; longer ones lose their beginning")
    seed: int = Field(default=0, ge=0, description="of the order")
    checkpoints: int = Field(default=0, ge=0, description=KEPT_CHECKPOINTS)


class FinetuneParams(TrainingParams):
    """How to train on the chosen examples; the defaults are those of TAGCOS (arXiv 2407.15235), but for the batch."""

    tuning: Literal["lora", "full"] = Field(default="lora", description="adapters on the attention, or all weights")
    learning_rate: float = Field(default=2e-5, gt=0, description="peak")
    batch: int = Field(default=16, ge=1, description="examples a step")
