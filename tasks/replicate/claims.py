"""The claims of the seven papers, each with the figure that the paper has, what is measured here in its place, and the
rule that the verdict follows from. Data alone: nothing here is computed, and no verdict is written down.

What is said of the papers is from their abstracts, where these have it; what is known from notes on them (our own
specifications of the methods) is marked so, since the tables themselves were not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "partly", "does not"]


@dataclass(frozen=True)
class Rule:
    """When a claim holds.

    Attributes:
        direction: what the measure should be.
        holds: bound on the mean over the runs.
        every: bound on each run, where the claim is to hold.
        partly: bound on the mean below which the claim does not even hold partly.
    """

    direction: Literal["at least", "at most"]
    holds: float
    every: float
    partly: float

    def verdict(self, values: tuple[float, ...]) -> Verdict:
        """What follows from the runs' values, one at least."""
        mean = sum(values) / len(values)
        if self._met(mean, self.holds) and all(self._met(value, self.every) for value in values):
            return "holds"
        return "partly" if self._met(mean, self.partly) else "does not"

    def _met(self, value: float, bound: float) -> bool:
        return value >= bound if self.direction == "at least" else value <= bound

    def words(self, unit: str) -> str:
        """The rule as a reader reads it."""
        every = "" if self.every == self.holds else f", every run {self.direction} {_number(self.every)}"
        if self.every == self.holds:
            every = ", and so every run"
        return (
            f"holds: mean {self.direction} {_number(self.holds)}{unit}{every};"
            f" partly: mean {self.direction} {_number(self.partly)}{unit}"
        )


@dataclass(frozen=True)
class Earlier:
    """A measure of a long benchmark run, kept with the repository.

    Attributes:
        values: of the runs.
        file: in benchmarks/results.
        command, machine, date: of the run.
    """

    values: tuple[float, ...]
    file: str
    command: str
    machine: str
    date: str


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        name: of the claim, and of its measure in `measures.MEASURES`, unless it was measured earlier.
        paper: its short name, a key of PAPERS.
        claim: in our words.
        figure: the paper's.
        place: of the figure in the paper, or where it is known from.
        measure: what is measured here.
        unit: of the measure, as it is written behind a number.
        digits: behind the point.
        rule: of the verdict.
        section: of the report that shows it.
        earlier: of a long benchmark run; None: the flow measures it.
    """

    name: str
    paper: str
    claim: str
    figure: str
    place: str
    measure: str
    unit: str
    digits: int
    rule: Rule
    section: str
    earlier: Earlier | None = None


#: Short name -> title and arXiv number, in the order of the pipeline.
PAPERS = {
    "ngrams": ("Generalization v.s. Memorization", "2407.14985"),
    "tagcos": ("TAGCOS", "2407.15235"),
    "minisequence": ("Mini-Sequence Transformer", "2407.15892"),
    "chatqa2": ("ChatQA 2", "2407.14482"),
    "razor": ("RazorAttention", "2407.15891"),
    "longcache": ("LongCache (ReAttention)", "2407.15176"),
    "preferences": ("Context-Aware Preference Modeling", "2407.14916"),
}

_MACHINE = "2 cores of an AMD EPYC, torch 2.13.0, no GPU"
_NOTES = "from notes on the paper"


def _least(holds: float, every: float, partly: float) -> Rule:
    return Rule("at least", holds, every, partly)


def _most(holds: float, every: float, partly: float) -> Rule:
    return Rule("at most", holds, every, partly)


CLAIMS = (
    Claim(
        name="ngrams-knowledge",
        paper="ngrams",
        claim="What a model answers to factual questions follows how often both stand together in its corpus",
        figure="rank correlation above .35 (TriviaQA, n = 3) and .25 (MMLU, knowledge)",
        place=f"Mem_n by model size; {_NOTES}",
        measure="rank correlation of P_D and P_LLM, n = 2, on functions' facts; draws of functions",
        unit="",
        digits=3,
        rule=_least(0.25, 0.05, 0.05),
        section="memorization",
    ),
    Claim(
        name="ngrams-tasks",
        paper="ngrams",
        claim="Factual questions are memorized most, translation is not",
        figure="the strongest effect in factual question answering; translation not significant",
        place="abstract",
        measure="rank correlation on facts less that on translation from text to code",
        unit="",
        digits=3,
        rule=_least(0.05, 0.0, 0.01),
        section="memorization",
    ),
    Claim(
        name="ngrams-size",
        paper="ngrams",
        claim="On factual questions a larger model memorizes more",
        figure="Mem_3 on TriviaQA rises from Pythia 14M to 12B",
        place="abstract",
        measure="rank correlation on facts of the model less that of one of a seventh of its size",
        unit="",
        digits=3,
        rule=_least(0.02, 0.0, 0.005),
        section="memorization",
    ),
    Claim(
        name="tagcos-random",
        paper="tagcos",
        claim="5% chosen by gradient clusters train better than 5% chosen otherwise",
        figure="average 48.35 against 46.79 for a uniform 5% (Llama-2-7B: TydiQA, MMLU, BBH)",
        place=f"Table 1, {_NOTES}; abstract: surpasses other unsupervised methods",
        measure="held-out loss of a random 5% less that of TAGCOS's, nats a token",
        unit="",
        digits=3,
        rule=_least(0.01, 0.0, 0.001),
        section="proof",
    ),
    Claim(
        name="tagcos-full",
        paper="tagcos",
        claim="and nearly as well as all the data",
        figure="close to that of the full data set",
        place="abstract",
        measure="of the way in held-out loss from the untrained model to the one trained on everything",
        unit="%",
        digits=1,
        rule=_least(95, 90, 50),
        section="proof",
    ),
    Claim(
        name="minisequence-plain",
        paper="minisequence",
        claim="Sequences 12 times as long in the same memory",
        figure="12x the standard implementation's (Llama-3-8B, 60K tokens on an A100 of 80 GB)",
        place="abstract",
        measure="longest sequence of a training step within a bound on live tensors, times the plain step's",
        unit="x",
        digits=1,
        rule=_least(12, 12, 4),
        section="pipeline",
    ),
    Claim(
        name="minisequence-checkpointing",
        paper="minisequence",
        claim="and 4 times as long as with activation recomputation alone",
        figure="4x activation recomputation's",
        place="abstract of the NeurIPS 2024 version",
        measure="the same, times that of checkpointing alone",
        unit="x",
        digits=1,
        rule=_least(4, 4, 2),
        section="pipeline",
    ),
    Claim(
        name="minisequence-exact",
        paper="minisequence",
        claim="without any degradation of convergence",
        figure="no degradation in convergence",
        place="abstract",
        measure="largest relative difference of a gradient from the ordinary step's, powers of ten (float32: -7)",
        unit="",
        digits=1,
        rule=_most(-6, -6, -3),
        section="pipeline",
    ),
    Claim(
        name="minisequence-throughput",
        paper="minisequence",
        claim="or of throughput",
        figure="no degradation in throughput",
        place="abstract",
        measure="speed over the plain step at 2,048 tokens, checkpointing included",
        unit="x",
        digits=2,
        rule=_least(0.95, 0.9, 0.75),
        section="",
        earlier=Earlier(
            (0.734, 0.773, 0.804), "minisequence.json", "python benchmarks/minisequence.py", _MACHINE, "2026-11-22"
        ),
    ),
    Claim(
        name="chatqa2-needle",
        paper="chatqa2",
        claim="A window extended by continued pretraining finds needles anywhere in it",
        figure="all of them, to 16 times the window (8K to 128K)",
        place="Figure 1",
        measure="needles at twice the window after extension, of those within the window before",
        unit="%",
        digits=0,
        rule=_least(95, 90, 50),
        section="beyond",
    ),
    Claim(
        name="chatqa2-extension",
        paper="chatqa2",
        claim="and reads to its end no worse than the old one with a window's worth of text",
        figure="no figure known",
        place="section on the extension of the window",
        measure="perplexity at the end of twice the window, over the old model's with a window's worth (StreamingLLM)",
        unit="%",
        digits=1,
        rule=_most(0, 3, 10),
        section="extension",
    ),
    Claim(
        name="chatqa2-needle-8x",
        paper="chatqa2",
        claim="The same at 8 times the window",
        figure="all of them, to 16 times the window (8K to 128K)",
        place="Figure 1",
        measure="needles at 8 times a window of 512 after extension, of those within the window before",
        unit="%",
        digits=0,
        rule=_least(95, 90, 50),
        section="",
        earlier=Earlier((73.7, 47.4, 0.0), "extension.json", "python benchmarks/extension.py", _MACHINE, "2026-11-22"),
    ),
    Claim(
        name="chatqa2-stages",
        paper="chatqa2",
        claim="Tuning in three stages, long documents last, is better than all data at once",
        figure="52.50 against 48.55 on short tasks, 39.41 against 40.69 to 32K, 35.59 against 35.07 beyond 100K (8B)",
        place=f"ablation of the stages; {_NOTES}",
        measure="score of three stages less that of all in one, mean over contexts of 250 to 1,800 tokens",
        unit=" points",
        digits=1,
        rule=_least(1, 0, 0.5),
        section="",
        earlier=Earlier(
            (0.4, -1.2, 3.7), "three_stages.json", "python benchmarks/three_stages.py", _MACHINE, "2026-11-22"
        ),
    ),
    Claim(
        name="chatqa2-chunks",
        paper="chatqa2",
        claim="Retrieval gets better with more chunks",
        figure="improves when retrieving a larger number of chunks",
        place="abstract",
        measure="score with the most chunks less that with the fewest",
        unit=" points",
        digits=1,
        rule=_least(2, 0, 0.5),
        section="retrieval",
    ),
    Claim(
        name="chatqa2-rag",
        paper="chatqa2",
        claim="With many chunks it is no worse than reading the whole context",
        figure="64.55 against 64.29 (70B, En.QA and En.MC, 30 chunks of 1,200 words)",
        place=f"abstract: consistently outperforms direct long context; figures {_NOTES}",
        measure="score with the most chunks less that with the whole context",
        unit=" points",
        digits=1,
        rule=_least(0, -3, -5),
        section="retrieval",
    ),
    Claim(
        name="chatqa2-chunks-tuned",
        paper="chatqa2",
        claim="More chunks, on a model tuned in three stages",
        figure="improves when retrieving a larger number of chunks",
        place="abstract",
        measure="score with 120 words retrieved less that with one chunk, mean over chunks of 15, 30 and 60 words",
        unit=" points",
        digits=1,
        rule=_least(2, 0, 0.5),
        section="",
        earlier=Earlier(
            (22.5, 17.5, 19.7), "three_stages.json", "python benchmarks/three_stages.py", _MACHINE, "2026-11-22"
        ),
    ),
    Claim(
        name="chatqa2-rag-tuned",
        paper="chatqa2",
        claim="Retrieval against the whole context, on a model tuned in three stages",
        figure="64.55 against 64.29 (70B, En.QA and En.MC, 30 chunks of 1,200 words)",
        place=f"abstract: consistently outperforms direct long context; figures {_NOTES}",
        measure="score with 120 words retrieved less that with the whole context, mean over the same chunks",
        unit=" points",
        digits=1,
        rule=_least(0, -3, -5),
        section="",
        earlier=Earlier(
            (2.8, 4.7, 0.0), "three_stages.json", "python benchmarks/three_stages.py", _MACHINE, "2026-11-22"
        ),
    ),
    Claim(
        name="razor-cache",
        paper="razor",
        claim="The KV cache shrinks by more than 70%",
        figure="over 70%",
        place="abstract",
        measure="measured bytes at an answer's end, less than full attention's by",
        unit="%",
        digits=1,
        rule=_least(70, 70, 50),
        section="kv",
    ),
    Claim(
        name="razor-quality",
        paper="razor",
        claim="without a noticeable loss",
        figure="LongBench 34.86 against 35.44 (Llama-3-8B), 35.87 against 36.03 (Qwen1.5-7B)",
        place=f"abstract: without noticeable impacts; LongBench averages {_NOTES}",
        measure="needles found by full attention less those found by Razor",
        unit=" points",
        digits=1,
        rule=_most(2, 5, 10),
        section="kv",
    ),
    Claim(
        name="razor-heads",
        paper="razor",
        claim="because the heads that look things up are known: random ones lose more",
        figure="MultiFieldQA-en 45.48 against 40.7 with random heads (full 46.94)",
        place=f"ablation of the protected heads; {_NOTES}",
        measure="needles found by Razor less those found with as many random heads protected",
        unit=" points",
        digits=1,
        rule=_least(4.8, 0, 1),
        section="kv",
    ),
    Claim(
        name="razor-mean",
        paper="razor",
        claim="and because a compensation token stands for what was dropped",
        figure="over 30% of the needles are lost without it",
        place=f"ablation of the compensation token; {_NOTES}",
        measure="needles lost without the compensation token, of Razor's",
        unit="%",
        digits=1,
        rule=_least(30, 5, 5),
        section="kv",
    ),
    Claim(
        name="longcache-scope",
        paper="longcache",
        claim="A finite attention scope is on par with full attention",
        figure="LongBench 35.03 against 35.48 (Llama-3-8B), 38.63 against 38.79 (Llama-3.1-8B)",
        place=f"abstract: on par with traditional methods; averages {_NOTES}",
        measure="needles found by full attention less those found with a scope of half as many tokens",
        unit=" points",
        digits=1,
        rule=_most(2, 5, 10),
        section="kv",
    ),
    Claim(
        name="longcache-beyond",
        paper="longcache",
        claim="Needles are found far beyond the window without training",
        figure="to 1M tokens (Llama-3.1-8B), to 128 times the window (4M tokens)",
        place="abstract",
        measure="needles at twice and four times the window, of those within it",
        unit="%",
        digits=0,
        rule=_least(95, 80, 50),
        section="beyond",
    ),
    Claim(
        name="longcache-asking",
        paper="longcache",
        claim="The same where only the prompt's end and the answer search (an option of the authors' code, extended)",
        figure="to 1M tokens (Llama-3.1-8B), to 128 times the window (4M tokens)",
        place="abstract",
        measure="needles at twice and four times the window, of those within it",
        unit="%",
        digits=0,
        rule=_least(95, 80, 50),
        section="beyond",
    ),
    Claim(
        name="longcache-asking-256x",
        paper="longcache",
        claim="The same at 256 times the window",
        figure="to 128 times the window (4M tokens)",
        place="abstract",
        measure="needles at 131,072 tokens with a window of 512, of those within it",
        unit="%",
        digits=0,
        rule=_least(95, 80, 50),
        section="",
        earlier=Earlier(
            (105.3, 63.2, 100.0),
            "longcache.json",
            "python benchmarks/longcache.py --most 131072",
            _MACHINE,
            "2026-11-22",
        ),
    ),
    Claim(
        name="longcache-streaming",
        paper="longcache",
        claim="StreamingLLM with a scope as large finds less",
        figure="LongBench 35.03 against 32.49 (Llama-3-8B)",
        place=f"LongBench averages; {_NOTES}",
        measure="needles beyond the window found by LongCache less those found by StreamingLLM",
        unit=" points",
        digits=1,
        rule=_least(2.5, 0, 1),
        section="beyond",
    ),
    Claim(
        name="longcache-perplexity",
        paper="longcache",
        claim="and no length is extrapolated to",
        figure="an infinite context with a finite attention scope",
        place="abstract",
        measure="perplexity at four times the window, over that of a window's worth of the same text (StreamingLLM)",
        unit="%",
        digits=1,
        rule=_most(3, 5, 20),
        section="pipeline",
    ),
    Claim(
        name="preferences-context",
        paper="preferences",
        claim="A reward model trained on contexts uses the context",
        figure="context-specific performance above GPT-4's and Llama 3 70B's",
        place="abstract; the tables were not at hand, so only the direction is compared",
        measure="accuracy with the right context less that without any (50 on reversal pairs)",
        unit=" points",
        digits=1,
        rule=_least(20, 10, 5),
        section="preference",
    ),
    Claim(
        name="preferences-nonsense",
        paper="preferences",
        claim="A nonsense criterion leaves it at chance",
        figure="falls back to chance",
        place=f"adversarial contexts; {_NOTES}",
        measure="distance of the accuracy under a nonsense criterion from 50%",
        unit=" points",
        digits=1,
        rule=_most(3, 5, 10),
        section="preference",
    ),
    Claim(
        name="preferences-negated",
        paper="preferences",
        claim="A negated criterion reverses its preference",
        figure="reverses",
        place=f"adversarial contexts; {_NOTES}",
        measure="accuracy under the negated criterion, of the data's preference",
        unit="%",
        digits=1,
        rule=_most(30, 40, 45),
        section="preference",
    ),
    Claim(
        name="preferences-negated-6000",
        paper="preferences",
        claim="The same after 6,000 pairs in place of 2,500",
        figure="reverses",
        place=f"adversarial contexts; {_NOTES}",
        measure="accuracy under the negated criterion, of the data's preference",
        unit="%",
        digits=1,
        rule=_most(30, 40, 45),
        section="",
        earlier=Earlier(
            (9.3, 13.4, 7.9), "preferences.json", "python benchmarks/preferences.py --data DATA", _MACHINE, "2026-11-22"
        ),
    ),
    Claim(
        name="preferences-profile",
        paper="preferences",
        claim="A context inferred from two samples of a user's preferences is of use",
        figure="useful from two samples on, better with more",
        place=f"profiles; {_NOTES}",
        measure="accuracy with a profile inferred from 2 samples less that without",
        unit=" points",
        digits=1,
        rule=_least(5, 0, 1),
        section="preference",
    ),
    Claim(
        name="preferences-samples",
        paper="preferences",
        claim="and from more samples of more use",
        figure="useful from two samples on, better with more",
        place=f"profiles; {_NOTES}",
        measure="accuracy with the most samples less that with 2",
        unit=" points",
        digits=1,
        rule=_least(1, 0, 0.2),
        section="preference",
    ),
)


def _number(value: float) -> str:
    return f"{value:g}"
