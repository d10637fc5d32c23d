"""References to artifacts: the only thing that flows between stages."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ArtifactRef(BaseModel):
    """A small, immutable, JSON-able pointer to one artifact of a store.

    Two artifacts with equal digests hold equal data, whoever built them and wherever they lie; cache keys of later
    stages are therefore made of digests, never of places.
    """

    model_config = ConfigDict(frozen=True)

    kind: str = Field(description="what it is: corpus, index, model, coreset, ...")
    uri: str = Field(description="its place below the store's root: artifacts/<kind>/<key>")
    digest: str = Field(description="sha256 over the names and contents of its non-volatile files, 64 hex digits")
    schema_version: int = Field(description="version of the stage that wrote it")
    counts: dict[str, int] = Field(default_factory=dict, description="sizes: documents, tokens, examples, ...")

    @property
    def key(self) -> str:
        """The stage's cache key, the last part of the uri."""
        return self.uri.rsplit("/", 1)[-1]

    def short(self) -> str:
        """`kind:0123456789ab`, for logs and tables."""
        return f"{self.kind}:{self.digest[:12]}"
