"""Headless Chromium over its DevTools pipe: no driver, no package."""

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from queue import Empty, Queue

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find():
    """The browser's path, or None."""
    return os.environ.get("PMILL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One window. What the page complains of is in `.complaints`."""

    def __init__(self, profile, width=1100, height=900):
        to_child, self.write = os.pipe()
        self.read, from_child = os.pipe()
        # The child reads commands from 3 and writes answers to 4.
        command = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
        arguments = [find(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        arguments += ["--remote-debugging-pipe", "--no-first-run", "--disable-extensions", "--hide-scrollbars"]
        arguments += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", command, str(to_child), str(from_child), *arguments],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self.number, self.answers, self.events, self.complaints = 0, {}, Queue(), []
        self.arrived = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._call("Browser.close", {})
            self.process.wait(timeout=30)
        except Exception:
            self.process.kill()
            self.process.wait()
        os.close(self.write)

    def _listen(self):
        with os.fdopen(self.read, "rb") as pipe:
            held = b""
            while chunk := pipe.read1(1 << 16):
                *messages, held = (held + chunk).split(b"\0")
                for message in map(json.loads, messages):
                    with self.arrived:
                        if "id" in message:
                            self.answers[message["id"]] = message
                        elif message["method"] in ("Log.entryAdded", "Runtime.exceptionThrown"):
                            self.complaints.append(message["params"])
                        else:
                            self.events.put(message["method"])
                        self.arrived.notify_all()

    def _call(self, method, parameters, session=None):
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        with self.arrived:
            assert self.arrived.wait_for(lambda: number in self.answers, timeout=60), f"no answer to {method}"
        answer = self.answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def call(self, method, **parameters):
        return self._call(method, parameters, self.session)

    def loaded(self, begin):
        """Does what makes a page load, and waits until it has."""
        while not self.events.empty():
            self.events.get()
        begin()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if self.events.get(timeout=1) == "Page.loadEventFired":
                    return
            except Empty:
                pass
        raise AssertionError("the page does not load")

    def open(self, address):
        self.loaded(lambda: self.call("Page.navigate", url=address))

    def size(self, width, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def run(self, script):
        """The value of a script."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press(self, key):
        codes = {"Tab": 9, "Enter": 13}
        text = {"Enter": {"text": "\r"}}.get(key, {})
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)

    def picture(self, path):
        """The whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
