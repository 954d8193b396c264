"""Headless Chromium over its debugging protocol: requests, logs, content and behaviour of a page."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--remote-debugging-port=0"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser; skips without one on PATH."""
    pytest.importorskip("websockets")
    command = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if command is None:
        pytest.skip("no chromium on PATH")
    with ExitStack() as stack:
        yield Browser(command, tmp_path_factory.mktemp("chromium") / "profile", stack)


class Browser:
    """A tab; ``requests`` are the addresses it requested, ``problems`` its warnings and errors."""

    def __init__(self, command: str, profile: Path, stack: ExitStack) -> None:
        from websockets.sync.client import connect

        words = [command, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = stack.enter_context(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(process.terminate)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._count = 0
        address = wait_for(lambda: page_address(profile))
        self._socket = stack.enter_context(connect(address, max_size=None, proxy=None))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; handles the events before it."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def open(self, path: Path, *, width: int = 1200, dark: bool = False) -> None:
        """Loads a file and waits until it is complete."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        wait_for(lambda: self.evaluate("document.readyState + location.protocol") == "completefile:")
        time.sleep(0.3)
        self.evaluate("0")  # handles pending events

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def mouse(self, *kinds: str, x: float, y: float) -> None:
        """Moves (``mouseMoved``), presses or releases the mouse."""
        for kind in kinds:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])


def wait_for(look: Callable[[], T]) -> T:
    """Calls ``look`` until it returns a true value, for up to a minute."""
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, "timed out after a minute"
        time.sleep(0.05)
    return found


def page_address(profile: Path) -> str | None:
    """The debugging address of the browser's first tab; None before it listens."""
    file = profile / "DevToolsActivePort"
    if not file.exists() or "\n" not in (text := file.read_text()):
        return None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{text.splitlines()[0]}/json", timeout=30) as answer:
        return next((tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page"), None)
