"""In a real browser: the report from its file, and MLflow's own pages of a study, with nothing asked of the world outside.

CPT_LAB_SCREENSHOTS=FOLDER keeps what the browser saw.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

import made_up_study as made
from cpt_lab import tracking
from cpt_lab.commands import report
from cpt_lab.tracking_settings import Tracking

pytestmark = [pytest.mark.slow, pytest.mark.browser]

WIDTHS = (360, 768, 1280)
PATIENCE = 90_000  # milliseconds: MLflow's pages take their time on a busy machine
LEAST_CONTRAST, LEAST_OF_LARGE = 4.5, 3.0
CONTRAST = """() => {
  const luminance = rgb => rgb.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const read = text => { const m = text.match(/[\\d.]+/g); return m ? m.map(Number) : null; };
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a)); };
  const behind = element => {
    if (!element) return [255, 255, 255];
    const own = element instanceof SVGElement ? null : read(getComputedStyle(element).backgroundColor);
    return own && (own[3] ?? 1) > 0 ? over(own, behind(element.parentElement)) : behind(element.parentElement);
  };
  const box = text => text.closest('g') && text.closest('g').querySelector(':scope > rect');
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode());) {
    const element = node.parentElement;
    if (!node.data.trim() || ['SCRIPT', 'STYLE', 'TITLE'].includes(element.tagName) || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    if (style.visibility === 'hidden' || style.opacity === '0') continue;
    const rect = svg && box(element), seen = rect && getComputedStyle(rect).fillOpacity !== '0';
    const ground = seen ? read(getComputedStyle(rect).fill) : null;
    const below = ground && (ground[3] ?? 1) > 0 ? over(ground, [255, 255, 255]) : behind(element);
    const above = over(read(svg ? style.fill : style.color), below);
    const [one, other] = [luminance(above), luminance(below)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
    found.push({ text: node.data.trim().slice(0, 40), ratio: (one + 0.05) / (other + 0.05), large });
  }
  return found;
}"""
NAMELESS = """() => [...document.querySelectorAll('a[href], summary, [tabindex="0"], button')]
  .filter(e => e.checkVisibility())
  .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('data-title') || e.title || e.textContent).trim())
  .map(e => e.outerHTML.slice(0, 80))"""


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def shot(self, name: str) -> None:
        """Keep what is seen, if somebody asked for it."""
        if folder := os.environ.get("CPT_LAB_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@dataclass(frozen=True)
class Server:
    """MLflow's server with one study, and the ids that its addresses are made of."""

    address: str
    experiment: str
    parent: str
    points: tuple[str, ...]
    curves: dict[str, str]  # name -> run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with its report, synced to a database of its own."""
    folder = tmp_path_factory.mktemp("browser")
    store, study = made.make(folder)
    made.finish(store, study)
    files = report.at_end(store, study)
    settings = Tracking().within(folder)
    tracking.initialise(settings)
    tracking.sync(store, study.name, settings)
    tracking.log_figures(store, study.name, settings, files)
    return folder


@pytest.fixture(scope="module")
def server(results: Path) -> Iterator[Server]:
    settings = Tracking().within(results)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.address, "--workers", "1"]
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (results / "server.txt").open("wb") as log:
        place = [*command, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(place, stdout=log, stderr=log, env=quiet, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, results / "server.txt")
        yield Server(f"http://127.0.0.1:{port}", *identities(settings))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"{address} did not answer: {log.read_text()[-2000:]}")


def identities(settings: Tracking) -> tuple[str, str, tuple[str, ...], dict[str, str]]:
    """Of the experiment, the study's run, the runs of one criterion's points, and the curves by name."""
    database = sqlite3.connect(settings.database)
    try:
        ((experiment,),) = database.execute("select experiment_id from experiments where name = ?", (settings.experiment,)).fetchall()
        ((parent,),) = database.execute("select run_uuid from runs where name = 'made_up'").fetchall()
        points = database.execute("select run_uuid from runs where name like 'delta_norm-ascending%'").fetchall()
        tagged = "select name, r.run_uuid from runs r join tags t on r.run_uuid = t.run_uuid where t.key = 'kind' and t.value = 'curve'"
        return str(experiment), str(parent), tuple(str(point) for (point,) in points), dict(database.execute(tagged).fetchall())
    finally:
        database.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A page that reaches this machine alone; at the end nothing was wrong on it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    found = Watched(page)

    def reach(route: Route) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:")):
            route.continue_()
        else:
            found.outside.append(route.request.url)
            route.abort()

    page.route("**/*", reach)
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on("console", lambda said: found.errors.append(f"{said.text} {said.location}") if said.type == "error" else None)
    yield found
    context.close()
    assert found.outside == []
    assert [error for error in found.errors if "/mlflow/users/current" not in error] == []  # MLflow asks for a user where there are none


@pytest.fixture
def opened(watched: Watched, results: Path) -> Watched:
    """The report, from its file."""
    watched.page.goto((results / "studies" / "made_up" / "report.html").as_uri())
    watched.page.locator("#plot-rewind_curve .main-svg").first.wait_for()
    return watched


# ---------------------------------------------------------------------------------------------------------------- the report


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_fits_every_width(opened: Watched, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 900})
    opened.page.wait_for_function("width => innerWidth === width", arg=width)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.locator("h1").bounding_box()["width"] <= width  # type: ignore[index]
    opened.shot(f"report_{width}")


def test_a_plot_shows_the_numbers_under_the_pointer(opened: Watched) -> None:
    opened.page.locator("#plot-rewind_curve .scatterlayer .trace .point").nth(2).hover(force=True)
    said = opened.page.locator("#plot-rewind_curve .hoverlayer .hovertext").first
    said.wait_for()
    assert any(character.isdigit() for character in said.text_content() or "")


def test_a_click_on_the_legend_switches_a_line_off_and_on(opened: Watched) -> None:
    hidden = "document.getElementById('plot-rewind_curve').data.filter(trace => trace.visible === 'legendonly').length"
    toggle = opened.page.locator("#plot-rewind_curve .legend .legendtoggle").first
    assert opened.page.evaluate(hidden) == 0
    toggle.click()
    opened.page.wait_for_function(f"{hidden} > 0")
    toggle.click()
    opened.page.wait_for_function(f"{hidden} === 0")


@pytest.mark.parametrize("width", WIDTHS)
def test_all_text_has_enough_contrast(opened: Watched, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 900})
    opened.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    found = opened.page.evaluate(CONTRAST)
    assert len(found) > 200
    assert [each for each in found if each["ratio"] < (LEAST_OF_LARGE if each["large"] else LEAST_CONTRAST)] == []


def test_the_contrast_walk_finds_what_is_too_faint(watched: Watched) -> None:
    watched.page.set_content(
        "<p style='color:#999'>faint</p><div style='background:#222'><p style='color:#333'>dark</p><p style='color:#fff'>good</p></div>"
        "<svg><g><rect width='9' height='9' fill='#777'/><text y='9' fill='#888'>box</text></g></svg>"
    )
    faint = {each["text"] for each in watched.page.evaluate(CONTRAST) if each["ratio"] < LEAST_CONTRAST}
    assert faint == {"faint", "dark", "box"}


def test_the_first_tab_offers_to_skip_to_the_answer(opened: Watched) -> None:
    opened.page.keyboard.press("Tab")
    skip = opened.page.locator(".skip")
    assert skip.evaluate("each => each === document.activeElement && each.getBoundingClientRect().left >= 0")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_function("document.activeElement.id === 'answer'")


def test_the_keyboard_reaches_every_fold_and_table_in_the_order_of_the_page(opened: Watched) -> None:
    wanted = opened.page.evaluate(
        "[...document.querySelectorAll('summary, nav a, .scroll')].filter(e => e.checkVisibility())"
        ".map((each, place) => { each.dataset.place = place; return place })"
    )
    reached = []
    for _ in range(40 * len(wanted)):
        opened.page.keyboard.press("Tab")
        place, outline = opened.page.evaluate(
            "[document.activeElement.dataset.place ?? null, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if place is not None:
            reached.append(int(place))
            assert outline != "none"
        if place is not None and int(place) == wanted[-1]:
            break
    assert reached == wanted


def test_a_fold_opens_by_the_keyboard(opened: Watched) -> None:
    opened.page.locator("#figures summary").first.focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("#figures details").first.evaluate("each => each.open")


def test_everything_that_can_be_reached_has_a_name(opened: Watched) -> None:
    assert opened.page.evaluate(NAMELESS) == []
    assert opened.page.locator("html").get_attribute("lang") == "en"
    assert opened.page.locator("main").count() == 1


def test_who_wants_less_motion_gets_none(opened: Watched) -> None:
    assert opened.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


# -------------------------------------------------------------------------------------------------------------------- MLflow


def test_mlflow_lists_the_study_and_its_points(watched: Watched, server: Server) -> None:
    watched.page.set_viewport_size({"width": 2600, "height": 900})  # columns out of sight are not there
    watched.page.goto(f"{server.address}/#/experiments/{server.experiment}/runs")
    study = watched.page.get_by_role("row").filter(has=watched.page.get_by_text("made_up", exact=True))
    study.get_by_role("button").first.click()  # the study's points are folded below it
    point = watched.page.get_by_text("delta_norm-ascending 0.25", exact=True)
    point.wait_for()
    watched.page.get_by_role("button", name="Show more columns").click()
    choices = watched.page.get_by_role("dialog").locator("[class*=tree-treenode]")
    metric = choices.filter(has=watched.page.get_by_text(made.ACCURACY, exact=True))
    metric.locator("[class*=tree-checkbox]").first.click()
    watched.page.get_by_role("columnheader").filter(has_text=made.ACCURACY).first.wait_for()
    row = point.evaluate("each => each.closest('[row-id]').getAttribute('row-id')")
    watched.page.locator(f"[row-id='{row}'] [role=gridcell]").get_by_text("0.85").wait_for()
    watched.shot("mlflow_runs")


def test_the_report_opens_inside_mlflow_and_its_plots_are_alive(watched: Watched, server: Server) -> None:
    watched.page.goto(f"{server.address}/#/experiments/{server.experiment}/runs/{server.parent}/artifacts/figures/report.html")
    frame = watched.page.frame_locator("iframe")
    frame.locator("#plot-rewind_curve .main-svg").first.wait_for()
    assert frame.locator("#answer h2").inner_text().startswith("Best order:")
    watched.shot("mlflow_report")


def test_mlflow_compares_points_and_draws_their_scores(watched: Watched, server: Server) -> None:
    runs, experiments = (quote(json.dumps(list(each))) for each in (server.points, [server.experiment]))
    watched.page.goto(f"{server.address}/#/compare-runs?runs={runs}&experiments={experiments}")
    watched.page.locator(".js-plotly-plot .main-svg").first.wait_for()
    watched.page.get_by_text(made.ACCURACY).first.wait_for(state="attached")
    for fraction in ("0.25", "0.75"):
        watched.page.get_by_text(f"delta_norm-ascending {fraction}").first.wait_for(state="attached")
    watched.shot("mlflow_compare")


def test_mlflow_draws_the_curves_of_a_study_over_the_fraction(watched: Watched, server: Server) -> None:
    assert len(server.curves) >= 2
    asked = {"runs": list(server.curves.values()), "metric": made.ACCURACY, "experiments": [server.experiment]}
    settings = {**asked, "plot_metric_keys": [made.ACCURACY], "plot_layout": {"autosize": True}}
    words = "&".join(f"{name}={quote(json.dumps(value))}" for name, value in settings.items())
    watched.page.goto(f"{server.address}/#/metric?{words}&x_axis=step&y_axis_scale=linear&line_smoothness=1&show_point=true")
    plot = watched.page.locator(".js-plotly-plot").first
    plot.locator(".scatterlayer .trace").nth(len(server.curves) - 1).wait_for(state="attached")
    drawn = plot.evaluate("plot => plot.data.map(trace => [trace.name, Array.from(trace.x)])")
    assert dict(drawn) == {name: [1000 * fraction for fraction in made.FRACTIONS] for name in server.curves}
    watched.shot("mlflow_curves")
