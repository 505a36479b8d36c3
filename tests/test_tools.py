"""What the Makefile runs finds what it is there to find."""

import json
import shutil

import pytest

from tools import browser, docs, fresh, readme


def nb(*cells):
    def cell(kind, src, *outputs):
        return dict(cell_type=kind, source=src, outputs=list(outputs))

    return json.dumps(dict(cells=[cell(*c) for c in cells]))


def test_readme_shows_prose_code_and_results(tmp_path):
    out = dict(output_type="stream", name="stdout", text=["2\n"])
    table = dict(
        output_type="execute_result", data={"text/markdown": "|a|\n|-|", "text/plain": "<table>"}
    )
    figure = dict(output_type="display_data", data={"image/png": "xx", "text/plain": "<Figure>"})
    f = tmp_path / "index.ipynb"
    f.write_text(
        nb(
            ("raw", "---\ntitle: no\n---"),
            (
                "markdown",
                "# Name\n\n> Subtitle\n\n[core](00_core.ipynb#a) [web](https://x.org) [here](#b)",
            ),
            ("code", "#| hide\nimport os"),
            ("code", "#| export\ndef f(): pass"),
            ("code", "print(1+1)", out),
            ("code", "#| echo: false\nt", table, figure),
        )
    )
    assert readme.readme(f) == (
        readme.NOTE + "\n\n# Name\n\n> Subtitle\n\n"
        "[core](nbs/00_core.ipynb#a) [web](https://x.org) [here](#b)\n\n"
        "```python\nprint(1+1)\n```\n\n```\n2\n```\n\n|a|\n|-|\n"
    )


def test_site_problems_are_found(tmp_path):
    good = (
        '<main><h2 id="a">A</h2><a href="b.html#b">b</a>'
        '<img src="p.png" alt="a picture"><code>@fig-one</code></main>'
    )
    (tmp_path / "a.html").write_text(good)
    (tmp_path / "p.png").write_bytes(b"x")
    (tmp_path / "b.html").write_text(
        '<main><h2 id="b">B</h2><a href="https://x.org/gone">web</a></main>'
    )
    assert docs.problems(tmp_path) == []
    (tmp_path / "a.html").write_text(
        good
        + '<a href="b.html#c">no place</a><a href="c.html">no page</a><img src="q.png"> see @eq-one'
    )
    assert docs.problems(tmp_path) == [
        "a.html: no such place b.html#c",
        "a.html: broken link c.html",
        "a.html: broken link q.png",
        "a.html: 1 picture(s) without alternative text (`#| fig-alt: ...` at the top of the cell)",
        "a.html: unresolved @eq-one",
    ]


def test_text_below_the_subtitle_is_kept():
    from execnb.nbio import mk_cell

    class Book:
        cells = [
            mk_cell("#| hide"),
            mk_cell("# Name\n\n> Subtitle\n\nText.\n\n> A quote.", "markdown"),
            mk_cell("More.", "markdown"),
        ]

    docs.split_title(Book)
    assert [c.source.strip() for c in Book.cells] == [
        "#| hide",
        "# Name\n\n> Subtitle",
        "Text.\n\n> A quote.",
        "More.",
    ]
    docs.split_title(Book)
    assert len(Book.cells) == 4


def test_build_leaves_a_folder_that_is_no_site_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(SystemExit, match="not a built site"):
        docs.build(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "x"


def test_browser_sees_errors(tmp_path):
    if not browser.find():
        pytest.skip("no Chromium here: install it (Debian: chromium) or name it in CHROMIUM")
    (tmp_path / "p.html").write_text(
        '<h1>hi</h1><img src="none.png"><script>console.error("bad", 3); missing();</script>'
    )
    with browser.Browser() as b, b.open((tmp_path / "p.html").as_uri()) as page:
        assert page.eval("document.body.innerText").strip() == "hi"
        found = " | ".join(page.problems)
    assert "none.png" in found and "console: bad 3" in found and "missing is not defined" in found


def test_browser_sees_raw_formulas(tmp_path):
    if not browser.find():
        pytest.skip("no Chromium here: install it (Debian: chromium) or name it in CHROMIUM")
    from tests.test_docs import LOOK

    raw = (
        r'<main><p><span class="math inline">\(x\)</span> and $$y$$ and \[z\]</p>'
        r'<pre>\(code\)</pre></main><nav id="TOC">\mathbb{E}</nav>'
    )
    done = (
        '<main><p><span class="math inline"><span class="katex">x</span></span> costs $5</p></main>'
    )
    with browser.Browser() as b:
        for text, found in ((raw, 6), (done, 0)):
            (tmp_path / "p.html").write_text(text)
            with b.open((tmp_path / "p.html").as_uri()) as page:
                assert len(page.eval(LOOK)["raw"]) == found, page.eval(LOOK)["raw"]


def test_stale_and_orphan_files_are_found(tmp_path):
    names = ["settings.ini", "nbs/maths/00_core.ipynb", "advinterp/core.py"]
    for name in names + [f"advinterp/{by_hand}" for by_hand in fresh.BY_HAND]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(fresh.ROOT / name, tmp_path / name)

    def stale_files():
        lines = [line for line in fresh.stale(tmp_path) if "_modidx" not in line]
        return [line.split()[0] for line in lines]

    assert stale_files() == []
    module = tmp_path / "advinterp/core.py"
    module.write_text(module.read_text() + "\n")
    (tmp_path / "advinterp/old.py").write_text("")
    notebook = tmp_path / "nbs/maths/00_core.ipynb"
    changed = notebook.read_text().replace('"metadata": {}', '"metadata": {"scrolled": true}', 1)
    notebook.write_text(changed)
    expected = ["nbs/maths/00_core.ipynb", "advinterp/core.py", "advinterp/old.py"]
    assert stale_files() == expected
