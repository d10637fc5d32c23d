"""Prefect tasks of what asks an index where texts come from: explanations, contamination, prompts by their counts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from longloom.storage.fingerprint import fingerprint_folder
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage
from longloom.tasks.suite_data import suite_data

#: An artifact of the store, or a folder or file outside of it.
Place = ArtifactRef | str


@stage("explain", version=2)
def _explain(work: Work, *, index: str | None, answers: str | None, **options: Any) -> Stats:
    from longloom.tasks.sources.explain import build

    folder = _folder(work, "index", index)
    assert folder is not None
    return build(folder, _folder(work, "answers", answers), work.out, progress=work.progress, **options)


@stage("completions", version=2, runtime=("device",), gpu=True)
def _completions(work: Work, **options: Any) -> Stats:
    from longloom.tasks.sources.completions import build

    return build(work.inputs["model"], work.inputs["corpus"], work.out, progress=work.progress, **options)


@stage("contamination", version=3)
def _contamination(work: Work, *, index: str | None, data: str | None, evaluation: str | None, **options: Any) -> Stats:
    from longloom.tasks.sources.contamination import build

    folder = _folder(work, "index", index)
    assert folder is not None
    return build(
        folder,
        _folder(work, "data", data),
        _folder(work, "evaluation", evaluation),
        work.out,
        progress=work.progress,
        **options,
    )


@stage("prompts", version=3, runtime=("timeout", "retries", "at_once", "per_minute"), resumable=True, retries=True)
def _prompts(
    work: Work,
    *,
    index: str | None,
    candidates: str | None,
    prompt: str | None,
    n: int,
    rounds: int,
    url: str | None,
    **endpoint: Any,
) -> Stats:
    from longloom.tasks.sources.prompts import LEDGER, build

    client = None
    if url is not None:
        from longloom.tasks.longcontext.backends import EndpointBackend

        client = EndpointBackend(url=url, **endpoint, api="chat", tokenizer=None).client()
    work.take_up(LEDGER)
    folder = _folder(work, "index", index)
    assert folder is not None
    return build(
        folder,
        _folder(work, "candidates", candidates),
        work.out,
        prompt=prompt,
        n=n,
        rounds=rounds,
        client=client,
        progress=work.progress,
    )


def _folder(work: Work, name: str, place: str | None) -> Path | None:
    """An input's folder, or the place that a parameter names."""
    return work.inputs.get(name) or (Path(place) if place else None)


class _Places(NamedTuple):
    """Attributes: inputs, identity: for the key. parameters: a place for each name, None where it is an input."""

    inputs: dict[str, ArtifactRef]
    identity: dict[str, str]
    parameters: dict[str, str | None]


def _places(store: Store, **places: Place | None) -> _Places:
    """Artifacts as inputs, other places by their bytes.

    Raises:
        FileNotFoundError: no such place.
    """
    found = _Places({}, {}, {})
    for name, place in places.items():
        found.parameters[name] = place if isinstance(place, str) else None
        if isinstance(place, ArtifactRef):
            found.inputs[name] = place
        elif place is not None:
            found.identity[name] = fingerprint_folder(store, Path(place))
    return found


def is_contamination(folder: Path) -> bool:
    """Whether a folder holds what the contamination stage wrote."""
    return (folder / "contamination.parquet").is_file()


def is_index(folder: Path) -> bool:
    """Whether a folder holds an n-gram index."""
    from longloom.tasks.ngrams.layout import INDEX_FILE

    return (folder / INDEX_FILE).is_file()


def complete(store: Store, model: ArtifactRef, corpus: ArtifactRef, **options: Any) -> ArtifactRef:
    """A model's continuations of pieces of the corpus; options of `tasks.sources.completions.build`."""
    return _completions(store, {"model": model, "corpus": corpus}, device=None, **options)


def explain(
    store: Store, index: Place, answers: Place | None, *, label: str, text: str | None, **options: Any
) -> ArtifactRef:
    """The verbatim spans of texts, with their documents.

    Args:
        store: where they go.
        index: to ask.
        answers: an evaluation, or a file of text; None: `text` is explained.
        label: for the run's name.
        text: to be explained.
        options: of `tasks.sources.explain.build`.
    """
    places = _places(store, index=index, answers=answers)
    # By its digest: a manifest is no place for texts.
    identity = {} if text is None else {"text": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}
    return _explain(
        store,
        places.inputs,
        label=label,
        identity={**places.identity, **identity},
        text=text,
        **places.parameters,
        **options,
    )


def contamination(
    store: Store,
    index: Place,
    data: Place | None,
    evaluation: Place | None,
    *,
    suite: str | None,
    label: str,
    suite_options: Mapping[str, Any],
    **options: Any,
) -> ArtifactRef:
    """How much of each evaluation record stands in the corpus.

    Args:
        store: where it goes.
        index: to ask.
        data: the suite's records, None: the hub's; without a suite, a JSON Lines file, or a folder of such.
        evaluation: of the same records, to be scored again; None: none.
        suite: its name; None: JSON Lines.
        label: for the run's name.
        suite_options: the suite's own.
        options: of `tasks.sources.contamination.build`.
    """
    places = _places(store, index=index, evaluation=evaluation)
    if suite is None:
        own = _places(store, data=data)
        inputs, identity, place = own.inputs, own.identity, own.parameters["data"]
    else:
        inputs, identity, place = suite_data(store, suite, data)
    return _contamination(
        store,
        places.inputs | inputs,
        label=label,
        identity={**places.identity, **identity},
        data=place,
        suite=suite,
        suite_options=suite_options,
        **places.parameters,
        **options,
    )


def prompts(store: Store, index: Place, candidates: Place | None, *, label: str, **options: Any) -> ArtifactRef:
    """Prompts, ranked by how often their n-grams stand in the corpus.

    Args:
        store: where they go.
        index: to ask.
        candidates: a file of prompts, one a line; None: there are none.
        label: for the run's name.
        options: of the stage.
    """
    places = _places(store, index=index, candidates=candidates)
    return _prompts(store, places.inputs, label=label, identity=places.identity, **places.parameters, **options)
