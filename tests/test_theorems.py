"""The page "Theorem by theorem": every statement has its row, every row a verdict and a place."""

import re

import pytest

from tests.repo import NBS, cells, source

PAGE = NBS / "theorems.ipynb"
VERDICT = re.compile(
    r"exact|exact if .+|approximate, remainder \$O\(.+\)\$|false as stated|definition"
)

# what has to be on the page: paper, how the statement begins
STATEMENTS = {
    "A": [
        *(f"Lemma {i}," for i in (1, 2, 3, 4)),
        "Theorem 3.1, part 1",
        "Theorem 3.1, part 2",
        "Theorem 3.1, equality in the limit",
        "Lemma 4.1",
        "Theorem 5.1",
        "Theorem E.1",
        "Supplement B.1",
        "Supplement D.2",
        "Supplement H",
        "Supplement I",
        "Pruning corollary",
    ],
    "B": [f"Eq. {i}," for i in range(1, 10)],
    "C": [
        *(f"Proposition {i}," for i in (1, 2, 3, 4)),
        "Observation 1",
        "Table 1",
        *(f"Appendix B.{i}," for i in (3, 4, 5, 6, 7, 8)),
    ],
    "D": ["Assumption (A)", "Leakage theorem", "The toy data", "Gradient reg", "Weight reg"],
}


def without_emphasis(heading: str) -> str:
    return re.sub(r"[*`]", "", heading)


def anchor_of(heading: str) -> str:
    """The anchor that the site gives to a heading, as pandoc does."""
    kept = re.sub(r"[^\w\s.-]", "", without_emphasis(heading)).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", kept))


def anchors(notebook) -> set[str]:
    text = "\n".join(source(cell) for cell in cells(notebook, "markdown"))
    return {anchor_of(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)}


def rows_of(paper: str) -> list[list[str]]:
    """The cells of the table of one paper."""
    texts = [source(cell) for cell in cells(PAGE, "markdown")]
    (section,) = [text for text in texts if text.startswith(f"## Paper {paper}:")]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split(" | ")] for line in lines[2:]]


ROWS = [(paper, row) for paper in STATEMENTS for row in rows_of(paper)]


@pytest.mark.parametrize("paper", STATEMENTS)
def test_every_statement_has_one_row(paper):
    names = [row[0] for row in rows_of(paper)]
    count = {
        statement: sum(name.startswith(statement) for name in names)
        for statement in STATEMENTS[paper]
    }
    assert set(count.values()) == {1}, count


@pytest.mark.parametrize("paper, row", ROWS, ids=lambda value: value[0][:30])
def test_a_row_has_a_verdict_and_a_place_that_exists(paper, row):
    assert len(row) == 4
    _, status, place, correction = row
    assert VERDICT.fullmatch(status)
    assert correction or status == "exact", "what is not exact needs its correction"
    links = re.findall(r"\]\(([^)]+)\)", f"{place} {correction}")
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        notebook = NBS / path if path else PAGE
        assert notebook.is_file(), link
        assert not anchor or anchor in anchors(notebook), link


def test_anchors_are_those_of_the_site():
    assert anchor_of("Lemma 4: an upper bound on $\\mathbb{E}[Z f(Z, V)]$") == (
        "lemma-4-an-upper-bound-on-mathbbez-fz-v"
    )
    assert anchor_of("Paper B's equations, one by one") == "paper-bs-equations-one-by-one"
