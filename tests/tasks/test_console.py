"""What a person sees of a stage goes to the error stream, one line a stage."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from longloom.storage.refs import ArtifactRef
from longloom.tasks import console
from longloom.tasks.console import StageLine, counts_text
from longloom.tasks.progress import silent, tell

REF = ArtifactRef(
    kind="corpus",
    uri="artifacts/corpus/k",
    digest="0123456789ab" + "0" * 52,
    schema_version=1,
    counts={"documents": 1700, "training_tokens": 30_011_223},
)


def test_counts_are_readable() -> None:
    assert counts_text(REF) == "1,700 documents, 30,011,223 training tokens"


@pytest.mark.parametrize("label", ["corpus-stdlib", "import-model[1]", "finetune-[/dim]", "a" * 60])
def test_one_line_a_stage(capsys: pytest.CaptureFixture[str], label: str) -> None:
    line = StageLine(label)
    line.unchanged(REF)
    line.built(REF, 12.34)
    line.waiting()
    shown = capsys.readouterr()
    assert shown.out == ""
    unchanged, built, waiting = shown.err.splitlines()
    assert unchanged.split()[1:4] == [label, "unchanged", "0123456789ab"]
    assert built.split()[1:5] == [label, "12.3", "s", "0123456789ab"]
    assert label in waiting
    assert "another process" in waiting
    assert built.endswith(counts_text(REF))


def test_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGLOOM_QUIET", "1")
    StageLine("corpus").built(REF, 1.0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [10, 0, None])
def test_progress_without_a_task_run_asks_no_server(monkeypatch: pytest.MonkeyPatch, total: int | None) -> None:
    def refuse(**_: object) -> None:
        raise AssertionError("asked the server")

    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", refuse)
    shown: list[float] = []
    line = StageLine("corpus")
    monkeypatch.setattr(line, "_show", lambda percent, text: shown.append(percent))
    with line:
        line(5, total)
        tell(line, "step 1 of 2")
    assert shown == []


def test_words_reach_the_artifact_and_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest words are the description of every update; a callable that knows no words is left alone."""
    shown: list[tuple[float, str | None]] = []
    logged: list[str] = []
    monkeypatch.setattr(console, "SECONDS_BETWEEN_UPDATES", 0.0)
    monkeypatch.setattr(console, "in_task", lambda: True)
    monkeypatch.setattr("prefect.logging.get_run_logger", lambda: SimpleNamespace(info=logged.append))
    monkeypatch.setattr(
        "prefect.artifacts.create_progress_artifact",
        lambda progress, description: shown.append((progress, description)) or "id",
    )
    monkeypatch.setattr(
        "prefect.artifacts.update_progress_artifact",
        lambda name, progress, description: shown.append((progress, description)),
    )
    with StageLine("tune") as line:
        line(1, 4)
        tell(line, "loss 2.310")
        line(2, 4)
        tell(silent, "nobody hears")
    assert shown == [(25.0, "tune: 4 in all"), (50.0, "tune: loss 2.310"), (100.0, "tune: loss 2.310")]
    assert logged == ["tune: loss 2.310"]


def test_an_error_goes_through() -> None:
    with pytest.raises(ValueError, match="bad"), StageLine("corpus"):
        raise ValueError("bad")
