"""The stage decorator: a thin Prefect task around a pure build function, with the store as its only cache.

    @stage("index", version=1, runtime=("threads",))
    def index(work: Work, *, width: str, threads: int) -> Stats:
        from longloom.tasks.ngrams.build import build
        return build(work.inputs["corpus"], work.out, width=width, threads=threads, progress=work.progress)

    ref = index(Store(root), {"corpus": corpus_ref}, width="u16", threads=2)

The key is stage name + version + input digests + semantic parameters; Prefect's own caching stays off, since two
caches can disagree and only the store verifies bytes. Outside of a flow a stage is a plain function, and Prefect is not
even imported, which alone takes a second (`longloom compare`).
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import Timeout

from longloom.storage.manifest import cache_key, code_commit, environment
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.console import StageLine, in_flow, in_task
from longloom.tasks.progress import Progress


@dataclass(frozen=True)
class Work:
    """What a stage's body gets to work with.

    Attributes:
        inputs: input name -> folder of the verified artifact.
        out: the folder to write to; empty, or for a resumable stage what a killed run left.
        progress: report units done here.
        refs: input name -> reference, where a body needs more than the files (the report).
        store: for reading manifests.
        sibling: opens the work folder of the same stage under other parameters, given by name, and other inputs, given
            as `inputs` (name -> digest; None: without that one); None if that artifact is in the store or being built.
            For a resumable stage that can do a part of its siblings' work on its way.
        earlier: the folder of the artifact that is built again because a part of it failed; None: there is none.
    """

    inputs: dict[str, Path]
    out: Path
    progress: Progress
    refs: dict[str, ArtifactRef]
    store: Store
    sibling: Callable[..., AbstractContextManager[Path | None]]
    earlier: Path | None

    def take_up(self, name: str) -> None:
        """Copies a file of what had not failed, of the artifact that is built again, to go on from."""
        if self.earlier is not None and not (self.out / name).exists():
            shutil.copy(self.earlier / name, self.out / name)


class Stage(Protocol):
    """A decorated stage: call it in a flow."""

    def __call__(
        self,
        store: Store,
        inputs: dict[str, ArtifactRef] | None = None,
        *,
        label: str = "",
        identity: dict[str, str] | None = None,
        **parameters: Any,
    ) -> ArtifactRef: ...


def stage(
    name: str,
    *,
    version: int,
    kind: str = "",
    runtime: Iterable[str] = (),
    resumable: bool = False,
    retries: bool = False,
    gpu: bool = False,
) -> Callable[[Callable[..., Stats]], Stage]:
    """Makes a Prefect task out of `body(work, **parameters) -> Stats`.

    Args:
        name: the stage's name.
        version: STAGE_VERSION; raise it when the same inputs would give other bytes.
        kind: of the artifact that it writes; the stage's name by default.
        runtime: parameters that do not change the result (threads, memory); no part of the key.
        resumable: the body can go on from what a killed run left in `work.out`.
        retries: an artifact whose counts tell of something `failed` is built again, with `work.earlier` to go on from.
        gpu: the body uses a GPU where there is one, and waits for its place (`gpu_place`).

    The decorated stage takes, besides the body's parameters, `identity`: digests of inputs that are no artifacts (files
    outside the store, a hub revision), which replace paths in the key, and `label` for the run's name.
    """
    left_out = frozenset(runtime)

    def decorate(body: Callable[..., Stats]) -> Stage:
        def run(
            root: str,
            frozen: bool,
            inputs: dict[str, ArtifactRef],
            label: str,
            identity: dict[str, str],
            parameters: dict[str, Any],
        ) -> ArtifactRef:
            plan = _Plan(body, name, kind or name, version, left_out, resumable, retries, gpu)
            return _run(plan, Store(root, frozen=frozen), inputs, label, identity, parameters)

        run.__doc__ = body.__doc__  # not functools.wraps: Prefect would take the body's signature for this one

        @functools.cache
        def prefect_task() -> Callable[..., ArtifactRef]:
            from prefect import task
            from prefect.cache_policies import NO_CACHE

            decorated: Callable[..., ArtifactRef] = task(
                name=name,
                cache_policy=NO_CACHE,
                persist_result=True,
                result_serializer="json",
                task_run_name="{label}",
            )(run)
            return decorated

        @functools.wraps(body)
        def call(
            store: Store,
            inputs: dict[str, ArtifactRef] | None = None,
            *,
            label: str = "",
            identity: dict[str, str] | None = None,
            **parameters: Any,
        ) -> ArtifactRef:
            full = f"{name}-{label}" if label else name
            asked = prefect_task() if in_flow() else run
            return asked(store.address, store.frozen, inputs or {}, full, identity or {}, parameters)

        return call

    return decorate


@dataclass(frozen=True)
class _Plan:
    """The arguments of `stage`."""

    body: Callable[..., Stats]
    name: str
    kind: str
    version: int
    runtime: frozenset[str]
    resumable: bool
    retries: bool = False
    gpu: bool = False


@contextmanager
def gpu_place() -> Iterator[None]:
    """Holds a place of the server's limit that LONGLOOM_GPU_LIMIT names; workers with a GPU set it, others have none.

    Asked for strictly, since a limit that does not exist would mean no limit. The place is lent for five minutes at a
    time: that a renewal fails, since the server is down, does not end hours of training.
    """
    name = os.environ.get("LONGLOOM_GPU_LIMIT", "").strip()
    if not name:
        yield
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(name, occupy=1, strict=True, raise_on_lease_renewal_failure=False):
        yield


def _run(
    plan: _Plan,
    store: Store,
    inputs: dict[str, ArtifactRef],
    label: str,
    identity: dict[str, str],
    parameters: dict[str, Any],
) -> ArtifactRef:
    """Finds the artifact in the store or builds it."""
    # A parameter that `identity` speaks for is a place (a path, a hub name): passed on, but no part of the key.
    semantic = {name: value for name, value in parameters.items() if name not in plan.runtime | identity.keys()}
    assert not inputs.keys() & identity.keys(), "an input's digest would be hidden by the identity of the same name"
    parents = {name: ref.digest for name, ref in inputs.items()} | identity
    key = cache_key(plan.name, plan.version, parents, semantic)
    kind = plan.kind
    line = StageLine(label)
    with store.lock(kind, key, on_wait=line.waiting):
        found = store.find(kind, key)
        failed = found is not None and plan.retries and found.counts.get("failed", 0) > 0 and not store.frozen
        if found is not None and not failed:
            line.unchanged(found)
            _tell(f"{label}: unchanged, {found.short()}")
            return found
        if store.frozen:
            raise ValueError(f"{label}: not in the store {store.address}; start from this stage or an earlier one")
        folders = {name: store.open(ref) for name, ref in inputs.items()}
        try:
            out = store.begin(kind, key, resume=plan.resumable)

            @contextmanager
            def sibling(inputs: Mapping[str, str | None] | None = None, **changes: Any) -> Iterator[Path | None]:
                assert plan.resumable
                changed: dict[str, str | None] = {**parents, **(inputs or {})}
                theirs = {name: digest for name, digest in changed.items() if digest is not None}
                other = cache_key(plan.name, plan.version, theirs, semantic | changes)
                lock = store.file_lock(f"{kind}-{other}")
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    yield None
                    return
                try:
                    if store.find(kind, other) is None:
                        yield store.begin(kind, other, resume=True)
                        return
                finally:
                    lock.release()
                yield None

            with gpu_place() if plan.gpu else nullcontext(), line:
                started = time.monotonic()  # waiting for a place is no work
                earlier = store.open(found) if found is not None else None
                work = Work(folders, out, line, inputs, store, sibling, earlier)
                stats = plan.body(work, **parameters)
            seconds = time.monotonic() - started
            ref = store.publish(
                out,
                stats,
                stage=plan.name,
                version=plan.version,
                kind=kind,
                key=key,
                parameters=semantic,
                parents=parents,
                runtime={name: parameters[name] for name in sorted(plan.runtime) if name in parameters},
                seconds=seconds,
                code=code_commit(),
                environment=environment(),
            )
        except BaseException:
            if not plan.resumable:  # nobody takes it up again, and a full disk needs the room
                store.abandon(kind, key)
            raise
        line.built(ref, seconds)
        _tell(f"{label}: built {ref.short()} in {seconds:.1f} s, {ref.counts}")
        return ref


def _tell(message: str) -> None:
    """One line in the task run's log."""
    if in_task():
        from prefect.logging import get_run_logger

        get_run_logger().info(message)
