"""The system's Chromium, driven by Playwright, with what went wrong on each page.

with Browser() as browser, browser.open("file:///.../index.html", width=390, dark=True) as page:
    page.problems          # console errors, exceptions, files that did not load
    page.eval("document.title")
    page.screenshot("index.png")
"""

import os
import shutil

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--allow-file-access-from-files",
]


def find() -> str | None:
    """The Chromium to use: the one that CHROMIUM names, else the first of the usual names."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab, with what went wrong while it loaded."""

    def __init__(self, tab):
        self.tab = tab
        self.problems = []
        tab.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        tab.on("console", self._saw_message)
        tab.on("requestfailed", self._saw_failure)

    def _saw_message(self, message):
        # a file that did not load is told with its address by `requestfailed`
        if message.type in ("error", "assert") and "Failed to load resource" not in message.text:
            self.problems.append(f"console: {message.text}")

    def _saw_failure(self, request):
        if request.failure and "ERR_ABORTED" not in request.failure:
            self.problems.append(f"not loaded: {request.url}: {request.failure}")

    def eval(self, script: str):
        """The value of a JavaScript expression; promises are awaited."""
        return self.tab.evaluate(script)

    def show(self, width: int = 1280, height: int = 900, dark: bool = False):
        """The size of the window and the theme that the reader's system asks for."""
        self.tab.set_viewport_size({"width": width, "height": height})
        self.tab.emulate_media(color_scheme="dark" if dark else "light")

    def screenshot(self, path, full: bool = True):
        """Save the page as a PNG: all of it, or what the window shows."""
        self.tab.screenshot(path=str(path), full_page=full)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.tab.close()


class Browser:
    """A headless Chromium with a fresh profile; closes on exit."""

    def __init__(self, program: str | None = None, timeout: float = 60):
        self.program = program or find()
        self.timeout = timeout
        if not self.program:
            raise FileNotFoundError("no Chromium found: install it, or name it in CHROMIUM")

    def __enter__(self):
        from playwright.sync_api import sync_playwright

        self.playwright = sync_playwright().start()
        self.chromium = self.playwright.chromium.launch(
            executable_path=self.program, args=FLAGS, chromium_sandbox=False
        )
        return self

    def __exit__(self, *error):
        self.chromium.close()
        self.playwright.stop()

    def open(self, url: str, **window) -> Page:
        """Open a page in a window as `Page.show` describes it, until its fonts are there."""
        tab = self.chromium.new_page()
        tab.set_default_timeout(1000 * self.timeout)
        page = Page(tab)
        page.show(**window)
        tab.goto(url, wait_until="load")
        page.eval("document.fonts.ready.then(() => 1)")
        return page
