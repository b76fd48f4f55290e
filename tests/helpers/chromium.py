"""A real browser for the tests: headless Chromium, driven through chromedriver's HTTP interface."""

import json
import shutil
import subprocess
import tempfile
import urllib.request

import pytest

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1280,900"
)


class Chromium:
    """One tab. Use it as a context; the test is skipped where Chromium is not installed."""

    def __enter__(self):
        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
        driver = shutil.which("chromedriver")
        if not (browser and driver):
            pytest.skip("no Chromium: apt-get install chromium chromium-driver")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                self._url = f"http://127.0.0.1:{line.split()[-1].rstrip('.')}/session"
                break
        arguments = [*_FLAGS.split(), f"--user-data-dir={self._profile.name}"]
        capabilities = {
            "goog:chromeOptions": {"binary": browser, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self._call("", {"capabilities": {"alwaysMatch": capabilities}})
        self._url += "/" + session["sessionId"]
        return self

    def __exit__(self, *exception):
        try:
            self._call("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.wait(10)
            self._driver.stdout.close()
            self._profile.cleanup()

    def open(self, path):
        self._call("/url", {"url": f"file://{path}"})

    def run(self, script):
        """Return what a script returns."""
        return self._call("/execute/sync", {"script": script, "args": []})

    def click(self, selector):
        """Click with the mouse on the middle of the first element, whatever lies over it."""
        self._evaluate(selector, "nodes[0].scrollIntoView({block: 'center'})")
        box = self._evaluate(selector, "nodes[0].getBoundingClientRect().toJSON()")
        sides = dict(x="width", y="height")
        point = {key: round(box[key] + box[side] / 2) for key, side in sides.items()}
        moves = [
            {"type": "pointerMove", "duration": 0, "origin": "viewport", **point},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "actions": moves}
        self._call("/actions", {"actions": [mouse]})

    def count(self, selector):
        """Return how many elements there are."""
        return self._evaluate(selector, "nodes.length")

    def text(self, selector):
        """Return the text of the first element."""
        return self._evaluate(selector, "nodes[0].textContent")

    def values(self, selector):
        """Return the numbers in the ``data-value`` of elements, None where there is none."""
        value = "nodes.map(n => n.dataset.value === undefined ? null : Number(n.dataset.value))"
        return self._evaluate(selector, value)

    def _evaluate(self, selector, expression):
        nodes = f"const nodes = [...document.querySelectorAll({json.dumps(selector)})];"
        return self.run(f"{nodes} return {expression}")

    def console(self):
        """Return what the page wrote to the console since the last call, errors included."""
        return [entry["message"] for entry in self._call("/se/log", {"type": "browser"})]

    def _call(self, path, body=None, method="POST"):
        request = urllib.request.Request(
            self._url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            return json.load(response)["value"]
