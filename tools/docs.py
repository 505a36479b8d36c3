"""Build the documentation site from the notebooks, `_quarto.yml` and `nbs/nbdev.yml`, without Quarto.

nbdev's own processors turn each notebook into a page (signatures and docments of what it exports, links for names in backticks,
source links) and smalldocs lays the pages out. `nbdev_docs` reads the same files where Quarto is installed. What is added here
makes the site work without a network: KaTeX and the search index lie beside the pages, and links to the published site become
relative. The build fails on any warning, broken link, unknown reference, missing picture or picture without alternative text.

    python tools/docs.py --out _docs"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"

# ---------------------------------------------------------------- KaTeX, and other packages of npm


def npm(package: str) -> Path | None:
    "The folder of an npm package such as `axe-core@4.10.2`, fetched once per environment; None where npm cannot get it."
    name = package.split("@")[0]
    prefix = Path(sys.prefix) / name
    folder = prefix / "node_modules" / name
    if not folder.is_dir() and shutil.which("npm"):
        prefix.mkdir(exist_ok=True)
        try:
            subprocess.run(
                [
                    "npm",
                    "install",
                    "--silent",
                    "--no-save",
                    "--no-audit",
                    "--no-fund",
                    "--prefix",
                    str(prefix),
                    package,
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=120,
            )
        except subprocess.TimeoutExpired:
            pass
    return folder if folder.is_dir() else None


def katex() -> Path | None:
    "The folder of a KaTeX that can be copied: one named by KATEX, npm's, or Debian's."
    from smalldocs.layout import KATEX

    if named := os.environ.get("KATEX"):
        places = [Path(named)]
    else:
        places = [p / "dist" for p in [npm(KATEX.split("/")[-2])] if p] + [
            Path("/usr/share/javascript/katex")
        ]
    return next((p for p in places if (p / "katex.min.js").is_file()), None)


def copy_katex(src: Path, dst: Path):
    "Copy what a page needs of KaTeX; fonts that a distribution leaves out also leave the style sheet."
    (dst / "contrib").mkdir(parents=True)
    shutil.copy(src / "katex.min.js", dst)
    auto = next(
        p
        for p in (src / "contrib/auto-render.min.js", src / "contrib/auto-render.js")
        if p.is_file()
    )
    shutil.copy(auto, dst / "contrib/auto-render.min.js")
    fonts = {p.name for p in (src / "fonts").iterdir()}
    kept = {f for f in fonts if f.endswith(".woff2")} or fonts
    shutil.copytree(
        src / "fonts", dst / "fonts", ignore=lambda _, names: [n for n in names if n not in kept]
    )
    css = (src / "katex.min.css").read_text()
    one = re.compile(r'url\(["\']?fonts/([^)"\']+)["\']?\) ?format\(["\'][^)]+\)')
    css = re.sub(
        r"src:([^;}]+)",
        lambda m: (
            "src:" + ",".join(u.group(0) for u in one.finditer(m.group(1)) if u.group(1) in kept)
        ),
        css,
    )
    (dst / "katex.min.css").write_text(css)


# ---------------------------------------------------------------- notebooks -> pages -> site

TITLE = re.compile(r"((?:\s*(?:# |> |- [\w-]+: )[^\n]*\n?)+)(.*)", re.S)
DEFINES = re.compile(r"^#\| *export *$(?=.*^(?:class|def) )", re.M | re.S)
FOLD = '#| code-fold: show\n#| code-summary: "Exported source"\n'


def split_title(nb):
    "Put the text below title and subtitle into a cell of its own: nbdev reads the first heading's cell as front matter, and drops its text."
    from execnb.nbio import mk_cell

    i = next(
        (
            i
            for i, c in enumerate(nb.cells)
            if c.cell_type == "markdown" and re.search(r"^# ", c.source, re.M)
        ),
        None,
    )
    if i is None:
        return
    title, text = TITLE.match(nb.cells[i].source).groups()
    if text.strip():
        nb.cells[i].source = title
        nb.cells.insert(i + 1, mk_cell(text.strip("\n"), "markdown"))


def with_source(cells: list) -> list:
    """The cells with each definition in one piece: its heading and docstring, then its source.

    A derivation is read beside the code that computes it. The signature, which the source repeats, is left out."""
    from execnb.nbio import mk_cell
    from nbdev.showdoc import showdoc_nm  # `Class.method` for a method added with @patch

    shown = {
        m.group(1): c for c in cells if (m := re.search(r"^show_doc\(([\w.]+)\)", c.source, re.M))
    }
    pieces, moved = {}, set()
    for c in cells:
        if not c.source.startswith(FOLD):
            continue
        lines, at = c.source.removeprefix(FOLD).splitlines(), 0
        defs = [
            (n, d)
            for n in ast.parse("\n".join(lines)).body
            if hasattr(n, "name") and (d := shown.get(str(showdoc_nm(n))))
        ]
        ends = [n.end_lineno for n, _ in defs[:-1]] + [len(lines)]
        pieces[id(c)] = []
        for (_, doc), end in zip(defs or [(None, None)], ends):
            if doc:
                for o in doc.outputs:
                    o["data"]["text/markdown"] = re.sub(
                        r"```python\n.*?\n```\n",
                        "",
                        "".join(o["data"]["text/markdown"]),
                        flags=re.S,
                    )
                pieces[id(c)].append(doc)
                moved.add(id(doc))
            pieces[id(c)].append(mk_cell("\n".join(lines[at:end]).strip("\n")))
            at = end
    return [o for c in cells if id(c) not in moved for o in pieces.get(id(c), [c])]


def process(dst: Path) -> list:
    """Write each notebook as nbdev shows it, with the source of what it defines below each signature, and copy the files beside them;
    what went wrong, one line each."""
    from nbdev.doclinks import nbglob
    from nbdev.processors import FilterDefaults
    from nbdev.serve_drv import main as process_notebook

    class WithSource(FilterDefaults):
        def __call__(self, nb):
            split_title(nb)
            for c in nb.cells:
                if c.cell_type == "code":
                    c.source = DEFINES.sub("#| exports", c.source)
            super().__call__(nb)
            nb.cells = with_source(nb.cells)

    bad = []
    for src in sorted(map(Path, [*nbglob(NBS, file_glob="", file_re=""), NBS / "_quarto.yml"])):
        to, name = dst / src.relative_to(NBS), src.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        if src.suffix != ".ipynb":
            shutil.copy(src, to)
            continue
        try:
            process_notebook((src, to, WithSource))
        except Exception as e:
            bad.append(f"{name}: {str(e) or type(e).__name__}")
    return bad


def render(src: Path, out: Path) -> list:
    "Lay the pages out with smalldocs; the warnings."
    from smalldocs import config, site

    class Site(site.Site):
        "Pages under the names that nbdev gives them: `00_core.ipynb` becomes `core.html`, as in Quarto."

        def read(self, src):
            page = super().read(src)
            page.out = page.out.with_name(page.front.get("output-file", page.out.name))
            return page

    s = Site(config.load(src), quiet=True)
    s.out = out
    s.build()
    quarto_only = (
        "output-file is not read",
        "respect-user-color-scheme is ignored",
    )  # smalldocs follows the system without being told
    return [w for w in s.warnings if not any(q in w for q in quarto_only)]


SCRIPT = """
addEventListener("load", () => {
  // a formula in a heading is a formula in the table of contents too
  document.querySelectorAll("#TOC a").forEach((a) => {
    const h = document.getElementById(decodeURIComponent(a.hash.slice(1))), own = h && (h.matches("h1,h2,h3,h4") ? h : h.querySelector("h2,h3,h4"));
    if (own && own.querySelector(".katex")) a.replaceChildren(...[...own.cloneNode(true).childNodes].filter((n) => !n.classList || !n.classList.contains("anchorjs-link")));
  });
  // what scrolls can be reached from the keyboard
  const reach = () => document.querySelectorAll("main pre, main table, main .katex-display").forEach((e) => { if (e.scrollWidth > e.clientWidth) e.tabIndex = 0; });
  reach(); addEventListener("resize", reach);
});
"""


def offline(out: Path) -> str:
    "Make the site independent of the network; a sentence on what was found for the formulas."
    from smalldocs.layout import KATEX

    base = (
        re.search(r'site-url: "?([^"\s]+)', (NBS / "nbdev.yml").read_text()).group(1).rstrip("/")
        + "/"
    )
    src = katex()
    if src:
        copy_katex(src, out / "site_libs/katex")
    private = re.compile(
        rf'<a href="{re.escape(base)}[^"#]*#(?:\w+\.)?_[^"]*"[^>]*>(.*?)</a>'
    )  # names that have no entry
    ids = {p.relative_to(out).as_posix(): Links(p).ids for p in out.rglob("*.html")}

    def entry(url):
        "Where a link of nbdev's leads: the name's own entry, or that of its class."
        page, _, place = url.partition("#")
        return (
            f"{page}#{place.rpartition('.')[0]}"
            if "." in place and page in ids and place not in ids[page]
            else url or "index.html"
        )

    for p in out.rglob("*.html"):
        up = "../" * len(p.relative_to(out).parent.parts)
        s = private.sub(r"\1", p.read_text(encoding="utf-8"))
        s = re.sub(
            rf'href="{re.escape(base)}([^"]*)"', lambda m: f'href="{up}{entry(m.group(1))}"', s
        )
        if src:
            s = s.replace(KATEX, f"{up}site_libs/katex")
        s = s.replace(
            'role="navigation" aria-expanded', 'role="button" aria-expanded'
        )  # the arrows that fold a section of the sidebar
        s = s.replace(
            '<div class="toc-actions">',
            '<div class="toc-actions" role="navigation" aria-label="This page on GitHub">',
        )
        p.write_text(s, encoding="utf-8")
    for p in (out / "site_libs/themes").glob(
        "*.css"
    ):  # web fonts: the system's own are used instead
        p.write_text(
            re.sub(r"@import url\([^)]*\);?", "", p.read_text(encoding="utf-8")), encoding="utf-8"
        )
    js, (index,) = (
        out / "site_libs/smalldocs.js",
        out.glob("search.json"),
    )  # a page opened as a file may load scripts, but not JSON
    (out / "search.js").write_text(
        f"window.searchIndex = {index.read_text(encoding='utf-8')};", encoding="utf-8"
    )
    fetch = re.compile(
        r'const r = await fetch\(offset \+ "search.json"\);\s*index = await r.json\(\);'
    )
    load = """index = await new Promise((done, failed) => { const s = document.createElement("script");
        s.src = offset + "search.js"; s.onload = () => done(window.searchIndex); s.onerror = failed; document.head.append(s); });"""
    text, n = fetch.subn(lambda _: load, js.read_text(encoding="utf-8"))
    if n != 1:
        raise RuntimeError("smalldocs.js no longer reads search.json as expected")
    js.write_text(text + SCRIPT, encoding="utf-8")
    return (
        f"formulas: KaTeX of {src}, copied into the site"
        if src
        else "formulas: no KaTeX to copy (npm is missing): the pages take it from its CDN"
    )


# ---------------------------------------------------------------- what is wrong with a site


class Links(HTMLParser):
    "The links, ids, pictures and text of a page."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids, self.noalt, self.text, self.skip = [], set(), [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if "id" in a:
            self.ids.add(a["id"])
        if tag == "a" and "name" in a:
            self.ids.add(a["name"])
        if tag == "img" and not (a.get("alt") or "").strip():
            self.noalt.append(self.getpos()[0])
        self.links += [a[k] for k in ("href", "src") if a.get(k)]
        self.skip += tag in ("script", "style", "pre", "code")

    def handle_endtag(self, tag):
        self.skip -= tag in ("script", "style", "pre", "code")

    def handle_data(self, data):
        if not self.skip:
            self.text.append(data)


LEFTOVERS = re.compile(r"\?@\w+|(?<![\w`])@(?:fig|tbl|eq|sec)-[\w-]+|\{=html\}|^\s*:::", re.M)


def problems(out: Path) -> list:
    "Broken links (files and places in them), unresolved references and pictures without alternative text, one line each."
    pages = {p.resolve(): Links(p) for p in sorted(out.rglob("*.html"))}
    bad = []
    for path, page in pages.items():
        name = path.relative_to(out.resolve()).as_posix()
        for href in dict.fromkeys(page.links):
            url = urlsplit(href)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                bad.append(f"{name}: broken link {href}")
            elif (
                url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids
            ):
                bad.append(f"{name}: no such place {href}")
        bad += (
            [
                f"{name}: {len(page.noalt)} picture(s) without alternative text (`#| fig-alt: ...` at the top of the cell)"
            ]
            if page.noalt
            else []
        )
        bad += [
            f"{name}: unresolved {m.strip()}"
            for m in sorted({m.group(0) for m in LEFTOVERS.finditer("".join(page.text))})
        ]
    return bad


# ---------------------------------------------------------------- the command


def build(out: Path) -> list:
    "Build the site into a folder, which is replaced; everything that is wrong with it, one line each."
    out = Path(out).absolute()
    if out.exists() and not (out / "site_libs").is_dir():
        raise SystemExit(f"docs: {out} exists and is not a built site")
    cwd = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="docs-") as tmp:
        tmp = Path(tmp)
        try:
            os.chdir(ROOT)
            bad = process(tmp / "pages")
        finally:
            os.chdir(cwd)
        bad += render(tmp / "pages", tmp / "site")
        print(offline(tmp / "site"))
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(tmp / "site", out)
    return bad + problems(out)


def main():
    ap = argparse.ArgumentParser(description="Build the documentation site.")
    ap.add_argument("--out", default=ROOT / "_docs", type=Path)
    out = ap.parse_args().out
    bad = build(out)
    print("\n".join(bad) or f"docs: {len(list(out.rglob('*.html')))} pages in {out}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
