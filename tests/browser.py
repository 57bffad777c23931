"""Headless Chromium, driven over its DevTools protocol: a page is opened, clicked, typed into, looked at."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from websocket import WebSocket, create_connection

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-port=0", "--remote-allow-origins=*",
    "--proxy-server=127.0.0.1:9",
)  # fmt: skip
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}
TIMEOUT = 30


class Page:
    """One tab. `js` evaluates an expression.

    `errors` holds uncaught exceptions of the page's script, `requests` the URLs that it requested.
    """

    def __init__(self, socket: WebSocket) -> None:
        self.socket, self.ids = socket, itertools.count(1)
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        message_id = next(self.ids)
        self.socket.send(json.dumps({"id": message_id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == message_id:
                assert "error" not in message, message
                return message["result"]
            self._record_event(message)

    def _record_event(self, event: dict[str, Any]) -> None:
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"])[:800])
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"][:200])

    def open(self, path: Path, width: int = 1366, height: int = 768, scheme: str = "light") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        response = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in response, response["exceptionDetails"]
        return response["result"].get("value")

    def until(self, expression: str) -> None:
        end = time.monotonic() + TIMEOUT
        while not self.js(expression):
            assert time.monotonic() < end, f"never true: {expression}; {self.errors}"
            time.sleep(0.02)

    def settled(self) -> None:
        """Wait two frames, after which the effect of a click is drawn."""
        self.js(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => "
            "requestAnimationFrame(() => done(1)))))"
        )

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that matches."""
        element = f"document.querySelector({json.dumps(selector)})"
        assert self.js(f"{element} !== null"), selector
        self.js(f"{element}.scrollIntoView({{block: 'center', inline: 'center'}})")
        box = self.js(
            f"(({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))"
            f"({element}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)
        self.settled()

    def type(self, words: str) -> None:
        self.call("Input.insertText", text=words)
        self.settled()

    def press(self, key: str) -> None:
        code = KEYS.get(key, ord(key[0].upper()))
        written = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **written)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)
        self.settled()

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select, with the event that a user's choice fires."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.js(
            f"{element}.value = {json.dumps(value)}; "
            f"{element}.dispatchEvent(new Event('change', {{bubbles: true}}))"
        )
        self.settled()

    def texts(self, selector: str) -> list[str]:
        texts = self.js(
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            ".map((node) => (node.innerText ?? node.textContent).trim())"
        )
        return list(texts)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        response = self.call(
            "Page.captureScreenshot",
            captureBeyondViewport=whole,
            **({"clip": self._page_clip()} if whole else {}),
        )
        path.write_bytes(base64.b64decode(response["data"]))

    def _page_clip(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 15000), "scale": 1}


def _wait_for(find: Callable[[], Any]) -> Any:
    end = time.monotonic() + TIMEOUT
    while True:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            return find()
        assert time.monotonic() < end, "chromium did not start"
        time.sleep(0.05)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A fresh Chromium with its profile in `folder` and no network."""
    assert CHROMIUM
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        port = _wait_for(lambda: int((folder / "DevToolsActivePort").read_text().split()[0]))

        def tab_url() -> str:
            targets = json.load(direct.open(f"http://127.0.0.1:{port}/json", timeout=5))
            return next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")

        socket = create_connection(
            _wait_for(tab_url), timeout=TIMEOUT, http_proxy_host=None, enable_multithread=False
        )
        with contextlib.closing(socket):
            yield Page(socket)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TIMEOUT)
        process.kill()
