"""The pages in headless Chromium: tables sorted, plots' values told, both themes; nothing logged, nothing fetched."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from longloom.tasks.report.build import build
from longloom.tasks.report.compare import build as build_comparison

from ...browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"),
]

COLUMN = "[...document.querySelectorAll('#finetune tbody tr')].map(row => row.cells[{}].textContent)"
HEADS = "[...document.querySelectorAll('#finetune th[aria-sort]')].map(head => head.getAttribute('aria-sort'))"
TIP = "document.querySelector('.tip.shown')?.textContent ?? ''"
LOSS = "#finetune svg[data-points]"
#: WCAG 2 AA for text of this size.
CONTRAST = 4.5


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_fakes):
    """A store's folder with a report and a comparison of it with another."""
    root = tmp_path_factory.mktemp("store") / "artifacts"
    fakes = make_fakes(root / "made")
    for label in [label for label in fakes.sections if label.startswith(("corpus", "coreset", "evaluation/"))]:
        if not label.startswith("evaluation/base/longbench"):
            del fakes.sections[label]
    first = root / "report" / ("a" * 32)
    first.mkdir(parents=True)
    build(fakes.sections, fakes.manifests, first, title="<b>One</b>")
    second = root / "report" / ("b" * 32)
    second.mkdir()
    numbers = json.loads((first / "report.json").read_text())
    row = next(row for row in numbers["evaluation"]["scores"] if row["task"] == "definition")
    row["sample_scores"] = dict.fromkeys(row["sample_scores"], 100.0)
    row["score"] = 100.0
    numbers["finetune"]["all"]["final_loss"] -= 0.25
    (second / "report.json").write_text(json.dumps(numbers))
    out = root / "compare" / ("c" * 32)
    out.mkdir(parents=True)
    pages = tuple(f"../../../artifacts/report/{each.name}/index.html" for each in (first, second))
    build_comparison(first, second, out, pages=pages)
    return root


@pytest.fixture
def report(browser, folder):
    browser.run("try { localStorage.clear() } catch {}")
    browser.prefer("light")
    browser.messages.clear()
    browser.requests.clear()
    address = (folder / "report" / ("a" * 32) / "index.html").as_uri()
    browser.open(address)
    yield browser
    assert browser.messages == []
    assert {request.partition("#")[0] for request in browser.requests} <= {address, "data:,"}


def test_a_click_on_a_head_sorts_by_numbers_and_a_third_restores(report):
    as_built = report.run(COLUMN.format(0))
    steps = [60, 60, 1200]
    assert sorted(report.run(COLUMN.format(1))) == sorted(f"{value:,}" for value in steps)
    head = "#finetune thead th:nth-child(3) button"  # tokens
    orders = []
    for way in ("descending", "ascending"):
        report.click(head)
        orders.append([int(text.replace(",", "")) for text in report.run(COLUMN.format(2))])
        assert report.run(HEADS) == [way]
    assert orders == [sorted(orders[0], reverse=True), sorted(orders[0])]
    assert orders[0] != orders[1]
    report.click(head)
    assert report.run(COLUMN.format(0)) == as_built
    assert report.run(HEADS) == []


def test_names_sort_as_text_by_the_keyboard_too(report):
    report.run("document.querySelector('#finetune thead th button').focus()")
    report.press("Enter")
    assert report.run(COLUMN.format(0)) == sorted(report.run(COLUMN.format(0)))
    assert report.run(HEADS) == ["ascending"]


def test_means_and_suites_stay_where_they_are(report):
    first = "[...document.querySelectorAll('#evaluation table')[0].tBodies].map(body => body.rows[0].className)"
    last = "[...document.querySelectorAll('#evaluation table')[0].tBodies].map(body => [...body.rows].at(-1).className)"
    before = report.run(first), report.run(last)
    assert "mean" in before[1]
    for _ in range(2):
        report.click("#evaluation thead tr:last-child th:nth-child(3) button")
        assert (report.run(first), report.run(last)) == before


def test_units_are_compared_by_what_they_mean(report):
    values = ["2.0 s", "1 min 15 s", "900 kB", "1.20 MB", "−3.5", "+2.5", "< 0.001", "1,234", "–", "5.2%"]
    table = "".join(f"<tr><th>{n}</th><td>{value}</td></tr>" for n, value in enumerate(values))
    page = Path(report.run("decodeURIComponent(location.pathname)"))
    text = page.read_text()
    start = text.index("<main>") + 6
    body = f"<table class='booked'><thead><tr><th>n</th><th>value</th></tr></thead><tbody>{table}</tbody></table>"
    other = page.with_name("units.html")
    other.write_text(f"{text[:start]}{body}</main></body></html>")
    report.open(other.as_uri())
    report.requests.clear()
    report.click("thead th:nth-child(2) button")
    report.click("thead th:nth-child(2) button")
    found = report.run("[...document.querySelectorAll('tbody td')].map(cell => cell.textContent)")
    assert found == ["−3.5", "< 0.001", "2.0 s", "+2.5", "5.2%", "1 min 15 s", "1,234", "900 kB", "1.20 MB", "–"]


def test_a_plot_tells_the_value_under_the_pointer_and_by_the_keys(report):
    assert report.run("document.querySelectorAll('svg.plot:not([data-points])').length") == 0
    report.place(LOSS)
    points = report.run(f"JSON.parse(document.querySelector('{LOSS}').dataset.points)")
    left, top, width = report.run(
        f"(() => {{ const box = document.querySelector('{LOSS}').getBoundingClientRect();"
        " return [box.left, box.top, box.width]; })()"
    )
    scale = width / 1040
    x, y, text = max(points, key=lambda point: point[1] if "tagcos" in point[2] else -math.inf)  # its lowest loss
    report.point(left + x * scale, top + y * scale)
    told = report.run(TIP)
    assert re.fullmatch(r"(tagcos|random|all): loss \d\.\d{3} at [\d.,]+( k| M)? tokens", told)
    assert told == text
    report.point(5, 5)
    assert report.run(TIP) == ""

    report.run(f"document.querySelector('{LOSS}').focus()")
    for key, expected in (("Home", 0), ("ArrowRight", 1), ("ArrowDown", 2), ("End", -1), ("ArrowLeft", -2)):
        report.press(key)
        assert report.run(TIP) == points[expected][2]
    report.press("Escape")
    assert report.run(TIP) == ""


def test_bars_and_cells_are_told_wherever_the_pointer_is_on_them(report):
    cell = report.run("JSON.parse(document.querySelector('#model .many svg').dataset.points)[9]")
    x, y, text, width, height = cell
    report.place("#model .many svg")
    left, top = report.run(
        "(() => { const box = document.querySelector('#model .many svg').getBoundingClientRect();"
        " return [box.left, box.top]; })()"
    )
    for across, down in ((0, 0), (-0.45, 0.45), (0.45, -0.45)):
        report.point(left + x + across * width, top + y + down * height)
        assert report.run(TIP) == text


def _contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2.2's ratio of two sRGB colours."""

    def luminance(colour: list[float]) -> float:
        parts = [value / 255 for value in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_the_theme_follows_the_system_and_the_switch_and_can_be_read(report):
    def colour(selector: str, name: str = "color") -> list[float]:
        text = report.run(f"getComputedStyle(document.querySelector('{selector}')).{name}")
        return [float(part) for part in re.findall(r"[\d.]+", text)[:3]]

    shown = {}
    for system, clicks in (("light", 0), ("dark", 0), ("dark", 1), ("light", 1)):
        report.prefer(system)
        for _ in range(clicks):
            report.click(".theme")
        shown[report.run("document.querySelector('.theme').textContent"), system] = colour("body", "backgroundColor")
        for selector in ("body", "figcaption", "a", ".theme", ".foot"):
            assert _contrast(colour(selector), colour("body", "backgroundColor")) >= CONTRAST, (selector, system)
    light, dark = [255, 255, 255], shown["Theme: system", "dark"]
    assert sum(dark) < 150
    assert shown == {
        ("Theme: system", "light"): light,
        ("Theme: system", "dark"): dark,
        ("Theme: light", "dark"): light,
        ("Theme: dark", "light"): dark,
    }


def test_a_number_leads_to_its_artifact_and_its_parameters(report):
    href = report.run("document.querySelector('#evaluation td a').getAttribute('href')")
    report.click("#evaluation td a")
    opened = f"document.querySelector('details[id=\"{href[1:]}\"]')"
    report.until(
        f"{opened}.open && {opened}.parentElement.closest('details').open"
    )  # once the page knows of the address
    assert report.run(f"{opened}.querySelector('summary').textContent").startswith("evaluation/base/longbench/")
    assert "lora.rank" in report.run(f"{opened}.textContent")
    place = report.run(f"{opened}.querySelector('[data-place] a').getAttribute('href')")
    assert re.fullmatch(r"\.\./\.\./\.\./artifacts/evaluation/[0-9a-f]{32}/", place)


def test_the_comparison_leads_to_both_runs(browser, folder):
    browser.messages.clear()
    browser.requests.clear()
    address = (folder / "compare" / ("c" * 32) / "index.html").as_uri()
    browser.open(address)
    told = browser.run("[...JSON.parse(document.querySelector('#scores svg').dataset.points)].map(point => point[2])")
    assert len(told) == 1
    assert told[0].startswith("definition · base · ")
    loss = browser.run(
        "[...document.querySelectorAll('#measures tr')].map(row => row.textContent).find(text => /^all/.test(text))"
    )
    assert loss.endswith("−0.250")
    browser.click("#scores tbody tr:nth-child(2) td a")
    browser.until(f"location.pathname.includes('/report/{'a' * 32}/') && document.readyState === 'complete'")
    assert browser.run("document.getElementById(location.hash.slice(1)).open")
    assert browser.messages == []
    assert all(request.startswith((folder.as_uri(), "data:")) for request in browser.requests)
