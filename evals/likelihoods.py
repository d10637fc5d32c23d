"""Log-likelihoods that lm-eval asks for, as rows of a ledger."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from transformers import PreTrainedModel

from longloom.evals.suite_lm import Row
from longloom.kernels.huggingface.loglikelihood import loglikelihood
from longloom.kernels.huggingface.reading import Context
from longloom.kernels.kvcache.base import KVPolicy


@dataclass(frozen=True)
class Scoring:
    """Texts whose log-likelihoods are added up.

    Attributes:
        instance: the harness's request.
        parts: context and continuation of each.
        truncated: whether a context was cut.
        rolling: whether the continuations are texts to read, not answers.
    """

    instance: Instance
    parts: Sequence[tuple[list[int], list[int]]]
    truncated: bool
    rolling: bool = False

    @property
    def tokens(self) -> int:
        """Of contexts and continuations."""
        return sum(len(context) + len(continuation) for context, continuation in self.parts)

    @property
    def key(self) -> str:
        """Identifies the scores."""
        who = [self.instance.request_type, self.instance.task_name, self.instance.doc_id, self.instance.idx]
        return hashlib.sha256(json.dumps([who, self.parts]).encode()).hexdigest()

    def row(self, model: PreTrainedModel, policy: KVPolicy[Any], context: Context | None = None) -> Row:
        """Computes it, where every part's context has been read from `context` on; a row of the ledger."""
        began = time.perf_counter()
        found = [
            loglikelihood(model, context or before, continuation, policy=policy, rolling=self.rolling)
            for before, continuation in self.parts
        ]
        return {
            "key": self.key,
            "task": self.instance.task_name,
            "sample": self.instance.doc_id,
            "loglikelihood": sum(score for score, _ in found),
            "greedy": all(greedy for _, greedy in found),
            "seconds": time.perf_counter() - began + (context.seconds if context else 0.0),
        }
