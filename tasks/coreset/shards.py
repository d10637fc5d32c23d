"""A shard of gradient features: a fixed stretch of the pool at one checkpoint, by whoever has a hand free.

Rows come out of batches of like length. What is in a batch depends on the shard's examples alone, and a batch is
computed by one thread: no number of threads or workers changes a byte. On a CPU whole batches side by side also win
over threads within one: its products are too small to be shared out.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

from longloom.tasks.coreset.adam import adjust
from longloom.tasks.coreset.batched import PerExample, Sink, unsupported
from longloom.tasks.coreset.checkpoints import Checkpoint, read_moments
from longloom.tasks.coreset.encoded import Encoded, Example
from longloom.tasks.coreset.gradients import example_gradient, has_target, load_adapted, trainable
from longloom.tasks.coreset.pairwise import PerPair, load_adapted_reward, pair_gradient
from longloom.tasks.coreset.projection import Projection
from longloom.tasks.coreset.store import shard_name, write_array
from longloom.tasks.training.mix import IGNORE

#: Rows of a shard: what a kill can cost at most, per worker.
SHARD_ROWS = 1024
#: Tokens of a batch, padding included. More do not help a CPU: its caches are full.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}
#: In the work folder, where gradients had to be taken one by one: why.
ONE_BY_ONE = "one-by-one"


@dataclass(frozen=True)
class Job:
    """What every shard of a run has in common; small, for other processes.

    Attributes:
        model: the base model's folder.
        out: the artifact's folder; rows go there.
        work: a folder for what is needed until the end: the encoded pool, losses.
        examples: n.
        shard_rows: rows of every shard but the last.
        dimension, seed: of the projection.
        device: cpu or a cuda device.
        dtype: of the model.
        adam: adjust by the moments.
        bias_correction: of the moments.
        pairs: the examples are pairs of responses, the model scores them; see `pairwise`.
    """

    model: Path
    out: Path
    work: Path
    examples: int
    shard_rows: int
    dimension: int
    seed: int
    device: str
    dtype: str
    adam: bool
    bias_correction: bool
    pairs: bool = False

    def span(self, shard: int) -> tuple[int, int]:
        """First row and the one after the last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.examples)

    @property
    def shards(self) -> range:
        """Their numbers."""
        return range(-(-self.examples // self.shard_rows))

    def rows_file(self, checkpoint: str, shard: int) -> Path:
        """Where the rows are once the shard is done."""
        return self.out / checkpoint / shard_name(shard)

    def losses_file(self, checkpoint: str, shard: int) -> Path:
        """float32 [rows], NaN where there is no target; there before the rows."""
        return self.work / f"{checkpoint}-{shard:06d}.npy"


@dataclass(frozen=True)
class UnitRows:
    """From a batch's gradients to its rows; each parameter's are let go of as soon as they are projected.

    Attributes:
        sizes: parameter name -> its size, in the order of the flat gradients.
        projection: where the work is done.
        moments: Adam's, float32 [P] on that device; None: the gradients stay plain.
        step: for the bias correction of the moments; None: without.
    """

    sizes: dict[str, int]
    projection: Projection
    moments: tuple[torch.Tensor, torch.Tensor] | None
    step: int | None

    def __call__(
        self, examples: list[Example], take: Callable[[list[Example], Sink], torch.Tensor]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Losses float32 [n], unit rows float16 [n, d], and whether something was not finite [n]."""
        device = self.projection.device
        projected = torch.zeros(len(examples), self.projection.dimension, device=device)
        alive = torch.zeros(len(examples), dtype=torch.bool, device=device)
        whole = torch.ones(len(examples), dtype=torch.bool, device=device)
        starts = dict(zip(self.sizes, itertools.accumulate(self.sizes.values(), initial=0), strict=False))

        def fold(name: str, gradients: torch.Tensor) -> None:
            start, stop = starts[name], starts[name] + self.sizes[name]
            alive.logical_or_(gradients.any(1))
            whole.logical_and_(gradients.isfinite().all(1))
            if self.moments is not None:
                first, second = (moment[start:stop] for moment in self.moments)
                gradients = adjust(gradients, first, second, step=self.step)
            self.projection.add(projected, gradients, start)

        losses = take(examples, fold)
        # The moments alone would still make a step: a zero gradient must not become their direction.
        projected *= alive[:, None]
        projected /= projected.norm(dim=1, keepdim=True).clamp_min_(torch.finfo(projected.dtype).tiny)
        return losses.float().cpu().numpy(), projected.half().cpu().numpy(), (~whole).cpu().numpy()


class Featurizer:
    """Turns examples into unit rows at one checkpoint."""

    def __init__(self, job: Job, checkpoint: Checkpoint) -> None:
        self.job = job
        self.name = checkpoint.name
        load = load_adapted_reward if job.pairs else load_adapted
        self.model: PeftModel = load(job.model, checkpoint.folder, device=job.device, dtype=job.dtype)
        self.parameters = trainable(self.model)
        self.sizes = {name: parameter.numel() for name, parameter in self.parameters.items()}
        self.one_by_one = unsupported(self.model, self.parameters)
        moments: tuple[torch.Tensor, torch.Tensor] | None = None
        if job.adam:
            first, second = read_moments(checkpoint, {name: one.shape for name, one in self.parameters.items()})
            moments = first.to(job.device), second.to(job.device)
        projection = Projection(sum(self.sizes.values()), job.dimension, seed=job.seed, device=job.device)
        self._unit_rows = UnitRows(self.sizes, projection, moments, checkpoint.step if job.bias_correction else None)

    def take(self, shard: int, *, threads: int, progress: Callable[[int], None]) -> None:
        """Computes and writes one shard; progress gets the rows that are done.

        Rows of examples that an earlier shard has too stay zeros.

        Raises:
            ValueError: a gradient is not finite.
        """
        start, stop = self.job.span(shard)
        encoded = Encoded(self.job.work)
        examples = encoded.examples(start, stop)
        first = encoded.first()[start:stop].tolist()
        rows = np.zeros((len(examples), self.job.dimension), np.float16)
        losses = np.full(len(examples), np.nan, np.float32)
        copies: dict[int, list[int]] = {}
        for row, (_, labels) in enumerate(examples):
            if has_target(labels) and first[row] >= start:  # those of an earlier shard are copied in the end
                copies.setdefault(first[row], []).append(row)
        places = list(copies.values())
        batches = cut([examples[rows[0]] for rows in places], BATCH_TOKENS[self.job.device.partition(":")[0]])
        progress(len(examples) - sum(map(len, places)))

        def one(batch: list[int]) -> None:
            found = self._unit_rows([examples[places[number][0]] for number in batch], take)
            for number, loss, row, fault in zip(batch, *found, strict=True):
                if fault:
                    raise ValueError(
                        f"{self.name}: the gradient of example {start + places[number][0]} is not finite, "
                        "expected numbers"
                    )
                rows[places[number]] = row
                losses[places[number]] = loss
            progress(sum(len(places[number]) for number in batch))

        batched = PerPair if self.job.pairs else PerExample
        with batched(self.model, self.parameters) if self.one_by_one is None else _Single(self) as take:
            if self.job.device != "cpu" or threads == 1:
                with _alone():
                    for batch in batches:
                        one(batch)
            else:
                with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                    for _ in pool.map(one, batches):
                        pass
        if self.one_by_one is not None:
            (self.job.work / ONE_BY_ONE).write_text(self.one_by_one, encoding="utf-8")
        write_array(self.job.losses_file(self.name, shard), losses)
        write_array(self.job.rows_file(self.name, shard), rows)


class _Single:
    """The plain way in the clothes of `PerExample`: one example after the other."""

    def __init__(self, featurizer: Featurizer) -> None:
        self._featurizer = featurizer

    def __enter__(self) -> _Single:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, examples: list[Example], sink: Sink) -> torch.Tensor:
        featurizer = self._featurizer
        gradient = pair_gradient if featurizer.job.pairs else example_gradient
        taken = [gradient(featurizer.model, featurizer.parameters, *self._there(one)) for one in examples]
        flat = torch.stack([found.float() for _, found in taken])
        for name, part in zip(featurizer.sizes, flat.split(list(featurizer.sizes.values()), 1), strict=True):
            sink(name, part)
        return torch.stack([loss for loss, _ in taken])

    def _there(self, example: Example) -> Example:
        device = self._featurizer.job.device
        return example[0].to(device), example[1].to(device)


class _alone:  # noqa: N801 (used as a function)
    """This thread computes alone."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def cut(examples: list[Example], tokens: int) -> list[list[int]]:
    """Numbers of examples in batches: longest first, each padded to its longest and no larger than `tokens` in all.

    An example longer than that has a batch of its own.
    """
    ends = [int((labels != IGNORE).nonzero()[-1]) for _, labels in examples]
    batches: list[list[int]] = []
    for number in sorted(range(len(examples)), key=lambda number: -ends[number]):
        if not batches or ends[batches[-1][0]] * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(number)
    return batches


_LOCK = threading.Lock()
_LOADED: list[tuple[Job, Checkpoint, Featurizer]] = []


def take_shard(job: Job, checkpoint: Checkpoint, shard: int, remote: bool) -> int:
    """Takes one shard in a process of its own, of one thread, or in a worker of Dask, which knows its own.

    Returns:
        The rows. The model stays loaded for the next shard.
    """
    threads = 1
    if remote:
        from distributed import get_worker

        threads = get_worker().state.nthreads
    with _LOCK:
        if not _LOADED or _LOADED[0][:2] != (job, checkpoint):
            _LOADED.clear()  # freed before there is another
            _LOADED.append((job, checkpoint, Featurizer(job, checkpoint)))
        _LOADED[0][2].take(shard, threads=threads, progress=lambda _: None)
    start, stop = job.span(shard)
    return stop - start
