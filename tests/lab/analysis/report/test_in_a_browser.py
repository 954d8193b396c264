"""A report in Chromium."""

from __future__ import annotations

from itertools import product

import pytest

from torchrl_reg.lab.analysis.report import report_html
from torchrl_reg.lab.analysis.report.sweep import read_sweep


@pytest.fixture
def page(tmp_path, write_run):
    (tmp_path / "sweep.yaml").write_text("name: <b>names</b>\nquestion: Which, & why?\n")
    for env, tau, alpha, seed in product(("cartpole", "acrobot"), (0.01, 0.1), (0.0, 0.9), range(3)):
        scores = [tau * 10 + alpha + seed + i for i in range(5)]
        write_run(tmp_path, env=env, seed=seed, settings={"tau": tau, "alpha": alpha}, scores=scores, done=seed < 2)
    path = tmp_path / "report.html"
    path.write_text(report_html(read_sweep(tmp_path)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (380, False)])
def test_the_report_opens_without_an_error_or_a_request(browser, page, width, dark):
    browser.requests.clear()
    browser.open(page, width=width, dark=dark)
    assert browser.problems == [] and browser.requests == [page.resolve().as_uri()]
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
    browser.requests.clear()
    browser.open(path)
    assert len(browser.requests) == 2 and len(browser.problems) >= 2
    browser.problems.clear()


def test_hovering_reads_out_values_and_the_legend_hides(browser, page):
    browser.open(page)
    x, y = browser.evaluate(
        "(() => { document.querySelector('#curves').scrollIntoView();"
        "const r = document.querySelector('#curves .area').getBoundingClientRect();"
        "return [r.left + r.width - 2, r.top + r.height / 2] })()"
    )
    browser.mouse("mouseMoved", x=x, y=y)
    texts = "[...document.querySelectorAll('.readout div')].map(e => e.innerText.replace(/\\s+/g, ' '))"
    rows = browser.evaluate(texts)
    # The last frame; tau=0.1 alpha=0.9: 1 + 0.9 + {0, 1, 2} + 4, best first.
    assert rows[0].strip() == "500 frames" and len(rows) == 5
    assert rows[1] == "m_dqn tau=0.1 alpha=0.9 (3) 6.9 [4.416, 9.384]"
    button = "document.querySelectorAll('.legend button')[0]"
    center = f"(() => {{ const r = {button}.getBoundingClientRect(); return [r.left + 20, r.top + 8] }})()"
    browser.evaluate("window.scrollTo(0, 0)")
    shown = "[...document.querySelectorAll('#curves g')].filter(e => getComputedStyle(e).display != 'none').length"
    for visible, pressed in ((6, "false"), (8, "true")):
        x, y = browser.evaluate(center)
        browser.mouse("mousePressed", "mouseReleased", x=x, y=y)
        assert (browser.evaluate(shown), browser.evaluate(f"{button}.getAttribute('aria-pressed')")) == (
            visible,
            pressed,
        )
        assert browser.evaluate("document.querySelectorAll('#settings g.off').length") == 0
    assert browser.problems == []
