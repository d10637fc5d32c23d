"""Prefect tasks of the trace: records, pairs by n, scores by model, novelty, influence, and the study over them.

Each has a key of its own, so that a further model adds its scores, novelty and influence, and the study alone is made
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longloom.storage.fingerprint import fingerprint, fingerprint_folder
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage
from longloom.tasks.suite_data import HARNESS
from longloom.tasks.trace.names import INPUT_EMBEDDINGS, PAPER_GAMMA

#: An index: an artifact, or a folder outside the store.
Index = ArtifactRef | str


@stage("trace-records", version=1)
def _records(
    work: Work, *, data: str | None, evaluation: dict[str, Any] | None, evaluated: str | None, **options: Any
) -> Stats:
    from longloom.tasks.trace.records import build

    folder = work.inputs.get("data") or Path(data or "")
    inputs = work.inputs.get("evaluated") or (Path(evaluated) if evaluated else None)
    tokenizer = work.inputs.get("model")
    return build(folder, work.out, evaluation=evaluation, evaluated=inputs, tokenizer=tokenizer, **options)


@stage("trace-pairs", version=2, gpu=True)
def _pairs(work: Work, *, index: str | None, embedding: str, **options: Any) -> Stats:
    from longloom.tasks.ngrams.query import open_index
    from longloom.tasks.trace.embedding import embedder
    from longloom.tasks.trace.pairs import build

    return build(
        work.inputs["records"],
        open_index(work.inputs.get("index") or Path(index or "")),
        embedder(embedding, work.inputs.get("embedded")),
        work.out,
        progress=work.progress,
        **options,
    )


@stage("trace-scores", version=2, runtime=("device",), gpu=True)
def _scores(work: Work, **options: Any) -> Stats:
    from longloom.tasks.trace.scores import build

    return build(work.inputs["model"], work.inputs["records"], work.out, progress=work.progress, **options)


@stage("trace-novelty", version=2, gpu=True)
def _novelty(work: Work, *, index: str | None, embedding: str, **options: Any) -> Stats:
    from longloom.tasks.ngrams.query import open_index
    from longloom.tasks.trace.embedding import embedder
    from longloom.tasks.trace.novelty import build

    return build(
        work.inputs["records"],
        work.inputs["scores"],
        open_index(work.inputs.get("index") or Path(index or "")),
        embedder(embedding, work.inputs.get("embedded")),
        work.out,
        progress=work.progress,
        **options,
    )


@stage("trace-influence", version=3, runtime=("device",), gpu=True)
def _influence(work: Work, *, index: str | None, checkpoints: Sequence[str], **options: Any) -> Stats:
    from longloom.tasks.ngrams.query import open_index
    from longloom.tasks.trace.influence import build, checkpoints_of

    return build(
        work.inputs["model"],
        [Path(place) for place in checkpoints] or checkpoints_of(work.inputs["model"]),
        work.inputs["records"],
        work.inputs["pairs"],
        open_index(work.inputs.get("index") or Path(index or "")),
        work.out,
        progress=work.progress,
        **options,
    )


@stage("trace", version=1)
def _trace(work: Work, *, parts: Sequence[Mapping[str, Any]], gammas: Sequence[Sequence[Any]], **options: Any) -> Stats:
    from longloom.tasks.trace.study import Sources, build

    sources = Sources()
    for part in parts:
        folder = work.inputs[part["input"]]
        key = tuple(part["key"])
        getattr(sources, part["kind"])[key if len(key) > 1 else key[0]] = folder
    return build(sources, work.out, gammas={int(n): gamma for n, gamma in gammas}, progress=work.progress, **options)


def gammas_of(n: Sequence[int], given: Sequence[float], thresholds: str) -> dict[int, float]:
    """n -> gamma, as given or the paper's.

    Args:
        n: words of an n-gram.
        given: one for each n, or none.
        thresholds: a key of PAPER_GAMMA.

    Raises:
        ValueError: another number of gammas than of n, or an n that the paper has no gamma for.
    """
    if given:
        if len(given) != len(n):
            raise ValueError(f"found {len(given)} gammas for {len(n)} values of n, expected one for each")
        return dict(zip(n, given, strict=True))
    known = PAPER_GAMMA[thresholds]
    for size in n:
        if size not in known:
            listed = ", ".join(map(str, known))
            raise ValueError(
                f"n is {size}, for which the paper gives {thresholds} no gamma (it does for {listed}); give it"
            )
    return {size: known[size] for size in n}


def check_template(template: str) -> None:
    """Raises ValueError for a prompt without `{input}`; to be called before any work is done."""
    from longloom.tasks.trace.records import check_template

    check_template(template)


def check_embedding(embedding: str) -> None:
    """Raises ValueError for an embedding that is neither known nor there; to be called before any work is done."""
    from longloom.tasks.training.imported import revision

    if embedding != INPUT_EMBEDDINGS and not Path(embedding).exists():
        revision(embedding)


def records_of(
    store: Store,
    data: ArtifactRef | str,
    evaluated: ArtifactRef | str | None,
    *,
    label: str,
    template: str,
    limit: int | None,
) -> ArtifactRef:
    """The records of an evaluation set.

    Args:
        store: where they go.
        data: JSON Lines, or an evaluation artifact.
        evaluated: what the evaluation read: found by its digest where that is in the store, else to be given as a
            folder or file; None for the hub's records and those of suites that make them.
        label: for the run's name.
        template, limit: as `records.build` takes them.

    Raises:
        ValueError: records of an evaluation that are neither in the store nor given, or not those; lm-eval's tasks.
    """
    if not isinstance(data, ArtifactRef):
        if not Path(data).exists():
            raise FileNotFoundError(f"{data}: no such file or folder, expected JSON Lines with input and output")
        identity = {"data": fingerprint_folder(store, Path(data))}
        return _records(
            store, label=label, identity=identity, data=data, evaluation=None, evaluated=None, template=template,
            limit=limit,
        )  # fmt: skip
    manifest = store.manifest(data)
    settings: dict[str, Any] = {name: manifest.parameters.get(name) for name in ("suite", "suite_options", "seed")}
    if settings["suite"] == HARNESS:
        raise ValueError(f"{data.short()}: is an evaluation of lm-eval's tasks, expected one of a suite of ours")
    inputs, identity = {"data": data}, {}
    digest = manifest.parents.get("data")
    made = {found.digest: found.ref() for found in store.manifests()}
    if digest in made:
        inputs["evaluated"], evaluated = made[digest], None
    elif isinstance(evaluated, str):
        identity["evaluated"] = fingerprint_folder(store, Path(evaluated))
        if identity["evaluated"] != digest:
            raise ValueError(f"{evaluated}: is not what {data.short()} evaluated, expected the same records")
    elif digest is not None and not digest.startswith("hub:"):
        raise ValueError(f"{data.short()}: its records are not in the store, expected them as `evaluated`")
    if manifest.parents.get("model") in made and "lengths" in settings["suite_options"]:
        inputs["model"] = made[manifest.parents["model"]]
    return _records(
        store, inputs, label=label, identity=identity, data=None, evaluation=settings, evaluated=evaluated,
        template=template, limit=limit,
    )  # fmt: skip


def pairs_of(
    store: Store, records: ArtifactRef, index: Index, model: ArtifactRef, *, embedding: str, label: str, **options: Any
) -> ArtifactRef:
    """The task-gram pairs of a set; `model`'s input embeddings serve where `embedding` names those."""
    inputs, identity, place = _indexed(store, index)
    inputs, identity = _embedded(store, inputs | {"records": records}, identity, embedding, model)
    return _pairs(store, inputs, label=label, identity=identity, index=place, embedding=embedding, **options)


def scores_of(store: Store, records: ArtifactRef, model: ArtifactRef, *, label: str, **options: Any) -> ArtifactRef:
    """What a model gives every token of a set, and what it writes."""
    return _scores(store, {"records": records, "model": model}, label=label, **options)


def novelty_of(
    store: Store,
    records: ArtifactRef,
    scores: ArtifactRef,
    index: Index,
    model: ArtifactRef,
    *,
    embedding: str,
    label: str,
    **options: Any,
) -> ArtifactRef:
    """The novel pairs of what a model wrote; `model` as in `pairs_of`."""
    inputs, identity, place = _indexed(store, index)
    inputs, identity = _embedded(store, inputs | {"records": records, "scores": scores}, identity, embedding, model)
    return _novelty(store, inputs, label=label, identity=identity, index=place, embedding=embedding, **options)


def influence_of(
    store: Store,
    records: ArtifactRef,
    pairs: ArtifactRef,
    index: Index,
    model: ArtifactRef,
    source: str,
    *,
    label: str,
    **options: Any,
) -> ArtifactRef:
    """The influence of corpus documents on a model, over the checkpoints in the folder `source` or its own, if any."""
    inputs, identity, place = _indexed(store, index)
    checkpoints: list[Path] = []
    if Path(source).is_dir():
        from longloom.tasks.trace.influence import checkpoints_of
        from longloom.tasks.training.checkpoints import TOLD

        checkpoints = [found for found in checkpoints_of(Path(source)) if found != Path(source)]
    if checkpoints:
        names = ("*.safetensors", "pytorch_model*.bin", "config.json", TOLD)
        weights = [file for folder in checkpoints for name in names for file in sorted(folder.glob(name))]
        identity["checkpoints"] = fingerprint(store, weights, base=Path(source))
    return _influence(
        store,
        inputs | {"records": records, "pairs": pairs, "model": model},
        label=label,
        identity=identity,
        index=place,
        checkpoints=[str(found) for found in checkpoints],
        **options,
    )


def study_of(
    store: Store,
    parts: Sequence[tuple[str, Sequence[Any], ArtifactRef]],
    *,
    gammas: Mapping[int, float],
    label: str,
    **options: Any,
) -> ArtifactRef:
    """The study.

    Args:
        store: where it goes.
        parts: kind (a field of `study.Sources`), its key there, the artifact.
        gammas: n -> gamma.
        label: for the run's name.
        options: of `study.build`.
    """
    names = [f"{kind}/{'/'.join(map(str, key))}" for kind, key, _ in parts]
    return _trace(
        store,
        {name: ref for name, (_, _, ref) in zip(names, parts, strict=True)},
        label=label,
        parts=[
            {"input": name, "kind": kind, "key": list(key)} for name, (kind, key, _) in zip(names, parts, strict=True)
        ],
        gammas=[[n, gamma] for n, gamma in gammas.items()],
        **options,
    )


def parameters_of(store: Store, scores: ArtifactRef) -> int:
    """The number of a scored model's parameters."""
    found: Any = store.manifest(scores).values["parameters"]
    return int(found)


def _indexed(store: Store, index: Index) -> tuple[dict[str, ArtifactRef], dict[str, str], str | None]:
    if isinstance(index, ArtifactRef):
        return {"index": index}, {}, None
    place = Path(index).absolute()
    return {}, {"index": fingerprint_folder(store, place)}, str(place)


def _embedded(
    store: Store, inputs: dict[str, ArtifactRef], identity: dict[str, str], embedding: str, model: ArtifactRef
) -> tuple[dict[str, ArtifactRef], dict[str, str]]:
    if embedding == INPUT_EMBEDDINGS:
        return inputs | {"embedded": model}, identity
    from longloom.tasks.training.imported import revision

    place = Path(embedding)
    return inputs, identity | {"embedding": fingerprint_folder(store, place) if place.exists() else revision(embedding)}
