"""Parameters of evaluations: suites, KV policies, endpoints, judges, head profiles, retrieval; imports pydantic alone,
as params.py does."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from longloom.flows.params import Params


def parse_policy(text: str) -> tuple[str, dict[str, int | float | str]]:
    """`snapkv:budget=0.3,window=8` -> ("snapkv", {"budget": 0.3, "window": 8}).

    Raises:
        ValueError: an option that is not NAME=NUMBER or NAME=WORD, or the head profile, which is a file.
    """
    name, _, rest = text.partition(":")
    options: dict[str, int | float | str] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key.strip() == "heads":
            raise ValueError(f"KV policy {text!r}: found option {part!r}, expected it as parameter `heads`")
        try:
            options[key.strip()] = value.strip() if _WORD.fullmatch(value.strip()) else _number(value)
        except ValueError:
            raise ValueError(f"KV policy {text!r}: found option {part!r}, expected NAME=NUMBER or NAME=WORD") from None
    return name, options


#: What names one of a KV policy's ways, such as the 8 bits of longcache's `scoring=int8`.
_WORD = re.compile(r"(?!(?:inf|infinity|nan)$)[a-z][a-z0-9_]*")


def _number(text: str) -> int | float:
    """A whole number, or with a point or an exponent a float."""
    if not {".", "e", "E"} & set(text):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def parsed_policies(value: list[str]) -> list[str]:
    """The texts of KV policies as they are, if `parse_policy` reads them (ValueError)."""
    for text in value:
        parse_policy(text)
    return value


class ServerParams(Params):
    """An OpenAI-compatible server."""

    url: str | None = Field(
        default=None,
        description="of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1; its key is taken from the"
        " environment variable OPENAI_API_KEY",
    )
    timeout: float = Field(default=120, gt=0, description="seconds that a try may take")
    retries: int = Field(default=4, ge=0, description="further tries of a request that failed")
    at_once: int = Field(default=4, ge=1, description="requests in flight")
    per_minute: float | None = Field(default=None, gt=0, description="most requests a minute")

    @field_validator("url")
    @classmethod
    def _no_secrets(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError as error:  # of the port or of brackets, whose text tells nothing of a password
            raise ValueError(
                f"the URL cannot be read ({error}), expected one such as http://127.0.0.1:8000/v1"
            ) from None
        if "@" in parts.netloc or parts.query:  # not shown, and refused before anything is written down
            raise ValueError(
                "the URL holds a user, a password or a query, which would be stored with every result; expected a plain"
                " URL and the key in OPENAI_API_KEY"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError(f"found {value[:200]!r}, expected a URL such as http://127.0.0.1:8000/v1")
        return value


class EndpointParams(ServerParams):
    """A model behind a server; `model` is then its name there."""

    api: Literal["chat", "completions"] = Field(default="chat", description="which of the server's interfaces")
    tokenizer: str | None = Field(
        default=None, description="folder or hub name, to cut prompts by; without one they go out whole"
    )


#: Tokens of prompt and answer, where a suite makes its own prompts and no lengths are given.
DEFAULT_LENGTHS = {"needle": [256, 512, 768, 1000], "ruler": [4096]}


class EvaluateParams(Params):
    """What to measure, under which KV policies."""

    suite: str = Field(
        default="longbench",
        description="longbench, longbench-e, longbench-v2, leval, needle, ruler, infinitebench, chatrag, records"
        " (LongBench's format with prompts of your own), or lm-eval (any task of the harness)",
    )
    data: str | None = Field(
        default=None,
        description="folder or file in the suite's official format; the hub's data set when not given; lm-eval: a"
        " folder of task files",
    )
    tasks: list[str] = Field(
        default=[], description="tasks of the suite; all that the data has by default (lm-eval: needed)"
    )
    policies: list[str] = Field(
        default=["full"],
        min_length=1,
        description="KV policies with their options: full, streaming:sink=4,window=252, snapkv:budget=256,"
        " snapkv:budget=0.3 (a share of the prompt), razor:compression=5,window=4000, longcache (fits itself to the"
        " model's window), longcache:local=512,spans=15",
    )
    heads: str | None = Field(
        default=None,
        description="head profile of razor and other policies that protect heads: run:ID:LABEL, or a folder or file"
        " that `longloom heads` wrote; made on the spot when not given",
    )
    limit: int | None = Field(default=None, ge=1, description="at most so many samples a task, the first ones")
    max_length: int | None = Field(
        default=None,
        ge=16,
        description="tokens of a prompt before the chat template, cut as the suite cuts, beyond the model's window too;"
        " what that window leaves beside the answer by default",
    )
    truncation: bool = Field(
        default=False, description="with max_length: full attention too, on prompts cut to the model's window"
    )
    batch: int = Field(default=8, ge=1, description="prompts at once")
    seed: int = Field(default=0, ge=0, description="of generated samples")
    lengths: list[Annotated[int, Field(ge=1)]] = Field(
        default=[],
        description="needle, ruler: tokens of prompt and answer, beyond the model's window too; by default 256 to 1000"
        " (needle), 4096 (ruler)",
    )
    depths: list[Annotated[int, Field(ge=0, le=100)]] = Field(
        default=[0, 25, 50, 75, 100], min_length=1, description="needle: depth in percent"
    )
    samples: int = Field(default=2, ge=1, description="needle: samples a cell; ruler: samples a length")
    style: Literal["prose", "code"] = Field(
        default="prose", description="needle: a sentence, or a comment line in code"
    )
    needles: int = Field(default=3, ge=2, description="needle: of the task multi")
    lie: bool = Field(
        default=True, description="leval: tell the model the answer's length, as officially (open-ended tasks)"
    )
    exclude_contaminated: str | None = Field(
        default=None,
        min_length=1,
        description="leave out the records that stand in a corpus: run:ID:LABEL or folder of what `longloom"
        " contamination` wrote, or of an n-gram index to look in",
    )
    best_of: int | None = Field(
        default=None, ge=2, description="sample so many answers a prompt, of which the reward model picks one"
    )
    reward: str | None = Field(
        default=None,
        min_length=1,
        description="the reward model of best_of: run:ID:reward-model of `longloom prefer train`, a folder, or a hub"
        " name",
    )
    temperature: float = Field(default=1.0, gt=0, description="of the answers sampled for best_of")
    endpoint: EndpointParams = Field(
        default=EndpointParams(), description="evaluate a model behind a server, in place of one of your own"
    )

    def suite_options(self, suite: str) -> dict[str, object]:
        """What suites may take as options; each takes those that it has."""
        names = ("depths", "samples", "style", "needles", "lie")
        lengths = self.lengths or DEFAULT_LENGTHS.get(suite, [])
        return {"lengths": lengths, **{name: getattr(self, name) for name in names}}

    _policies = field_validator("policies")(parsed_policies)

    @model_validator(mode="after")
    def _picked(self) -> EvaluateParams:
        if (self.best_of is None) != (self.reward is None):
            raise ValueError(f"best_of is {self.best_of} and reward is {self.reward}, expected both or neither")
        if self.best_of is not None and self.endpoint.url is not None:
            raise ValueError(f"best_of is {self.best_of} with an endpoint, expected a model of your own")
        return self

    @model_validator(mode="after")
    def _compared(self) -> EvaluateParams:
        if self.truncation and self.max_length is None:
            raise ValueError("truncation is what max_length is compared with, and that is not given")
        if self.truncation and self.endpoint.url is not None:
            raise ValueError("truncation with an endpoint, whose model's window is not known; expected none")
        return self


class JudgeParams(Params):
    """Whose answers to L-Eval's open-ended questions to compare, and by which judge."""

    task: str = Field(description="an open-ended task of L-Eval, such as multidoc_qa")
    answers: str = Field(
        description="of the model under test: an official prediction file, or run:ID:evaluation/MODEL/leval/POLICY"
    )
    against: str = Field(description="of the model to compare with, likewise")
    data: str | None = Field(
        default=None, description="L-Eval's records, where a run's answers are judged; the hub's when not given"
    )
    model: str = Field(description="the judge's name at the endpoint")
    endpoint: ServerParams = Field(default=ServerParams(), description="the judge's server")


class HeadsParams(Params):
    """How to find a model's retrieval heads: by a probe, or from published scores; the defaults are RazorAttention's
    (arXiv 2407.15891)."""

    length: int | None = Field(
        default=None,
        ge=2,
        description="random tokens of a repeat; 2500 by default, or as many as the model's window holds",
    )
    repeats: int = Field(default=4, ge=2, description="how often they are repeated")
    seed: int = Field(default=0, ge=0, description="of the random tokens")
    scores: str | None = Field(
        default=None, min_length=1, description="a file of published head scores, in place of the probe"
    )
    layout: Literal["duoattention", "retrieval-head", "kvzip"] | None = Field(
        default=None,
        description="of that file: full_attention_heads.tsv of DuoAttention, head_score/*.json of Retrieval_Head,"
        " utils/head_score/*.pt of KVzip",
    )

    @model_validator(mode="after")
    def _both(self) -> HeadsParams:
        if self.scores is not None and self.layout is None:
            raise ValueError(
                f"scores is {self.scores!r} without a layout, expected duoattention, retrieval-head or kvzip"
            )
        if self.scores is None and self.layout is not None:
            raise ValueError(f"layout is {self.layout!r} without scores, expected the file that has it")
        if self.scores is not None and self.length is not None:
            raise ValueError(
                f"length is {self.length} with scores, which are not probed; expected the one or the other"
            )
        return self


class RetrievalParams(Params):
    """What to retrieve in place of whole contexts; every combination is measured."""

    chunkers: list[str] = Field(default=["words"], min_length=1, description="words, sentences or tokens")
    sizes: list[Annotated[int, Field(ge=1)]] = Field(
        default=[300], min_length=1, description="of a chunk, in words or tokens"
    )
    rankers: list[str] = Field(default=["bm25"], min_length=1, description="bm25, dense, hybrid")
    encoder: str | None = Field(
        default=None, description="of dense and hybrid: a sentence-transformers folder or hub name"
    )
    query_prefix: str | None = Field(
        default=None, description="put before queries for the encoder; the model's own by default"
    )
    k: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 5, 10], description="chunks that the model reads")
    budgets: list[Annotated[int, Field(ge=1)]] = Field(
        default=[], description="tokens of chunks that the model reads, beside or in place of k"
    )
    orders: list[Literal["rank", "document"]] = Field(
        default=["rank"], min_length=1, description="best chunk first, or as in the context"
    )

    @model_validator(mode="after")
    def _some(self) -> RetrievalParams:
        if not self.k and not self.budgets:
            raise ValueError("found neither k nor budgets, expected a number of chunks or of tokens")
        if self.encoder is None and self.query_prefix is not None:
            raise ValueError(f"query_prefix is {self.query_prefix!r} without an encoder, expected one to put it to")
        return self
