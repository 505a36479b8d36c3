"The site: it builds without a warning, and every page is opened in a headless Chromium, on a desk and on a phone, in the light and in the dark."

import json
import shutil
import sys
from pathlib import Path

import pytest

from advinterp._modidx import d as modidx
from tools import browser, docs

DESK, PHONE = dict(width=1280, height=900), dict(width=390, height=844)
AXE = "axe-core@4.14.1"
LOOK = """(() => { const main = document.querySelector('main');
  const bare = (e) => { const c = e.cloneNode(true); c.querySelectorAll('pre, code, script, .katex').forEach(x => x.remove()); return c.innerText; };
  const math = [...main.querySelectorAll('.math')], prose = [main, document.querySelector('#TOC')].filter(Boolean).map(bare).join(' ');
  return { text: main.innerText.length, formulas: math.length, wide: document.documentElement.scrollWidth - innerWidth,
           dark: document.documentElement.classList.contains('quarto-dark'),
           raw: math.filter(e => !e.querySelector('.katex') || e.querySelector('.katex-error')).map(e => e.innerText.slice(0, 80))
                .concat(prose.match(/\\$\\$|\\\\[([]|\\\\(?:frac|mathbb|epsilon|nabla|tag|begin)/g) || []),
           blind: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt || i.src.slice(0, 80)) }; })()"""
# the theme follows the system a moment later
SETTLE = """new Promise(done => { const end = Date.now() + 5000, dark = () => document.documentElement.classList.contains('quarto-dark');
  const f = () => dark() == %s || Date.now() > end ? done() : setTimeout(f, 20); f(); })"""
# a letter stands for each formula: KaTeX draws it for the eye and writes MathML for the ear, and its thousands of spans would take minutes
CHECK = """(document.querySelectorAll('.katex').forEach(e => e.replaceWith('x')), document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>'),
  axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact))
  .map(v => `${v.id} (${v.impact}): ${v.help}: ${v.nodes.slice(0, 3).map(n => n.target.join(' ')).join('; ')}`)))"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder of the built site, and what is wrong with it."
    out = tmp_path_factory.mktemp("docs") / "site"
    return out, docs.build(out)


@pytest.fixture(scope="module")
def chromium():
    if not browser.find():
        pytest.skip("no Chromium here: install it (Debian: chromium) or name it in CHROMIUM")
    with browser.Browser(timeout=180) as b:
        yield b


@pytest.fixture(scope="module")
def axe():
    "The script of axe-core; None where npm cannot get it."
    folder = docs.npm(AXE)
    return (folder / "axe.min.js").read_text(encoding="utf-8") if folder else None


@pytest.fixture(scope="module")
def seen(site, chromium, axe):
    "What a reader's browser finds on each page: (page, width, dark) -> facts; axe-core looks once in each theme and once at each width."
    facts = {}
    for p in sorted(site[0].rglob("*.html")):
        for window, checked in (
            (DESK, False),
            (PHONE, True),
        ):  # `checked`: is axe-core to see the dark theme?
            with chromium.open(p.as_uri(), **window) as page:
                for dark in (not checked, checked):
                    page.show(**window, dark=dark)
                    page.eval(SETTLE % str(dark).lower())
                    f = facts[p.relative_to(site[0]).as_posix(), window["width"], dark] = page.eval(
                        LOOK
                    )
                f["problems"] = page.problems
                if axe:
                    f["axe"] = page.eval(f"{axe}; {CHECK}")
    return facts


def wrong(seen, f):
    return {k: f(v) for k, v in seen.items() if f(v)}


def offline(site):
    return (site[0] / "site_libs/katex").is_dir()


def test_no_warning_broken_link_or_picture_without_text(site):
    assert not site[1], "\n".join(site[1])


def test_a_page_per_notebook_and_all_in_llms_txt(site):
    pages = {p.relative_to(site[0]).with_suffix("").as_posix() for p in site[0].rglob("*.html")}
    notebooks = [
        p.relative_to(docs.NBS)
        for p in docs.NBS.rglob("*.ipynb")
        if not any(o[0] in "._" for o in p.relative_to(docs.NBS).parts)
    ]
    listed = (site[0] / "llms.txt").read_text(encoding="utf-8")
    assert len(pages) >= len(notebooks) > 0
    assert not [
        p
        for p in pages
        if f"/{p}.llms.md)" not in listed or not (site[0] / f"{p}.llms.md").is_file()
    ]


def test_every_public_name_has_its_entry(site):
    ids, missing = {}, []
    for syms in modidx["syms"].values():
        for name, (place, _) in syms.items():
            page, anchor = place.split("#")
            if name.count(".") > 2 or name.rsplit(".", 1)[1].startswith("_"):
                continue  # methods are with their class
            if page not in ids:
                ids[page] = docs.Links(site[0] / page).ids if (site[0] / page).is_file() else set()
            if anchor not in ids[page]:
                missing.append(f"{name} -> {place}")
    assert not missing, missing


def test_no_page_is_heavy(site):
    assert not {
        p.name: p.stat().st_size for p in site[0].rglob("*.html") if p.stat().st_size > 1_500_000
    }


def test_no_error_in_the_browser(site, seen):
    bad = wrong(
        seen,
        lambda v: [p for p in v.get("problems", []) if offline(site) or "katex" not in p.lower()],
    )
    assert not bad, bad


def test_every_formula_is_rendered(site, seen):
    if not offline(site):
        pytest.skip("no KaTeX to copy into the site: npm is missing, and Debian's libjs-katex too")
    assert sum(v["formulas"] for v in seen.values()) > 20
    assert not wrong(seen, lambda v: v["raw"]), wrong(seen, lambda v: v["raw"])


def test_both_themes_are_shown(seen):
    assert not [k for k, v in seen.items() if v["dark"] != k[2]]


def test_no_page_is_empty(seen):
    assert not wrong(seen, lambda v: v["text"] < 300)


def test_every_picture_is_seen(seen):
    assert not wrong(seen, lambda v: v["blind"])


def test_no_page_scrolls_sideways(seen):
    assert not wrong(seen, lambda v: v["wide"] > 0)


def test_no_page_has_a_barrier(seen, axe):
    "axe-core finds nothing serious or critical: contrast in both themes, names, keyboard, structure."
    if not axe:
        pytest.skip(f"no {AXE}: npm is missing or has no network")
    found = wrong(seen, lambda v: v.get("axe"))
    assert not found, json.dumps(
        {f"{k[0]}, {k[1]} wide, {'dark' if k[2] else 'light'}": v for k, v in found.items()},
        indent=1,
    )


def test_axe_finds_a_barrier(chromium, axe, tmp_path):
    "The check above is able to fail."
    if not axe:
        pytest.skip(f"no {AXE}: npm is missing or has no network")
    (tmp_path / "bad.html").write_text(
        '<html lang="en"><title>t</title><main><p style="color: #bbb; background: #fff">pale</p><button></button></main></html>'
    )
    with chromium.open((tmp_path / "bad.html").as_uri()) as page:
        found = " ".join(page.eval(f"{axe}; {CHECK}"))
    assert "color-contrast" in found and "button-name" in found


def test_search_works_from_a_file(site, chromium):
    js = """(async () => { const i = document.querySelector('.smalldocs-search input'); i.value = 'gradient';
      i.dispatchEvent(new Event('input', {bubbles: true})); await new Promise(r => setTimeout(r, 700));
      return document.querySelectorAll('.smalldocs-search-results a').length; })()"""
    with chromium.open((site[0] / "core.html").as_uri()) as page:
        assert page.eval(js) > 0


def test_code_can_be_copied(site, chromium):
    "A click on the button of a code block puts its code on the clipboard."
    js = """(async () => { let got = null; navigator.clipboard.writeText = (t) => { got = t; return Promise.resolve(); };
      const b = document.querySelector('main .code-copy-button'); b.click(); await new Promise(r => setTimeout(r, 100));
      return [got, b.parentElement.querySelector('code').innerText]; })()"""
    with chromium.open((site[0] / "index.html").as_uri()) as page:
        got, code = page.eval(js)
    assert got and got.strip() == code.strip()


# ---------------------------------------------------------------- the build fails on what is broken

DOT = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "text,said",
    [
        ("[a page](nowhere.ipynb)", "broken link nowhere"),
        ("[a place](index.ipynb#nowhere)", "no such place"),
        ("What @fig-nowhere shows", "fig-nowhere"),
        ("![a picture](nowhere.png)", "nowhere.png"),
        ("![](dot.png)", "without alternative text"),
        ("![a dot](dot.png), [this page](index.ipynb#a-place)\n\n## A place", None),
    ],
    ids=["link", "place", "reference", "picture", "alternative text", "nothing broken"],
)
def test_build_fails_on_what_is_broken(text, said, tmp_path, monkeypatch, capsys):
    "One page with one thing broken, by the same command as the site; the last one has nothing broken."
    root = tmp_path / "root"
    nbs = root / "nbs"
    nbs.mkdir(parents=True)
    for f in ("settings.ini", "nbs/nbdev.yml"):
        shutil.copy(docs.ROOT / f, root / f)
    (nbs / "_quarto.yml").write_text("project:\n  type: website\nmetadata-files: [nbdev.yml]\n")
    (nbs / "dot.png").write_bytes(DOT)
    cells = [
        dict(cell_type="markdown", id=f"c{i}", metadata={}, source=s)
        for i, s in enumerate(["# A page\n\n> With a subtitle", text])
    ]
    (nbs / "index.ipynb").write_text(
        json.dumps(
            dict(
                cells=cells,
                metadata=dict(
                    kernelspec=dict(name="python3", display_name="python3", language="python")
                ),
                nbformat=4,
                nbformat_minor=5,
            )
        )
    )
    monkeypatch.setattr(docs, "ROOT", root)
    monkeypatch.setattr(docs, "NBS", nbs)
    monkeypatch.setattr(sys, "argv", ["docs.py", "--out", str(tmp_path / "site")])
    with pytest.raises(SystemExit) as e:
        docs.main()
    out = capsys.readouterr().out
    assert bool(e.value.code) == bool(said) and (said or "1 pages") in out, out
