"""Flow `prove`: whether a few percent of an instruction pool, as each method chooses them, train as well as all of it.

One split serves all runs: what is held out is never chosen or trained on. A seed drives all else that is left to
chance, from the warm-up to the order of training, so the spread over seeds is that of the whole method.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefect import flow

from longloom.flows.artifacts import publish_report
from longloom.flows.checks import check_coreset, check_model, check_sources
from longloom.flows.coreset import coresets_of
from longloom.flows.model import is_small, model_of
from longloom.flows.params import DEFAULT_STORE, InstructionsParams, ModelParams
from longloom.flows.params_coreset import CoresetParams
from longloom.flows.params_prove import ProveParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import read_instructions
from longloom.tasks.report.task import proof as prove_task
from longloom.tasks.report.task import report
from longloom.tasks.training.task import finetune, heldout_loss, split

#: The share whose coresets the report shows, those of the first seed: the paper's, or the nearest that was run.
SHOWN_SHARE = 0.05


@dataclass
class _Trainings:
    """Trains and judges, and keeps what the proof needs of each training."""

    store: Store
    log: RunLog
    model: ArtifactRef
    train: ArtifactRef
    held_out: ArtifactRef
    params: ProveParams
    judged: list[ArtifactRef] = field(default_factory=list)
    arms: list[dict[str, Any]] = field(default_factory=list)

    def untrained(self) -> None:
        self._judge("untrained", self.model, method="untrained", share=0.0, seed=None, examples=0, steps=0)

    def add(self, method: str, share: float, seed: int, chosen: ArtifactRef | None) -> None:
        """Trains on a coreset, or on all, and judges the model."""
        name = f"{method}/{share:g}/{seed}"
        options = self.params.finetune.of(is_small(self.store, self.model)) | {"seed": seed}
        tuned = finetune(self.store, self.model, self.train, chosen, label=name, **options)
        self.log.add(f"finetune/{name}", tuned)
        counts = {count: tuned.counts[count] for count in ("examples", "steps")}
        self._judge(name, tuned, method=method, share=share, seed=seed, **counts)

    def _judge(self, name: str, model: ArtifactRef, **arm: Any) -> None:
        length = self.params.finetune.max_length
        found = heldout_loss(self.store, model, self.held_out, label=name, max_length=length)
        self.judged.append(self.log.add(f"heldout/{name}", found))
        self.arms.append(arm)


def proof_of(
    store: Store, log: RunLog, pool: ArtifactRef, network: ArtifactRef, params: ProveParams
) -> dict[str, ArtifactRef]:
    """The proof on this pool and model, and with it what the report shows of it; all trainings go to the log."""
    options = {"share": params.held_out, "seed": params.split_seed}
    train = log.add("train", split(store, pool, part="train", **options))
    held_out = log.add("held-out", split(store, pool, part="held-out", **options))
    trainings = _Trainings(store, log, network, train, held_out, params)
    trainings.untrained()
    shown: dict[str, ArtifactRef] = {}
    main = min(params.shares, key=lambda share: abs(share - SHOWN_SHARE))
    for seed in range(params.seeds):
        for share in params.shares:
            chosen = coresets_of(store, log, network, train, _asked(params, share, seed), part=f"/{share:g}/{seed}")
            for method, coreset in chosen.items():
                trainings.add(method, share, seed, coreset)
                if (share, seed) == (main, 0):
                    shown[f"coreset/{method}"] = coreset
        trainings.add("all", 1.0, seed, None)
    proof = log.add("proof", prove_task(store, trainings.judged, arms=trainings.arms))
    return {"instructions": train, "held-out": held_out, **shown, "proof": proof}


@flow(name="prove", flow_run_name="prove-{model.source}")
def prove(
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    model: ModelParams = ModelParams(),  # noqa: B008
    prove: ProveParams = ProveParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Trains on coresets of every method, share and seed, and on all examples; compares their held-out losses."""
    place = Store(store)
    check_sources(instructions.sources)
    check_model(place, model, trained=False)
    check_coreset(prove.coreset.model_copy(update={"methods": prove.methods}))
    given = {"instructions": instructions.model_dump(), "model": model.model_dump(), "prove": prove.model_dump()}
    with RunLog(place, "prove", given) as log:
        pool = log.add("instructions", read_instructions(place, **instructions.model_dump()))
        network = log.add("model", model_of(place, model, None, None))
        sections = proof_of(place, log, pool, network, prove)
        page = log.add("report", report(place, sections, title="longloom: proof of coresets"))
        publish_report(place, page, key="prove")
    return {"proof": sections["proof"], "report": page}


def _asked(params: ProveParams, share: float, seed: int) -> CoresetParams:
    return params.coreset.model_copy(update={"methods": params.methods, "share": share, "seed": seed})
