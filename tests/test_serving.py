"""The app of the serving page, written to a folder as the page says, started and asked."""

import base64
import io
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.repo import NBS

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")


def definitions(*starts: str) -> str:
    """The cells of the page that begin with these words, below the imports that they need."""
    page = json.loads((NBS / "tutorials/serving.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "code"]
    found = [next(source for source in sources if source.startswith(start)) for start in starts]
    return "\n\n\n".join(found)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the app answers."""
    folder = tmp_path_factory.mktemp("app")
    code = definitions("def network(", "class Pixels(")
    # the cell of `network` goes on with the training
    code = re.sub(r"\n\nset_seed\(0\).*?(?=\n\n\nclass Pixels)", "", code, flags=re.S)
    code = code.split("\n\n\nmodel, classes")[0]
    imports = (
        "import json\n\nimport torch\nfrom safetensors import safe_open\n"
        "from safetensors.torch import load_file\nfrom torch import nn\n\n\n"
    )
    (folder / "model.py").write_text(imports + code + "\n")
    space = {}
    exec(definitions("APP ="), space)
    (folder / "app.py").write_text(space["APP"])
    assert "advinterp" not in (folder / "app.py").read_text() + (folder / "model.py").read_text()
    space = {}
    exec(imports + code, space)
    torch.manual_seed(0)
    note = dict(classes=json.dumps(["cat", "dog", "frog"]), mean="0.3", std="0.4")
    save_file(space["network"](3).state_dict(), folder / "model.safetensors", metadata=note)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            assert server.poll() is None, server.stderr.read()
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/explain"
    finally:
        server.terminate()
        server.wait()


def ask(address, content: bytes):
    """The answer to a file that is sent as a browser's form sends it."""
    line = b"--edge"
    head = b'Content-Disposition: form-data; name="photo"; filename="p.png"'
    body = b"\r\n".join([line, head, b"", content, line + b"--", b""])
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    request = urllib.request.Request(address, body, kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_photo_is_answered_with_class_and_map(address, mode):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (30, 21, 3), dtype=np.uint8)).convert(mode)
    png = io.BytesIO()
    photo.save(png, "PNG")
    answer = ask(address, png.getvalue())
    assert answer["class"] in ("cat", "dog", "frog")
    assert 1 / 3 <= answer["probability"] <= 1
    found = Image.open(io.BytesIO(base64.b64decode(answer["map"])))
    assert found.size == (8, 8)
    assert len(found.getcolors()) > 1


def test_what_is_no_image_is_refused(address):
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, b"no image")
    assert refused.value.code == 422
    assert "not an image" in refused.value.read().decode()
