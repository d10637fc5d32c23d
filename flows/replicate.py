"""Flow `replicate`: what holds of seven papers' claims, each measured in miniature, in one table.

It goes on from the pipeline's stages, so what `longloom demo` made is not made again. A measure is repeated over seeds;
the verdict of each claim follows from the rule that stands beside it in `tasks/replicate/claims.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefect import flow

from longloom.flows.artifacts import publish_report
from longloom.flows.checks import check_coreset, check_model, check_sources
from longloom.flows.evaluate import evaluations_of
from longloom.flows.index import tokenizer_of
from longloom.flows.model import is_small, model_of
from longloom.flows.params import DEFAULT_STORE, STANDARD_LIBRARY, CorpusParams, InstructionsParams, ModelParams
from longloom.flows.params_evaluate import EvaluateParams, RetrievalParams, parse_policy
from longloom.flows.params_pipeline import PipelineIndexParams, TracingParams
from longloom.flows.params_preference import RewardParams
from longloom.flows.params_preference_evaluation import PreferenceEvaluationParams
from longloom.flows.params_replicate import ReplicateComparisonsParams, ReplicateParams
from longloom.flows.preference import SIDES, comparisons_of
from longloom.flows.prove import proof_of
from longloom.flows.rag import retrieved
from longloom.flows.traced import memorized
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import make_records, read_corpus, read_instructions
from longloom.tasks.longcontext.asked import known_policies
from longloom.tasks.ngrams.task import build_index
from longloom.tasks.preference.task import evaluate_preferences, read_comparisons, train_reward_model
from longloom.tasks.replicate.task import minisequence_memory, shuffle_heads
from longloom.tasks.replicate.task import replicate as replicate_task
from longloom.tasks.report.task import renew_start_page, report
from longloom.tasks.training.task import check_extension, finetune, pack, perplexity_by_position, split
from longloom.tasks.training.task import extend as extend_task

#: What is asked of the derived records: what retrieval can look up.
LOOKED_UP = ["constant", "definition", "passkey"]


@dataclass
class _Replication:
    """Runs what each paper's claims need, and keeps what it measured.

    Attributes:
        store, log, params: of the run.
        corpus, tokenizer, model, pool: what the pipeline starts from.
        text: a corpus that the model was not trained on; None: there is none.
        evidence: role and seed -> artifact, for the table.
        sections: label -> artifact, for the report.
    """

    store: Store
    log: RunLog
    params: ReplicateParams
    corpus: CorpusParams
    documents: ArtifactRef
    tokenizer: ArtifactRef | None
    model: ArtifactRef
    text: ArtifactRef | None
    pool: ArtifactRef
    evidence: dict[str, ArtifactRef] = field(default_factory=dict)
    sections: dict[str, ArtifactRef] = field(default_factory=dict)

    def ngrams(self) -> None:
        """The study of memorization, over draws of functions; another corpus than the standard library has none."""
        if self.corpus.sources != [STANDARD_LIBRARY]:
            return
        how = PipelineIndexParams().model_dump(exclude={"tokenizer", "vocab_size"})
        index = self.log.add("index", build_index(self.store, self.documents, self.tokenizer, **how))
        for seed in range(self.params.seeds):
            asked = TracingParams(functions=self.params.functions, seed=seed)
            study = memorized(
                self.store, self.log, asked, corpus=self.documents, tokenizer=self.tokenizer or self.model, index=index,
                model=self.model, part=f"trace/{seed}",
            )  # fmt: skip
            self.evidence[f"trace/{seed}"] = study
        self.sections |= {"index": index, "trace": self.evidence["trace/0"]}

    def tagcos(self) -> None:
        """Coresets of each method and seed, and the whole pool, trained on and judged by held-out loss."""
        found = proof_of(self.store, self.log, self.pool, self.model, self.params.proof())
        self.evidence["proof"] = found["proof"]
        self.sections |= {label: ref for label, ref in found.items() if label != "held-out"}

    def tuned(self, seed: int, longer: ArtifactRef | None = None) -> ArtifactRef:
        """The model of the whole pool but its held-out part, trained as the proof's; of `longer`, if that is given."""
        proof = self.params.proof()
        options = self.params.finetune.of(is_small(self.store, self.model)) | {"seed": seed}
        shares: dict[str, Any] = {"share": proof.held_out, "seed": proof.split_seed}
        train = self.log.add("train", split(self.store, self.pool, part="train", **shares))
        label = f"all/1/{seed}" if longer is None else f"extended/{seed}"
        made = finetune(self.store, longer or self.model, train, None, label=label, **options)
        return self.log.add(f"finetune/{label}", made)

    def minisequence(self) -> None:
        """Memory and exactness of a training step in mini-sequences."""
        found = minisequence_memory(self.store, self.model, seeds=self.params.seeds)
        self.evidence["memory"] = self.log.add("memory", found)

    def razor(self) -> None:
        """Needles within the window: full attention, Razor, Razor without its mean, and with random heads."""
        for seed in range(self.params.seeds):
            model = self.tuned(seed)
            policies = {"full": "full", "razor": self.params.needle.razor}
            policies["uncompensated"] = _with(self.params.needle.razor, "compensate=0")
            self._needles("needle", seed, model, policies)
            heads = shuffle_heads(
                self.store, self.log.run.stages[f"heads/seed-{seed}"], label=f"seed-{seed}", seed=seed
            )
            self.log.add(f"heads/seed-{seed}-random-heads", heads)
            policies = {"random-heads": self.params.needle.razor}
            profile = str(self.store.open(heads))
            self._needles("needle", seed, model, policies, label=f"seed-{seed}-random-heads", heads=profile)

    def longcache(self) -> None:
        """Needles and perplexity within the window, in a scope smaller than it, and beyond it."""
        needle = self.params.needle
        for seed in range(self.params.seeds):
            model = self.tuned(seed)
            self._needles("needle", seed, model, {"full": "full", "scope": needle.scope})
            asking = _with(needle.longcache, "asking=16")
            policies = {"full": "full", "streaming": needle.streaming, "longcache": needle.longcache, "asking": asking}
            self._needles("beyond", seed, model, policies, part="long")
            if self.text is None or not self.params.extend.texts:
                continue
            for role, policy in (("streaming", needle.streaming), ("longcache", needle.longcache)):
                far = max(needle.beyond) // 64 * 64
                found = self._perplexity(model, self.text, f"seed-{seed}/{role}", length=far, policy=policy)
                self.evidence[f"positions/{role}/{seed}"] = found

    def chatqa2(self) -> None:
        """A window extended by training, and retrieval against the whole context."""
        wanted = self.params.pack
        positions = self.params.extend.model_dump(include={"rope", "base"})
        check_extension(self.store, self.model, length=wanted.length, **positions)
        packed = pack(self.store, self.model, self.documents, label=f"{wanted.length}", **wanted.model_dump())
        self.sections["packed"] = self.log.add("packed", packed)
        options = self.params.extend.of(is_small(self.store, self.model))
        longer = extend_task(self.store, self.model, packed, label=f"{wanted.length}", **options)
        self.sections["extended"] = self.log.add("extended", longer)
        self._reading(longer)
        for seed in range(self.params.seeds):  # the window first, then the instructions, as the paper has it
            tuned = self.tuned(seed, longer)
            lengths = [self.params.needle.within, wanted.length - 16]
            for name, model in (("before", self.tuned(seed)), ("after", tuned)):
                role, own = f"extension/{name}", f"seed-{seed}-{name}"
                self._needles(role, seed, model, {"full": "full"}, label=own, part="long", lengths=lengths)
            self._retrieval(seed, tuned)

    def _reading(self, longer: ArtifactRef) -> None:
        """Perplexity to the end of the longer window, and of the same model where it sees a window's worth alone."""
        if self.text is None or not self.params.extend.texts:
            return
        limited = self.params.needle.streaming
        for name, model, policy in (
            ("before", self.model, "full"),
            ("limited", longer, limited),
            ("after", longer, "full"),
        ):
            length = self.params.pack.length
            found = self._perplexity(model, self.text, f"extension/{name}", length=length, policy=policy)
            self.evidence[f"extension/positions/{name}/0"] = found
            if name != "limited":
                self.sections[f"positions/{name}"] = found

    def _retrieval(self, seed: int, model: ArtifactRef) -> None:
        """Look-ups in held-out modules: whole contexts, and ever more of their chunks."""
        label = f"seed-{seed}-after"
        made = make_records(
            self.store, records_per_task=self.params.records, characters=self.params.characters, seed=seed
        )
        asked: dict[str, Any] = {"suite": "records", "data": self.log.add(f"records/{seed}", made), "tasks": LOOKED_UP}
        params = EvaluateParams(suite="records", batch=self.params.batch)
        look = RetrievalParams(sizes=[self.params.chunk_words], k=self.params.chunks, orders=["document"])
        for passages in (None, *retrieved(self.store, self.log, model, params, look, **asked)):
            role = "whole" if passages is None else f"k={passages.k}"
            found = evaluations_of(self.store, self.log, label, model, params, passages=passages, **asked)
            self._keep([f"rag/{role}"], seed, found, f"evaluation/{label}/records")

    def preferences(self, given: ReplicateComparisonsParams) -> None:
        """Reward models that read the criterion, judged by comparisons that they were not trained on."""
        samples = PreferenceEvaluationParams().samples
        for seed in range(self.params.seeds):
            label = f"seed-{seed}"
            train, held_out = self._comparisons(given.model_copy(update={"seed": given.seed + seed}))
            self.log.add(f"comparisons/{seed}", train)
            options = RewardParams(seed=seed).of(is_small(self.store, self.model))
            trained = train_reward_model(self.store, self.model, train, label=label, **options)
            self.log.add(f"reward-model/{seed}", trained)
            judged = evaluate_preferences(
                self.store, trained, held_out, None, label=label, negations=None, samples=samples, seed=seed
            )
            self.evidence[f"preference/{seed}"] = self.log.add(f"preference/{label}", judged)
            self.sections[f"preference/{label}"] = judged

    def _comparisons(self, given: ReplicateComparisonsParams) -> tuple[ArtifactRef, ArtifactRef]:
        """To train on and held out; of the standard library whole modules are."""
        if given.sources != [STANDARD_LIBRARY]:
            train, held_out = comparisons_of(self.store, self.log, given)
            return train, next(iter(held_out.values()))
        options = given.model_dump(include={"sources", "contexts", "on_bad_record", "seed"})
        train = read_comparisons(self.store, side="train", rows=given.rows, **options)
        return train, read_comparisons(self.store, side=SIDES[0], rows=given.held_out_rows, **options)

    def _perplexity(
        self, model: ArtifactRef, text: ArtifactRef, label: str, *, length: int, policy: str
    ) -> ArtifactRef:
        """Of held-out text at every depth of a context, under a KV policy."""
        name, options = parse_policy(policy)
        found = perplexity_by_position(
            self.store, model, text, label=label.replace("/", "-"), length=length, texts=self.params.extend.texts,
            policy=name, options=options,
        )  # fmt: skip
        return self.log.add(f"positions/{label}", found)

    def _needles(
        self,
        role: str,
        seed: int,
        model: ArtifactRef,
        policies: dict[str, str],
        *,
        label: str = "",
        part: str = "evaluation",
        lengths: list[int] | None = None,
        heads: str | None = None,
    ) -> None:
        """Asks a model for needles; the evaluation of each policy is kept as `role/name of the policy/seed`."""
        needle = self.params.needle
        label = label or f"seed-{seed}"
        beyond = part == "long"
        asked = EvaluateParams(
            suite="needle", policies=list(policies.values()), depths=needle.depths, style=needle.style, seed=seed,
            lengths=lengths or ([needle.within, *needle.beyond] if beyond else [needle.within]),
            samples=needle.samples_beyond if beyond else needle.samples, batch=self.params.batch, heads=heads,
        )  # fmt: skip
        data = self.text or self.documents
        found = evaluations_of(
            self.store, self.log, label, model, asked, suite="needle", data=data, tasks=["single"], part=part
        )
        self._keep([f"{role}/{name}" for name in policies], seed, found, f"{part}/{label}/needle")

    def _keep(self, roles: list[str], seed: int, found: dict[str, ArtifactRef], place: str) -> None:
        """Notes evaluations under their roles, and for the report under `place` and what their run calls them."""
        for role, (shown, ref) in zip(roles, found.items(), strict=True):
            self.evidence[f"{role}/{seed}"] = ref
            self.sections[f"{place}/{shown}"] = ref


@flow(name="replicate", flow_run_name="replicate-{model.source}")
def replicate(
    replicate: ReplicateParams = ReplicateParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    corpus: CorpusParams = CorpusParams(),  # noqa: B008
    model: ModelParams = ModelParams(),  # noqa: B008
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008
    comparisons: ReplicateComparisonsParams = ReplicateComparisonsParams(),  # noqa: B008
    held_out: CorpusParams | None = None,
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Measures the claims of seven papers in miniature, and says of each whether it holds, partly, or does not.

    `held_out` is text that the model was not trained on; the standard library has modules of its own for that.
    """
    needle = replicate.needle
    known_policies([parse_policy(text) for text in (needle.razor, needle.scope, needle.longcache, needle.streaming)])
    place = Store(store)
    check_coreset(replicate.coreset)
    for sources in (corpus.sources, instructions.sources, comparisons.sources, held_out.sources if held_out else []):
        if sources:
            check_sources(sources)
    check_model(place, model, trained=True)
    given = {
        "replicate": replicate.model_dump(),
        "corpus": corpus.model_dump(),
        "model": model.model_dump(),
        "instructions": instructions.model_dump(),
        "comparisons": comparisons.model_dump(),
        "held_out": held_out.model_dump() if held_out else None,
    }
    with RunLog(place, "replicate", given) as log:
        documents = log.add("corpus", read_corpus(place, **corpus.model_dump()))
        tokenizer = tokenizer_of(place, documents, PipelineIndexParams())
        if tokenizer is not None:
            log.add("tokenizer", tokenizer)
        network = log.add("model", model_of(place, model, documents, tokenizer))
        pool = log.add("instructions", read_instructions(place, **instructions.model_dump()))
        text = None
        if held_out is not None or corpus.sources == [STANDARD_LIBRARY]:
            options: dict[str, Any] = {"sources": [STANDARD_LIBRARY], "held_out": True}
            text = read_corpus(place, **(options if held_out is None else held_out.model_dump()))
            log.add("text", text)
        own = _Replication(place, log, replicate, corpus, documents, tokenizer, network, text, pool)
        own.sections |= {"corpus": documents, "model": network}
        for paper in replicate.papers:
            if paper == "preferences":
                own.preferences(comparisons)
            else:
                getattr(own, paper)()
        page = log.add("report", report(place, own.sections, title="longloom: seven papers in miniature"))
        table = log.add(
            "replicate", replicate_task(place, own.evidence | {"report": page}, papers=list(replicate.papers))
        )
        publish_report(place, table, key="replicate")
    renew_start_page(place)
    return {"replicate": table, "report": page}


def _with(policy: str, option: str) -> str:
    """A KV policy with one option more."""
    return f"{policy},{option}" if ":" in policy else f"{policy}:{option}"
