"""The site: it builds without a warning, and every page is opened in a headless Chromium.

On a desk and on a phone, in the light and in the dark.
"""

import json
import re
import shutil
import sys

import pytest

from advinterp._modidx import d as modidx
from tests.repo import NOTEBOOKS
from tools import browser, docs

pytestmark = pytest.mark.whole

DESK = dict(width=1280, height=900)
PHONE = dict(width=390, height=844)
AXE = "axe-core@4.14.1"

# what a reader sees on a page
LOOK = r"""(() => {
  const main = document.querySelector('main');
  const bare = (element) => {
    const copy = element.cloneNode(true);
    copy.querySelectorAll('pre, code, script, .katex').forEach(part => part.remove());
    return copy.innerText;
  };
  const math = [...main.querySelectorAll('.math')];
  const isRaw = e => !e.querySelector('.katex') || e.querySelector('.katex-error');
  const prose = [main, document.querySelector('#TOC')].filter(Boolean).map(bare).join(' ');
  const leftovers = prose.match(/\$\$|\\[([]|\\(?:frac|mathbb|epsilon|nabla|tag|begin)/g) || [];
  const code = [...main.querySelectorAll('pre.sourceCode')];
  return {
    text: main.innerText.length,
    formulas: math.length,
    wide: document.documentElement.scrollWidth - innerWidth,
    cut: code.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText.slice(0, 200)),
    dark: document.documentElement.classList.contains('quarto-dark'),
    raw: math.filter(isRaw).map(e => e.innerText.slice(0, 80)).concat(leftovers),
    blind: [...document.images].filter(image => !image.complete || !image.naturalWidth)
      .map(image => image.alt || image.src.slice(0, 80)),
  };
})()"""

# the theme follows the system a moment later
SETTLE = """new Promise(done => {
  const end = Date.now() + 5000;
  const isDark = () => document.documentElement.classList.contains('quarto-dark');
  const look = () => isDark() == %s || Date.now() > end ? done() : setTimeout(look, 20);
  look();
})"""

# a letter stands for each formula: KaTeX draws it for the eye and writes MathML for the ear, and
# its thousands of spans would take minutes
CHECK = """(
  document.querySelectorAll('.katex').forEach(formula => formula.replaceWith('x')),
  document.head.insertAdjacentHTML('beforeend',
    '<style>* { transition: none !important }</style>'),
  axe.run(document, {resultTypes: ['violations']}).then(result => result.violations
    .filter(found => ['serious', 'critical'].includes(found.impact))
    .map(found => `${found.id} (${found.impact}): ${found.help}: ` +
      found.nodes.slice(0, 3).map(node => node.target.join(' ')).join('; '))))"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site, and what is wrong with it."""
    out = tmp_path_factory.mktemp("docs") / "site"
    return out, docs.build(out)


@pytest.fixture(scope="module")
def chromium():
    if not browser.find():
        pytest.skip("no Chromium here: install it (Debian: chromium) or name it in CHROMIUM")
    with browser.Browser(timeout=180) as opened:
        yield opened


@pytest.fixture(scope="module")
def axe():
    """The script of axe-core; None where npm cannot get it."""
    folder = docs.npm(AXE)
    return (folder / "axe.min.js").read_text(encoding="utf-8") if folder else None


@pytest.fixture(scope="module")
def seen(site, chromium, axe):
    """What a reader's browser finds on each page: (page, width, dark) -> facts.

    axe-core looks once in each theme and once at each width.
    """
    facts = {}
    for path in sorted(site[0].rglob("*.html")):
        name = path.relative_to(site[0]).as_posix()
        for window, checked_theme in ((DESK, False), (PHONE, True)):
            with chromium.open(path.as_uri(), **window) as page:
                for dark in (not checked_theme, checked_theme):
                    page.show(**window, dark=dark)
                    page.eval(SETTLE % str(dark).lower())
                    found = page.eval(LOOK)
                    facts[name, window["width"], dark] = found
                found["problems"] = page.problems
                if axe:
                    page.eval(axe)
                    found["axe"] = page.eval(CHECK)
    return facts


def wrong(seen, fault) -> dict:
    """The views of pages in which a fault shows."""
    return {view: found for view, facts in seen.items() if (found := fault(facts))}


def has_katex(site) -> bool:
    return (site[0] / "site_libs/katex").is_dir()


def test_no_warning_broken_link_or_picture_without_text(site):
    assert not site[1], "\n".join(site[1])


def test_a_page_per_notebook_and_all_in_llms_txt(site):
    files = list(site[0].rglob("*.html"))
    pages = {path.relative_to(site[0]).with_suffix("").as_posix() for path in files}
    listed = (site[0] / "llms.txt").read_text(encoding="utf-8")
    assert len(pages) >= len(NOTEBOOKS) > 0
    assert not [page for page in pages if f"/{page}.llms.md)" not in listed]
    assert not [page for page in pages if not (site[0] / f"{page}.llms.md").is_file()]


def public_places() -> dict[str, str]:
    """Where the index of nbdev says that a public name is documented; methods are with theirs."""
    places = {}
    for names in modidx["syms"].values():
        for name, (place, _) in names.items():
            is_method = name.replace("advinterp.papers.", "advinterp.").count(".") > 2
            if not is_method and not name.rsplit(".", 1)[1].startswith("_"):
                places[name] = place
    return places


def test_every_public_name_has_its_entry(site):
    ids = {}
    missing = []
    for name, place in public_places().items():
        page, anchor = place.split("#")
        if page not in ids:
            ids[page] = docs.Links(site[0] / page).ids if (site[0] / page).is_file() else set()
        if anchor not in ids[page]:
            missing.append(f"{name} -> {place}")
    assert ids
    assert not missing


def test_contents_name_the_owner_of_a_method(site):
    text = (site[0] / "measure/interpretation.html").read_text(encoding="utf-8")
    contents = text.split('id="TOC"')[1].split("</nav>")[0].replace("<wbr>", "")
    for name in ("AttributionInterpretation.most_concise", "Learner.explain"):
        assert f">{name}</a>" in contents
    for page in site[0].rglob("*.html"):
        contents = page.read_text(encoding="utf-8").partition('id="TOC"')[2].split("</nav>")[0]
        names = re.findall(r">([\w.]+)</a>", contents.replace("<wbr>", ""))
        assert not [name for name in names if docs.is_private(name)], page


def test_pages_open_with_public_names(site):
    """A page of a module lists its names with arguments and examples; helpers are folded."""
    text = (site[0] / "maths/adversary.html").read_text(encoding="utf-8")
    names = text.index('class="public-names"')
    assert names < text.index('<section id="leaving-no-trace"')
    listed = text[names : text.index("</ul>", names)]
    assert "(dual, steps=10, step_size=None" in listed
    assert 'href="#example-pgd"' in listed
    assert 'id="example-pgd"' in text
    open_code = re.sub(r"<details.*?</details>", "", text, flags=re.S)
    bare = re.sub(r"<[^>]+>", "", open_code)
    assert "class PGD(DualAdversary):" in bare
    assert "class _Problem" not in bare
    assert "class _Problem" in re.sub(r"<[^>]+>", "", text)


def test_no_page_is_heavy(site):
    sizes = {path.name: path.stat().st_size for path in site[0].rglob("*.html")}
    assert not {name: size for name, size in sizes.items() if size > 1_500_000}


def test_no_error_in_the_browser(site, seen):
    def errors(facts):
        problems = facts.get("problems", [])
        return [text for text in problems if has_katex(site) or "katex" not in text.lower()]

    assert not wrong(seen, errors)


def test_every_formula_is_rendered(site, seen):
    if not has_katex(site):
        pytest.skip("no KaTeX to copy into the site: npm is missing, and Debian's libjs-katex too")
    assert sum(facts["formulas"] for facts in seen.values()) > 20
    assert not wrong(seen, lambda facts: facts["raw"])


def test_both_themes_are_shown(seen):
    assert not [view for view, facts in seen.items() if facts["dark"] != view[2]]


def test_no_page_is_empty(seen):
    assert not wrong(seen, lambda facts: facts["text"] < 300)


def test_every_picture_is_seen(seen):
    assert not wrong(seen, lambda facts: facts["blind"])


def test_no_page_scrolls_sideways(seen):
    assert not wrong(seen, lambda facts: facts["wide"] > 0)


def test_code_fits_the_page(seen):
    """At 1280 px no line of code runs off the right edge."""
    at_a_desk = {view: facts for view, facts in seen.items() if view[1] == DESK["width"]}
    assert at_a_desk
    assert not wrong(at_a_desk, lambda facts: facts["cut"])


def test_no_page_has_a_barrier(seen, axe):
    """axe-core finds nothing serious: contrast in both themes, names, keyboard, structure."""
    if not axe:
        pytest.skip(f"no {AXE}: npm is missing or has no network")
    found = wrong(seen, lambda facts: facts.get("axe"))
    named = {f"{page}, {width} wide, dark: {dark}": v for (page, width, dark), v in found.items()}
    assert not found, json.dumps(named, indent=1)


def test_axe_finds_a_barrier(chromium, axe, tmp_path):
    """The check above is able to fail."""
    if not axe:
        pytest.skip(f"no {AXE}: npm is missing or has no network")
    (tmp_path / "bad.html").write_text(
        '<html lang="en"><title>t</title><main><p style="color: #bbb; background: #fff">pale</p>'
        "<button></button></main></html>"
    )
    with chromium.open((tmp_path / "bad.html").as_uri()) as page:
        page.eval(axe)
        found = " ".join(page.eval(CHECK))
    assert "color-contrast" in found
    assert "button-name" in found


SEARCH = """(async () => {
  const input = document.querySelector('.smalldocs-search input');
  input.value = 'gradient';
  input.dispatchEvent(new Event('input', {bubbles: true}));
  await new Promise(done => setTimeout(done, 700));
  return document.querySelectorAll('.smalldocs-search-results a').length;
})()"""


def test_search_works_from_a_file(site, chromium):
    with chromium.open((site[0] / "index.html").as_uri()) as page:
        assert page.eval(SEARCH) > 0


# what users of captum, shap, foolbox and their kind ask, in their words, and the place
# of the cookbook that answers
QUESTIONS = {
    "images are normalised": "in-which-units-is-eps",
    "BatchNorm and dropout": "in-train-or-in-eval-mode",
    "DeepSHAP do not add up": "deepshap-values-do-not-add-up",
    "attribution inside the training loss": "stand-inside-the-training-loss",
    "run out of memory": "integrated-gradients-run-out-of-memory",
    "mixed precision": "half-mixed-or-double-precision",
    "the same attack again": "how-do-i-get-the-same-attack-again",
    "attack too weak": "is-the-attack-too-weak",
    "export without this package": "how-do-i-export",
    "took absolute values": "when-i-took-absolute-values",
}
FIND = """async (words) => {
  const input = document.querySelector('.smalldocs-search input');
  input.value = words;
  input.dispatchEvent(new Event('input', {bubbles: true}));
  const results = '.smalldocs-search-results a';
  await new Promise(done => setTimeout(done, 400));
  for (let i = 0; i < 100 && !document.querySelector(results); i++)
    await new Promise(done => setTimeout(done, 100));
  return [...document.querySelectorAll(results)].slice(0, 3).map(a => a.getAttribute('href'));
}"""


@pytest.mark.parametrize("words", QUESTIONS)
def test_a_question_is_answered_by_searching_for_its_words(words, site, chromium):
    """Among the first three results is the answer."""
    with chromium.open((site[0] / "index.html").as_uri()) as page:
        found = page.tab.evaluate(FIND, words)
    assert [link for link in found if "cookbook" in link and QUESTIONS[words] in link], found


COPY = """(async () => {
  let copied = null;
  navigator.clipboard.writeText = (text) => { copied = text; return Promise.resolve(); };
  const button = document.querySelector('main .code-copy-button');
  button.click();
  await new Promise(done => setTimeout(done, 100));
  return [copied, button.parentElement.querySelector('code').innerText];
})()"""


def test_code_can_be_copied(site, chromium):
    """A click on the button of a code block puts its code on the clipboard."""
    with chromium.open((site[0] / "index.html").as_uri()) as page:
        copied, code = page.eval(COPY)
    assert copied
    assert copied.strip() == code.strip()


# ---------------------------------------------------------------- the build fails on what is broken

DOT = b"\x89PNG\r\n\x1a\n"
BROKEN = {
    "link": ("[a page](nowhere.ipynb)", "broken link nowhere"),
    "place": ("[a place](index.ipynb#nowhere)", "no such place"),
    "reference": ("What @fig-nowhere shows", "fig-nowhere"),
    "picture": ("![a picture](nowhere.png)", "nowhere.png"),
    "alternative text": ("![](dot.png)", "without alternative text"),
    "code in a link": ("[what `gini` says](index.ipynb#a-place)\n\n## A place", "unresolved"),
    "code in a link to a place": ("[the `gini`](#a-place)\n\n## A place", "unresolved"),
    "printed link": (r"\[a page\](index.ipynb)", "unresolved"),
}
WHOLE = "![a dot](dot.png), [this page](index.ipynb#a-place)\n\n## A place"


def build_site_of(text, tmp_path, monkeypatch) -> int | None:
    """Build a site of one page by the command; its exit code."""
    root = tmp_path / "root"
    pages = root / "nbs"
    pages.mkdir(parents=True)
    for name in ("settings.ini", "nbs/nbdev.yml"):
        shutil.copy(docs.ROOT / name, root / name)
    quarto = "project:\n  type: website\nmetadata-files: [nbdev.yml]\n"
    (pages / "_quarto.yml").write_text(quarto)
    (pages / "dot.png").write_bytes(DOT)
    sources = ["# A page\n\n> With a subtitle", text]
    cells = [
        dict(cell_type="markdown", id=f"c{i}", metadata={}, source=source)
        for i, source in enumerate(sources)
    ]
    kernel = dict(name="python3", display_name="python3", language="python")
    notebook = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (pages / "index.ipynb").write_text(json.dumps(notebook))
    monkeypatch.setattr(docs, "ROOT", root)
    monkeypatch.setattr(docs, "NBS", pages)
    monkeypatch.setattr(sys, "argv", ["docs.py", "--out", str(tmp_path / "site")])
    with pytest.raises(SystemExit) as exit:
        docs.main()
    return exit.value.code


@pytest.mark.parametrize("name", BROKEN)
def test_build_fails_on_what_is_broken(name, tmp_path, monkeypatch, capsys):
    text, said = BROKEN[name]
    assert build_site_of(text, tmp_path, monkeypatch)
    assert said in capsys.readouterr().out


def test_build_of_what_is_whole(tmp_path, monkeypatch, capsys):
    assert not build_site_of(WHOLE, tmp_path, monkeypatch)
    assert "1 pages" in capsys.readouterr().out
