"""The page of a run in a real browser: plots, sizes, light and dark, contrast, the animation; and no network."""

import functools
from pathlib import Path

import pytest
import report_runs

from vrpo.report.page import write
from vrpo.report.reading import read_run

CHROMIUM = Path("/usr/bin/chromium")
ARGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--no-first-run")  # fmt: skip
# Text elements, one of each kind, whose contrast with what lies behind them is measured.
TEXTS = (
    "h1", ".kind", ".ending", ".figures dt", ".figures dd.of", ".finding p", ".finding .muted", ".sign", "h2 a",
    ".lead", "figcaption", ".panel h4 a", ".xtick text", ".ytick text", ".ytitle", ".legendtext", ".prompt",
    ".answer h4", ".tokens .changed", ".tokens .tail", "nav a", ".options th", ".options td", ".command code", "button",
    ".controls output", "summary", "footer",
)  # fmt: skip

PLACES = "[...document.querySelectorAll('.plot')]"
# Paints what lies behind an element, from the outermost one, onto one pixel, and the element's text onto another.
CONTRAST = """(element) => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const paint = (color) => { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); };
  const luminance = () => {
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parents = [];
  for (let each = element; each; each = each.parentElement) parents.unshift(each);
  for (const each of parents) paint(getComputedStyle(each).backgroundColor);
  const behind = luminance();
  const style = getComputedStyle(element);
  paint(element instanceof SVGElement ? style.fill : style.color);
  const text = luminance();
  return (Math.max(behind, text) + 0.05) / (Math.min(behind, text) + 0.05);
}"""


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser: {CHROMIUM} is not there")
    api = pytest.importorskip("playwright.sync_api", reason='needs playwright: pip install "llada-vrpo[dev]"')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {
        "preferences": [report_runs.preference_run(folder / "a", steps=80, noise=1.6, growth=0.5, n_t=1)],
        "likelihood": [report_runs.likelihood_run(folder / "b", steps=40)],
        "several": report_runs.comparison_runs(folder / "c", steps=40)[:6],
    }
    return {name: write([read_run(run) for run in each], folder / f"{name}.html") for name, each in runs.items()}


class Opened:
    """A page in a browser, and what it has said and asked for."""

    def __init__(self, browser, path: Path):
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function(
            "[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))"
        )

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def plot_sizes(self) -> list[list[float]]:
        """Width and height of each plot, and the width that it has room for."""
        svg = "place.querySelector('.main-svg').getBoundingClientRect()"
        return self.page.evaluate(f"{PLACES}.map((place) => [{svg}.width, {svg}.height, place.clientWidth])")


PLOTS = {"preferences": 17 + 2 + 1, "likelihood": 8 + 2, "several": 16 + 1 + 2}


@pytest.fixture(scope="module")
def opened(browser, pages):
    """The pages by name, each opened once."""
    return functools.cache(lambda name: Opened(browser, pages[name]))


@pytest.mark.parametrize("name", PLOTS)
def test_a_page_draws_its_plots_without_errors_or_network_at_both_widths(opened, name):
    shown = opened(name)
    page, sizes = shown.page, shown.plot_sizes()
    assert len(sizes) == PLOTS[name]
    assert all(width > 300 and height > 200 for width, height, _ in sizes)
    assert page.evaluate(f"{PLACES}.every((place) => place.querySelector('.plot-container path'))")
    assert shown.overflow() <= 0
    page.set_viewport_size({"width": 400, "height": 800})
    fits = "place.querySelector('.main-svg').clientWidth <= place.clientWidth"
    page.wait_for_function(f"{PLACES}.every((place) => {fits})")
    assert shown.overflow() <= 0
    assert all(250 < width <= room < 400 for width, _, room in shown.plot_sizes())
    page.set_viewport_size({"width": 1280, "height": 900})
    ids = page.evaluate("[...document.querySelectorAll('main section[id], .panel, .controls [id]')].map((e) => e.id)")
    links = page.evaluate("[...document.querySelectorAll('a[href]')].map((e) => e.getAttribute('href'))")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert not shown.said
    assert all(url.startswith(("file://", "data:", "blob:")) for url in shown.asked)


def test_text_is_readable_in_light_and_in_dark(opened):
    page, backgrounds = opened("preferences").page, []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        contrasts = {text: page.locator(text).first.evaluate(CONTRAST) for text in TEXTS}
        contrasts["the least sure token"] = page.locator(".legend .tokens span").nth(2).evaluate(CONTRAST)
        assert min(contrasts.values()) >= 4.5, (scheme, contrasts)
    assert backgrounds[0] != backgrounds[1]
    behind = "getComputedStyle(document.querySelector('.plot .main-svg')).backgroundColor"
    assert page.evaluate(behind) == "rgba(0, 0, 0, 0)"


def test_the_animation_steps_plays_and_stops(opened):
    shown = opened("preferences")
    page = shown.page
    page.emulate_media(reduced_motion="no-preference")
    masks, slider, first = (page.locator(each) for each in ("#canvases .mask", "#pass", "#canvases span >> nth=0"))
    tokens = page.locator("#canvases span").count()
    assert tokens == 2 * 48
    assert slider.get_attribute("max") == "24"
    for value, left in (("0", tokens), ("6", tokens - 2 * 12), ("24", 0)):
        slider.fill(value)
        assert masks.count() == left
        assert page.locator("#passes").inner_text() == f"pass {value} of 24"
    assert page.locator("#canvases p").nth(1).inner_text().startswith("She takes 12 * 0.5 = 6")
    page.locator("#play").click()
    page.wait_for_function("document.getElementById('pass').value >= 2 && document.getElementById('pass').value < 24")
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"
    page.locator("#which").select_option("1")
    assert "<script>alert('answer')</script>" in page.locator("#canvases").inner_text()
    assert first.evaluate("(each) => getComputedStyle(each).transitionDuration") != "0s"
    page.emulate_media(reduced_motion="reduce")
    assert first.evaluate("(each) => getComputedStyle(each).transitionDuration") == "0s"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")
    assert not shown.said
