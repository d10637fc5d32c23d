"""The reference has every command with every option of its help, every parameter, deployment and name of a registry."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, Field
from rich.console import Console

from longloom.evals.registry import suite_names
from longloom.flows.cli import app
from longloom.flows.params_evaluate import EvaluateParams
from longloom.flows.params_pipeline import PipelineParams
from longloom.kernels.kvcache import registry as policies
from longloom.tasks.coreset import registry as methods
from tests.docs.pages import ROOT, hook

reference = hook("reference")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.pages(ROOT)  # type: ignore[no-any-return]


def help_of(*command: str) -> str:
    out = io.StringIO()
    app.help_print(list(command), console=Console(file=out, width=160, force_terminal=False))
    return out.getvalue()


def rows(page: str) -> dict[str, list[str]]:
    """The cells of a page's tables by the code in their first cell."""
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        for name in re.findall(r"`([^`]+)`", cells[0]) if line.startswith("| ") else []:
            found[name] = cells[1:]
    return found


def test_every_command_has_a_page_with_every_option_of_its_help(pages: dict[str, str]) -> None:
    listed = re.findall(r"^│ ([a-z]\w*) ", help_of(), re.M)
    assert len(listed) > 20
    typed = [(name, *more) for name in listed for more in [(), *((inner,) for inner in subcommands(name))]]
    for command in typed:
        text = help_of(*command)
        options = set(re.findall(r"(?<=[│ ])--[a-z][a-z.-]*", re.sub(r"`[^`]*`", "", text))) - {"--help", "--version"}
        if not options:
            continue  # a name for others
        page = pages[f"reference/commands/longloom-{'-'.join(command)}.md"]
        assert options <= {*rows(page), "--debug"}, command
        assert f"[`longloom {' '.join(command)}`]" in pages["reference/index.md"]


def subcommands(name: str) -> list[str]:
    return [inner for inner in app[name] if not inner.startswith("-")]


def test_a_page_says_what_an_option_takes(pages: dict[str, str]) -> None:
    found = rows(pages["reference/commands/longloom-evaluate.md"])
    assert found["--batch"] == ["whole number, at least 1", "`8`", EvaluateParams.model_fields["batch"].description]
    assert found["--style"][:2] == ["`prose` or `code`", "`prose`"]
    assert found["--depths"][:2] == ["several: whole number, at least 0, at most 100, at least one", "`0 25 50 75 100`"]
    assert found["--no-lie"][:2] == ["switch", "yes"]
    assert found["--data"][:2] == ["text", ""]
    assert "    longloom index [SOURCES...] [OPTIONS]" in pages["reference/commands/longloom-index.md"]
    assert "    longloom gc --keep KEEP [OPTIONS]" in pages["reference/commands/longloom-gc.md"]
    assert "    longloom compare FIRST [SECOND] [OPTIONS]" in pages["reference/commands/longloom-compare.md"]


def test_every_parameter_is_described(pages: dict[str, str]) -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", pages["reference/parameters.md"], re.M | re.S))
    models = reference.models()
    assert {EvaluateParams, PipelineParams} <= set(models)
    assert set(sections) == {model.__name__ for model in models}
    for model in models:
        described = rows(sections[model.__name__])
        assert set(described) == set(model.model_fields), model
    assert "[EndpointParams](#endpointparams)" in sections["EvaluateParams"]


def test_every_name_of_the_registries_and_deployments_is_there(pages: dict[str, str]) -> None:
    def titles(page: str) -> list[str]:
        return re.findall(r"^## (.+)$", pages[f"reference/{page}.md"], re.M)

    assert titles("kv-policies") == policies.names()
    assert titles("selection-methods") == methods.names()
    assert list(rows(pages["reference/suites.md"])) == suite_names()
    known = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert titles("deployments") == [entry["name"] for entry in known]
    assert rows(pages["reference/kv-policies.md"])["safeguard"][0] == "`0.2`"
    nightly = next(entry for entry in known if entry["name"] == "index-nightly")
    assert f"`{nightly['schedules'][0]['cron']}` UTC, off" in pages["reference/deployments.md"]


class Form(BaseModel):
    share: float = Field(default=0.5, gt=0, le=1)
    counts: list[int] | None = None
    names: dict[str, str] = {}


@pytest.mark.parametrize(
    ("field", "expected"),
    [("share", "number, above 0, at most 1"), ("counts", "several: whole number"), ("names", "object")],
)
def test_values_in_words(field: str, expected: str) -> None:
    properties: dict[str, Any] = Form.model_json_schema()["properties"]
    assert reference.kind(properties[field]) == expected


def test_text_of_the_code_is_no_markup(pages: dict[str, str]) -> None:
    assert reference._plain("a_b *c* <d> [e] `f_g<h>`") == r"a\_b \*c\* \<d> \[e\] `f_g<h>`"
    for path, text in pages.items():
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")}
        assert len(widths) <= 2, path
        assert not re.search(r"<(?!https?:)[a-z]", re.sub(r"`[^`]*`|\\<", "", text)), path
