"""The command line in this process, without Prefect: help, results, and one line with exit code 2 for bad input."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout
from pydantic import ValidationError

from longloom.flows import cli, show
from longloom.flows.params import IndexParams
from longloom.flows.params_coreset import CoresetParams
from longloom.flows.params_evaluate import EvaluateParams
from longloom.flows.params_pipeline import PipelineParams
from longloom.flows.show import collect
from longloom.storage.runs import RunLog, starting
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.corpus.build import build as build_corpus
from longloom.tasks.ngrams.build import build as build_index

from .command import Done, Run

COMMANDS = (
    *(
        "demo",
        "pipeline",
        "pretrain",
        "index",
        "count",
        "search",
        "cooccur",
        "explain",
        "contamination",
        "prompts",
        "trace",
        "coreset",
        "finetune",
        "tune",
        "evaluate",
        "rag",
        "heads",
        "judge",
        "score",
        "report",
    ),
    *("compare", "runs", "gc", "doctor", "ui", "serve"),
)


@pytest.fixture
def run(longloom: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `longloom ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return longloom


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The default store, with one corpus, an index of its bytes, and the run that made them."""
    store = Store(tmp_path / ".longloom")
    source = tmp_path / "source.txt"
    source.write_text("one x[i] two x[i] [dim]three")
    with RunLog(store, "index", {}) as log:
        for kind, key in (("corpus", "a" * 32), ("index", "b" * 32)):
            with store.lock(kind, key):
                out = store.begin(kind, key, resume=False)
                if kind == "corpus":
                    stats = build_corpus([str(source)], out, text_field="text", id_field="id", on_bad_record="stop")
                else:
                    corpus = store.artifact_folder("corpus", "a" * 32)
                    stats = build_index(corpus, None, out, threads=1, memory_gib=0.5)
                log.add(kind, publish(store, out, stats, kind, key))
    return store


def publish(store: Store, out: Path, stats: Stats, kind: str, key: str):  # type: ignore[no-untyped-def]
    identity = {"stage": kind, "version": 1, "kind": kind, "key": key, "parameters": {}, "parents": {}}
    return store.publish(out, stats, **identity, runtime={}, seconds=0.0, code="", environment={})  # type: ignore[arg-type]


def one_line(done: Done) -> str:
    """The error of a command that was refused."""
    assert (done.code, done.out) == (2, ""), done
    assert done.err.startswith("longloom: ")
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1, done.err
    return done.err.removeprefix("longloom: ").strip()


# ---- help


def test_help_names_every_command(run: Run) -> None:
    done = run("--help")
    assert (done.code, done.err) == (0, "")
    assert [name for name in COMMANDS if f" {name} " not in done.out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: longloom {command}")
    assert "--empty-" not in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_help_shows_the_pipelines_own_defaults(run: Run) -> None:
    text = " ".join(run("pipeline", "--help").out.replace("│", " ").split())
    assert "name [default: base]" in text  # of the tokenizer
    assert "(any task of the harness) [default: records]" in text
    assert (
        f"--records INT evaluation records a task derived from held-out modules [default: {PipelineParams().records}]"
        in (text)
    )


# ---- parameters


def parsed(*arguments: str) -> dict[str, object]:
    _, bound, _ = cli.app.parse_args(arguments, exit_on_error=False, print_error=False)
    return dict(bound.arguments)


def test_options_become_parameters() -> None:
    found = parsed("pipeline", "--evaluate.limit", "1", "--corpus.sources", "stdlib", "--no-needle")
    expected = PipelineParams()
    assert found["params"] == expected.model_copy(
        update={"needle": False, "evaluate": expected.evaluate.model_copy(update={"limit": 1})}
    )
    assert parsed("coreset", "--count", "5", "--methods", "random", "tagcos")["coreset"] == CoresetParams(
        count=5, methods=["random", "tagcos"]
    )
    policies = ["full", "streaming:sink=4,window=8"]
    assert parsed("evaluate", "--policies", *policies)["evaluate"] == EvaluateParams(policies=policies)
    repeated = parsed("evaluate", "--policies", policies[0], "--policies", policies[1])
    assert repeated["evaluate"] == EvaluateParams(policies=policies)
    found = parsed("index", "a.txt", "b.txt", "--tokenizer", "bytes")
    assert found["index"] == IndexParams(tokenizer="bytes")
    assert found["corpus"].sources == ["a.txt", "b.txt"]  # type: ignore[attr-defined]


# ---- bad input


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("evaluate --limit 0", "limit: Input should be greater than or equal to 1, found '0'"),
        ("evaluate --lenghts 3", "Unknown option: --lenghts. Did you mean --lengths?"),
        ("evaluate --policies streaming:sink", "policies: KV policy 'streaming:sink': found option 'sink', expected"),
        ("evaluate --lengths abc", "lengths.0: Input should be a valid integer"),
        ("evaluate --depths 101", "depths.0: Input should be less than or equal to 100, found '101'"),
        ("evaluate --style poem", "style: Input should be 'prose' or 'code', found 'poem'"),
        ("coreset --share 2", "share: Input should be less than or equal to 1, found '2'"),
        ("coreset --share nan", "share: "),
        ("coreset --count 0", "count: Input should be greater than or equal to 1, found '0'"),
        ("finetune --model.seed 7", "model.seed: found 7, expected it left out: nothing trains model base on a corpus"),
        ("finetune --on some", "--on some: unknown, expected all, coreset or run:ID:coreset/METHOD"),
        ("coreset --methods tagcos less", "selection method 'less' needs validation examples (targets), found none"),
        ("coreset --targets a.jsonl", "targets: found a.jsonl, expected none for tagcos, random, which do not look"),
        ("coreset --side best", "side: Input should be 'middle', 'highest' or 'lowest', found 'best'"),
        ("finetune --learning-rate inf", "learning_rate: Input should be a finite number"),
        ("index --vocab-size 10", "vocab_size: Input should be greater than or equal to 260, found '10'"),
        ("index --on-bad-record ignore", "on_bad_record: Input should be 'stop' or 'skip', found 'ignore'"),
        ("pipeline --from-stage model --until-stage index", "from_stage model comes after until_stage index"),
        ("pipeline --corpus.sources docs", "evaluate.suite records has no evaluate.data"),
        ("xyzzy", 'Unknown command "xyzzy". Available commands: demo'),
        ("demo please", "Unused Tokens: ['please']."),
        ("score --suite longbench", 'Command "score" parameter --task requires an argument.'),
        (
            "score --suite nope --task t --predictions p",
            "unknown suite of prediction files 'nope'; known: chatrag, infin",
        ),
        ("score --suite leval --task quality --predictions p", "cannot read p: No such file or directory"),
        ("runs --limit 0", "--limit 0: too small, expected at least 1 run"),
        ("runs --store /dev/null", "store /dev/null: is a file, expected a folder"),
        ("doctor --store /dev/null/store", "store /dev/null/store: is a file, expected a folder"),
        ("index --store /dev/null", "store /dev/null: is a file, expected a folder"),
        ("demo --store /dev/null/store", "store /dev/null/store: is a file, expected a folder"),
        ("gc", 'Command "gc" parameter --keep requires an argument.'),
        ("gc --keep -1", "--keep -1: negative, expected a number of runs"),
        ("count", 'Command "count" parameter --text requires an argument.'),
        ("count hello", "holds no index; build one with `longloom index SOURCE`"),
        ("count hello --index nowhere", "nowhere: no such folder, expected one of an index"),
        ("compare", 'Command "compare" parameter --first requires an argument.'),
    ],
)
def test_bad_input(run: Run, command: str, expected: str) -> None:
    assert expected in one_line(run(*command.split()))


def test_prediction_files(run: Run, tmp_path: Path) -> None:
    good = {"pred": "a b c", "answers": ["a b c"], "all_classes": None, "length": 3}
    path = tmp_path / "p.jsonl"
    score = ("score", "--suite", "longbench", "--predictions", str(path), "--task")
    path.write_text(json.dumps(good) + "\n")
    done = run(*score, "multi_news", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["score"] == pytest.approx(100)
    assert run(*score, "multi_news").out.splitlines()[2:5] == [
        "metric           rouge",
        "score            100.0",
        "samples          1",
    ]
    assert "suite 'longbench' has no task 'news'; known: narrativeqa" in one_line(run(*score, "news"))
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"pred": 3}) + "\n")
    assert "p.jsonl:2: field 'pred' is 3, expected a string" in one_line(run(*score, "multi_news"))
    path.write_text(json.dumps({"quality_pred": "A", "gt": "A", "evaluation": "exam"}) + "\n")
    assert "looks like a prediction file of the suite 'leval'" in one_line(run(*score, "multi_news"))
    path.write_text("")
    assert "has no predictions" in one_line(run(*score, "multi_news"))


# ---- commands without a flow


def test_count_takes_texts_as_they_are(run: Run, store: Store) -> None:
    done = run("count", "x[i]", "[dim]", "three", "--json")
    assert json.loads(done.out) == {"x[i]": 2, "[dim]": 1, "three": 1}
    assert [line.split() for line in run("count", "x[i]", "[dim]").out.splitlines()] == [["x[i]", "2"], ["[dim]", "1"]]
    assert json.loads(run("count", "--json", "--", "--debug").out) == {"--debug": 0}


def test_a_damaged_index_is_named(run: Run, store: Store, tmp_path: Path) -> None:
    with next(store.root.glob("artifacts/index/*/tokenized.0")).open("ab") as file:
        file.write(b"x")
    assert "tokenized.0 was changed after publishing" in one_line(run("count", "x"))
    folder = store.artifact_folder("index", "b" * 32)
    assert "tokenized.0 was changed after publishing" in one_line(run("count", "x", "--index", str(folder)))
    shutil.copytree(folder, tmp_path / "copy")  # no store answers for it there
    assert "tokenized.0: has 30 bytes, expected 29" in one_line(run("count", "x", "--index", str(tmp_path / "copy")))
    done = run("doctor", "--json")
    assert (done.code, done.err) == (1, "")
    bad = [finding["detail"] for finding in json.loads(done.out)["findings"] if not finding["good"]]
    assert any("1 artifacts are whole, 1 damaged" in detail for detail in bad)
    assert any("the next run that needs it rebuilds it" in detail for detail in bad)


def test_runs_and_gc(run: Run, store: Store) -> None:
    (found,) = json.loads(run("runs", "--json").out)["runs"]
    assert (found["flow"], found["state"], list(found["stages"])) == ("index", "completed", ["corpus", "index"])
    assert found["id"] in run("runs").out
    page = Path(json.loads(run("runs", "--html", "--json").out)["page"])
    assert page == store.root / "index.html"
    assert found["id"] in page.read_text()
    assert str(page) in run("runs", "--html").out
    assert json.loads(run("gc", "--keep", "1", "--json").out) == {"runs_deleted": 0, "artifacts_deleted": 0}
    assert json.loads(run("gc", "--keep", "0", "--json").out) == {"runs_deleted": 1, "artifacts_deleted": 2}
    assert "no runs in the store" in run("runs").out
    assert json.loads(run("runs", "--json").out) == {"runs": []}


def test_gc_deletes_nothing_while_a_run_goes_on_or_cannot_be_read(tmp_path: Path) -> None:
    place = Store(tmp_path / "store")
    (place.root / "artifacts" / "thing" / "k").mkdir(parents=True)
    with RunLog(place, "index", {}) as log, pytest.raises(ValueError, match=f"run {log.run.id}: is going on"):
        collect(place.address, 0)
    record = place.root / "runs" / f"{log.run.id}.json"
    kept = record.read_text()
    record.write_text(kept[:40])
    with pytest.raises(ValueError, match=f"^{record}: cannot be read, expected the record of a run"):
        collect(place.address, 0)
    record.write_text(kept)
    assert collect(place.address, 0) == {"runs_deleted": 1, "artifacts_deleted": 1}


def test_no_run_starts_until_gc_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []

    def holding(name: str, found: list[Any]) -> Callable[..., list[Any]]:
        def call(place: Store, *_: Any, **__: Any) -> list[Any]:
            with pytest.raises(Timeout):
                starting(place).acquire(blocking=False)
            held.append(name)
            return found

        return call

    monkeypatch.setattr(show, "list_runs", holding("list", []))
    monkeypatch.setattr(show, "delete_runs", holding("forget", []))
    monkeypatch.setattr(Store, "gc", holding("delete", ["thing/k"]))
    assert collect(str(tmp_path), 0) == {"runs_deleted": 0, "artifacts_deleted": 1}
    assert held == ["list", "forget", "list", "delete"]
    starting(Store(tmp_path)).acquire(blocking=False).lock.release()


# ---- errors


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        (ValueError("a\n  b"), "a b", 2),
        (ValueError(), "ValueError", 2),
        (FileNotFoundError("x: no such file"), "x: no such file", 2),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), "/x/y: Not a directory", 2),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system", 2),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "disk full: /x; nothing was published", 2),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x"), "disk full: /x; nothing was published", 2),
        (RuntimeError("wrote: No space left on device"), "disk full: wrote: No space left on device", 2),
        (RuntimeError("boom"), "RuntimeError: boom (run again with --debug for the traceback)", 1),
        (KeyError("k"), "KeyError: 'k' (run again with --debug for the traceback)", 1),
    ],
)
def test_errors_become_one_line(error: Exception, expected: str, code: int) -> None:
    text, found = cli.describe(error)
    assert text.startswith(expected)
    assert found == code


def test_errors_of_the_forms_name_the_field() -> None:
    with pytest.raises(ValidationError) as caught:
        PipelineParams.model_validate({"coreset": {"share": 3}})
    assert cli.describe(caught.value) == ("coreset.share: Input should be less than or equal to 1, found 3", 2)


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.Tracebacks, "shown", False)
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        run("runs", "--store", "/dev/null", "--debug")
