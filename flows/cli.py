"""The command `longloom`. Options come from flows/params.py; everything heavy is imported when a command runs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from longloom.flows import cli_coreset, cli_corpus, cli_preference, cli_replicate, cli_training
from longloom.flows.command import Flat, Json, Store, Tracebacks, Whole, begin, check_file, show
from longloom.flows.params import (
    DEFAULT_STORE,
    EvaluateParams,
    HeadsParams,
    JudgeParams,
    ModelParams,
    RetrievalParams,
)
from longloom.flows.params_pipeline import PipelineIndexParams, PipelineParams
from longloom.storage.remote import StoreUnreachable

EvaluatedModel = Annotated[
    str,
    Parameter(
        help="A model folder, a hub name, base, run:ID:LABEL of an earlier run (run:latest:finetune/tagcos), or a"
        " model's name behind an endpoint."
    ),
]

app = App(
    name="longloom",
    help="Data and evaluation pipeline for long-context language models. Bad input ends with one line and exit code 2;"
    " --debug before the command shows the traceback.",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main() has a line to say
)


@app.command
def demo(
    *,
    from_scratch: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Run the whole pipeline on the standard library of the running Python: nothing to download.

    Args:
        from_scratch: Train tokenizer and model from random weights, in place of the repository's base checkpoint.
    """
    if from_scratch:
        params = PipelineParams(index=PipelineIndexParams(tokenizer="train"), model=ModelParams(source="scratch"))
    else:
        params = PipelineParams()
    pipeline(params=params, store=store, json=json)


@app.command
def pipeline(
    *,
    params: Annotated[PipelineParams, Flat] = PipelineParams(),  # noqa: B008
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Run corpus, index, model, instructions, coreset, fine-tuning, evaluation and report, or a part of them."""
    begin(store, "torch", "pyarrow.parquet")
    from longloom.flows.pipeline import pipeline as flow
    from longloom.flows.show import show_pipeline

    show_pipeline(flow(params, store=store), store, as_json=json)


for module in (cli_training, cli_corpus, cli_replicate):
    for registered in module.COMMANDS:
        app.command(registered)
app.command(cli_coreset.chosen)
app.command(cli_preference.prefer)


@app.command
def evaluate(
    *,
    evaluate: Annotated[EvaluateParams, Flat] = EvaluateParams(),  # noqa: B008
    model: EvaluatedModel = "base",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Evaluate a model on a long-context suite, or on any task of lm-eval, under KV policies or behind an endpoint."""
    begin(store, "torch", "pyarrow.parquet")
    from longloom.flows.evaluate import evaluate as flow
    from longloom.flows.show import show_evaluations

    show_evaluations(flow(ModelParams(source=model), evaluate, store=store), store, as_json=json)


@app.command
def rag(
    *,
    evaluate: Annotated[EvaluateParams, Flat] = EvaluateParams(),  # noqa: B008
    retrieval: Annotated[RetrievalParams, Parameter(name="*", group="Retrieval")] = RetrievalParams(),  # noqa: B008
    model: EvaluatedModel = "base",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Evaluate a model with whole contexts and with what is retrieved of them: chunkings, rankings, k and orders."""
    begin(store, "torch", "pyarrow.parquet")
    from longloom.flows.rag import rag as flow
    from longloom.flows.show import show_evaluations

    show_evaluations(flow(ModelParams(source=model), evaluate, retrieval, store=store), store, as_json=json)


@app.command
def judge(*, judge: Annotated[JudgeParams, Flat], store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Compare two models' answers to L-Eval's open-ended questions by a language model, in both orders."""
    begin(store)
    from longloom.flows.judge import judge as flow
    from longloom.flows.show import show_judgement

    show_judgement(flow(judge, store=store), store, as_json=json)


@app.command
def heads(
    *,
    heads: Annotated[HeadsParams, Flat] = HeadsParams(),  # noqa: B008
    model: Annotated[
        str, Parameter(help="A model folder, a hub name, base, or run:ID:LABEL of an earlier run.")
    ] = "base",
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Find the KV heads that look things up, without any data or from published scores: the profile of KV policies."""
    begin(store)
    from longloom.flows.heads import heads as flow
    from longloom.flows.show import show_heads

    show_heads(flow(ModelParams(source=model), heads, store=store), store, as_json=json)


@app.command
def score(*, suite: str, task: str, predictions: str, data: str | None = None, json: Json = False) -> None:
    """Score a file of predictions in a suite's official format.

    Args:
        suite: longbench, longbench-e, longbench-v2, leval, infinitebench, chatrag or ruler.
        task: The task that the predictions belong to.
        predictions: JSON Lines; chatrag also takes the official text files.
        data: Folder of the records, where predictions come without them (chatrag's text files).
    """
    from pathlib import Path

    from longloom.evals.scoring import score_file

    show(score_file(suite, task, Path(predictions), data=None if data is None else Path(data)), json)


@app.command
def report(run: str = "latest", *, out: str | None = None, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Make or find the page of a run.

    Args:
        run: Its id, the beginning of one, or latest.
        out: Also copy the page to this file.
    """
    check_file("--out", out)
    begin(store)
    from longloom.flows.report import report as flow
    from longloom.flows.show import show_report

    show_report(flow(run, store=store), store, out, as_json=json)


@app.command
def compare(first: str, second: str = "latest", *, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Compare the scores and parameters of two pipeline runs.

    Args:
        first: Id of a run, the beginning of one, or latest: the newest with a report.
        second: The same of the other.
    """
    from longloom.flows.compared import compared
    from longloom.flows.show import show_comparison
    from longloom.storage.store import Store

    show_comparison(compared(Store(store), first, second), store, as_json=json)


@app.command
def runs(
    *,
    limit: Whole = 20,
    html: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """List the runs of a store, newest first.

    Args:
        limit: Runs to list.
        html: Also write the store's start page, as longloom pipeline and longloom report do, and say where it lies.
    """
    from longloom.flows.show import show_runs

    if limit < 1:
        raise ValueError(f"--limit {limit}: too small, expected at least 1 run")
    show_runs(store, limit, html=html, as_json=json)


@app.command
def gc(*, keep: Whole, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Forget all but the newest runs, and delete the artifacts and leftovers that no kept run needs.

    Args:
        keep: Runs to keep.
    """
    from longloom.flows.show import collect

    if keep < 0:
        raise ValueError(f"--keep {keep}: negative, expected a number of runs")
    show(collect(store, keep), json)


@app.command
def ui(*, port: Whole = 4200, store: Store = DEFAULT_STORE) -> None:
    """Serve Prefect's UI over the store's runs, with the deployments of prefect.yaml and a worker, until Ctrl-C.

    Args:
        port: Of the server, on the loopback interface.
    """
    from longloom.flows.runtime import prepare

    prepare(store)  # not quiet: a run's page lives on its log lines
    from longloom.flows.ui import serve

    serve(store, port=port)


@app.command
def serve(*, queues: list[str] | None = None, store: Store = DEFAULT_STORE) -> None:
    """Work for the Prefect server that PREFECT_API_URL names, with the deployments of prefect.yaml, until Ctrl-C.

    Args:
        queues: Work queues to take runs from: default, compute, gpu; all of them by default.
    """
    from longloom.flows.runtime import prepare

    prepare(store)
    from longloom.flows.serve import serve as work

    work(store, queues=queues or [])


@app.command
def doctor(*, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Check the installation, and read every byte of the store."""
    from longloom.flows.doctor import examine

    healthy = examine(store, as_json=json)
    if not healthy:
        sys.exit(1)


class _Terminated(KeyboardInterrupt):
    """A SIGTERM or SIGHUP: by default they end a process at once, and leave the server that Prefect started behind."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main() -> None:
    """Entry point: one clear line for bad input, exit code 2; a traceback only with --debug."""
    arguments = sys.argv[1:]
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--debug" in own:
        arguments.remove("--debug")
        Tracebacks.shown = True
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _terminate)
    try:
        _check_encoding(arguments)
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # Prefect's server is stopped now; a second one must not prevent it
        _fail("interrupted; the next run continues with what is missing", 143 if type(stop) is _Terminated else 130)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except Exception as error:
        if Tracebacks.shown:
            raise
        _fail(*describe(error))


def _check_encoding(arguments: list[str]) -> None:
    """Raises ValueError for what no result could hold: results are UTF-8."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            found = os.fsencode(argument[:80])
            raise ValueError(f"argument {found!r}: is not UTF-8, expected a name or a text that is") from None


#: A full disk, a quota, a limit on the size of files.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


#: Characters; what is quoted may be a text of any length.
LONGEST_MESSAGE = 1000


def describe(error: BaseException) -> tuple[str, int]:
    """One line for an error, and the exit code: 2 for what the user can mend, 1 for what must be a mistake of ours."""
    if isinstance(error, CycloptsError) and isinstance(error.__cause__, ValidationError):
        error = error.__cause__
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":  # ours say themselves what was found
            text += f", found {first['input']!r}"
        return f"{place}: {text}" if place else text, 2
    text = " ".join(str(error).split()) or type(error).__name__
    if (isinstance(error, OSError) and error.errno in _NO_ROOM) or "No space left on device" in text:
        return f"disk full: {getattr(error, 'filename', None) or text}; nothing was published", 2
    if "parameters must be less than" in text:  # Prefect's server, in the middle of a long answer
        return (
            "the parameters are larger than 512 KB, the most that Prefect's server takes; give a folder in place of"
            " its files",
            2,
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text}; expected less at once, or a larger machine", 2
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}", 2
    mended = (CycloptsError, ValueError, FileNotFoundError, PermissionError, IsADirectoryError, StoreUnreachable)
    if isinstance(error, mended):
        return text, 2
    return f"{type(error).__name__}: {text} (run again with --debug for the traceback)", 1


def _fail(message: str, code: int = 2) -> None:
    """Ends the process with one line, whatever a value that it quotes holds."""
    if len(message) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        message = f"{message[:half]} [...] {message[-half:]}"
    line = "".join(letter if letter.isprintable() else f"{letter!a}"[1:-1] for letter in " ".join(message.split()))
    print(f"longloom: {line}", file=sys.stderr)
    sys.exit(code)
