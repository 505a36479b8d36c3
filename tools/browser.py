"""A headless Chromium driven over its DevTools pipe, with the standard library alone.

    with Browser() as b:
        page = b.open('file:///.../index.html', width=390, dark=True)
        page.problems          # console errors, exceptions, files that did not load
        page.eval('document.title')
        page.screenshot('index.png')

Chromium reads commands from file descriptor 3 and writes answers to 4 (`--remote-debugging-pipe`), each message a JSON text
that ends in a zero byte. Two named pipes in a temporary folder become those descriptors."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    "The Chromium to use: the environment variable CHROMIUM, else the first of the usual names on the path."
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    "One tab, with what went wrong while it loaded."

    def __init__(self, browser, target, session):
        self.browser, self.target, self.session, self.problems = browser, target, session, []

    def call(self, method, **params):
        return self.browser.call(method, session=self.session, **params)

    def eval(self, js: str):
        "The value of a JavaScript expression; promises are awaited."
        r = self.call("Runtime.evaluate", expression=js, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in r:
            raise RuntimeError(
                r["exceptionDetails"].get("exception", {}).get("description", str(r))
            )
        return r["result"].get("value")

    def show(self, width=1280, height=900, dark=False):
        "The size of the window, and the theme that the reader's system asks for; an open page follows."
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")],
        )

    def screenshot(self, path, full=True):
        "Save the page as a PNG: all of it, or what the window shows."
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)

    def saw(self, method, p):
        "Keep the events that tell of an error."
        if method == "Runtime.exceptionThrown":
            d = p["exceptionDetails"]
            self.problems.append(
                f"exception: {d.get('exception', {}).get('description') or d.get('text')}"
            )
        elif method == "Runtime.consoleAPICalled" and p["type"] in ("error", "assert"):
            self.problems.append(
                "console: " + " ".join(str(a.get("value", a.get("description"))) for a in p["args"])
            )
        elif method == "Network.loadingFailed" and not p.get("canceled"):
            self.problems.append(f"not loaded: {self.urls.get(p['requestId'])}: {p['errorText']}")
        elif method == "Network.requestWillBeSent":
            self.urls[p["requestId"]] = p["request"]["url"]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class Browser:
    "A headless Chromium with a fresh profile; closes it on exit."

    def __init__(self, program=None, timeout=60):
        self.program, self.timeout = program or find(), timeout
        if not self.program:
            raise FileNotFoundError(
                "no Chromium found: install it, or name it in the environment variable CHROMIUM"
            )

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        d = Path(self.folder.name)
        os.mkfifo(d / "in")
        os.mkfifo(d / "out")
        sh = f'exec "$0" "$@" 3<"{d}/in" 4>"{d}/out"'
        self.proc = subprocess.Popen(
            ["sh", "-c", sh, self.program, *FLAGS, f"--user-data-dir={d}/profile", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(d)},
        )
        self.w, self.r = open(d / "in", "wb", buffering=0), open(d / "out", "rb", buffering=0)
        self.n, self.buf, self.answers, self.pages = 0, b"", {}, {}
        return self

    def __exit__(self, *exc):
        try:
            self.call("Browser.close")
        except Exception:
            pass
        try:
            self.proc.wait(10)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        self.w.close()
        self.r.close()
        self.folder.cleanup()

    def call(self, method, session=None, **params):
        "Send a command, and wait for its answer."
        self.n += 1
        msg = dict(id=self.n, method=method, params=params) | (
            {"sessionId": session} if session else {}
        )
        self.w.write(json.dumps(msg).encode() + b"\0")
        n, end = self.n, time.monotonic() + self.timeout
        while n not in self.answers:
            self.pump(end, method)
        r = self.answers.pop(n)
        if "error" in r:
            raise RuntimeError(f"{method}: {r['error']['message']}")
        return r["result"]

    def pump(self, end, what):
        "Read what has come in: answers are kept, events go to their page."
        if not select.select([self.r], [], [], max(0, end - time.monotonic()))[0]:
            raise TimeoutError(f"{what}: no answer in {self.timeout} s")
        got = os.read(self.r.fileno(), 1 << 20)
        if not got:
            raise RuntimeError(f"{self.program} ended while it was asked for {what}")
        *done, self.buf = (self.buf + got).split(b"\0")
        for m in map(json.loads, done):
            if "id" in m:
                self.answers[m["id"]] = m
            elif m.get("sessionId") in self.pages:
                page = self.pages[m["sessionId"]]
                page.events.append(m["method"])
                page.saw(m["method"], m["params"])

    def open(self, url, **window) -> Page:
        "Open a page, in a window as `Page.show` describes it, and wait until it has loaded and its fonts are there."
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, target, session)
        page.events, page.urls = [], {}
        for domain in ("Page", "Runtime", "Network"):
            page.call(f"{domain}.enable")
        page.show(**window)
        page.call("Page.navigate", url=url)
        end = time.monotonic() + self.timeout
        while "Page.loadEventFired" not in page.events:
            self.pump(end, f"load of {url}")
        page.eval("document.fonts.ready.then(() => 1)")
        return page
