"""The page at metrics.listen, in a real browser: headless Chromium, spoken to over a pipe (Chrome DevTools Protocol).

With MAMBA2D_SCREENSHOT=FILE.png it is fed for two minutes and its picture is kept.
"""
import base64
import fcntl
import json
import os
import shutil
import subprocess
import time

import numpy as np
import pytest

from harness import TIMEOUT, Peer, meanwhile
from test_metrics import address

CASE, WINDOW = "seed-46032", 16
CHROMIUM = shutil.which("chromium")
PICTURE = os.environ.get("MAMBA2D_SCREENSHOT")
pytestmark = [pytest.mark.skipif(not CHROMIUM, reason="no chromium"), pytest.mark.native]


class Browser:
    """One tab of a headless Chromium."""

    def __init__(self, profile):
        theirs_in, self.out = os.pipe()
        self.input, theirs_out = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "--window-size=1280,1000", "about:blank"],
            pass_fds=(3, 4), preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (theirs_in, theirs_out, *ends):
            os.close(fd)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(domain + ".enable")

    def receive(self):
        while b"\0" not in self.buffer:
            part = os.read(self.input, 1 << 16)
            assert part, "the browser has gone"
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression):
        """Until it is true."""
        deadline = time.monotonic() + TIMEOUT
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, (expression, self.evaluate("document.body.innerText"))
            time.sleep(0.1)

    def picture(self):
        height = self.evaluate("document.documentElement.scrollHeight")
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=height, deviceScaleFactor=1, mobile=False)
        time.sleep(0.5)  # it draws anew
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.input)


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path)
    yield browser
    browser.close()


@pytest.fixture
def daemon(daemons):
    return daemons(CASE, window=WINDOW, **{"metrics.listen": "127.0.0.1:0"})


@pytest.fixture
def traffic(daemon, golden):
    """Streams that are fed, at rates of their own, for as long as the test takes."""
    rows = np.tile(golden(CASE).rows, (40, 1))

    def feed(stop):
        peer = Peer(daemon)
        random = np.random.default_rng(7)
        for turn in range(10 ** 6):
            if stop.wait(0.05):
                break
            swell = 1 + 0.6 * np.sin(turn / 200)
            for i in range(12):
                n = random.poisson(swell * 60 / (1 + i))
                if n:
                    peer.data(b"ward-%d/bed-%02d" % (i % 3 + 1, i + 1), rows[:n])
            while peer.receive(0):
                pass
        peer.close()

    with meanwhile(feed):
        yield


def test_the_page_is_live(daemon, traffic, browser):
    browser.call("Page.navigate", url="http://%s:%d/" % address(daemon))
    browser.wait("document.getElementById('state')?.textContent === 'serving'")
    browser.wait("document.querySelectorAll('#streams tr').length === 12")
    card = "[...document.querySelectorAll('.card')].find(c => c.textContent.startsWith('%s')).querySelector('b')"
    for title in ("rows/s in", "rows/s out", "median latency", "99 % within", "batch fill", "device busy"):
        browser.wait(f"parseFloat({card % title}.textContent) > 0")
    browser.wait("parseFloat(document.querySelector('#streams td:nth-child(2)').textContent) > 0")
    # Something is drawn in each chart: pixels of a series' color, not only lines and letters.
    for i in range(4):
        browser.wait(f"""(() => {{
            const c = document.querySelectorAll('canvas')[{i}];
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            let coloured = 0;
            for (let p = 0; p < d.length; p += 4)
                coloured += d[p + 3] > 200 &&
                    Math.max(d[p], d[p + 1], d[p + 2]) - Math.min(d[p], d[p + 1], d[p + 2]) > 80;
            return coloured > 5; }})()""")
    if PICTURE:
        time.sleep(130)
    picture = browser.picture()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 20000
    if PICTURE:
        with open(PICTURE, "wb") as f:
            f.write(picture)

    browser.evaluate("document.getElementById('prefix').value = 'ward-2/'")
    browser.wait("document.querySelectorAll('#streams tr').length === 4")
    sources = {e["params"]["request"]["url"].split("?")[0].replace("http://%s:%d/" % address(daemon), "/")
               for e in browser.events if e.get("method") == "Network.requestWillBeSent"}
    assert sources <= {"/", "/metrics", "/status", "/streams", "data:,", "about:blank"}, "it needs nobody else"
    assert not [e for e in browser.events if e.get("method") == "Runtime.exceptionThrown" or
                e.get("params", {}).get("entry", {}).get("level") == "error"]


def test_the_page_says_when_nobody_answers(daemon, browser):
    browser.call("Page.navigate", url="http://%s:%d/" % address(daemon))
    browser.wait("document.getElementById('state')?.textContent === 'serving'")
    assert daemon.ask("drain")["ok"]
    browser.wait("document.getElementById('state').textContent === 'draining'")
    daemon.terminate()
    assert daemon.wait() == 0
    browser.wait("document.getElementById('state').textContent === 'no answer'")


def test_a_stream_id_is_text(daemon, browser, golden):
    """Whatever a producer calls its stream, the page shows it and does not run it."""
    peer, name = Peer(daemon), b"<img src=x onerror=alert(1)>"
    peer.data(name, golden(CASE).rows)
    peer.ack(name, next=1)
    browser.call("Page.navigate", url="http://%s:%d/" % address(daemon))
    browser.wait("document.querySelector('#streams td')?.textContent === %r" % name.decode())
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
