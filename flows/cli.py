"""The command `longloom`. Options come from flows/params.py; everything heavy is imported when a command runs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import ValidationError

from longloom.flows import (
    cli_coreset,
    cli_corpus,
    cli_evaluation,
    cli_preference,
    cli_replicate,
    cli_store,
    cli_training,
)
from longloom.flows.command import Flat, Json, Store, Tracebacks, begin
from longloom.flows.params import DEFAULT_STORE, ModelParams
from longloom.flows.params_pipeline import PipelineIndexParams, PipelineParams
from longloom.storage.remote import StoreUnreachable

app = App(
    name="longloom",
    help="Data and evaluation pipeline for long-context language models. Bad input ends with one line and exit code 2;"
    " --debug before the command shows the traceback.",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main() has a line to say
)


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


#: What `longloom --help` shows, in this order.
GROUPS: dict[str, tuple[App | Callable[..., None], ...]] = {
    "Everything": (demo, pipeline, *cli_replicate.COMMANDS),
    "Corpus and n-grams": cli_corpus.COMMANDS,
    "Data and training": (cli_coreset.chosen, *cli_training.COMMANDS, cli_preference.prefer),
    "Evaluation": cli_evaluation.COMMANDS,
    "Runs, store and servers": cli_store.COMMANDS,
}
for title, members in GROUPS.items():
    group = Group.create_ordered(title)
    for member in members:
        if isinstance(member, App):
            member.group = group
            app.command(member)
        else:
            app.command(member, group=group)


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
