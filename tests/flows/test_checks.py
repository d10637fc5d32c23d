"""How a model is to be trained is refused where nothing trains it, and taken where something does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longloom.flows import checks
from longloom.flows.checks import check_model
from longloom.flows.params import ModelParams, PretrainParams
from longloom.flows.params_pipeline import SmallParams
from longloom.storage.store import Store

OPTIONS: list[dict[str, Any]] = [{"size": "short"}, {"tokens": 20_000}, {"seed": 7}]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(checks, "check_loadable", lambda store, source: None)
    return Store(tmp_path)


@pytest.mark.parametrize("given", OPTIONS, ids=str)
@pytest.mark.parametrize(("source", "trained"), [("base", False), ("folder", False), ("folder", True)])
def test_options_of_a_training_are_refused_without_one(
    store: Store, given: dict[str, Any], source: str, trained: bool
) -> None:
    [(name, value)] = given.items()
    message = (
        rf"^model\.{name}: found {value}, expected it left out: nothing trains model {source} on a corpus here;"
        " `longloom pretrain` takes it, and `pipeline` and `replicate` do for base and scratch$"
    )
    with pytest.raises(ValueError, match=message):
        check_model(store, ModelParams(source=source, **given), trained=trained)


@pytest.mark.parametrize("given", OPTIONS, ids=str)
def test_they_are_taken_where_a_model_is_trained(store: Store, given: dict[str, Any]) -> None:
    for source in ("base", "scratch"):
        check_model(store, ModelParams(source=source, **given), trained=True)
    for source in ("base", "scratch", "folder"):
        check_model(store, PretrainParams(source=source, **given), trained=True)


def test_defaults_are_those_of_the_parameters(store: Store) -> None:
    """A second model of the pipeline has another size by default."""
    small = SmallParams(source="folder")
    check_model(store, small, trained=True)
    check_model(store, ModelParams(source="folder", size="1m", tokens=None, seed=0), trained=False)
    with pytest.raises(ValueError, match=r"^tracing\.small\.size: found 1m, expected it left out"):
        check_model(store, SmallParams(source="folder", size="1m"), trained=True, option="tracing.small")
