"""
Every call that may fail does so once: memory, descriptors, threads, sockets.  Nothing crashes, hangs or is wrong.
Each place that calls sees its first call fail; MAMBA2D_CALLS=N: each of its first N, by turns.
"""
import itertools
import mmap
import os
import re
import resource
import shutil
import struct
import subprocess
import urllib.request

import numpy as np
import pytest

from faults import library
from harness import MAMBA2CTL, MAMBA2D, Peer, Subscriber, same_bytes
from test_ctl import Published
from test_security import Secured

pytestmark = pytest.mark.native  # sanitizers have the memory to themselves
CASE = "causal-lm-sharded"
CALLS = int(os.environ.get("MAMBA2D_CALLS", 1))


class Calls:
    """At which site calls fail, in programs with this environment: see faultcalls.c."""

    HEAD, MOST = struct.Struct("III32s"), 4096

    def __init__(self, folder):
        path = folder / "sites"
        with open(path, "w+b") as file:
            file.truncate(self.HEAD.size + 4 * self.MOST)
            self.plan = mmap.mmap(file.fileno(), 0)
        self.environment = {"LD_PRELOAD": library("faultcalls", folder), "MAMBA2D_FAULT_SITES": str(path)}

    def arm(self, site, nth):
        self.HEAD.pack_into(self.plan, 0, site, nth, 0, b"")

    def sites(self):
        """Those that there were."""
        return struct.unpack_from(f"{self.HEAD.unpack_from(self.plan)[2]}I", self.plan, self.HEAD.size)

    def failed(self):
        """The call that failed."""
        return self.HEAD.unpack_from(self.plan)[3].rstrip(b"\0").decode()

    def each(self, attempt):
        """attempt() without a failure, and then with one at each site in turn."""
        self.arm(0, 0)
        attempt()
        sites = self.sites()
        assert sites
        for nth, (i, site) in itertools.product(range(1, CALLS + 1), enumerate(sites, 1)):
            self.arm(site, nth)
            try:
                attempt()
            except Exception as error:
                raise AssertionError(f"{self.failed()} failed, call {nth} at site {i} of {len(sites)}") from error


@pytest.fixture
def calls(tmp_path):
    return Calls(tmp_path)


# --- the daemon ------------------------------------------------------------------------------------------------------

def served(daemon, golden, want):
    """Is a stream served from its first row to its last?  What comes is right in any case."""
    peer = Peer(daemon)
    peer.header(b"fresh", type="open", reply=True)
    peer.data(b"fresh", golden.tokens, end=True, pos=0)
    reached = 0
    while reached < len(want):
        message = peer.take(b"fresh", "hidden", "error")
        if message.type == "error":
            break
        assert same_bytes(message.rows, want[message.pos:message.pos + len(message.rows)])
        reached = message.pos + len(message.rows)
    peer.close()
    return reached == len(want)


def use(secured, golden):
    """A bit of everything; whatever is asked for may be refused."""
    daemon = secured.daemon
    Subscriber(daemon, b"s")
    keyed, peer = secured.peer("peer"), Peer(daemon)
    for who, stream in (keyed, b"s1"), (peer, b"s2"):
        who.header(stream, type="open", reply=True)
        who.data(stream, golden.rows[:20], pos=0, flush=True)
        who.data(stream, golden.rows[20:21], pos=22)
        who.frames(stream, b"noise")
    for command in ("snapshot", "export", "fork"):
        state = daemon.ask(command, stream=b"s2", to=b"s3").get("state")
        if state:
            daemon.ask("import", stream=b"s4", state=state)
    for command, arguments in (("streams", {}), ("reset", {"stream": b"s1"}), ("reload", {}), ("status", {})):
        secured.ask("peer", command, **arguments)
    page = daemon.ask("status")["sockets"].get("metrics")
    for path in "/", "/metrics", "/status", "/streams":
        try:
            urllib.request.urlopen(f"http://{page}{path}", timeout=60).read()
        except OSError:
            pass
    peer.header(b"s2", type="close")


@pytest.fixture
def secured(daemons, tmp_path):
    secured = Secured(daemons, tmp_path, CASE, threads=2, device=["cpu", "cpu"],
                      **{"metrics.listen": "127.0.0.1:0", "state.dir": str(tmp_path / "states"),
                         "streams.on_gap": "skip"})
    secured.let("peer", "write read control")
    return secured


def test_the_daemon(secured, calls, golden, tmp_path):
    """It ends with a reason, or goes on: then it serves who comes next, as soon as what failed does not any more."""
    daemon, golden = secured.daemon, golden(CASE)
    want, before = Peer(daemon).encode(golden.tokens), tmp_path / "before"
    Peer(daemon).encode(golden.rows)
    for stream in b"s2", b"left", b"closed":
        peer = Peer(daemon)
        peer.open(stream)
        peer.data(stream, golden.rows[:20], flush=True, end=stream == b"closed")
        peer.hidden(stream, 0, 20)
    daemon.environment.update(calls.environment, NOTIFY_SOCKET=str(tmp_path / "nobody"))
    daemon.terminate()
    assert daemon.wait() == 0
    shutil.copytree(daemon.settings["state.dir"], before)

    def attempt():
        shutil.rmtree(daemon.settings["state.dir"])
        shutil.copytree(before, daemon.settings["state.dir"])
        logged = len(daemon.log())
        try:
            daemon.start()
            secured.tcp = daemon.ask("status")["sockets"]
            use(secured, golden)
            assert served(daemon, golden, want) or served(daemon, golden, want)
            daemon.terminate()
            assert daemon.wait() in (0, 1)
        except AssertionError:
            if daemon.process.poll() != 1:
                raise
        if daemon.process.poll():
            assert re.search("^<3>", daemon.log()[logged:], re.MULTILINE), "no reason given"

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, limits[1]))  # the daemon asks for more
    try:
        calls.each(attempt)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- programs that end by themselves ---------------------------------------------------------------------------------

PROGRAMS = {
    # name: (command, with FOLDER for that of its files, what it writes)
    "check": ([MAMBA2D, "-c", "FOLDER/config", "--check"], None),
    "print-config": ([MAMBA2D, "-c", "FOLDER/config", "--print-config"], None),
    "encode": ([MAMBA2CTL, "encode", "--model", "MODEL", "--window", "8", "--device", "cpu", "--precision", "float32",
                "FOLDER/rows.npy", "FOLDER/out"], "out"),
    "encode tokens": ([MAMBA2CTL, "encode", "--model", "MODEL", "--device", "cpu", "FOLDER/tokens.npy", "FOLDER/out"],
                      "out"),
    "keygen": ([MAMBA2CTL, "keygen", "FOLDER/key"], "key"),
    "send": ([MAMBA2CTL, "send", "--ingest", "TCP-INGEST", "KEYS", "--flush", "sent", "FOLDER/rows.npy"], None),
    "status": ([MAMBA2CTL, "status", "--control", "TCP-CONTROL", "KEYS"], None),
    "export": ([MAMBA2CTL, "export", "--control", "CONTROL", "there", "FOLDER/exported"], "exported"),
    "import": ([MAMBA2CTL, "import", "--control", "CONTROL", "FOLDER/state", "new"], None),
    "top": ([MAMBA2CTL, "top", "--control", "CONTROL", "--json", "--count", "2", "--interval", "0.05"], None),
}


def finished(status, told, out):
    """Did the program do what it was to do?  If not it says why, and leaves nothing half done."""
    if status == 0:
        assert out is None or out.exists()
    else:
        assert status in (1, 2, 3, 4) and told.strip()
        assert out is None or not out.exists() or out.name == "exported"
    return status == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(secured, calls, golden, tmp_path, name):
    """What they write is right, or is not there."""
    command, written = PROGRAMS[name]
    golden, daemon, keyring = golden(CASE), secured.daemon, secured.keyring
    folder = tmp_path / "files"
    folder.mkdir()
    np.save(folder / "rows.npy", golden.rows)
    np.save(folder / "tokens.npy", golden.tokens.astype(np.int64))
    (folder / "config").write_text(f"model: {golden.folder}\noutput: {{layers: [0, final]}}\n"
                                   "sockets: {subscribe: [\">tcp://127.0.0.1:1\", \"@tcp://127.0.0.1:2\"]}\n")
    peer = Peer(daemon)
    want = peer.encode(golden.rows)
    peer.open(b"there")
    peer.data(b"there", golden.rows, flush=True)
    peer.hidden(b"there", 0, len(golden.rows))
    state = daemon.ask("export", stream=b"there")["state"]
    (folder / "state").write_bytes(state)
    values = {"MODEL": golden.folder, "CONTROL": daemon.control, "TCP-INGEST": secured.tcp["ingest"],
              "TCP-CONTROL": secured.tcp["control"]}
    keys = ["--key", keyring.path("peer"), "--server-key", keyring.own + ".pub"]
    command = [part for word in command
               for part in (keys if word == "KEYS" else [values.get(word, word.replace("FOLDER", str(folder)))])]
    out = folder / written if written else None

    def attempt():
        for path in (out, folder / "key.pub"):
            if path and path.exists():
                path.unlink()
        daemon.ask("close", stream=b"new")
        result = subprocess.run(command, env={**os.environ, **calls.environment}, capture_output=True, text=True,
                                timeout=60)
        if finished(result.returncode, result.stderr, out) and name == "encode":
            assert same_bytes(np.load(out), want)
        if result.returncode == 0 and name == "export":
            assert out.read_bytes() == state

    calls.each(attempt)


def test_recv(calls, short_path, tmp_path):
    out = tmp_path / "out.npy"
    rows = np.arange(400, dtype=np.float32).reshape(100, 4)

    def attempt():
        out.unlink(missing_ok=True)
        published = Published(short_path)
        with subprocess.Popen([MAMBA2CTL, "recv", "--publish", published.address, "-o", out, "s"], text=True,
                              env={**os.environ, **calls.environment}, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            while process.poll() is None and not published.socket.poll(10):
                pass
            published.hidden(b"s", 0, rows[:50])
            published.hidden(b"s", 50, rows[50:])
            published.closed(b"s", 100)
            told = process.communicate(timeout=60)[1]
        published.context.destroy(0)
        if finished(process.returncode, told, out):
            assert same_bytes(np.load(out), rows)

    calls.each(attempt)
