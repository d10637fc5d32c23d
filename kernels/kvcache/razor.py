"""RazorAttention (arXiv 2407.15891): retrieval heads keep everything, the others their sinks, a window and one mean.

Notable choices: the prompt meets dense attention and is compressed once it is whole, so chunks change nothing; a row's
window comes from its own length; what is dropped stands in the mean with log N_d on its logit (`attention.decode`),
which the paper's equation says and its followers' code often forgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.pages import UNLIMITED, RaggedKV
from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.compressed import CompressedPolicy, tokens_of
from longloom.kernels.kvcache.heads import HeadProfile, check_share, given
from longloom.kernels.kvcache.prompt import PromptState


@dataclass(frozen=True)
class RazorPolicy(CompressedPolicy):
    """Of a prompt of N tokens a head that is no retrieval head keeps `sink` + max(`window`, N / `compression`).

    Attributes:
        heads: the model's head profile; needed before a prompt is compressed.
        induction, echo: shares of the KV heads that are protected (section 3.2: 14% and 1%).
        window: the least of the last tokens kept (S_0).
        compression: of the prompt, where it is long (C).
        sink: first tokens kept (N_0).
        compensate: whether the mean of the dropped tokens stands in for them.
        fold: whether the answer's tokens push the window's oldest into the mean, so that compressed heads stop growing.
            The mean stays exact; an extension of ours.
    """

    name: ClassVar[str] = "razor"
    profiled: ClassVar[bool] = True

    heads: HeadProfile | None = None
    induction: float = 0.14
    echo: float = 0.01
    window: int = 4000
    compression: float = 5.0
    sink: int = 4
    compensate: bool = True
    fold: bool = False

    def __post_init__(self) -> None:
        for option in ("induction", "echo"):
            check_share("razor", option, getattr(self, option))
        for option, least in (("window", 1), ("sink", 0)):
            value = getattr(self, option)
            if type(value) is not int or value < least:
                raise ValueError(f"KV policy 'razor': {option} must be a whole number >= {least}, found {value!r}")
        ratio = self.compression
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not ratio >= 1:
            raise ValueError(f"KV policy 'razor': compression must be a number >= 1, found {ratio!r}")
        if self.fold and not self.compensate:
            raise ValueError("KV policy 'razor': fold=1 needs compensate=1, for it folds into the mean")

    def compress(self, prompt: PromptState, rope: Rope) -> RaggedKV:
        assert prompt.keys is not None
        assert prompt.values is not None
        kv_heads = prompt.keys.shape[1]
        protected = given(self.name, self.heads).protected(
            self.name, prompt.layer, kv_heads, induction=self.induction, echo=self.echo
        )
        most = max(1, UNLIMITED - self.sink)  # more than any prompt has
        windows = [min(max(self.window, int(tokens / self.compression)), most) for tokens in tokens_of(prompt)]
        window = torch.tensor(windows, dtype=torch.int32)[:, None].repeat(1, kv_heads)
        window[:, protected] = -1
        return compress(
            prompt.keys[:, :, : prompt.seen],
            prompt.values[:, :, : prompt.seen],
            window,
            sink=self.sink,
            start=None if prompt.start is None else prompt.start.to("cpu", torch.int32),
            compensate=self.compensate,
            fold=self.fold,
        )
