from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from torchrl_reg.analysis.report import report_html
from torchrl_reg.analysis.report.sweep import read_sweep

pytest.importorskip("websockets")


def _browser_module():
    # A neighbour of this file: pytest imports tests by path (importmode=importlib), so it is no package.
    spec = importlib.util.spec_from_file_location("report_browser", Path(__file__).with_name("browser.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_browser"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    module = _browser_module()
    if module.chromium() is None:
        pytest.skip("no chromium on PATH")
    opened = module.Browser(tmp_path_factory.mktemp("chromium") / "profile")
    yield opened
    opened.close()


@pytest.fixture
def page(tmp_path, write_run):
    (tmp_path / "sweep.yaml").write_text("name: <b>names</b>\nquestion: Which, & why?\n")
    for env in ("cartpole", "acrobot"):
        for tau in (0.01, 0.1):
            for alpha in (0.0, 0.9):
                for seed in range(3):
                    scores = tuple(tau * 10 + alpha + seed + i for i in range(5))
                    settings = {"tau": tau, "alpha": alpha}
                    write_run(tmp_path, env=env, seed=seed, settings=settings, scores=scores, done=seed < 2)
    path = tmp_path / "report.html"
    path.write_text(report_html(read_sweep(tmp_path)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (380, False)])
def test_the_report_opens_without_an_error_or_a_request(browser, page, width, dark):
    browser.requests.clear()
    browser.open(page, width=width, dark=dark)
    assert browser.problems == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.evaluate("document.querySelector('h1').textContent") == "<b>names</b>"
    # Nothing sticks out sideways: tables scroll in their own boxes.
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    # Every chart has lines that are really drawn.
    empty = "[...document.querySelectorAll('.area svg')].filter(e => e.getBoundingClientRect().height < 50).length"
    assert browser.evaluate(empty) == 0
    assert browser.evaluate("document.querySelectorAll('#curves path.line').length") == 8


def test_a_browser_notices_errors_and_requests(browser, tmp_path):
    """The test above could not fail otherwise."""
    path = tmp_path / "bad.html"
    path.write_text("<img src='file:///no/such.png'><script>console.error('oh'); undefined_name()</script>")
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path)
    assert len(browser.requests) == 2 and len(browser.problems) >= 2
    browser.problems.clear()


def test_hovering_reads_out_values_and_the_legend_hides(browser, page):
    browser.open(page)
    place = (
        "(() => { document.querySelector('#curves').scrollIntoView();"
        "const r = document.querySelector('#curves .area').getBoundingClientRect();"
        "return [r.left + r.width - 2, r.top + r.height / 2] })()"
    )
    x, y = browser.evaluate(place)
    browser.move(x, y)
    rows = browser.evaluate(
        "[...document.querySelectorAll('.readout div')].map(e => e.innerText.replace(/\\s+/g, ' '))"
    )
    # The last frame; tau=0.1 alpha=0.9: 1 + 0.9 + {0, 1, 2} + 4, best first.
    assert rows[0].strip() == "500 frames" and len(rows) == 5
    assert rows[1] == "m_dqn tau=0.1 alpha=0.9 (3) 6.9 [5.9, 7.9]"
    button = "document.querySelectorAll('.legend button')[0]"
    center = f"(() => {{ const r = {button}.getBoundingClientRect(); return [r.left + 20, r.top + 8] }})()"
    browser.evaluate("window.scrollTo(0, 0)")
    browser.click(*browser.evaluate(center))
    visible = "[...document.querySelectorAll('#curves g')].filter(e => getComputedStyle(e).display != 'none').length"
    assert browser.evaluate(visible) == 6
    assert browser.evaluate(f"{button}.getAttribute('aria-pressed')") == "false"
    assert browser.evaluate("document.querySelectorAll('#settings g.off').length") == 0
    browser.click(*browser.evaluate(center))
    assert browser.evaluate(visible) == 8
    assert browser.problems == []
