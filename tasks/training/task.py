"""Prefect tasks that train: the base model, the coreset's warm-up, fine-tuning."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage

#: The checkpoint that the repository holds, written by the flow `pretrain`.
BASE = Path(__file__).resolve().parent / "base"


@stage("pretrain", kind="model", version=3, resumable=True, gpu=True)
def _pretrain(work: Work, *, recipe: str, size: str, tokens: int | None, seed: int, checkpoints: int = 0) -> Stats:
    from longloom.tasks.training.pretrain import build

    return build(
        work.inputs["corpus"],
        work.inputs["start"],
        work.out,
        recipe=recipe,
        size=size,
        tokens=tokens,
        seed=seed,
        checkpoints=checkpoints,
        progress=work.progress,
    )


@stage("import", kind="model", version=1)
def _import(work: Work, *, source: str) -> Stats:
    from longloom.tasks.training.imported import build

    return build(source, work.out)


@stage("warmup", version=3, gpu=True)
def _warmup(work: Work, **options: Any) -> Stats:
    from longloom.tasks.training.warmup import build

    return build(work.inputs["model"], work.inputs["instructions"], work.out, progress=work.progress, **options)


@stage("finetune", kind="model", version=3, resumable=True, gpu=True)
def _finetune(work: Work, **options: Any) -> Stats:
    from longloom.tasks.training.finetune import build

    return build(
        work.inputs["model"],
        work.inputs["instructions"],
        work.inputs.get("coreset"),
        work.out,
        progress=work.progress,
        **options,
    )


@stage("split", kind="instructions", version=1)
def _split(work: Work, **options: Any) -> Stats:
    from longloom.tasks.training.split import build

    return build(work.inputs["instructions"], work.out, **options)


@stage("heldout", version=3, gpu=True)
def _heldout(work: Work, *, max_length: int) -> Stats:
    from longloom.tasks.training.heldout import build

    return build(
        work.inputs["model"], work.inputs["instructions"], work.out, max_length=max_length, progress=work.progress
    )


@stage("pack", kind="packed", version=1)
def _pack(work: Work, **options: Any) -> Stats:
    from longloom.tasks.training.pack import build

    return build(work.inputs["model"], work.inputs["corpus"], work.out, progress=work.progress, **options)


@stage("extend", kind="model", version=2, resumable=True, gpu=True)
def _extend(work: Work, **options: Any) -> Stats:
    from longloom.tasks.training.extension import build

    return build(work.inputs["model"], work.inputs["packed"], work.out, progress=work.progress, **options)


@stage("positions", version=3, gpu=True)
def _positions(work: Work, **options: Any) -> Stats:
    from longloom.tasks.training.positions import build

    return build(work.inputs["model"], work.inputs["corpus"], work.out, progress=work.progress, **options)


@stage("conversations", version=1, runtime=("expected",))
def _conversations(work: Work, *, expected: str, sources: list[str], **options: Any) -> Stats:
    from longloom.tasks.corpus.task import check_unchanged
    from longloom.tasks.training.conversations import build

    stats = build(sources, work.out, progress=work.progress, **options)
    check_unchanged(work.store, sources, expected)
    return stats


@stage("pool-conversations", kind="conversations", version=1)
def _pool(work: Work) -> Stats:
    from longloom.tasks.training.conversations import build

    pool = str(work.inputs["instructions"] / "instructions.parquet")
    return build([pool], work.out, kind=None, on_bad_record="stop", progress=work.progress)


@stage("synthesis", kind="conversations", version=1)
def _synthesis(work: Work, **options: Any) -> Stats:
    from longloom.tasks.training.synthesis import build

    inputs = work.inputs
    return build(
        inputs["conversations"], inputs["corpus"], inputs["tokenizer"], work.out, progress=work.progress, **options
    )


@stage("tune", kind="model", version=3, resumable=True, gpu=True)
def _tune(work: Work, **options: Any) -> Stats:
    from longloom.tasks.training.stages import build

    sets = {name.removeprefix("set/"): folder for name, folder in work.inputs.items() if name.startswith("set/")}
    return build(work.inputs["model"], sets, work.out, progress=work.progress, **options)


def import_model(store: Store, source: str) -> ArtifactRef:
    """A model or tokenizer from a local folder or the hub, as an artifact; `base` is the repository's checkpoint."""
    from longloom.storage.fingerprint import fingerprint_folder
    from longloom.tasks.training.imported import revision

    place = BASE if source == "base" else Path(source)
    if place.exists():
        identity = fingerprint_folder(store, place)
        return _import(store, label=place.name, identity={"source": identity}, source=str(place))
    identity = revision(source)  # and the download is of this commit too, whatever is uploaded meanwhile
    return _import(store, label=source, identity={"source": identity}, source=identity)


def pretrain(
    store: Store,
    corpus: ArtifactRef,
    start: ArtifactRef,
    *,
    recipe: str,
    size: str,
    tokens: int | None,
    seed: int,
    checkpoints: int = 0,
) -> ArtifactRef:
    """A small Llama trained on the corpus; `start` is a tokenizer for recipe `scratch`, a model for `continue`."""
    inputs = {"corpus": corpus, "start": start}
    return _pretrain(
        store, inputs, label=recipe, recipe=recipe, size=size, tokens=tokens, seed=seed, **_kept(checkpoints)
    )


def warm_up(store: Store, model: ArtifactRef, instructions: ArtifactRef, **options: Any) -> ArtifactRef:
    """LoRA checkpoints with Adam's moments."""
    return _warmup(store, {"model": model, "instructions": instructions}, **options)


def finetune(
    store: Store,
    model: ArtifactRef,
    instructions: ArtifactRef,
    coreset: ArtifactRef | None,
    *,
    label: str,
    checkpoints: int = 0,
    **options: Any,
) -> ArtifactRef:
    """The model trained on a coreset of the instructions, or on all of them."""
    inputs = {"model": model, "instructions": instructions} | ({"coreset": coreset} if coreset else {})
    return _finetune(store, inputs, label=label, **options, **_kept(checkpoints))


def split(store: Store, instructions: ArtifactRef, *, part: str, **options: Any) -> ArtifactRef:
    """The examples to choose and train from (`train`), or those that are held out (`held-out`), of the same split."""
    return _split(store, {"instructions": instructions}, label=part, part=part, **options)


def heldout_loss(
    store: Store, model: ArtifactRef, instructions: ArtifactRef, *, label: str, max_length: int
) -> ArtifactRef:
    """Each example's mean cross-entropy over the assistant's content."""
    return _heldout(store, {"model": model, "instructions": instructions}, label=label, max_length=max_length)


def check_extension(store: Store, model: ArtifactRef, *, length: int, rope: str, base: float | None) -> None:
    """Finds what cannot be extended before anything is packed or trained (ValueError)."""
    from transformers import AutoConfig

    from longloom.tasks.training.rope import extend_rope

    extend_rope(AutoConfig.from_pretrained(store.open(model)), kind=rope, length=length, base=base)


def pack(store: Store, model: ArtifactRef, corpus: ArtifactRef, *, label: str, **options: Any) -> ArtifactRef:
    """A corpus as rows of one length for the model to be trained on, long documents upsampled, with its accounting."""
    return _pack(store, {"model": model, "corpus": corpus}, label=label, **options)


def extend(store: Store, model: ArtifactRef, packed: ArtifactRef, *, label: str, **options: Any) -> ArtifactRef:
    """The model with a window as long as the packed rows, trained on them."""
    return _extend(store, {"model": model, "packed": packed}, label=label, **options)


def perplexity_by_position(
    store: Store, model: ArtifactRef, corpus: ArtifactRef, *, label: str, **options: Any
) -> ArtifactRef:
    """The perplexity of a corpus's texts at every depth of a context."""
    return _positions(store, {"model": model, "corpus": corpus}, label=label, **options)


def check_kinds(kinds: Collection[str]) -> None:
    """Raises ValueError for an unknown kind of answers; to be called before any work is done."""
    if not kinds:
        return
    from longloom.tasks.training.chatqa_prompt import KINDS

    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kind of answer is {kind!r:.100}, expected one of {', '.join(KINDS)}")


def check_blends(blends: Mapping[str, Sequence[str]], sets: Sequence[str]) -> dict[str, dict[str, float]]:
    """Shares of one by set, of each stage; to be called before any work is done.

    Raises:
        ValueError: names the stage and what is wrong with its blend.
    """
    from longloom.tasks.training.blend import read_blend

    found = {}
    for stage_name, entries in blends.items():
        try:
            found[stage_name] = read_blend(entries, sets)
        except ValueError as error:
            raise ValueError(f"stage {stage_name}: {error}") from None
    return found


def check_lengths(store: Store, model: ArtifactRef, lengths: Mapping[str, int]) -> None:
    """Raises a ValueError for the first stage whose examples are longer than the model's window, before any is trained.

    Args:
        store: of the model.
        model: to be tuned.
        lengths: stage -> tokens of its longest example.
    """
    from transformers import AutoConfig

    from longloom.tasks.training.stages import check_window
    from longloom.tasks.training.stored import window_of

    config = AutoConfig.from_pretrained(store.open(model), local_files_only=True)
    check_window(window_of(config), lengths)


def read_conversations(
    store: Store, *, name: str, sources: list[str], kind: str | None, on_bad_record: str
) -> ArtifactRef:
    """A training set out of files or hub data sets; the answers' kind as given, or that of ChatQA's set of this name.

    Raises:
        ValueError: an unknown kind.
    """
    from longloom.tasks.corpus.task import identity_of
    from longloom.tasks.training.chatqa_prompt import KIND_OF_SET

    identity = identity_of(store, sources)
    return _conversations(
        store,
        label=name,
        identity={"sources": identity},
        expected=identity,
        sources=sources,
        kind=kind or KIND_OF_SET.get(name),
        on_bad_record=on_bad_record,
    )


def pool_as_conversations(store: Store, instructions: ArtifactRef, *, name: str) -> ArtifactRef:
    """An instruction pool as a training set, without contexts."""
    return _pool(store, {"instructions": instructions}, label=name)


def synthesise(
    store: Store,
    conversations: ArtifactRef,
    corpus: ArtifactRef,
    tokenizer: ArtifactRef,
    *,
    label: str,
    **options: Any,
) -> ArtifactRef:
    """Conversations whose contexts stand somewhere in long documents of the corpus."""
    inputs = {"conversations": conversations, "corpus": corpus, "tokenizer": tokenizer}
    return _synthesis(store, inputs, label=label, **options)


def tune(
    store: Store, model: ArtifactRef, sets: Mapping[str, ArtifactRef], *, label: str, **options: Any
) -> ArtifactRef:
    """The model after a stage on the blends of its parts; the sets that they name."""
    named = {name for part in options["parts"] for name in part["shares"]}
    inputs = {"model": model} | {f"set/{name}": sets[name] for name in sorted(named)}
    return _tune(store, inputs, label=label, **options)


def _kept(checkpoints: int) -> dict[str, Any]:
    """The parameter, unless none are kept: then it is no part of a key."""
    return {"checkpoints": checkpoints} if checkpoints else {}
