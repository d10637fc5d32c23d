"""Parameters of the coreset; imports pydantic alone, as params.py does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longloom.flows.params import WORKERS, BySize, Params

#: Of the warm-up.
WARMUP_RATE = BySize(1e-3, 2e-5, "TAGCOS")


class CoresetParams(Params):
    """What to choose from the pool."""

    methods: list[str] = Field(
        default=["tagcos", "random"],
        min_length=1,
        description="selection methods: tagcos, random, longest (answers), perplexity, k-center, omp, less",
    )
    share: float = Field(default=0.05, gt=0, le=1, description="how much of the pool to choose")
    count: int | None = Field(default=None, ge=1, description="examples to choose, in place of the share")
    clusters: int = Field(default=20, ge=1, description="of tagcos, by k-means")
    mode: Literal["default", "released"] = Field(
        default="default", description="of tagcos: exact budgets, or the released algorithm"
    )
    side: Literal["middle", "highest", "lowest"] = Field(
        default="middle", description="of perplexity: which to choose, by rank"
    )
    targets: list[str] = Field(
        default=[],
        description="of less: files of validation examples, in the formats of the pool; each source is a set",
    )
    preferences: list[str] = Field(
        default=[],
        description="files of preference data to choose from in place of instructions, or stdlib; the gradients are"
        " those of a reward model's pairwise loss",
    )
    dimension: int = Field(default=1024, ge=16, description="of the projected gradients")
    warmup: str | None = Field(
        default=None,
        min_length=1,
        description="folder of a warm-up's checkpoints made elsewhere (LESS, Hugging Face Trainer); trained by default",
    )
    warmup_share: float = Field(default=0.05, gt=0, le=1, description="of the pool that the warm-up trains on")
    warmup_epochs: int = Field(default=2, ge=1, description="passes over it")
    warmup_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description=f"of the warm-up's LoRA; by default {WARMUP_RATE}",
    )
    checkpoints: int = Field(default=3, ge=1, description="of the warm-up, each giving gradients")
    rank: int = Field(default=8, ge=1, description="of the warm-up's LoRA")
    alpha: int = Field(default=32, ge=1, description="of the warm-up's LoRA")
    batch: int = Field(default=16, ge=1, description="examples a step of the warm-up")
    bias_correction: bool = Field(
        default=False, description="of Adam's moments in the gradients, which the released algorithm leaves out"
    )
    max_length: int = Field(default=1024, ge=8, description="tokens of an example")
    seed: int = Field(default=0, ge=0, description="of the sample, the projection, k-means and the draw")
    threads: int = Field(default=2, ge=1, description="threads and processes that compute")
    workers: str = Field(
        default="threads",
        pattern=WORKERS,
        description="who takes gradients and chooses within clusters: threads, processes or a Dask cluster of this"
        " host, or the address of a Dask scheduler whose workers see the store",
    )
