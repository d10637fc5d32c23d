"""The command `longloom`. Options come from flows/params.py; everything heavy is imported when a command runs."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from longloom.flows.params import (
    DEFAULT_STORE,
    CoresetParams,
    CorpusParams,
    EvaluateParams,
    FinetuneParams,
    IndexParams,
    InstructionsParams,
    ModelParams,
    PipelineParams,
)

Store = Annotated[str, Parameter(help="Folder of the artifacts.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]
Flat = Parameter(name="*")

app = App(
    name="longloom",
    help="Data and evaluation pipeline for long-context language models. Bad input ends with one line and exit code 2;"
    " --debug before the command shows the traceback.",
    version_flags=["--version"],
    help_format="plaintext",
)


def _flow(store: str) -> None:
    """Must come before the first import of a flow."""
    from longloom.flows.runtime import prepare, quiet

    prepare(store)
    if not _DEBUG:
        quiet()


def _show(value: object, as_json: bool) -> None:
    from longloom.flows.show import show

    show(value, as_json=as_json)


@app.command
def demo(
    *, from_scratch: Annotated[bool, Parameter(negative="")] = False, store: Store = DEFAULT_STORE, json: Json = False
) -> None:
    """Run the whole pipeline on the standard library of the running Python: nothing to download.

    Args:
        from_scratch: Train tokenizer and model from random weights, in place of the repository's base checkpoint.
    """
    if from_scratch:
        params = PipelineParams(index=IndexParams(tokenizer="train"), model=ModelParams(source="scratch"))
    else:
        params = PipelineParams()
    pipeline(params, store=store, json=json)


@app.command
def pipeline(
    params: Annotated[PipelineParams, Flat] = PipelineParams(),  # noqa: B008
    *,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Run corpus, index, model, instructions, coreset, fine-tuning, evaluation and report, or a part of them."""
    _flow(store)
    from longloom.flows.pipeline import pipeline as flow
    from longloom.flows.show import show_pipeline

    show_pipeline(flow(params, store=store), store, as_json=json)


@app.command
def pretrain(
    corpus: Annotated[CorpusParams, Flat] = CorpusParams(),  # noqa: B008
    *,
    index: IndexParams = IndexParams(),  # noqa: B008
    model: ModelParams = ModelParams(source="scratch"),  # noqa: B008
    export: str | None = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Train a small model on a corpus.

    Args:
        export: Also copy the model and its manifest into this folder.
    """
    _flow(store)
    from longloom.flows.model import pretrain as flow
    from longloom.flows.show import export_artifact

    ref = flow(corpus, index, model, store=store)
    if export:
        export_artifact(ref, store, export)
    _show({"model": ref}, json)


@app.command
def index(
    corpus: Annotated[CorpusParams, Flat] = CorpusParams(),  # noqa: B008
    index: Annotated[IndexParams, Flat] = IndexParams(),  # noqa: B008
    *,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Read a corpus and build an n-gram index of it."""
    _flow(store)
    from longloom.flows.index import build_index

    _show({"index": build_index(corpus, index, store=store)}, json)


@app.command
def count(
    text: list[str],
    *,
    index: Annotated[
        str | None, Parameter(help="Folder of an index artifact; the newest of the store by default.")
    ] = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Count how often each text stands in an indexed corpus, as the index's tokens.

    Args:
        text: One or several.
    """
    from longloom.flows.queries import count_texts

    _show(count_texts(text, index, store), json)


@app.command
def coreset(
    coreset: Annotated[CoresetParams, Flat] = CoresetParams(),  # noqa: B008
    *,
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008
    model: ModelParams = ModelParams(),  # noqa: B008
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Choose a few percent of an instruction pool."""
    _flow(store)
    from longloom.flows.coreset import select_coreset

    _show(select_coreset(instructions, model, coreset, store=store), json)


@app.command
def finetune(
    finetune: Annotated[FinetuneParams, Flat] = FinetuneParams(),  # noqa: B008
    *,
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008
    model: ModelParams = ModelParams(),  # noqa: B008
    coreset: CoresetParams = CoresetParams(),  # noqa: B008
    on: Annotated[str, Parameter(help="all, or coreset: what its methods choose.")] = "all",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Fine-tune a model on an instruction pool or on coresets of it."""
    if on not in ("all", "coreset"):
        raise ValueError(f"--on {on!r}: unknown, expected all or coreset")
    _flow(store)
    from longloom.flows.finetune import finetune as flow

    _show(flow(instructions, model, coreset if on == "coreset" else None, finetune, store=store), json)


@app.command
def evaluate(
    evaluate: Annotated[EvaluateParams, Flat] = EvaluateParams(),  # noqa: B008
    *,
    model: Annotated[
        str, Parameter(help="A model folder, a hub name, base, or run:ID:LABEL of an earlier run.")
    ] = "base",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Evaluate a model on LongBench, L-Eval or a needle grid under KV policies."""
    _flow(store)
    from longloom.flows.evaluate import evaluate as flow
    from longloom.flows.show import show_evaluations

    show_evaluations(flow(ModelParams(source=model), evaluate, store=store), store, as_json=json)


@app.command
def score(*, suite: str, task: str, predictions: str, json: Json = False) -> None:
    """Score a file of predictions in a suite's official format.

    Args:
        suite: longbench or leval.
        task: The task that the predictions belong to.
        predictions: JSON Lines.
    """
    from pathlib import Path

    from longloom.evals.scoring import score_file

    _show(score_file(suite, task, Path(predictions)), json)


@app.command
def report(run: str = "latest", *, out: str | None = None, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Make or find the page of a run.

    Args:
        run: Its id, the beginning of one, or latest.
        out: Also copy the page to this file.
    """
    _flow(store)
    from longloom.flows.report import report as flow
    from longloom.flows.show import show_report

    show_report(flow(run, store=store), store, out, as_json=json)


@app.command
def compare(first: str, second: str = "latest", *, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Compare the scores and parameters of two pipeline runs.

    Args:
        first: Id of a run, or the beginning of one.
        second: Of the other.
    """
    _flow(store)
    from longloom.flows.compare import compare as flow
    from longloom.flows.show import show_comparison

    show_comparison(flow(first, second, store=store), store, as_json=json)


@app.command
def runs(*, limit: int = 20, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """List the runs of a store, newest first."""
    from longloom.flows.show import show_runs

    show_runs(store, limit, as_json=json)


@app.command
def gc(*, keep: int, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Forget all but the newest runs, and delete the artifacts and leftovers that no kept run needs.

    Args:
        keep: Runs to keep.
    """
    from longloom.flows.show import collect

    if keep < 0:
        raise ValueError(f"--keep {keep}: negative, expected a number of runs")
    _show(collect(store, keep), json)


@app.command
def doctor(*, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Check the installation, and read every byte of the store."""
    from longloom.flows.doctor import examine

    healthy = examine(store, as_json=json)
    if not healthy:
        sys.exit(1)


_DEBUG = False


def main() -> None:
    """Entry point: one clear line for bad input, exit code 2; a traceback only with --debug."""
    global _DEBUG
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments.remove("--debug")
        _DEBUG = True
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        _fail("interrupted; the next run continues with what is missing", 130)
    except (Exception, ExceptionGroup) as error:
        if _DEBUG:
            raise
        _fail(*describe(error))


def describe(error: BaseException) -> tuple[str, int]:
    """One line for an error, and the exit code: 2 for what the user can mend, 1 for what must be a mistake of ours."""
    if isinstance(error, CycloptsError) and isinstance(error.__cause__, ValidationError):
        error = error.__cause__
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "parameters"
        found = "" if isinstance(first["input"], dict) else f", found {first['input']!r}"
        return f"{place}: {first['msg'].removeprefix('Value error, ')}{found}", 2
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"disk full: {error.filename or 'the store'} cannot be written; nothing was published", 2
    if isinstance(error, CycloptsError | ValueError | FileNotFoundError | PermissionError | IsADirectoryError):
        return text, 2
    return f"{type(error).__name__}: {text} (run again with --debug for the traceback)", 1


def _fail(message: str, code: int = 2) -> None:
    print(f"longloom: {message}", file=sys.stderr)
    sys.exit(code)
