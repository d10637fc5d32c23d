"""A transformers model under a KV policy as lm-eval's LM, with prefills shared by policies and by prompts.

Notable choices: batches are formed from *all* requests and run whole, so that a resumed run computes the same batches,
and so the same floating-point numbers, as one that was never killed. Prompts that begin alike (questions on one
document) are answered one by one from a beginning that is read once; so is what several choices follow, and a prompt of
which several answers are sampled. Other KV policies that can go on from the same prefill are answered on the way, into
ledgers of their own, where their own evaluation finds them.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longloom.evals.beginnings import alike, common_beginning
from longloom.evals.ledger import Ledger
from longloom.evals.likelihoods import Scoring
from longloom.evals.protocol import Failure, encode
from longloom.evals.suite_lm import COSTS, Job, Outcome, Row, SuiteLM
from longloom.kernels.huggingface.attention import policy_attention
from longloom.kernels.huggingface.generate import Generation, Sampling, generate
from longloom.kernels.huggingface.load import window_of
from longloom.kernels.huggingface.reading import Context, Prefix, check_chunks, read_context, read_prefix
from longloom.kernels.kvcache.base import KVPolicy, SharedPrefillPolicy

_Read = TypeVar("_Read", Context, Prefix)

#: What a job's samples took together; the caches of its samples are not there at once.
_SUMMED = ("new_tokens", "seconds", "compress_seconds", "decode_seconds", "decode_steps")


class Picker(Protocol):
    """Picks one of several sampled answers (best of n).

    Attributes:
        samples: answers a prompt.
        temperature, seed: of the sampling.
    """

    @property
    def samples(self) -> int: ...

    @property
    def temperature(self) -> float: ...

    @property
    def seed(self) -> int: ...

    def __call__(self, prompt: str, answers: Sequence[str]) -> int:
        """The number of the answer to keep."""
        ...


class PolicyLM(SuiteLM):
    """Generation, greedy or the best of several samples, and log-likelihoods under a KV policy.

    Args:
        model, tokenizer: as from `load_model`.
        policy: the KV policy.
        batch_size, max_length, suite_length, ledger, progress: as `SuiteLM` takes them. Beyond the model's window it is
            the policy that must know what to do.
        companions: other KV policies that share their prefill with this one, with the ledgers that get their answers.
        picker: picks one of several sampled answers; None: the one answer is greedy. Not with companions.

    Raises:
        ValueError: companions that cannot share the prefill, a policy that does not fit the model or the chunks in
            which it reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        policy: KVPolicy[Any],
        *,
        batch_size: int,
        max_length: int | None,
        suite_length: int | None = None,
        ledger: Ledger | None = None,
        companions: Mapping[KVPolicy[Any], Ledger] | None = None,
        picker: Picker | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> None:
        super().__init__(
            tokenizer,
            window=window_of(model.config),
            ends=end_tokens(model, tokenizer),
            batch_size=batch_size,
            max_length=max_length,
            suite_length=suite_length,
            ledger=ledger,
            progress=progress,
        )
        # Tokens, the last of which is predicted and never read.
        self._scored_at_once = max_length or self.window or sys.maxsize
        self._model = model
        self._policies = [policy, *(companions or {})]
        self._apart = policy.apart
        self._companions = list((companions or {}).values())
        self._picker = picker
        assert picker is None or not companions, "each policy picks among answers of its own"
        alone = [policy.name for policy in self._policies if not isinstance(policy, SharedPrefillPolicy)]
        if self._companions and alone:
            raise ValueError(f"KV policy {alone[0]!r} changes the prefill and shares it with no other")
        check_chunks(self._policies)
        for each in self._policies:
            with policy_attention(model, each):  # says what does not fit, which would else fail with every prompt
                pass

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = []
        for _, choices in groupby(map(self._pair, requests), key=lambda asked: asked.parts[0][0]):
            found += self._choices([*choices], len(found), len(requests))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in consecutive windows that are read as prompts are."""
        totals = []
        for done, instance in enumerate(requests):
            (text,) = instance.args
            windows = get_rolling_token_windows(
                token_list=encode(self._known_tokenizer(), text, special=None),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._scored_at_once,
                context_len=1,
            )
            pairs = (make_disjoint_window(window) for window in windows)
            parts = [(list(context), list(continuation)) for context, continuation in pairs]
            asked = Scoring(instance, parts, truncated=False, rolling=True)
            ((total, _),) = self._choices([asked], done, len(requests))
            totals.append(total)
        return totals

    def _pair(self, instance: Instance) -> Scoring:
        """Context and continuation; of the context the last tokens that fit, as with the harness's own models."""
        context, continuation = instance.args
        if context:
            before, after = self._encode_pair(context, continuation)
        else:
            after = encode(self._known_tokenizer(), continuation, special=None)
            before = [self.prefix_token_id]
            if after[:1] == before:
                before, after = after[:1], after[1:]
        room = self._scored_at_once + 1 - len(after)
        return Scoring(instance, [(before[-room:] if room > 0 else [], after)], truncated=len(before) > room)

    def _choices(self, choices: Sequence[Scoring], done: int, total: int) -> list[tuple[float, bool]]:
        """Scores of what follows one context, out of the ledger or computed; for several the context is read once."""
        rows = [self._ledger.get(asked.key) if self._ledger else None for asked in choices]
        missing, context = rows.count(None), None
        if missing > 1:
            before, _ = choices[0].parts[0]
            context = _unless_it_fails(
                lambda: read_context(self._model, before, policy=self._policies[0], continuations=missing)
            )
        found = []
        for asked, kept in zip(choices, rows, strict=True):
            row = kept or self._score(asked, context)
            if isinstance(row, Failure) and context is not None:
                context = None  # reading it once takes twice the cache
                row = self._score(asked)
            found.append(self._scored(asked, row))
            self._progress(done + len(found), total)
        return found

    def _score(self, asked: Scoring, context: Context | None = None) -> Row | Failure:
        """Computes a score, and keeps it."""
        try:
            row = asked.row(self._model, self._policies[0], context)
        except torch.AcceleratorError:  # the device is lost to this process: all that comes would fail too
            raise
        except Exception as error:
            return _failure(error)
        self._keep([row])
        return row

    def _scored(self, asked: Scoring, row: Row | Failure) -> tuple[float, bool]:
        """Notes what a score took, and returns it; a failure is as unlikely as can be."""
        who = (asked.instance.task_name, asked.instance.doc_id, asked.instance.idx)
        if isinstance(row, Failure):
            self.outcomes[who] = Outcome(asked.tokens, asked.truncated, error=row.error)
            return -math.inf, False
        self.outcomes[who] = Outcome(asked.tokens, asked.truncated, seconds=row["seconds"])
        return row["loglikelihood"], row["greedy"]

    def _batches(self, jobs: Sequence[Job], waiting: Sequence[int]) -> Iterable[Sequence[int]]:
        """Prompts that begin alike, all together; then the others by length, long ones first: memory fails early."""
        groups: dict[tuple[int, int, tuple[int, ...]], list[int]] = defaultdict(list)
        for index in waiting:
            groups[jobs[index].settings].append(index)
        for indices in groups.values():
            single = []
            for group in alike([jobs[index].ids for index in indices], apart=self._apart):
                if len(group) > 1:
                    yield [indices[place] for place in group]
                else:
                    single.append(indices[group[0]])
            single.sort(key=lambda index: (-len(jobs[index].ids), index))
            for begin in range(0, len(single), self._batch_size):
                yield single[begin : begin + self._batch_size]

    def _answer(self, batch: Sequence[Job]) -> Sequence[Row | Failure]:
        """Out of the ledger, or generated; a batch of which a part is missing is generated whole."""
        common = common_beginning([job.ids for job in batch], apart=self._apart)
        if len(batch) > 1 and common:
            return self._one_by_one(batch, common)
        kept = [self._kept(job) for job in batch]
        rows = [row for row in kept if row is not None]
        if len(rows) == len(batch):
            return rows
        return self._try(batch)

    def _one_by_one(self, batch: Sequence[Job], common: int) -> list[Row | Failure]:
        """Answers to prompts whose first `common` tokens are the same, which are read once."""
        answers: list[Row | Failure] = []
        beginning = batch[0].ids[:common].tolist()
        prefix: Prefix | None = None
        for job in batch:
            row = self._kept(job)
            if row is not None:
                answers.append(row)
                continue
            if prefix is None:
                prefix = _unless_it_fails(
                    lambda: read_prefix(self._model, beginning, policies=self._policies, prompts=len(batch))
                )
            policies = len(self._policies)
            answers += self._try([job], prefix)
            if len(self._policies) < policies:  # read for policies that are given up
                prefix = None
        return answers

    def _try(
        self, batch: Sequence[Job], prefix: Prefix | None = None, *, shared: bool = True
    ) -> Sequence[Row | Failure]:
        """Generates under every policy and keeps all rows; returns this policy's own.

        A failed batch is counted, and loses no other; a companion's failure is not this policy's. `shared`: several
        samples of a prompt read it once.
        """
        failure = None
        own: Sequence[Row | Failure]
        try:
            if self._picker is None:
                own, *others = self._generated(batch, prefix)
            else:
                own, others = self._best(batch, prefix, self._picker, shared=shared), []
        except torch.AcceleratorError:
            raise
        except Exception as error:
            failure = _failure(error)
        if failure is not None:  # out of the `except`, whose traceback holds on to the failed attempt's memory
            if prefix is not None or (self._picker is not None and shared):  # reading once takes twice the cache
                return self._try(batch, shared=False)
            if not self._companions:
                return [failure] * len(batch)
            del self._policies[1:], self._companions[:]
            return self._try(batch)
        for ledger, rows in zip(self._companions, others, strict=True):  # first: own rows say that all are kept
            ledger.add(rows)
        self._keep([row for row in own if not isinstance(row, Failure)])
        return own

    def _generated(
        self, batch: Sequence[Job], prefix: Prefix | None, samplings: Sequence[Sampling] = ()
    ) -> list[list[Row]]:
        """A row a job under every policy, or of every sampling."""
        longest, shortest, ends = batch[0].settings
        found = generate(
            self._model,
            [job.ids.tolist() for job in batch],
            policies=self._policies,
            max_new_tokens=longest,
            min_new_tokens=shortest,
            eos_token_ids=ends,
            prefix=prefix,
            samplings=samplings,
        )
        return [[self._row(job, answer) for job, answer in zip(batch, rows, strict=True)] for rows in found]

    def _best(
        self, batch: Sequence[Job], prefix: Prefix | None, picker: Picker, *, shared: bool = True
    ) -> list[Row | Failure]:
        """The picked answer of each job; what it took is what all its samples took."""
        samplings = [
            Sampling(picker.temperature, [_seed(picker.seed, number, job.key) for job in batch])
            for number in range(picker.samples)
        ]
        together = [samplings] if shared else [[one] for one in samplings]
        samples = [rows for some in together for rows in self._generated(batch, prefix, some)]
        rows: list[Row | Failure] = []
        for job, found in zip(batch, zip(*samples, strict=True), strict=True):
            sums = {name: sum(row[name] for row in found) for name in _SUMMED}
            try:
                rows.append(dict(found[picker(job.request.prompt, [row["text"] for row in found])]) | sums)
            except ValueError as error:  # a prompt that is too long for the picker
                rows.append(_failure(error))
        return rows

    def _row(self, job: Job, answer: Generation) -> Row:
        text = str(self._known_tokenizer().decode(answer.ids, skip_special_tokens=True))
        costs = {name: getattr(answer, name) for name in COSTS if name != "new_tokens"}
        return job.row(text, new_tokens=len(answer.ids), **costs)


def _seed(seed: int, number: int, key: str) -> int:
    """Of one sample of one job, whatever else is in its batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()[:8], "big") >> 1


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


def _unless_it_fails(read: Callable[[], _Read]) -> _Read | None:
    """What is read once for several; None where that fails: it may be what is too much, or fail for each alone.

    Not within an `except` goes the caller on, since its traceback holds on to the failed attempt's memory.
    """
    try:
        return read()
    except torch.AcceleratorError:
        raise
    except Exception:
        return None


def _failure(error: Exception) -> Failure:
    return Failure(f"{type(error).__name__}: {error}".splitlines()[0])
