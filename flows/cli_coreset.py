"""The commands of coresets, `longloom coreset ...`, registered by cli.py."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App

from longloom.flows.command import Flat, Json, Store, begin, check_folder, show
from longloom.flows.params import DEFAULT_STORE, InstructionsParams, ModelParams
from longloom.flows.params_coreset import CoresetParams
from longloom.flows.params_prove import ProveParams

chosen = App(name="coreset")


@chosen.default
def coreset(
    *,
    coreset: Annotated[CoresetParams, Flat] = CoresetParams(),  # noqa: B008
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008
    model: ModelParams = ModelParams(),  # noqa: B008
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Choose a few percent of an instruction pool."""
    begin(store)
    from longloom.flows.coreset import select_coreset

    show(select_coreset(instructions, model, coreset, store=store), json)


@chosen.command(name="prove")
def prove_coresets(
    *,
    prove: Annotated[ProveParams, Flat] = ProveParams(),  # noqa: B008
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008
    model: ModelParams = ModelParams(),  # noqa: B008
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Train on coresets of every method, share and seed and on all examples, and compare their held-out losses."""
    begin(store)
    from longloom.flows.prove import prove as flow
    from longloom.flows.show_prove import show_proof

    show_proof(flow(instructions, model, prove, store=store), store, as_json=json)


@chosen.command(name="export")
def export_gradients(
    *,
    features: str = "run:latest:features",
    out: str,
    name: str = "pool",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Write gradient features as LESS reads them, one file of unit rows a checkpoint.

    Args:
        features: run:ID:LABEL of an earlier run; targets have the label target-features.
        out: Folder to write to.
        name: Of the data set, in the folders' names.
    """
    check_folder("--out", out)
    from longloom.flows.export import export_less

    show(export_less(features, out, store, name=name), json)
