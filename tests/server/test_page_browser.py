"""The pages in a real browser: they fit a phone, can be read, and nothing in them runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import CHROMIUM, Browser, browsing
from page_server import HOSTILE, PageServer, page_server, settled

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

SMALLEST, PHONE, TABLET, DESKTOP = 320, 360, 768, 1280

# Text whose contrast with what lies behind it is below 4.5, as WCAG 2.2 (1.4.3) asks for.
_FAINT = """
(() => {
  const parts = color => (color.match(/[\\d.]+/g) || []).map(Number);
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = parts(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("option, title, .skip")) continue;
    const style = getComputedStyle(element);
    const ink = parts(element.closest("svg") ? style.fill : style.color);
    const [low, high] = [light(ink), light(behind(element))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) found.push(walker.currentNode.data.trim());
  }
  return found;
})()
"""

# What a screen reader could not make sense of.
_UNNAMED = """
[
  ...[...document.querySelectorAll("input:not([type=hidden]), select")]
    .filter(e => !e.labels.length),
  ...document.querySelectorAll("thead th:not([scope]):not([aria-hidden])"),
  ...[...document.querySelectorAll("a, button")].filter(e => !e.textContent.trim()),
  ...[...document.querySelectorAll("[aria-labelledby]")]
    .filter(e => !document.getElementById(e.getAttribute("aria-labelledby"))),
].map(e => e.outerHTML)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    with page_server(tmp_path_factory.mktemp("server")) as made:
        yield settled(made)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as made:
        yield made


@pytest.fixture
def visitor(browser: Browser, server: PageServer) -> Browser:
    """A browser in which a viewer has logged in."""
    secret = server.service.registry.open_session(
        next(each for each in server.service.registry.operators() if each.role == "viewer")
    )
    browser.call(
        "Network.setCookie", name="fedspk_session", value=secret, url=server.address, httpOnly=True
    )
    browser.messages.clear()
    return browser


PAGES = (
    *("/", "/versions", "/versions/1", "/versions/2", "/versions/3", "/versions/4"),
    *("/generators/1", "/rounds", "/devices", "/devices?state=failed", "/audit"),
    *(f"/devices/{{{name}}}" for name in ("busy", "full", "mute")),
)


def test_an_operator_logs_in_looks_and_logs_out(browser: Browser, server: PageServer) -> None:
    browser.call("Network.clearBrowserCookies")
    browser.look(PHONE)
    browser.open(f"{server.address}/devices?state=failed")
    assert browser.run("location.pathname") == "/login"
    browser.run("document.querySelector('#token').value = 'fedspk_wrong'")
    browser.act("document.querySelector('form').requestSubmit()")
    assert "No operator" in browser.run("document.querySelector('[role=alert]').textContent")
    browser.run(f"document.querySelector('#token').value = '{server.tokens['viewer']}'")
    browser.act("document.querySelector('form').requestSubmit()")
    assert browser.run("location.pathname + location.search") == "/devices?state=failed"
    assert browser.run("document.cookie") == ""
    browser.act("document.querySelector('tbody a').click()")
    assert "disk is full" in browser.run("document.querySelector('main').innerText")
    browser.act("document.querySelector('.who').requestSubmit()")
    assert browser.run("location.pathname") == "/login"
    browser.open(f"{server.address}/")
    assert browser.run("location.pathname") == "/login"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_every_window_and_can_be_read(
    visitor: Browser, server: PageServer, path: str
) -> None:
    visitor.open(server.address + path.format(**server.devices))
    for width in (SMALLEST, PHONE, TABLET, DESKTOP):
        visitor.look(width)
        assert visitor.run("document.scrollingElement.scrollWidth") <= width, width
        assert visitor.run("window.innerWidth") == width, width
    for dark in (False, True):
        visitor.look(DESKTOP, dark=dark)
        assert visitor.run(_FAINT) == [], f"dark: {dark}"
    assert visitor.run(_UNNAMED) == []
    for landmark in ("header", "main", "footer", "h1", "nav[aria-label=Pages]", "html[lang]"):
        assert visitor.run(f"document.querySelectorAll('{landmark}').length") == 1, landmark
    assert visitor.messages == []
    assert visitor.run("window.broken") is None


def test_hostile_text_is_shown_as_it_is(visitor: Browser, server: PageServer) -> None:
    visitor.open(f"{server.address}/versions/2")
    assert HOSTILE in visitor.run("document.querySelector('main').textContent")


def test_dark_and_light_follow_the_readers_choice(visitor: Browser, server: PageServer) -> None:
    visitor.open(server.address)
    grounds = []
    for dark in (False, True):
        visitor.look(DESKTOP, dark=dark)
        grounds.append(visitor.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]


def test_a_bar_is_as_long_as_its_share(visitor: Browser, server: PageServer) -> None:
    visitor.look(DESKTOP)
    visitor.open(server.address)
    widths = visitor.run(
        "Object.fromEntries([...document.querySelectorAll('.fleet tbody tr')].map(row => ["
        "row.querySelector('th').textContent.trim().split(' ')[0],"
        "[...row.querySelectorAll('rect')].map(r => r.getBoundingClientRect().width)]))"
    )
    fleet = server.api("fleet")["versions"]
    most = max(sum(counts.values()) for counts in fleet.values())
    whole = visitor.run(
        "document.querySelector('.fleet tbody .plot svg').getBoundingClientRect().width"
    )
    for version, counts in fleet.items():
        wanted = [counts[name] / most * whole for name in ("serving", "updating", "failed")]
        assert widths[version] == pytest.approx(wanted, abs=0.5)


def test_a_point_of_the_chart_lies_at_its_error_rate(visitor: Browser, server: PageServer) -> None:
    visitor.look(DESKTOP)
    visitor.open(f"{server.address}/versions")
    marks = visitor.run(
        "[...document.querySelectorAll('.levels text')].map("
        "t => { const r = t.getBoundingClientRect();"
        " return [Number(t.textContent), r.top + r.height / 2] })"
    )
    (low, bottom), (high, top) = marks[0], marks[-1]
    points = visitor.run(
        "Object.fromEntries([...document.querySelectorAll('.chart .point')].map(g => ["
        "g.querySelector('title').textContent.match(/Version (\\d+)/)[1],"
        "(r => r.top + r.height / 2)(g.querySelector('circle').getBoundingClientRect())]))"
    )
    versions = [each for each in server.api("versions")["versions"] if each["evaluation"]]
    assert points.keys() == {str(each["version"]) for each in versions}
    for each in versions:
        place = points[str(each["version"])]
        rate = low + (place - bottom) / (top - bottom) * (high - low)
        assert rate == pytest.approx(each["evaluation"]["eer"], abs=0.1)
