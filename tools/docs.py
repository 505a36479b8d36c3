"""Build the documentation site from the notebooks and `_quarto.yml`, without Quarto.

nbdev's own processors turn each notebook into a page (signatures and docments of what it exports,
links for names in backticks, source links) and smalldocs lays the pages out. `nbdev_docs` reads the
same files where Quarto is installed. What is added here makes the site work without a network:
KaTeX and the search index lie beside the pages, and links to the published site become relative.
The build fails on any warning, broken link, unknown reference, missing picture or picture without
alternative text.

    python tools/docs.py --out _docs
"""

import argparse
import ast
import contextlib
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

NPM_INSTALL = ["npm", "install", "--silent", "--no-save", "--no-audit", "--no-fund", "--prefix"]


def npm(package: str) -> Path | None:
    """The folder of an npm package such as `axe-core@4.10.2`; None where npm cannot get it.

    It is fetched once per environment.
    """
    name = package.split("@")[0]
    prefix = Path(sys.prefix) / name
    folder = prefix / "node_modules" / name
    if not folder.is_dir() and shutil.which("npm"):
        prefix.mkdir(exist_ok=True)
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([*NPM_INSTALL, str(prefix), package], timeout=120, **quiet)
    return folder if folder.is_dir() else None


def katex() -> Path | None:
    """The folder of a KaTeX that can be copied: one named by KATEX, npm's, or Debian's."""
    from smalldocs.layout import KATEX

    if named := os.environ.get("KATEX"):
        places = [Path(named)]
    else:
        package = npm(KATEX.split("/")[-2])
        places = [package / "dist"] if package else []
        places.append(Path("/usr/share/javascript/katex"))
    return next((place for place in places if (place / "katex.min.js").is_file()), None)


FONT = re.compile(r'url\(["\']?fonts/([^)"\']+)["\']?\) ?format\(["\'][^)]+\)')


def copy_katex(source: Path, target: Path):
    """Copy what a page needs of KaTeX; fonts that are not copied also leave the style sheet."""
    (target / "contrib").mkdir(parents=True)
    shutil.copy(source / "katex.min.js", target)
    names = ("contrib/auto-render.min.js", "contrib/auto-render.js")
    render = next(source / name for name in names if (source / name).is_file())
    shutil.copy(render, target / "contrib/auto-render.min.js")
    fonts = {path.name for path in (source / "fonts").iterdir()}
    kept = {name for name in fonts if name.endswith(".woff2")} or fonts
    (target / "fonts").mkdir()
    for name in kept:
        shutil.copy(source / "fonts" / name, target / "fonts")

    def kept_sources(match: re.Match) -> str:
        sources = FONT.finditer(match.group(1))
        return "src:" + ",".join(found.group(0) for found in sources if found.group(1) in kept)

    style = (source / "katex.min.css").read_text()
    (target / "katex.min.css").write_text(re.sub(r"src:([^;}]+)", kept_sources, style))


# ---------------------------------------------------------------- notebooks -> pages -> site

TITLE = re.compile(r"((?:\s*(?:# |> |- [\w-]+: )[^\n]*\n?)+)(.*)", re.S)
DEFINES = re.compile(r"^#\| *export *$(?=.*^(?:class|def) )", re.M | re.S)
FOLD = '#| code-fold: show\n#| code-summary: "Exported source"\n'
SIGNATURE = re.compile(r"```python\n.*?\n```\n", re.S)


def is_title(cell) -> bool:
    return cell.cell_type == "markdown" and re.search(r"^# ", cell.source, re.M) is not None


def split_title(notebook):
    """Put the text below title and subtitle into a cell of its own.

    nbdev reads the first heading's cell as front matter and drops its text.
    """
    from execnb.nbio import mk_cell

    at = next((i for i, cell in enumerate(notebook.cells) if is_title(cell)), None)
    if at is None:
        return
    title, text = TITLE.match(notebook.cells[at].source).groups()
    if text.strip():
        notebook.cells[at].source = title
        notebook.cells.insert(at + 1, mk_cell(text.strip("\n"), "markdown"))


def shown_names(cells: list) -> dict[str, object]:
    """The cells that show the documentation of a name, by that name."""
    found = {}
    for cell in cells:
        if match := re.search(r"^show_doc\(([\w.]+)\)", cell.source, re.M):
            found[match.group(1)] = cell
    return found


def drop_signature(cell):
    """The source that follows a docstring repeats the signature above it."""
    for output in cell.outputs:
        text = "".join(output["data"]["text/markdown"])
        output["data"]["text/markdown"] = SIGNATURE.sub("", text)


def with_source(cells: list) -> list:
    """The cells with each definition in one piece: its heading and docstring, then its source."""
    from execnb.nbio import mk_cell
    from nbdev.showdoc import showdoc_nm  # `Class.method` for a method added with @patch

    shown = shown_names(cells)
    pieces = {}
    moved = set()
    for cell in cells:
        if not cell.source.startswith(FOLD):
            continue
        lines = cell.source.removeprefix(FOLD).splitlines()
        nodes = [node for node in ast.parse("\n".join(lines)).body if hasattr(node, "name")]
        documented = [(node, shown.get(str(showdoc_nm(node)))) for node in nodes]
        documented = [(node, doc) for node, doc in documented if doc]
        ends = [node.end_lineno for node, _ in documented[:-1]] + [len(lines)]
        pieces[id(cell)] = parts = []
        start = 0
        for (_, doc), end in zip(documented or [(None, None)], ends):
            if doc:
                drop_signature(doc)
                parts.append(doc)
                moved.add(id(doc))
            parts.append(mk_cell("\n".join(lines[start:end]).strip("\n")))
            start = end
    kept = [cell for cell in cells if id(cell) not in moved]
    return [piece for cell in kept for piece in pieces.get(id(cell), [cell])]


def process(target: Path) -> list[str]:
    """Write each notebook as nbdev shows it, with the source of what it defines; what went wrong.

    Files beside the notebooks are copied.
    """
    from nbdev.doclinks import nbglob
    from nbdev.processors import FilterDefaults
    from nbdev.serve_drv import main as process_notebook

    class WithSource(FilterDefaults):
        def __call__(self, nb):
            split_title(nb)
            for cell in nb.cells:
                if cell.cell_type == "code":
                    cell.source = DEFINES.sub("#| exports", cell.source)
            super().__call__(nb)
            nb.cells = with_source(nb.cells)

    bad = []
    files = [*nbglob(NBS, file_glob="", file_re=""), NBS / "_quarto.yml"]
    for source in sorted(map(Path, files)):
        page = target / source.relative_to(NBS)
        page.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".ipynb":
            shutil.copy(source, page)
            continue
        try:
            process_notebook((source, page, WithSource))
        except Exception as error:
            bad.append(f"{source.relative_to(ROOT)}: {str(error) or type(error).__name__}")
    return bad


# smalldocs says that it does not read these; it follows the system without being told
QUARTO_ONLY = ("output-file is not read", "respect-user-color-scheme is ignored")


def render(source: Path, out: Path) -> list[str]:
    """Lay the pages out with smalldocs; the warnings."""
    from smalldocs import config, site

    class Site(site.Site):
        """Pages under the names that nbdev gives them: `00_core.ipynb` becomes `core.html`."""

        def read(self, src):
            page = super().read(src)
            page.out = page.out.with_name(page.front.get("output-file", page.out.name))
            return page

    built = Site(config.load(source), quiet=True)
    built.out = out
    built.build()
    return [text for text in built.warnings if not any(known in text for known in QUARTO_ONLY)]


SCRIPT = """
addEventListener("load", () => {
  // a formula in a heading is a formula in the table of contents too
  document.querySelectorAll("#TOC a").forEach((link) => {
    const place = document.getElementById(decodeURIComponent(link.hash.slice(1)));
    if (!place) return;
    const heading = place.matches("h1,h2,h3,h4") ? place : place.querySelector("h2,h3,h4");
    if (!heading || !heading.querySelector(".katex")) return;
    const parts = [...heading.cloneNode(true).childNodes];
    const isAnchor = (node) => node.classList && node.classList.contains("anchorjs-link");
    link.replaceChildren(...parts.filter((node) => !isAnchor(node)));
  });
  // what scrolls can be reached from the keyboard
  const wide = "main pre, main table, main .katex-display, main .math.inline .katex";
  const reach = () => document.querySelectorAll(wide).forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  });
  reach();
  addEventListener("resize", reach);
});
"""

FETCH = re.compile(r'const r = await fetch\(offset \+ "search.json"\);\s*index = await r.json\(\);')
LOAD = """index = await new Promise((done, failed) => {
        const script = document.createElement("script");
        script.src = offset + "search.js";
        script.onload = () => done(window.searchIndex);
        script.onerror = failed;
        document.head.append(script);
      });"""


def offline_search(out: Path):
    """The search index as a script: a page opened as a file may load scripts, but not JSON."""
    (index,) = out.glob("search.json")
    text = index.read_text(encoding="utf-8")
    (out / "search.js").write_text(f"window.searchIndex = {text};", encoding="utf-8")
    script = out / "site_libs/smalldocs.js"
    text, n_replaced = FETCH.subn(lambda _: LOAD, script.read_text(encoding="utf-8"))
    if n_replaced != 1:
        raise RuntimeError("smalldocs.js no longer reads search.json as expected")
    script.write_text(text + SCRIPT, encoding="utf-8")


def site_url() -> str:
    match = re.search(r'site-url: "?([^"\s]+)', (NBS / "nbdev.yml").read_text())
    return match.group(1).rstrip("/") + "/"


FIXES = {
    # the arrows that fold a section of the sidebar
    'role="navigation" aria-expanded': 'role="button" aria-expanded',
    '<div class="toc-actions">': '<div class="toc-actions" role="navigation" '
    'aria-label="This page on GitHub">',
}


def offline(out: Path) -> str:
    """Make the site independent of the network; what was found for the formulas."""
    from smalldocs.layout import KATEX

    base = re.escape(site_url())
    formulas = katex()
    if formulas:
        copy_katex(formulas, out / "site_libs/katex")
    # private names have no entry to link to
    private = re.compile(rf'<a href="{base}[^"#]*#(?:\w+\.)?_[^"]*"[^>]*>(.*?)</a>')
    ids = {path.relative_to(out).as_posix(): Links(path).ids for path in out.rglob("*.html")}

    def entry(url: str) -> str:
        """Where a link of nbdev's leads: the name's own entry, or that of its class."""
        page, _, place = url.partition("#")
        if "." in place and page in ids and place not in ids[page]:
            return f"{page}#{place.rpartition('.')[0]}"
        return url or "index.html"

    def make_relative(text: str, up: str) -> str:
        links = re.compile(rf'href="{base}([^"]*)"')
        return links.sub(lambda match: f'href="{up}{entry(match.group(1))}"', text)

    for path in out.rglob("*.html"):
        up = "../" * len(path.relative_to(out).parent.parts)
        text = private.sub(r"\1", path.read_text(encoding="utf-8"))
        text = make_relative(text, up)
        if formulas:
            text = text.replace(KATEX, f"{up}site_libs/katex")
        for old, new in FIXES.items():
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    for path in (out / "site_libs/themes").glob("*.css"):
        # web fonts: the system's own are used instead
        text = re.sub(r"@import url\([^)]*\);?", "", path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
    offline_search(out)
    if formulas:
        return f"formulas: KaTeX of {formulas}, copied into the site"
    return "formulas: no KaTeX to copy (npm is missing): the pages take it from its CDN"


# ---------------------------------------------------------------- what is wrong with a site

NO_PROSE = ("script", "style", "pre", "code")


class Links(HTMLParser):
    """The links, ids, pictures and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links = []
        self.ids = set()
        self.without_text = []
        self.text = []
        self.depth = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag == "a" and "name" in attributes:
            self.ids.add(attributes["name"])
        if tag == "img" and not (attributes.get("alt") or "").strip():
            self.without_text.append(self.getpos()[0])
        self.links += [attributes[key] for key in ("href", "src") if attributes.get(key)]
        self.depth += tag in NO_PROSE

    def handle_endtag(self, tag):
        self.depth -= tag in NO_PROSE

    def handle_data(self, data):
        if not self.depth:
            self.text.append(data)


LEFTOVERS = re.compile(
    r"\?@\w+"  # an unknown reference
    r"|(?<![\w`])@(?:fig|tbl|eq|sec)-[\w-]+"  # one that nobody resolved
    r"|\{=html\}|^\s*:::"  # Quarto's own markup
    r"|\]\((?:https?:|[\w./]+\.(?:ipynb|html))[^)\s]*\)",  # a link that prints as it is written
    re.M,
)


def link_problem(link: str, path: Path, pages: dict[Path, Links]) -> str:
    """What is wrong with a link of a page; nothing where it leads somewhere."""
    url = urlsplit(link)
    if url.scheme or url.netloc:
        return ""
    target = (path.parent / unquote(url.path)).resolve() if url.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return f"broken link {link}"
    if url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
        return f"no such place {link}"
    return ""


def problems(out: Path) -> list[str]:
    """Broken links, unresolved references, pictures without alternative text, one line each."""
    pages = {path.resolve(): Links(path) for path in sorted(out.rglob("*.html"))}
    bad = []
    for path, page in pages.items():
        found = [link_problem(link, path, pages) for link in dict.fromkeys(page.links)]
        if page.without_text:
            found.append(
                f"{len(page.without_text)} picture(s) without alternative text "
                "(`#| fig-alt: ...` at the top of the cell)"
            )
        leftovers = {match.group(0) for match in LEFTOVERS.finditer("".join(page.text))}
        found += [f"unresolved {text.strip()}" for text in sorted(leftovers)]
        name = path.relative_to(out.resolve()).as_posix()
        bad += [f"{name}: {problem}" for problem in found if problem]
    return bad


# ---------------------------------------------------------------- the command


def build(out: Path) -> list[str]:
    """Build the site into a folder, which is replaced; what is wrong with it, one line each."""
    out = Path(out).absolute()
    if out.exists() and not (out / "site_libs").is_dir():
        raise SystemExit(f"docs: {out} exists and is not a built site")
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        pages = Path(folder) / "pages"
        site = Path(folder) / "site"
        with contextlib.chdir(ROOT):
            bad = process(pages)
        bad += render(pages, site)
        print(offline(site))
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(site, out)
    return bad + problems(out)


def main():
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--out", default=ROOT / "_docs", type=Path)
    out = parser.parse_args().out
    bad = build(out)
    print("\n".join(bad) or f"docs: {len(list(out.rglob('*.html')))} pages in {out}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
