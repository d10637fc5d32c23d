"""What can be known to be wrong before the first stage runs: places that are not there, names that nobody has.

A stage that comes to such a place says the same; but hours may lie before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longloom.flows.params import STANDARD_LIBRARY, ModelParams, PretrainParams
from longloom.flows.params_coreset import CoresetParams
from longloom.flows.params_evaluate import EvaluateParams, RetrievalParams
from longloom.flows.sources import RUN_PREFIX, of_run
from longloom.storage.store import Store
from longloom.tasks.coreset.task import check_methods
from longloom.tasks.longcontext.asked import check_tasks


def check_sources(sources: Sequence[str]) -> None:
    """Whether the files and folders of a corpus, a pool or comparisons are there.

    Raises:
        FileNotFoundError: one is not, or is a folder without files.
        ValueError: none of its files has a format that is read here; a file is given twice.
    """
    from longloom.tasks.corpus.files import TSV, find_files
    from longloom.tasks.corpus.readers import FORMATS

    if list(sources) != [STANDARD_LIBRARY]:
        find_files(list(sources), (*FORMATS, *TSV))


def check_place(place: str | None) -> None:
    """Raises FileNotFoundError if a file or folder is given that is not there."""
    if place is not None and not Path(place).exists():
        raise FileNotFoundError(f"{place}: no such file or folder")


def check_loadable(store: Store, source: str, *, kind: str = "model") -> None:
    """Whether there is such a model, reward model or tokenizer.

    Args:
        store: with the runs.
        source: run:ID:LABEL, a folder, or a hub name, which is looked up there.
        kind: what it is, and of which kind the artifact run:ID:LABEL must be.

    Raises:
        ValueError: there is none; a folder that transformers could not load; a file.
    """
    if source.startswith(RUN_PREFIX):
        of_run(store, source, kind)
        return
    from longloom.tasks.training.imported import files_of, revision

    place = Path(source)
    if not place.exists():
        revision(source)
    elif kind == "model":
        files_of(place, source)


def check_model(store: Store, params: ModelParams, *, trained: bool, option: str = "model") -> None:
    """Whether the model that a flow starts from is there.

    Args:
        store: with the runs.
        params: what to start from.
        trained: the flow has a corpus to train it on.
        option: what the parameters are called.

    Raises:
        ValueError: as `check_loadable`; a model from scratch, or how to train one, where nothing trains it.
    """
    if params.source == "scratch" and not trained:
        raise ValueError("model scratch: there is no corpus to train it on here, expected `base`, a folder or a name")
    if not (trained and (params.source in ("base", "scratch") or isinstance(params, PretrainParams))):
        _check_untrained(params, option)
    if params.source not in ("base", "scratch"):
        check_loadable(store, params.source)
    further = params.source == "base" or (isinstance(params, PretrainParams) and params.source != "scratch")
    if trained and further and params.size == "tiny":
        raise ValueError(
            f"model size tiny: starts from random weights alone, found source {params.source}, expected scratch"
        )


def _check_untrained(params: ModelParams, option: str) -> None:
    """Raises ValueError if something is given that would do nothing to a model that is taken as it stands."""
    for name in ("size", "tokens", "seed"):
        value, usual = getattr(params, name), type(params).model_fields[name].default
        if value != usual:
            raise ValueError(
                f"{option}.{name}: found {value}, expected it left out: nothing trains model {params.source:.200} on a"
                " corpus here; `longloom pretrain` takes it, and `pipeline` and `replicate` do for base and scratch"
            )


def check_tokenizer(store: Store, tokenizer: str) -> None:
    """Raises ValueError if there is no such tokenizer."""
    if tokenizer not in ("train", "bytes", "base"):
        check_loadable(store, tokenizer)


def check_coreset(params: CoresetParams, *, preferences: bool = False) -> None:
    """Whether the methods are known and what they look at is there.

    Args:
        params: of the coreset.
        preferences: the flow can choose from preference data.

    Raises:
        ValueError: an unknown method; what does not go together.
        FileNotFoundError: no such file or folder.
    """
    check_methods(params.methods, params.targets)
    if params.preferences and not preferences:
        raise ValueError(
            f"coreset.preferences: found {', '.join(params.preferences)}, expected none here; `longloom coreset`"
            " chooses from preference data"
        )
    if params.preferences and params.warmup is not None:
        raise ValueError(f"coreset.warmup: found {params.warmup}, expected none: a reward model's is trained here")
    for sources in (params.preferences, params.targets):
        if sources:
            check_sources(sources)
    if params.warmup is not None and not Path(params.warmup).is_dir():
        raise FileNotFoundError(
            f"coreset.warmup: found no folder {params.warmup}, expected one of checkpoint-* folders"
        )


def check_evaluated(store: Store, params: EvaluateParams) -> None:
    """Whether what an evaluation reads is there: records, a head profile, a reward model, a tokenizer.

    Raises:
        ValueError, FileNotFoundError: something is not.
    """
    from longloom.tasks.sources.task import is_contamination, is_index

    check_place(params.data)
    check_tasks(params.suite, params.tasks, params.data)
    if params.heads is not None:
        if params.heads.startswith(RUN_PREFIX):
            of_run(store, params.heads, "heads")
        else:
            check_place(params.heads)
    left_out = params.exclude_contaminated
    known = left_out is None or left_out.startswith(RUN_PREFIX)
    if not known and not is_contamination(Path(left_out or "")) and not is_index(Path(left_out or "")):
        raise ValueError(f"{left_out}: is neither a contamination artifact nor an n-gram index")
    if params.reward is not None:
        check_loadable(store, params.reward, kind="reward-model")
    if params.endpoint.tokenizer is not None:
        check_loadable(store, params.endpoint.tokenizer)


def check_encoder(store: Store, params: RetrievalParams) -> None:
    """Raises ValueError if there is no such encoder."""
    if params.encoder is not None:
        check_loadable(store, params.encoder, kind="encoder")
