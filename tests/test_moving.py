"""The figures that move: each in Chromium, by keyboard, mouse and finger, and without scripts."""

import json
import re

import pytest

from tests.repo import NBS
from tools import browser

PAGES = {
    "pruning": "learn/03_pruning",
    "norms": "tutorials/choosing_a_norm",
    "tradeoff": "which_training",
}
SHELL = '<!doctype html><html lang="en"><title>t</title><body><main>{}</main></body></html>'


def figure_of(page) -> str:
    """The moving figure that a notebook has made."""
    notebook = json.loads((NBS / f"{page}.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    made = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    figures = [text for text in made if text.startswith('<figure class="moving"')]
    assert len(figures) == 1
    return figures[0]


@pytest.fixture(scope="module")
def chromium():
    if not browser.find():
        pytest.skip("no Chromium here: install it (Debian: chromium) or name it in CHROMIUM")
    with browser.Browser() as opened:
        yield opened


@pytest.fixture(params=PAGES)
def figure(request, chromium, tmp_path):
    """A page with the figure alone: its name and the open page."""
    file = tmp_path / "figure.html"
    file.write_text(SHELL.format(figure_of(PAGES[request.param])), encoding="utf-8")
    with chromium.open(file.as_uri(), width=390, height=844) as page:
        yield request.param, page
        assert not page.problems


SAID = "document.querySelector('.stage [aria-live]').textContent"


def test_by_keyboard(figure):
    name, page = figure
    before = page.eval(SAID)
    control = "select" if name == "tradeoff" else "input"
    page.tab.focus(f".stage {control}")
    page.tab.keyboard.press("ArrowDown" if control == "select" else "ArrowRight")
    after = page.eval(SAID)
    assert before != after
    assert len(after) > 20
    assert page.eval("document.documentElement.scrollWidth <= innerWidth")


def test_what_the_pruning_figure_says(chromium, tmp_path):
    """Every eps of the slider, against the strengths that the page names."""
    file = tmp_path / "figure.html"
    file.write_text(SHELL.format(figure_of(PAGES["pruning"])), encoding="utf-8")
    move = """(i) => {
      const input = document.querySelector('.stage input');
      input.value = i;
      input.dispatchEvent(new Event('input'));
      return %s;
    }"""
    strengths = [0.05, 0.1, 0.2, 0.3, 0.5, 0.8]
    with chromium.open(file.as_uri()) as page:
        for i in (0, 14, 24, 39, 69):
            words = page.tab.evaluate(move % SAID, i)
            eps = float(re.search(r"eps = ([\d.]+)", words).group(1))
            named = [float(text) for text in re.findall(r"[\d.]*\d", words.split("strength")[1])]
            assert named == [strength for strength in strengths if strength > eps]


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_the_gradient_is_dragged(kind, chromium, tmp_path):
    file = tmp_path / "figure.html"
    file.write_text(SHELL.format(figure_of(PAGES["norms"])), encoding="utf-8")
    with chromium.open(file.as_uri(), width=390, height=844) as page:
        page.eval("document.querySelector('.stage svg').scrollIntoView()")
        box = page.tab.locator(".stage svg").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        unit = 95 * box["width"] / 340  # one of the drawing's units, in pixels of the window
        if kind == "mouse":
            page.tab.mouse.move(x, y)
            page.tab.mouse.down()
            page.tab.mouse.move(x - unit, y - unit / 2, steps=3)
            page.tab.mouse.up()
        else:
            touch = page.tab.context.new_cdp_session(page.tab)
            points = [(x, y), (x - unit / 2, y - unit / 4), (x - unit, y - unit / 2)]
            for kind_of_event, at in zip(("touchStart", "touchMove", "touchMove"), points):
                event = dict(type=kind_of_event, touchPoints=[dict(x=at[0], y=at[1])])
                touch.send("Input.dispatchTouchEvent", event)
            touch.send("Input.dispatchTouchEvent", dict(type="touchEnd", touchPoints=[]))
        words = page.eval(SAID)
        # in the square the best move is a corner, and the penalty the sum of the sizes
        assert "gradient (-1.00, 0.50): best move (-1.00, 1.00), penalty 1.50" in words


@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_picture_and_words_are_left(name, chromium, tmp_path):
    made = figure_of(PAGES[name])
    assert len(made.encode()) < 150_000
    assert not re.findall(r"(?:src|href)=\"(?!data:)", made)
    file = tmp_path / "figure.html"
    file.write_text(SHELL.format(made), encoding="utf-8")
    tab = chromium.chromium.new_page(java_script_enabled=False)
    tab.goto(file.as_uri())
    assert tab.locator("figure.moving img").bounding_box()["width"] > 200
    assert len(tab.locator("figcaption").inner_text()) > 80
    tab.close()
