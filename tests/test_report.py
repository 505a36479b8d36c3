"""A report is one file that opens anywhere, escapes all it is given, and fails without a trace."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from advinterp.report import (
    Section,
    fig_png,
    html_table,
    interval,
    percent,
    published_table1,
    signed,
    with_published,
    write_report,
)

MARKUP = """<b class='x'>&"quoted"</b>"""


class Page(HTMLParser):
    """What a browser would see: the tags, and the text of each kind of tag."""

    VOID = {"meta", "img"}

    def __init__(self, html: str):
        super().__init__()
        self.tags = []
        self.texts = []
        self.open = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.append((tag, ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.texts[-1][0] == self.open[-1]:
            tag, text = self.texts[-1]
            self.texts[-1] = (tag, text + data)

    def text(self, *tags):
        return [text for tag, text in self.texts if tag in tags]

    def attributes(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def figure(slope=1):
    fig = Figure(figsize=(2, 1))
    fig.subplots().plot([0, 1], [0, slope])
    return fig


class NoFigure:
    """A figure that cannot be drawn."""

    def savefig(self, *args, **kwargs):
        raise RuntimeError("cannot be drawn")


@pytest.fixture
def sections():
    table = pd.DataFrame({"data": ["digits", "mushroom"], "gain": [0.25, np.nan]})
    figures = {"line": (figure(), "a rising line"), "fall": (figure(-1), "a falling line")}
    return [Section("Numbers", "One.\n\nTwo.", table), Section("Figures", figures=figures)]


def read(path):
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------- the page


def test_page_shows_what_it_was_given(tmp_path, sections):
    page = Page(read(write_report(tmp_path, "Gains", "What we did.", sections)))
    assert not page.open, "a tag is not closed"
    assert page.text("title", "h1") == ["Gains", "Gains"]
    assert page.text("h2") == ["Numbers", "Figures"]
    assert page.text("p") == ["What we did.", "One.", "Two."]
    assert page.text("th") == ["data", "gain"]
    assert page.text("td") == ["digits", "0.25", "mushroom", ""]


def test_titles_texts_cells_and_alt_texts_are_escaped(tmp_path):
    table = pd.DataFrame({MARKUP: [MARKUP, "plain"], "n": [1, 2]})
    figures = {"line": (figure(), MARKUP)}
    section = Section(MARKUP, MARKUP, table, figures)
    html = read(write_report(tmp_path, MARKUP, MARKUP, [section]))
    page = Page(html)
    assert "<b class" not in html
    assert page.text("title", "h1", "h2", "p") == [MARKUP] * 5
    assert page.text("th") == [MARKUP, "n"]
    assert page.text("td")[0] == MARKUP
    assert page.attributes("img")[0]["alt"] == MARKUP


def test_braces_are_no_template(tmp_path):
    section = Section("{{ 1 + 1 }}", "{% if %}", pd.DataFrame({"x": ["{{ x }}"]}))
    page = Page(read(write_report(tmp_path, "{{ title }}", "{# no #}", [section])))
    assert page.text("h1", "h2", "td") == ["{{ title }}", "{{ 1 + 1 }}", "{{ x }}"]
    assert page.text("p") == ["{# no #}", "{% if %}"]


def test_page_needs_nothing_else(tmp_path, sections):
    html = read(write_report(tmp_path, "Gains", "", sections))
    page = Page(html)
    pictures = [attrs["src"] for attrs in page.attributes("img")]
    assert len(pictures) == 2
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert not {"link", "script", "iframe"} & {tag for tag, _ in page.tags}
    without_pictures = re.sub(r'src="data:[^"]*"', "", html)
    assert not re.search(r"https?:|//|url\(|@import|href=", without_pictures)


def test_embedded_pictures_are_the_files_beside_the_page(tmp_path, sections):
    page = Page(read(write_report(tmp_path, "Gains", "", sections)))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["fall.png", "line.png", "report.html"]
    for attrs, name in zip(page.attributes("img"), ["line", "fall"]):
        embedded = base64.b64decode(attrs["src"].partition(",")[2])
        assert embedded == (tmp_path / f"{name}.png").read_bytes()


def test_same_input_gives_the_same_bytes(tmp_path, sections):
    pages = [write_report(tmp_path / name, "Gains", "", sections) for name in ("a", "b")]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_failing_figure_leaves_the_earlier_page_and_figures(tmp_path, sections):
    write_report(tmp_path, "First", "", sections)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = Section("Other line", figures={"line": (figure(3), "")})
    broken = Section("Broken", figures={"new": (NoFigure(), "")})
    with pytest.raises(RuntimeError, match="cannot be drawn"):
        write_report(tmp_path, "Second", "", [other, broken])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_sections_may_come_one_by_one(tmp_path, sections):
    page = write_report(str(tmp_path), "Gains", "", iter(sections))
    assert page == tmp_path / "report.html"
    assert Page(read(page)).text("h2") == ["Numbers", "Figures"]


# ---------------------------------------------------------------- tables


def alignment(html):
    """Whether each column stands left, from the style of the table."""
    left = {int(column) for column in re.findall(r"\.col(\d+) \{\s*text-align: left", html)}
    return [i in left for i in range(len(Page(html).text("th")))]


def test_text_stands_left_and_numbers_right():
    table = pd.DataFrame(
        dict(name=["digits", ""], gain=["+0.05 [0.04, 0.06]", ""], n=[1, 2], none=[None, None])
    )
    assert alignment(html_table(table)) == [True, False, False, False]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_missing_values_are_empty_cells(missing):
    html = html_table(pd.DataFrame({"x": ["a", missing]}, dtype=object))
    assert Page(html).text("td") == ["a", ""]


def test_cells_are_what_str_says():
    values = [0.1, 12345678.9, True, [1, 2], {"a": "<"}, "nan"]
    html = html_table(pd.DataFrame({"x": pd.Series(values, dtype=object)}))
    assert Page(html).text("td") == [str(value) for value in values]


def test_index_columns_of_one_name_and_no_rows():
    table = pd.DataFrame([["a", 1], ["b", 2]], columns=["x", "x"], index=[7, 7])
    assert Page(html_table(table)).text("th", "td") == ["x", "x", "a", "1", "b", "2"]
    empty = Page(html_table(pd.DataFrame({"x": [], 3: []})))
    assert (empty.text("th"), empty.text("td")) == (["x", "3"], [])


def test_table_is_left_as_it_was():
    table = pd.DataFrame({"x": [0.5, None]}, index=[3, 4])
    before = table.copy()
    html_table(table)
    pd.testing.assert_frame_equal(table, before)


def test_figures_have_no_time_stamp():
    png = fig_png(figure())
    assert png.startswith(b"\x89PNG")
    assert png == fig_png(figure())
    assert len(fig_png(figure(), dpi=300)) > len(png)


# ---------------------------------------------------------------- published numbers


def test_published_rows_are_those_of_the_paper():
    table = published_table1()
    assert list(table) == ["data", "attribution", "method", "strength", "dG", "drop"]
    assert not table.duplicated(["data", "attribution", "method"]).any()
    row = table.query("data == 'cifar10' and method == 'adversarial'").iloc[0]
    assert (row.strength, row.dG, row["drop"]) == (1 / 255, 0.081, 0.0057)
    assert table.query("data == 'cifar10' and method == 'l1'").strength.item() == 1e-5


def test_published_rows_join_on_data_method_and_strength():
    ours = pd.DataFrame(
        [
            ("mnist", "adversarial", 0.3, 1),
            ("mnist", "adversarial", 0.3 + 1e-12, 2),  # written and read again
            ("mnist", "adversarial", 0.2, 3),
            ("mnist", "l1", 0.3, 4),
            ("digits", "adversarial", 0.3, 5),
        ],
        columns=["data", "method", "strength", "seed"],
    )
    both = with_published(ours, "deep_shap")
    assert list(both) == [*ours, "paper_dG", "paper_drop"]
    pd.testing.assert_frame_equal(both[list(ours)], ours)
    assert both.paper_dG.fillna(-1).tolist() == [0.06, 0.06, -1, -1, -1]
    assert both.paper_drop.fillna(-1).tolist() == [0.008, 0.008, -1, -1, -1]


def test_every_published_row_finds_itself():
    table = published_table1()
    for attribution, rows in table.groupby("attribution"):
        both = with_published(rows, attribution)
        assert both.paper_dG.tolist() == rows.dG.tolist()
        assert both.paper_drop.tolist() == rows["drop"].tolist()
    assert with_published(table, "saliency").paper_dG.isna().all()


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "shown, expected",
    [
        (percent(0.9312), "93.1 %"),
        (percent(1, 0), "100 %"),
        (percent(np.nan), ""),
        (signed(0.0512), "+0.051"),
        (signed(-1.5, 1), "-1.5"),
        (signed(None), ""),
        (interval(0.05, 0.04, 0.06), "+0.050 [+0.040, +0.060]"),
        (interval(0.05, 0.04, 0.06, 1), "+0.1 [+0.0, +0.1]"),
        (interval(-0.05, np.nan, np.nan), "-0.050"),
        (interval(np.nan, 0.04, 0.06), ""),
    ],
)
def test_numbers_as_people_read_them(shown, expected):
    assert shown == expected
