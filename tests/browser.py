"""Chromium without a window, for tests of pages: DevTools over a pipe, so that no socket is opened.

with Browser(folder) as browser:
    with browser.open(path, dark=True, width=390) as tab:
        tab.run("document.title")
        tab.press("ArrowRight")
        tab.requests, tab.messages      # everything it asked for, everything it complained about

Source: https://chromedevtools.github.io/devtools-protocol, flag --remote-debugging-pipe: JSON ended by NUL, in on 3, out on 4.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

KEYS = {
    "Enter": (13, "\r"),
    "Space": (32, " "),
    "Tab": (9, ""),
    "Escape": (27, ""),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}


class Browser:
    def __init__(self, folder: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-dev-shm-usage"
        command = [
            PROGRAM,
            *options.split(),
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
        ]
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        with open(folder / "log.txt", "wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", shell, "bash", *command], stdout=log, stderr=log, pass_fds=(to_browser, from_browser)
            )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)  # Chromium ends when nobody holds the pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def ask(self, method: str, session: str | None = None, timeout: float = 60, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {
            "id": self._number,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            found = self.receive(deadline)
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]

    def receive(self, deadline: float) -> dict[str, Any]:
        """Return the next message; events are noted too."""
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("Chromium did not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise RuntimeError("Chromium ended")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        if "method" in found:
            self.events.append(found)
        return found

    def open(self, page: Path | str, *, dark: bool = False, width: int = 1280, height: int = 900) -> "Tab":
        """Open a file, or an address."""
        return Tab(self, page, dark, width, height)


class Tab:
    def __init__(self, browser: Browser, page: Path | str, dark: bool, width: int, height: int) -> None:
        self.browser = browser
        self._target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.ask("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.resize(width, height)
        scheme = "dark" if dark else "light"
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=page.resolve().as_uri() if isinstance(page, Path) else page)
        deadline = time.monotonic() + 60
        while not self._seen("Page.loadEventFired"):
            browser.receive(deadline)

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.ask("Target.closeTarget", targetId=self._target)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.ask(method, self._session, **params)

    def _seen(self, method: str) -> list[dict[str, Any]]:
        return [
            e["params"] for e in self.browser.events if e.get("sessionId") == self._session and e["method"] == method
        ]

    @property
    def requests(self) -> list[str]:
        """The addresses that the page asked for, itself first."""
        return [event["request"]["url"] for event in self._seen("Network.requestWillBeSent")]

    @property
    def messages(self) -> list[str]:
        """What the page wrote to its console, and every error and warning."""
        found = [e["entry"]["text"] for e in self._seen("Log.entryAdded")]
        found += [json.dumps(e["args"]) for e in self._seen("Runtime.consoleAPICalled")]
        return found + [json.dumps(e["exceptionDetails"]) for e in self._seen("Runtime.exceptionThrown")]

    def run(self, script: str) -> Any:
        """Return the value of JavaScript, awaited; an error in it is raised."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 10) -> None:
        """Wait until a condition in JavaScript is true."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {condition}")
            time.sleep(0.02)

    def press(self, key: str, shift: bool = False) -> None:
        code, text = KEYS.get(key, (ord(key[0]), key))
        name = " " if key == "Space" else key
        common = {"key": name, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **({"text": text} if text else {}), **common)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self.ask("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, whole: bool = True) -> bytes:
        """Return a PNG of the page, or of what is in view."""
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole, optimizeForSpeed=True)
        return base64.b64decode(data["data"])
