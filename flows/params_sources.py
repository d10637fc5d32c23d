"""Parameters of the flows that ask an index where texts come from: explain, contamination, prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from longloom.flows.params import Params
from longloom.flows.params_evaluate import ServerParams

_INDEX = "run:ID:LABEL or folder of an n-gram index; that of the newest run with one by default"

#: Measures of contamination; the first of a kind is what GPT-3's report has, the next PaLM's, infini-gram mini's.
MeasureName = Literal["13-gram", "8-gram", "50-char"]

#: Characters of a text that is no file: it travels with the run.
MOST_CHARACTERS = 200_000


class ExplainParams(Params):
    """What to explain by the corpus."""

    text: str | None = Field(
        default=None,
        max_length=MOST_CHARACTERS,
        description="the text; standard input where neither it nor answers are given",
    )
    answers: str | None = Field(
        default=None,
        description="a file of text, or an evaluation whose answers are explained: run:ID:evaluation/... or its folder",
    )
    index: str | None = Field(default=None, description=_INDEX)
    limit: int | None = Field(default=None, ge=1, description="at most so many answers, the first ones")
    share: float = Field(
        default=0.05, gt=0, le=1, description="spans that are kept, the rarest ones, as a share of the text's tokens"
    )
    documents: int = Field(default=10, ge=1, description="documents shown a span")
    context: int = Field(default=40, ge=0, description="tokens shown on either side of a span")

    @model_validator(mode="after")
    def _one(self) -> ExplainParams:
        if self.text is not None and self.answers is not None:
            raise ValueError("found both text and answers, expected one of them")
        if self.limit is not None and self.answers is None:
            raise ValueError(f"limit is {self.limit} without answers, of which it is a number")
        return self


class ContaminationParams(Params):
    """Which evaluation records to look for in the corpus."""

    suite: str | None = Field(
        default=None,
        description="whose records: longbench, longbench-e, longbench-v2, leval, infinitebench, chatrag or records",
    )
    data: str | None = Field(
        default=None,
        description="folder or file in the suite's official format; the hub's data set when not given. Without a suite:"
        " a JSON Lines file of any records, or a folder of such",
    )
    tasks: list[str] = Field(default=[], description="tasks of the suite; all that the data has by default")
    fields: list[str] = Field(default=[], description="of JSON Lines, to be looked at; all text by default")
    limit: int | None = Field(default=None, ge=1, description="at most so many records a task, the first ones")
    index: str | None = Field(default=None, description=_INDEX)
    by: list[MeasureName] = Field(
        default=["8-gram", "50-char"],
        min_length=1,
        description="measures of which one is enough to flag a record: 13-gram (a single one in the corpus), 8-gram"
        " (70%), 50-char (80%; asks for an index of bytes). All are in the table",
    )
    evaluation: str | None = Field(
        default=None,
        description="of the suite, to be scored again without the records flagged: run:ID:evaluation/... or its folder",
    )

    @model_validator(mode="after")
    def _source(self) -> ContaminationParams:
        if self.suite is None and self.data is None:
            raise ValueError("found neither suite nor data, expected a suite, or a JSON Lines file as data")
        if self.suite is None and (self.tasks or self.evaluation):
            raise ValueError("found tasks or an evaluation without a suite, expected the suite that they belong to")
        if self.suite is not None and self.fields:
            raise ValueError(f"fields are {', '.join(self.fields)} with a suite, whose fields are known; omit them")
        return self


class PromptsParams(Params):
    """Which prompts to rank by how often their n-grams stand in the corpus."""

    prompt: str | None = Field(
        default=None, min_length=1, max_length=MOST_CHARACTERS, description="the prompt to begin with"
    )
    candidates: str | None = Field(default=None, description="a file of prompts, one a line")
    index: str | None = Field(default=None, description=_INDEX)
    n: int = Field(default=3, ge=1, description="words of an n-gram")
    model: str | None = Field(default=None, description="the name of a model at the endpoint that rewrites the prompt")
    rounds: int = Field(
        default=10, ge=1, description="rewrites that it is asked for, towards frequent and towards rare"
    )
    endpoint: ServerParams = Field(default=ServerParams(), description="that model's server")

    @model_validator(mode="after")
    def _some(self) -> PromptsParams:
        if (self.model is None) != (self.endpoint.url is None):
            raise ValueError("found one of model and endpoint.url, expected both or neither")
        if self.prompt is None and (self.candidates is None or self.model is not None):
            raise ValueError("found no prompt, expected one, or a file of candidates and no model")
        return self
