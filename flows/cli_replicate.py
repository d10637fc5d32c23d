"""The command of the replication, registered by cli.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from longloom.flows.command import Flat, Json, Store, begin, check_folder
from longloom.flows.params import DEFAULT_STORE, CorpusParams, InstructionsParams, ModelParams
from longloom.flows.params_replicate import ReplicateComparisonsParams, ReplicateParams


def replicate(
    *,
    replicate: Annotated[ReplicateParams, Flat] = ReplicateParams(),  # noqa: B008
    corpus: CorpusParams = CorpusParams(),  # noqa: B008
    model: ModelParams = ModelParams(),  # noqa: B008
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008
    comparisons: ReplicateComparisonsParams = ReplicateComparisonsParams(),  # noqa: B008
    held_out: CorpusParams | None = None,
    out: str | None = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Measure the claims of seven papers in miniature: which hold here, partly, or not.

    Args:
        held_out: Text that the model was not trained on; the standard library has modules of its own for that.
        out: Also copy the table to this folder, as replicate.json and replicate.md.
    """
    check_folder("--out", out)
    begin(store, "torch", "pyarrow.parquet")
    from longloom.flows.replicate import replicate as flow
    from longloom.flows.show_replicate import show_replication

    found = flow(replicate, corpus, model, instructions, comparisons, held_out, store=store)
    show_replication(found, store, out, as_json=json)


COMMANDS: tuple[Callable[..., None], ...] = (replicate,)
