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
import importlib
import inspect
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


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def public_name(name: str, module) -> str:
    """A method of a private class goes by the first public class that has it; "" where none has."""
    owner, _, method = name.rpartition(".")
    if not owner or not is_private(name):
        return name
    classes = [getattr(module, public) for public in getattr(module, "__all__", [])]
    base = getattr(module, owner)
    heirs = [kind for kind in classes if isinstance(kind, type) and issubclass(kind, base)]
    return f"{heirs[0].__name__}.{method}" if heirs and not is_private(method) else ""


def edit_entry(cell, name: str):
    """Head an entry by its full name; drop the signature, which the source below it repeats."""
    heading = "### " + name.replace("_", r"\_")
    for output in cell.outputs:
        text = "".join(output["data"]["text/markdown"])
        text = re.sub(r"^### .*$", lambda _: heading, text, count=1, flags=re.M)
        output["data"]["text/markdown"] = SIGNATURE.sub("", text)


LONGEST_OPEN = 30  # lines of a definition that is shown without being asked for


def signature_of(node: ast.stmt, lines: list[str]) -> str:
    """The lines that say how a definition is called: its head, and for a class its fields too."""

    def head(part, first: int) -> list[str]:
        return lines[first - 1 : max(part.body[0].lineno - 1, part.lineno)]

    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    if not isinstance(node, ast.ClassDef):
        return "\n".join(head(node, first))
    shown = head(node, first)
    for part in node.body:
        if isinstance(part, ast.AnnAssign):
            shown += lines[part.lineno - 1 : part.end_lineno]
        elif getattr(part, "name", "") == "__init__":
            shown += head(part, part.lineno)
    return "\n".join(shown)


def folded(source: str, summary: str):
    """A cell that shows its code when it is asked for."""
    from execnb.nbio import mk_cell

    head = f'<details class="source"><summary>{summary}</summary>'
    return mk_cell(f"{head}\n\n```python\n{source}\n```\n\n</details>", "markdown")


def pieces_of(source: str, shown: dict[str, object], module) -> list:
    """The definitions of an export cell, each with its entry above it.

    Long definitions are folded under their signature, private helpers under their names.
    """
    from execnb.nbio import mk_cell
    from nbdev.showdoc import showdoc_nm  # `Class.method` for a method added with @patch

    lines = source.splitlines()
    nodes = [node for node in ast.parse(source).body if hasattr(node, "name")]
    names = [str(showdoc_nm(node)) for node in nodes]
    entries = [
        (node, name)
        for node, name in zip(nodes, names)
        if name in shown and public_name(name, module)
    ]
    if not entries:
        helpers = ", ".join(f"<code>{name}</code>" for name in names)
        return [folded(source, f"Private: {helpers}") if helpers else mk_cell(source)]
    ends = [node.end_lineno for node, _ in entries[:-1]] + [len(lines)]
    starts = [0, *ends]
    pieces = []
    for (node, name), start, end in zip(entries, starts, ends):
        edit_entry(shown[name], public_name(name, module))
        piece = "\n".join(lines[start:end]).strip("\n")
        pieces.append(shown[name])
        if end - start > LONGEST_OPEN:
            pieces += [mk_cell(signature_of(node, lines)), folded(piece, "Source")]
        else:
            pieces.append(mk_cell(piece))
    return pieces


def with_source(cells: list, module) -> list:
    """The cells with each definition in one piece: its heading and docstring, then its source."""
    shown = shown_names(cells)
    pieces = {}
    for cell in cells:
        if cell.source.startswith(FOLD):
            pieces[id(cell)] = pieces_of(cell.source.removeprefix(FOLD), shown, module)
    placed = {id(piece) for parts in pieces.values() for piece in parts}
    unnamed = {id(cell) for name, cell in shown.items() if not public_name(name, module)}
    kept = [cell for cell in cells if id(cell) not in placed | unnamed]
    return [piece for cell in kept for piece in pieces.get(id(cell), [cell])]


# ---------------------------------------------------------------- the names, at the top of a page

UNSEEN = re.compile(r"^#\| *(exports?|exporti|hide|default_exp|echo: false)\b|^show_doc\(", re.M)


LONGEST_CALL = 200  # characters of a call in the list of names


def module_of(notebook):
    """The module that a notebook exports; None where it exports none."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    named = re.search(r"^#\| *default_exp +(\S+)", "\n".join(sources), re.M)
    return importlib.import_module(f"advinterp.{named.group(1)}") if named else None


def arguments(thing) -> str:
    """The arguments of a function or a class with their defaults; nothing for a value."""
    if not callable(thing):
        return ""
    bare = dict(annotation=inspect.Parameter.empty)
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    parameters = [parameter.replace(**bare) for parameter in signature.parameters.values()]
    text = str(inspect.Signature(parameters))
    text = re.sub(r"<(?:function|class) '?(?:[\w.]+\.)?(\w+)[^>]*>", r"\1", text)
    if len(text) <= LONGEST_CALL:
        return text
    return text[: text.rindex(",", 0, LONGEST_CALL)] + ", ...)"


def line_of(name: str, thing, has_example: bool) -> str:
    """The line of a public name: its arguments, what it does, where it is used."""
    does = (inspect.getdoc(thing) or "").split("\n")[0] if callable(thing) else "A constant."
    own_name = getattr(thing, "__name__", name)
    if own_name != name:
        does = f"The same as `{own_name}`."
    call = arguments(thing)
    shown = f"`{name}`" + (f" `{call}`" if call else "")
    example = f" [Example](#example-{name.lower()})" if has_example else ""
    return f"- {shown}<br>{does}{example}"


def add_names(notebook, module):
    """Below the question of a page: the public names with their arguments, each with its example.

    The place of an example is marked above the first cell that uses the name.
    """
    from execnb.nbio import mk_cell

    seen = [cell for cell in notebook.cells if cell.cell_type == "code"]
    seen = [cell for cell in seen if not UNSEEN.search(cell.source)]
    names = list(getattr(module, "__all__", []))
    first_use = {}
    for name in names:
        uses = re.compile(rf"^(?!\s*(?:from|import)\b|\s*{name},$).*\b{name}\b", re.M)
        first_use[name] = next((cell for cell in seen if uses.search(cell.source)), None)
    for cell in seen:
        used = [name for name in names if first_use[name] is cell]
        if used:
            places = "".join(f'<span id="example-{name.lower()}"></span>' for name in used)
            at = next(i for i, other in enumerate(notebook.cells) if other is cell)
            notebook.cells.insert(at, mk_cell(places, "markdown"))
    lines = [line_of(name, getattr(module, name), first_use[name] is not None) for name in names]
    if lines:
        title = next(i for i, cell in enumerate(notebook.cells) if is_title(cell))
        texts = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"]
        at = next((i for i in texts if i > title), title)
        head = f"**Public names of** `{module.__name__}`**:**\n\n"
        block = "::: {.public-names}\n" + head + "\n".join(lines) + "\n:::"
        notebook.cells.insert(at + 1, mk_cell(block, "markdown"))


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
            module = module_of(nb)
            add_names(nb, module)
            for cell in nb.cells:
                if cell.cell_type == "code":
                    cell.source = DEFINES.sub("#| exports", cell.source)
            super().__call__(nb)
            nb.cells = with_source(nb.cells, module)

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

    in_contents = re.compile(r"(?<=>)[\w.]+(?=</a>)")

    def breakable(match: re.Match) -> str:
        """A long name of the contents may break after its owner, and before a capital."""
        return re.sub(r"(?<=\.)|(?<=[a-z])(?=[A-Z])", "<wbr>", match.group(0))

    for path in out.rglob("*.html"):
        up = "../" * len(path.relative_to(out).parent.parts)
        text = private.sub(r"\1", path.read_text(encoding="utf-8"))
        text = make_relative(text, up)
        if formulas:
            text = text.replace(KATEX, f"{up}site_libs/katex")
        for old, new in FIXES.items():
            text = text.replace(old, new)
        contents = re.search(r'<nav id="TOC".*?</nav>', text, re.S)
        if contents:
            names = in_contents.sub(breakable, contents.group(0))
            text = text.replace(contents.group(0), names)
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
    r"|\]\((?:https?:|#\w|[\w./-]+\.(?:ipynb|html|md|png))[^)\s]*\)",  # a link printed as written
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
