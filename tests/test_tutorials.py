"""Tutorials keep their promise: the code of a page runs on data that it was not written for."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

TUTORIALS = Path(__file__).parent.parent / "nbs" / "tutorials"


def code_of(name) -> list[str]:
    """The cells that a reader sees and that are run, in order."""
    notebook = json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    unseen = ("#| hide\nset_matplotlib", "#| hide\nassert", "#| hide\ntemp", "#| eval: false")
    return [source for source in sources if not source.startswith(unseen)]


@pytest.fixture
def photos(tmp_path):
    """Three classes, odd sizes, grey and transparent photos, and one that is broken."""
    rng = np.random.default_rng(0)
    kinds = [((40, 61, 3), "RGB"), ((55, 33), "L"), ((36, 36, 4), "RGBA"), ((90, 20, 3), "RGB")]
    for shade, label in enumerate(("cat", "dog", "frog")):
        (tmp_path / label).mkdir()
        for i in range(10):
            shape, mode = kinds[i % len(kinds)]
            pixels = rng.integers(60 * shade, 60 * shade + 90, shape, dtype=np.uint8)
            Image.fromarray(pixels, mode).save(tmp_path / label / f"{i}.png")
    (tmp_path / "cat" / "broken.png").write_bytes(b"\x89PNG, and no more")
    return tmp_path


def test_images_of_your_own_run_on_any_folder(photos, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    cells = code_of("own_images")
    example = [i for i, source in enumerate(cells) if "TemporaryDirectory()" in source]
    assert len(example) == 1
    cells[example[0]] = f"path = Path({str(photos)!r})"
    page = "\n".join(cells)
    assert page.count("epochs = 8") == 1
    exec(compile(page.replace("epochs = 8", "epochs = 1"), "own_images", "exec"), {})
    assert "30 images, not to be read: ['broken.png']" in capsys.readouterr().out
    plt.close("all")


def test_my_photos_of_the_quick_start_run_on_any_folder(photos):
    """The cell is not run on the page, where no photos are: here it is, smaller and untrained."""
    page = TUTORIALS.parent / "learn" / "01_quick_start.ipynb"
    notebook = json.loads(page.read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    imports = [source for source in sources if source.startswith(("from fastai", "from advinterp"))]
    (cell,) = [source for source in sources if 'path = Path("photos")' in source]
    assert len([line for line in cell.splitlines() if not line.startswith("#")]) <= 12
    (photos / "cat" / "broken.png").unlink()  # the other tutorial leaves such files out
    smaller = {'Path("photos")': f"Path({str(photos)!r})", "Resize(224)": "Resize(32)"}
    smaller |= {"fine_tune(3)": "fit(1)", "resnet18, m": "resnet18, pretrained=False, m"}
    for old, new in smaller.items():
        assert old in cell
        cell = cell.replace(old, new)
    cell = cell.replace("bs=16", "bs=8, num_workers=0, device='cpu'")
    exec(compile("\n".join([*imports, cell]), "quick_start", "exec"), {})
    assert plt.get_fignums()
    plt.close("all")
