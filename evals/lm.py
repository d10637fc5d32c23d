"""A transformers model under a KV policy as lm-eval's LM.

Notable choices: requests of our suites carry their protocol and are cut and put into the chat template here, others
come ready from the harness and are cut on the left as it does; batches are formed from *all* requests and run whole, so
that a resumed run computes the same batches, and so the same floating-point numbers, as one that was never killed.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longloom.evals.ledger import Ledger
from longloom.evals.protocol import DoesNotFit, Failure, Request, encode, prepare
from longloom.kernels.huggingface.generate import generate, loglikelihood
from longloom.kernels.kvcache.base import KVPolicy

#: What the harness takes where a task sets no length.
_DEFAULT_NEW_TOKENS = 256

#: An answer gets at most this part of the window, so that small models have room to read. From a window of 2,048
#: tokens on no suite is touched by it.
_ANSWER_SHARE = 4


@dataclass(frozen=True)
class Outcome:
    """What a generation took.

    Attributes:
        prompt_tokens: of the input, chat template included.
        truncated: whether its document was cut.
        new_tokens: generated ones.
        seconds: wall-clock time, a row's share of its batch.
        kv_bytes: memory of this row's cache.
        error: what went wrong, or None.
    """

    prompt_tokens: int
    truncated: bool
    new_tokens: int = 0
    seconds: float = 0.0
    kv_bytes: int = 0
    error: str | None = None


@dataclass(frozen=True)
class _Job:
    """One request, ready to run.

    Attributes:
        instance: the harness's request.
        ids: the input [N]; empty if it does not fit.
        truncated: whether its document was cut.
        settings: new tokens at most, new tokens at least, end tokens.
        error: why it does not fit, or None.
    """

    instance: Instance
    ids: npt.NDArray[np.int32]
    truncated: bool
    settings: tuple[int, int, tuple[int, ...]]
    error: str | None = None

    @property
    def key(self) -> str:
        """Identifies the generation: task, sample, request, input and settings."""
        who = json.dumps([self.instance.task_name, self.instance.doc_id, self.instance.idx, self.settings])
        return hashlib.sha256(who.encode() + self.ids.tobytes()).hexdigest()


class PolicyLM(TemplateLM):  # type: ignore[misc]  # lm-eval's classes are untyped
    """Greedy generation and log-likelihoods under a KV policy.

    Args:
        model, tokenizer: as from `load_model`.
        policy: the KV policy.
        batch_size: prompts a batch.
        max_length: limit on a prompt's tokens before the chat template, the protocols' own; None: what the model's
            window leaves. The window is never exceeded.
        ledger: keeps generations over a kill; None: nothing is kept.
        progress: called with (requests done, requests in all).

    Attributes:
        outcomes: (task, document, request) -> Outcome, of every generation asked for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        policy: KVPolicy[Any],
        *,
        batch_size: int,
        max_length: int | None,
        ledger: Ledger | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length is {max_length}, expected at least 2 tokens")
        self.tokenizer = tokenizer
        self.outcomes: dict[tuple[str, int, int], Outcome] = {}
        self._model = model
        self._policy = policy
        self._batch_size = batch_size
        self._limit = max_length
        self._ledger = ledger
        self._progress = progress
        self._window = int(model.config.get_text_config().max_position_embeddings)
        self._ends = end_tokens(model, tokenizer)

    @property
    def eot_token_id(self) -> int:
        """The first end token."""
        return self._ends[0]

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, for the harness's request cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; `add_special_tokens` as `encode` takes it."""
        return encode(self.tokenizer, string, special=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as one text, for harness tasks run with --apply_chat_template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers every request; a `Failure` where the model failed or its window is too small.

        Raises:
            ValueError: a prompt that must not be cut is too long; nothing has been generated then.
        """
        jobs = [self._job(instance) for instance in requests]
        replies: dict[int, str] = {}
        groups: dict[tuple[int, int, tuple[int, ...]], list[int]] = defaultdict(list)
        for index, job in enumerate(jobs):
            if job.error:
                replies[index] = self._fail(job, job.error)
            else:
                groups[job.settings].append(index)
        for indices in groups.values():
            indices.sort(key=lambda index: -len(jobs[index].ids))  # long ones first, so that memory fails early
            for begin in range(0, len(indices), self._batch_size):
                batch = indices[begin : begin + self._batch_size]
                replies.update(zip(batch, self._run([jobs[index] for index in batch]), strict=True))
                self._progress(len(replies), len(jobs))
        return [_until(replies[index], job.instance) for index, job in enumerate(jobs)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in consecutive windows."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=encode(self.tokenizer, text, special=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._window - 1,
                context_len=1,
            )
            pairs = (make_disjoint_window(window) for window in windows)
            totals.append(sum(self._score(context, continuation)[0] for context, continuation in pairs))
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        results = []
        for done, (_, context, continuation) in enumerate(requests, start=1):
            results.append(self._score(context, continuation))
            self._progress(done, len(requests))
        return results

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        room = self._window - len(continuation)
        if room < 1:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens leaves no room for a context in the model's window of "
                f"{self._window}"
            )
        return loglikelihood(self._model, context[-room:], continuation, policy=self._policy)

    def _job(self, instance: Instance) -> _Job:
        prompt, options = instance.args
        fields = instance.doc.get("requests") if isinstance(instance.doc, Mapping) else None
        if fields is None:
            request = Request(prompt, cut="left", chat=False)
        else:
            request = Request.from_dict(fields[instance.idx])
        if options.get("do_sample"):
            raise ValueError(f"task {instance.task_name}: asks for sampling, and generation here is greedy")
        longest = min(int(options.get("max_gen_toks", _DEFAULT_NEW_TOKENS)), self._window // _ANSWER_SHARE)
        room = self._window - longest
        ends = set(self._ends)
        if request.newline_stops:
            ends.add(encode(self.tokenizer, "\n", special=False)[-1])
        settings = (longest, int(request.newline_stops), tuple(sorted(ends)))
        where = f"task {instance.task_name}, sample {instance.doc_id}"
        numbers = f"window {self._window}, new tokens {longest}, max_length {self._limit}"
        try:
            ids, truncated = prepare(request, self.tokenizer, room=room, limit=self._limit)
        except DoesNotFit as error:
            return _Job(instance, np.array([], dtype=np.int32), True, settings, f"{error} ({numbers})")
        except ValueError as error:
            raise ValueError(f"{where}: {error} ({numbers})") from None
        return _Job(instance, np.array(ids, dtype=np.int32), truncated, settings)

    def _run(self, batch: Sequence[_Job]) -> list[str]:
        """Replies to one batch, out of the ledger if it holds all of them."""
        kept = [self._ledger.get(job.key) if self._ledger else None for job in batch]
        rows = [row for row in kept if row is not None]
        if len(rows) < len(batch):
            try:
                rows = self._generate(batch)
            except Exception as error:  # a failed batch is counted, and loses no other
                message = f"{type(error).__name__}: {error}".splitlines()[0]
                return [self._fail(job, message) for job in batch]
            if self._ledger:
                self._ledger.add(rows)
        replies = []
        for job, row in zip(batch, rows, strict=True):
            cost = {name: row[name] for name in ("new_tokens", "seconds", "kv_bytes")}
            self._note(job, Outcome(len(job.ids), job.truncated, **cost))
            replies.append(str(row["text"]))
        return replies

    def _generate(self, batch: Sequence[_Job]) -> list[dict[str, Any]]:
        longest, shortest, ends = batch[0].settings
        answers = generate(
            self._model,
            [job.ids.tolist() for job in batch],
            policy=self._policy,
            max_new_tokens=longest,
            min_new_tokens=shortest,
            eos_token_ids=ends,
        )
        return [
            {
                "key": job.key,
                "task": job.instance.task_name,
                "sample": job.instance.doc_id,
                "text": self.tokenizer.decode(answer.ids, skip_special_tokens=True),
                "new_tokens": len(answer.ids),
                "seconds": answer.seconds,
                "kv_bytes": answer.kv_bytes,
            }
            for job, answer in zip(batch, answers, strict=True)
        ]

    def _fail(self, job: _Job, message: str) -> Failure:
        self._note(job, Outcome(len(job.ids), job.truncated, error=message))
        return Failure(message)

    def _note(self, job: _Job, outcome: Outcome) -> None:
        self.outcomes[job.instance.task_name, job.instance.doc_id, job.instance.idx] = outcome


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that end an answer: Llama 3 has two, and with one of them its scores collapse.

    Raises:
        ValueError: neither model nor tokenizer names one.
    """
    ends = model.generation_config.eos_token_id if model.generation_config else None
    found = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    unique = list(dict.fromkeys(end for end in found if end is not None))
    if not unique:
        raise ValueError("neither the model's generation config nor its tokenizer names an end token")
    return unique


def _until(reply: str, instance: Instance) -> str:
    """A harness task's stop strings, applied to the whole reply."""
    if isinstance(reply, Failure):
        return reply
    until = instance.args[1].get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        if stop:
            reply = reply.split(stop)[0]
    return reply
