"""Every option of every command with what it cannot take: exit code 2, one line that names it, nothing half-written.

The cases come from the commands' own signatures, so a new command or option is tried at once. Stages that train,
evaluate or make data do not run here: one that is reached means that the value was accepted until then.
"""

from __future__ import annotations

import io
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
import pytest
from cyclopts import App
from cyclopts.argument import Argument
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from longloom.flows import cli, runtime, serve, ui
from longloom.storage.runs import RunLog
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks import stage

from .damage import LONGEST_MESSAGE, examples

# ---- what there is to try


class Option(NamedTuple):
    """An option of a command that takes one value, or a list of them.

    Attributes:
        command: its names.
        flag: as it is given, `--model.size`.
        kind: of one value.
        bounds: of a number.
        place: of its definition: the class and the field, or the command; the same for what several commands share.
    """

    command: tuple[str, ...]
    flag: str
    kind: Any
    bounds: tuple[Any, ...]
    place: tuple[str, str]

    @property
    def name(self) -> str:
        return self.flag.rpartition(".")[2].lstrip("-")

    def __repr__(self) -> str:
        return f"{' '.join(self.command)} {self.flag}"


def commands(app: App, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    if app.default_command is not None:
        yield names, app
    for name in app:
        if not name.startswith("-"):
            yield from commands(app[name], (*names, name))


def one_of(hint: Any) -> Any:
    """The type of one value: of `list[int] | None` int; without what is annotated."""
    while True:
        if hasattr(hint, "__metadata__"):
            hint = hint.__origin__
        elif get_origin(hint) in (Union, types.UnionType):
            hint = next(part for part in get_args(hint) if part is not type(None))
        elif get_origin(hint) is list:
            (hint,) = get_args(hint)
        else:
            return hint


def metadata(hint: Any) -> tuple[Any, ...]:
    """What pydantic's Field says of the values in a list, or of one that may be None."""
    found = [entry for part in getattr(hint, "__metadata__", ()) for entry in getattr(part, "metadata", [part])]
    return (*found, *(entry for part in get_args(hint) if not isinstance(part, str) for entry in metadata(part)))


def options_of(names: tuple[str, ...], app: App) -> Iterator[Option]:
    root: Any = None
    argument: Argument
    for argument in app.assemble_argument_collection():
        if not argument.parse:
            continue
        if argument.children:
            root = one_of(argument.hint) if not argument.keys else root
            continue
        bounds, place = metadata(argument.hint), (" ".join(names), argument.name)
        if argument.keys:
            owner = root
            for key in argument.keys[:-1]:
                owner = one_of(owner.model_fields[key].annotation)
            name = argument.keys[-1]
            bounds += tuple(owner.model_fields[name].metadata)
            written = [base for base in owner.__mro__ if issubclass(base, BaseModel) and name in base.__annotations__]
            place = (written[-1].__name__, name)
        yield Option(names, argument.name, one_of(argument.hint), bounds, place)


COMMANDS = dict(commands(cli.app))
OPTIONS = [option for names, app in COMMANDS.items() for option in options_of(names, app)]
#: Every definition once, at the command with the fewest options: cyclopts needs a tenth of a second for the largest.
SIZES = {names: sum(option.command == names for option in OPTIONS) for names in COMMANDS}
DISTINCT = list(
    {option.place: option for option in sorted(OPTIONS, key=lambda option: -SIZES[option.command])}.values()
)

# ---- values

MISSING = "./no/such/plàce.x"
#: Of no number's type, or of no option's range here.
NO_NUMBER = ["abc", "", "1,5", "nan", "inf", "-inf", "1e999", "-7", "0x", "9" * 5000, "--"]
NO_WHOLE_NUMBER = [*NO_NUMBER, "1.5", "9" * 30, "1e30"]
#: Which texts say what they mean, and which are only known to a server.
FREE = {"text-field", "id-field", "fields", "query-prefix", "text", "name", "language-model"}
FREE_HERE = {"judge --model", "prompts --model", "prompts --prompt", "extend --pack.text", "replicate --pack.text"}
#: Of records that the pipeline makes on its way.
FREE_HERE |= {"pipeline --evaluate.tasks"}
#: To be written, whatever their names are.
WRITTEN = {"export", "out"}


def refused_values(option: Option) -> list[str]:
    """What the type of an option, and the bounds of a number, do not take."""
    if option.kind is bool:
        return ["maybe", "2"]
    if get_origin(option.kind) is Literal:
        return ["nonsense", "", "x" * 100_000]
    if option.kind not in (int, float):
        return []
    values = list(NO_WHOLE_NUMBER if option.kind is int else NO_NUMBER)
    for bound in option.bounds:
        if isinstance(bound, annotated_types.Ge):
            values.append(str(bound.ge - 1))
        elif isinstance(bound, annotated_types.Gt):
            values.append(str(bound.gt))
        elif isinstance(bound, annotated_types.Le):
            values.append(str(bound.le + 1))
        elif isinstance(bound, annotated_types.Lt):
            values.append(str(bound.lt))
    return values


# ---- a store, files, and commands in this process


class Reached(BaseException):
    """A stage that computes, or a service that starts."""


#: Stages that read what the user names. They run.
READERS = {"corpus", "instructions", "comparisons", "conversations", "import"}
#: Label -> kind of the artifacts of the store's only run.
ARTIFACTS = {
    "corpus": "corpus",
    "index": "index",
    "evaluation/base/leval/full": "evaluation",
    "features": "features",
    "coreset/tagcos": "coreset",
    "report": "report",
    "reward-model": "reward-model",
    "comparisons/train": "comparisons",
    "comparisons/held-out": "comparisons",
}


class Bench:
    """Commands in an empty folder with a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / ".longloom")
        (folder / "empty.jsonl").touch()
        (folder / "binary.jsonl").write_bytes(b"\x80\0PAR1\xff" * 99)
        (folder / "folder").mkdir()
        (folder / "records.jsonl").write_text(
            json.dumps({"id": "1", "input": "a", "output": "b", "text": "a b"}) + "\n"
        )
        answer = {"multidoc_qa_pred": "a", "query": "q", "gt": "b", "evaluation": "rouge"}
        (folder / "answers.jsonl").write_text(json.dumps(answer) + "\n")
        prediction = {"pred": "a b c", "answers": ["a b c"], "all_classes": None, "length": 3}
        (folder / "predictions.jsonl").write_text(json.dumps(prediction) + "\n")
        (folder / "ids.txt").write_text("source.txt\n")
        (folder / "pairs.jsonl").write_text('["one", "two"]\n')
        (folder / "source.txt").write_text("one two one two three")
        self._fill()
        #: What a command must be given, or without which it would do nothing.
        self.sound: dict[str, dict[str, str]] = {
            "judge": {
                "--task": "multidoc_qa",
                "--answers": "answers.jsonl",
                "--against": "answers.jsonl",
                "--model": "m",
                "--endpoint.url": "http://127.0.0.1:9/v1",
            },
            "trace": {"--data": "records.jsonl"},
            "prompts": {"--prompt": "x y z"},
            "contamination": {"--data": "records.jsonl"},
            "explain": {"--text": "hello you"},
            "score": {"--suite": "longbench", "--task": "multi_news", "--predictions": "predictions.jsonl"},
            "delete": {"--ids": "ids.txt"},
            "cooccur": {"--pairs": "pairs.jsonl"},
            "compare": {"--first": "latest"},
            "count": {"--text": "one"},
            "search": {"--text": "one"},
            "gc": {"--keep": "1000000"},
            "coreset export": {"--out": "less"},
            "prefer score": {"--data": "records.jsonl"},
        }

    def _fill(self) -> None:
        from longloom.tasks.corpus.build import build as build_corpus
        from longloom.tasks.ngrams.build import build as build_index

        with RunLog(self.store, "preference", {}) as log:
            for number, (label, kind) in enumerate(ARTIFACTS.items()):
                key = f"{number:032x}"
                with self.store.lock(kind, key):
                    out = self.store.begin(kind, key, resume=False)
                    if kind == "corpus":
                        place = str(self.folder / "source.txt")
                        stats = build_corpus([place], out, text_field="text", id_field="id", on_bad_record="stop")
                    elif kind == "index":
                        corpus = self.store.artifact_folder("corpus", f"{0:032x}")
                        stats = build_index(corpus, None, out, threads=1, memory_gib=0.5)
                    else:
                        (out / "index.html").write_text("<p>")
                        stats = Stats(counts={"files": 1})
                    ref = self.store.publish(
                        out, stats, stage=kind, version=1, kind=kind, key=key, parameters={}, parents={}, runtime={},
                        seconds=0.0, code="", environment={},
                    )  # fmt: skip
                    log.add(label, ref)

    def call(self, command: tuple[str, ...], **changed: str) -> tuple[int | str, str, str]:
        """Exit code (or what was reached), standard output, standard error of a command.

        Args:
            command: its names.
            changed: options by their flags, beside or in place of those that it must have.
        """
        asked = self.sound.get(" ".join(command), {}) | changed
        arguments = [*command, *(f"{flag}={value}" for flag, value in asked.items())]
        out, err = io.StringIO(), io.StringIO()
        code: int | str = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["longloom", *arguments])
            if command == ("serve",):
                patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
            patch.setattr(sys, "stdin", io.StringIO(""))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                cli.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
            except Reached as reached:
                code = f"reached {reached}"
        return code, out.getvalue(), err.getvalue()

    def left(self) -> list[str]:
        """What lies in the store and beside it, but what the readers found in files and models."""
        places = [*self.store.root.glob("work/*"), *self.store.root.glob("artifacts/*/*"), *self.folder.iterdir()]
        return sorted(str(path) for path in places if path.parent.name not in {*READERS, "model"})

    def refused(self, option: Option, value: str, *, names: tuple[str, ...]) -> None:
        """Checks that a command refuses a value, in one line that names one of `names`."""
        before = self.left()
        code, out, err = self.call(option.command, **{option.flag: value})
        case = f"{option!r}={value[:60]!r}"
        assert (code, out) == (2, ""), f"{case}: {code}, {out[:300]}, {err[-300:]}"
        checked_line(err, case)
        assert any(name in err for name in names), f"{case}: names none of {names}: {err:.400}"
        assert self.left() == before, case


def checked_line(err: str, case: str) -> None:
    assert err.startswith("longloom: "), f"{case}: {err:.400}"
    assert err.endswith("\n"), case
    assert len(err.splitlines()) == 1, f"{case}: {err:.400}"
    assert len(err) <= LONGEST_MESSAGE, f"{case}: {len(err)} characters"
    assert err[:-1].isprintable(), f"{case}: {err:.400!r}"
    for ours in ("Traceback", " object at 0x", "Errno"):
        assert ours not in err, f"{case}: {err:.400}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    import signal

    import huggingface_hub.constants
    import prefect

    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    folder = tmp_path_factory.mktemp("flags")
    made = Bench(folder)
    run = stage._run

    def read(plan: Any, *rest: Any) -> Any:
        if plan.name not in READERS:
            raise Reached(plan.name)
        return run(plan, *rest)

    def service(*arguments: Any, **options: Any) -> None:
        raise Reached("service")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LONGLOOM_QUIET", "1")
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        for name in ("prepare", "quiet", "start_server"):
            patch.setattr(runtime, name, lambda *anything: None)
        patch.setattr(prefect.Flow, "__call__", lambda self, *given, **options: self.fn(*given, **options))
        patch.setattr(stage, "_run", read)
        for module in (ui, serve):
            patch.setattr(module, "Service", service)
            patch.setattr(module.subprocess, "run", service)
        yield made
    for number, handler in signals.items():
        signal.signal(number, handler)


# ---- the tests


def test_the_signatures_are_read() -> None:
    assert len(COMMANDS) > 30
    assert len(OPTIONS) > 600
    assert len(DISTINCT) > 250
    kinds = {option.kind for option in OPTIONS if get_origin(option.kind) is not Literal}
    assert kinds == {str, int, float, bool}, "a type that refused_values does not know"
    limit = next(option for option in OPTIONS if repr(option) == "evaluate --limit")
    assert "0" in refused_values(limit)
    depths = next(option for option in OPTIONS if repr(option) == "evaluate --depths")
    assert {"-1", "101"} <= set(refused_values(depths))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_bad_values_something_happens(bench: Bench, command: tuple[str, ...]) -> None:
    code, _, err = bench.call(command)
    unfinished = {"coreset export", "compare", "report", "serve"}  # of artifacts that are empty here
    assert code in (0, 1) or str(code).startswith("reached") or " ".join(command) in unfinished, err


@pytest.mark.parametrize("option", DISTINCT, ids=repr)
def test_types_and_bounds(bench: Bench, option: Option) -> None:
    values = refused_values(option)
    hunt = bool(int(os.environ.get("LONGLOOM_FUZZ", "0")))
    if not hunt and len(values) > 3:  # which, differs from option to option; the bounds always
        start = sum(map(ord, option.name)) % len(values)
        values = [(values * 2)[start], (values * 2)[start + 1], values[-1]]
    for value in values:
        bench.refused(option, value, names=(option.name, option.name.replace("-", "_")))


PLACES = [
    option
    for option in OPTIONS
    if option.kind is str and option.name not in FREE | WRITTEN | {"store"} and repr(option) not in FREE_HERE
]


@pytest.mark.parametrize("option", PLACES, ids=repr)
def test_what_is_nowhere(bench: Bench, option: Option) -> None:
    known = ("no/such", option.name, option.name.replace("-", "_"), "evaluate.data", "suite", "endpoint")
    bench.refused(option, MISSING, names=known)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.name in WRITTEN], ids=repr)
@pytest.mark.parametrize("value", ["", "source.txt/below", "\udcff"])
def test_where_nothing_can_be_written(bench: Bench, option: Option, value: str) -> None:
    named = r"b'--" if value == "\udcff" else f"--{option.name}"
    bench.refused(option, value, names=(named,))


def test_a_folder_in_place_of_a_file_and_the_other_way_round(bench: Bench) -> None:
    for option in OPTIONS:
        if option.name in WRITTEN:
            folder = "expected a folder" in bench.call(option.command, **{option.flag: "source.txt"})[2]
            assert folder or "expected a file" in bench.call(option.command, **{option.flag: "folder"})[2], option


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.name == "store"], ids=repr)
@pytest.mark.parametrize("value", ["", "source.txt", "source.txt/below", "s3://", "nowhere://x/y", "s3://a:b@c/d"])
def test_stores_that_are_none(bench: Bench, option: Option, value: str) -> None:
    bench.refused(option, value, names=("store",))


#: What any option may be given.
ANYTHING = [
    *(
        "",
        " ",
        "x" * 100_000,
        "é" * 999,
        "\udcff",
        "a\nb\r\x1b[31m",
        "-",
        "--",
        "../..",
        "/",
        "/dev/null",
        "~",
        "*",
        "%s",
    ),
    *("run:", "run:latest", "run:latest:", "run:latest:corpus", "run:latest:nothing", "hub:", "hub:a?split", "stdlib"),
    *("empty.jsonl", "binary.jsonl", "folder", "source.txt", "records.jsonl", ".longloom", "s3://", "file:///etc"),
    *("0", "-1", "-0", "1e308", "9" * 300, "2147483648", "4294967296", "9007199254740992", "nan", "null", "[]", "{}"),
    *("http://", "http://[", "http://a:b@c", "http://h:99999", "127.0.0.1:0", "x=y", "sft:nan", "full:budget=1e999"),
]


@examples(80)
@given(option=st.sampled_from(OPTIONS), value=st.sampled_from(ANYTHING))
def test_anything(bench: Bench, option: Option, value: str) -> None:
    if option.name == "store" and value.strip("\udcff"):  # would be made
        return
    case = f"{option!r}={value[:60]!r}"
    before = sorted(bench.store.root.glob("work/*"))
    code, out, err = bench.call(option.command, **{option.flag: value})
    if code == 0 or (code == 1 and option.command == ("doctor",)):
        assert "Traceback" not in err + out, case
    elif not str(code).startswith("reached"):
        assert (code, out) == (2, ""), f"{case}: {code}, {out[:300]}, {err[-300:]}"
        checked_line(err, case)
    assert sorted(bench.store.root.glob("work/*")) == before, case
