"""The commands that train, registered by cli.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from longloom.flows.command import Flat, Json, Store, begin, show
from longloom.flows.params import (
    DEFAULT_STORE,
    CorpusParams,
    FinetuneParams,
    IndexParams,
    InstructionsParams,
    ModelParams,
    PretrainParams,
)
from longloom.flows.params_coreset import CoresetParams
from longloom.flows.params_extend import ExtendParams, PackParams
from longloom.flows.params_tune import TuneParams


def pretrain(
    corpus: Annotated[CorpusParams, Flat] = CorpusParams(),  # noqa: B008
    *,
    index: IndexParams = IndexParams(),  # noqa: B008
    model: PretrainParams = PretrainParams(),  # noqa: B008
    export: str | None = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Train a small model on a corpus.

    Args:
        export: Also copy the model and its manifest into this folder.
    """
    from longloom.flows.show import check_export, export_artifact

    check_export(export, store)
    begin(store)
    from longloom.flows.model import pretrain as flow

    ref = flow(corpus, index, model, store=store)
    if export is not None:
        export_artifact(ref, store, export)
    show({"model": ref}, json)


def finetune(
    *,
    finetune: Annotated[FinetuneParams, Flat] = FinetuneParams(),  # noqa: B008
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008
    model: ModelParams = ModelParams(),  # noqa: B008
    coreset: CoresetParams = CoresetParams(),  # noqa: B008
    on: Annotated[
        str,
        Parameter(
            help="all: the whole pool; coreset: what each selection method chooses of it; run:ID:coreset/METHOD: what"
            " an earlier run chose of it, maybe for another model."
        ),
    ] = "all",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Fine-tune a model on an instruction pool or on coresets of it."""
    chosen = on if on.startswith("run:") else None
    if chosen is None and on not in ("all", "coreset"):
        raise ValueError(f"--on {on}: unknown, expected all, coreset or run:ID:coreset/METHOD")
    if on != "coreset" and coreset != CoresetParams():
        given = sorted(name for name, value in coreset if value != getattr(CoresetParams(), name))
        raise ValueError(f"--coreset.{given[0]} with --on {on}, which chooses no coreset; expected --on coreset")
    begin(store)
    from longloom.flows.finetune import finetune as flow

    show(flow(instructions, model, coreset if on == "coreset" else None, finetune, chosen, store=store), json)


def extend(
    corpus: Annotated[CorpusParams, Flat] = CorpusParams(),  # noqa: B008
    *,
    model: ModelParams = ModelParams(),  # noqa: B008
    pack: PackParams = PackParams(),  # noqa: B008
    extend: Annotated[ExtendParams, Flat] = ExtendParams(),  # noqa: B008
    held_out: CorpusParams | None = None,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    export: str | None = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Extend a model's context: longer rotary positions, then training on long documents packed into rows.

    Args:
        held_out: The text whose perplexity by position is measured before and after; the standard library has its own.
        dry_run: Pack and account for every token; train nothing.
        export: Also copy the model and its manifest into this folder.
    """
    if dry_run and export is not None:
        raise ValueError(f"--export {export} with --dry-run, which makes no model; expected one of them")
    from longloom.flows.show import check_export, export_artifact

    check_export(export, store)
    begin(store)
    from longloom.flows.extend import extend as flow
    from longloom.flows.show_extend import show_extension

    refs = flow(corpus, model, pack, extend, held_out, dry_run, store=store)
    if export is not None:
        export_artifact(refs["model"], store, export)
    show_extension(refs, extend, store, as_json=json)


def tune(
    *,
    tune: Annotated[TuneParams, Flat] = TuneParams(),  # noqa: B008
    corpus: CorpusParams = CorpusParams(),  # noqa: B008
    model: ModelParams = ModelParams(),  # noqa: B008
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Tune a model on instructions, then on conversations with a context, then on long documents among them."""
    begin(store)
    from longloom.flows.tune import tune as flow

    show(flow(corpus, model, tune, store=store), json)


COMMANDS: tuple[Callable[..., None], ...] = (pretrain, finetune, extend, tune)
