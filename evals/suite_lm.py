"""What every backend of ours shares as lm-eval's LM: requests prepared by their protocol, a ledger, counted failures.

Notable choices: requests of our suites carry their protocol and are cut and put into the chat template here, others
come ready from the harness and lose their first tokens, as with its own models; every prompt is prepared before the
first generation, so that bad data costs nothing; a generation that failed is an empty answer, is counted, and loses no
other.
"""

from __future__ import annotations

import hashlib
import json
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import PreTrainedTokenizerBase

from longloom.evals.ledger import Ledger
from longloom.evals.protocol import DoesNotFit, Failure, Request, chat_text, encode, prepare

#: What the harness takes where a task sets no length.
_DEFAULT_NEW_TOKENS = 256

#: An answer to a suite of ours gets at most this part of the window, so that small models have room to read. From a
#: window of 2,048 tokens on this touches InfiniteBench's En.Sum and Math.Calc (1,200 and 30,000 tokens) alone.
_ANSWER_SHARE = 4

#: What a generation took, as a row of the ledger has it.
COSTS = (
    *("prompt_tokens", "new_tokens", "seconds", "compress_seconds", "decode_seconds", "decode_steps"),
    *("kv_bytes", "peak_kv_bytes"),
)

Row = dict[str, Any]

_NOTHING = np.array([], dtype=np.int32)


@dataclass(frozen=True)
class Outcome:
    """What a generation took.

    Attributes:
        prompt_tokens: of the input, chat template included.
        truncated: whether its document was cut.
        new_tokens: generated ones.
        seconds: wall-clock time, a row's share of its batch.
        compress_seconds, decode_seconds, decode_steps: as of `kernels.huggingface.generate.Generation`; 0 where nobody
            measures them.
        kv_bytes: memory of this row's cache while it decodes.
        peak_kv_bytes: the most memory of it at any time, the prompt's before anything was evicted included.
        error: what went wrong, or None.
    """

    prompt_tokens: int
    truncated: bool
    new_tokens: int = 0
    seconds: float = 0.0
    compress_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    kv_bytes: int = 0
    peak_kv_bytes: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Job:
    """One request, ready to run.

    Attributes:
        instance: the harness's request.
        request: ours; what `prepare` made `ids` from.
        ids: the input [N]; empty if it does not fit, or if there is no tokenizer to make it.
        truncated: whether its document was cut.
        settings: new tokens at most, new tokens at least, end tokens.
        error: why it does not fit, or why its record cannot be asked, or None.
    """

    instance: Instance
    request: Request
    ids: npt.NDArray[np.int32]
    truncated: bool
    settings: tuple[int, int, tuple[int, ...]]
    error: str | None = None

    @property
    def key(self) -> str:
        """Identifies the generation: task, sample, request, input and settings."""
        who = json.dumps([self.instance.task_name, self.instance.doc_id, self.instance.idx, self.settings])
        text = b"" if len(self.ids) else self.request.prompt.encode()
        return hashlib.sha256(who.encode() + self.ids.tobytes() + text).hexdigest()

    def row(self, text: str, **costs: Any) -> Row:
        """A finished generation, as the ledger keeps it; `costs` are some of COSTS."""
        found = {**dict.fromkeys(COSTS, 0), "prompt_tokens": len(self.ids), **costs}
        where = {"task": self.instance.task_name, "sample": self.instance.doc_id}
        return {"key": self.key, **where, "text": text, **{name: found[name] for name in COSTS}}


class SuiteLM(TemplateLM):  # type: ignore[misc]  # lm-eval's classes are untyped
    """A backend: fill `_answer`, and where it matters `_batches`.

    Args:
        tokenizer: of the model; None: unknown, so that prompts go out as text and nothing can be cut.
        window: tokens of prompt and answer together that the model was trained for; None: unknown.
        ends: tokens that end an answer.
        batch_size: prompts a batch.
        max_length: limit on a prompt's tokens before the chat template, in place of the window, which it may exceed:
            whoever names a length means it. Also of a context and its continuation together, whose log-likelihood is
            asked for. None: the window is the limit, of prompt and answer together.
        suite_length: the limit of the suite's own protocol on a prompt, where nobody names another; the window holds
            besides. None: there is none.
        ledger: keeps generations over a kill; None: nothing is kept.
        progress: called with (requests done, requests in all).

    Attributes:
        window: as given.
        outcomes: (task, document, request) -> Outcome, of every generation asked for.

    Raises:
        ValueError: sizes out of range, or a limit without a tokenizer to measure it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        window: int | None,
        ends: Sequence[int],
        batch_size: int,
        max_length: int | None,
        suite_length: int | None = None,
        ledger: Ledger | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length is {max_length}, expected at least 2 tokens")
        if max_length is not None and tokenizer is None:
            raise ValueError(f"max_length is {max_length}, and there is no tokenizer to measure it: name one")
        self.tokenizer = tokenizer
        self.window = window
        self.outcomes: dict[tuple[str, int, int], Outcome] = {}
        self._batch_size = batch_size
        self._limit = suite_length if max_length is None else max_length
        self._bound = window if max_length is None else None  # of prompt and answer together
        self._ledger = ledger
        self._progress = progress
        self._ends = tuple(ends)

    @property
    def eot_token_id(self) -> int:
        """The first end token."""
        return self._ends[0]

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, for the harness's request cache."""
        return str(self._known_tokenizer().name_or_path).replace("/", "__")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the begin token, as with the harness's own models."""
        begin = self._known_tokenizer().bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; `add_special_tokens` as `encode` takes it."""
        return encode(self._known_tokenizer(), string, special=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as one text, for harness tasks run with --apply_chat_template."""
        return chat_text(self._known_tokenizer(), chat_history, prompt=add_generation_prompt)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers every request; a `Failure` where the model failed or its window is too small.

        Raises:
            ValueError: a prompt that must not be cut is too long; nothing has been generated then.
        """
        jobs = [self._job(instance) for instance in requests]
        replies: dict[int, str] = {}
        waiting = []
        for index, job in enumerate(jobs):
            if job.error:
                replies[index] = self._settle(job, Failure(job.error))
            else:
                waiting.append(index)
        done = len(jobs) - len(waiting)
        for batch in self._batches(jobs, waiting):
            answers = self._answer([jobs[index] for index in batch])
            for index, answer in zip(batch, answers, strict=True):
                replies[index] = self._settle(jobs[index], answer)
            done += len(batch)
            self._progress(done, len(jobs))
        return [_shown(replies[index], job.instance) for index, job in enumerate(jobs)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Raises ValueError, for a backend that gives texts alone."""
        raise ValueError(
            f"task {requests[0].task_name}: asks for log-likelihoods, which this backend does not give; expected a "
            "task that generates"
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Raises ValueError, for a backend that gives texts alone."""
        self.loglikelihood(requests)
        raise AssertionError

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        raise AssertionError("`loglikelihood` comes first")

    def complete(self, *, failed: int) -> None:
        """The evaluation is done: its ledger goes, unless some samples failed and may be asked again."""
        if self._ledger and not failed:
            self._ledger.remove()

    @abstractmethod
    def _answer(self, batch: Sequence[Job]) -> Sequence[Row | Failure]:
        """Rows as of `Job.row`, or failures, for one batch; with `_kept` and `_keep` around whatever is slow."""

    def _batches(self, jobs: Sequence[Job], waiting: Sequence[int]) -> Iterable[Sequence[int]]:
        """Which of the jobs (by index) are answered together: consecutive ones, `batch_size` at a time."""
        for begin in range(0, len(waiting), self._batch_size):
            yield waiting[begin : begin + self._batch_size]

    def _kept(self, job: Job) -> Row | None:
        """The generation that the ledger holds."""
        return self._ledger.get(job.key) if self._ledger else None

    def _keep(self, rows: Sequence[Row]) -> None:
        """Hands finished generations to the ledger."""
        if self._ledger:
            self._ledger.add(rows)

    def _known_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ValueError("this needs the model's tokenizer, and none was named")
        return self.tokenizer

    def _job(self, instance: Instance) -> Job:
        prompt, options = instance.args
        options = normalize_gen_kwargs(options, _DEFAULT_NEW_TOKENS)
        if options["do_sample"]:
            raise ValueError(f"task {instance.task_name}: asks for sampling, and generation here is greedy")
        longest, ends = int(options["max_gen_toks"]), set(self._ends)
        if not _is_ours(instance):
            return self._harness_job(instance, prompt, (longest, 0, tuple(sorted(ends))))
        request = Request.from_dict(instance.doc["requests"][instance.idx])
        if self.window is not None:
            longest = min(longest, self.window // _ANSWER_SHARE)
        if instance.doc.get("error"):
            return Job(instance, request, _NOTHING, False, (longest, 0, tuple(sorted(ends))), instance.doc["error"])
        if self.tokenizer is None:
            return Job(instance, request, _NOTHING, False, (longest, 0, tuple(sorted(ends))))
        if request.newline_stops:
            ends.add(encode(self.tokenizer, "\n", special=False)[-1])
        settings = (longest, int(request.newline_stops), tuple(sorted(ends)))
        where = f"task {instance.task_name}, sample {instance.doc_id}"
        numbers = f"window {self.window}, new tokens {longest}, max_length {self._limit}"
        room = None if self._bound is None else self._bound - longest
        try:
            ids, truncated = prepare(request, self.tokenizer, room=room, limit=self._limit)
        except DoesNotFit as error:
            return Job(instance, request, _NOTHING, True, settings, f"{error} ({numbers})")
        except ValueError as error:
            raise ValueError(f"{where}: {error} ({numbers})") from None
        return Job(instance, request, np.array(ids, dtype=np.int32), truncated, settings)

    def _harness_job(self, instance: Instance, prompt: str, settings: tuple[int, int, tuple[int, ...]]) -> Job:
        """A request that the harness made: the last tokens of it that fit."""
        request = Request(prompt, cut="left", chat=False)
        if self.tokenizer is None:
            return Job(instance, request, _NOTHING, False, settings)
        ids = encode(self.tokenizer, prompt, special=None)
        room = min(
            sys.maxsize if self._bound is None else self._bound - settings[0],
            sys.maxsize if self._limit is None else self._limit,
        )
        if room < 1:
            error = f"{settings[0]} new tokens leave no room for a prompt in the model's window of {self._bound}"
            return Job(instance, request, _NOTHING, True, settings, error)
        return Job(instance, request, np.array(ids[-room:], dtype=np.int32), len(ids) > room, settings)

    def _settle(self, job: Job, answer: Row | Failure) -> str:
        """Notes what a job took, and returns its reply."""
        who = (job.instance.task_name, job.instance.doc_id, job.instance.idx)
        if isinstance(answer, Failure):
            self.outcomes[who] = Outcome(len(job.ids), job.truncated, error=answer.error)
            return answer
        measured = {name: answer[name] for name in COSTS if name in answer}  # ledgers of earlier versions have fewer
        self.outcomes[who] = Outcome(truncated=job.truncated, **measured)
        return str(answer["text"])


def _shown(reply: str, instance: Instance) -> str:
    """What the harness gets: a failure as it is by our suites' tasks, which know it; others' stop strings applied."""
    if isinstance(reply, Failure):
        # A task of the harness makes the target what the reply is, and an empty `Failure` of both: equal ones.
        return reply if _is_ours(instance) else ""
    until = instance.args[1].get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        if stop:
            reply = reply.split(stop)[0]
    return reply


def _is_ours(instance: Instance) -> bool:
    return isinstance(instance.doc, Mapping) and "requests" in instance.doc
