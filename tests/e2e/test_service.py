"""The daemon as a service: what it tells systemd, heard by a socket of our own, and the units that start it."""
import contextlib
import ctypes
import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from harness import BUILD, ROOT, TIMEOUT, Daemon, Peer, same_bytes

CASE, WINDOW = "seed-46032", 8
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, folder):
        self.address = os.path.join(folder, "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.settimeout(TIMEOUT)
        self.heard = []

    def hear(self):
        """The next message, as a dictionary."""
        self.heard.append(dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines()))
        return self.heard[-1]

    def wait(self, key, word=""):
        """The next message with this key and word in its value."""
        while True:
            message = self.hear()
            if word in message.get(key, "\0" if word else ""):
                return message

    def rest(self):
        """What was sent and not heard yet."""
        self.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.hear()
        return self.heard


@pytest.fixture
def manager(short_path):
    return Manager(short_path)


@pytest.fixture
def start(golden, manager):
    """start(watchdog_us=None, **settings): a daemon that is started as systemd would."""
    started = []

    def start(watchdog_us=None, **settings):
        daemon = Daemon(golden(CASE).folder, window=WINDOW, start=False, **settings)
        started.append(daemon)
        daemon.environment["NOTIFY_SOCKET"] = manager.address
        if watchdog_us:
            daemon.environment["WATCHDOG_USEC"] = str(watchdog_us)
        daemon.start()
        return daemon

    yield start
    for daemon in started:
        daemon.close()


def rest(thread):
    """Wait until a thread sleeps and is not woken any more: it then holds nothing that others wait for."""
    before = None
    while True:
        with open(f"/proc/{thread}/status") as f:
            now = re.findall(r"^(?:State|\w*_ctxt_switches):\s*(.*)$", f.read(), re.MULTILINE)
        if now == before and now[0].startswith("S"):
            return
        before = now
        time.sleep(0.5)


@contextlib.contextmanager
def stopped(thread):
    """Stop one thread as a debugger does."""
    rest(thread)
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if ptrace(PTRACE_SEIZE, thread, None, None):
        pytest.skip("ptrace is not allowed: " + os.strerror(ctypes.get_errno()))
    assert not ptrace(PTRACE_INTERRUPT, thread, None, None)
    os.waitpid(thread, 0x40000000)  # __WALL
    try:
        yield
    finally:
        ptrace(PTRACE_DETACH, thread, None, None)


def thread_of(daemon, name):
    for path in glob.glob(f"/proc/{daemon.process.pid}/task/*/comm"):
        with open(path) as f:
            if f.read().strip() == name:
                return int(path.split("/")[-2])
    raise AssertionError(f"no thread {name}")


def test_ready_status_stopping(golden, manager, start):
    """READY=1 comes when the daemon answers; the status has live figures; stopping says how long it may take."""
    daemon = start(shutdown_timeout=40)
    manager.wait("READY", "1")
    said = [key for message in manager.heard for key in message]
    assert said.index("STATUS") < said.index("READY")
    assert daemon.ask("status")["ok"]
    Peer(daemon).encode(golden(CASE).rows)
    while not re.search("serving .* rows/s in, .* batches [1-9]", manager.wait("STATUS")["STATUS"]):
        pass
    daemon.terminate()
    assert daemon.wait() == 0
    stopping = next(message for message in manager.rest() if "STOPPING" in message)
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) >= 40e6
    assert not [message for message in manager.heard if "WATCHDOG" in message], "nobody asked for it"


def test_a_reload_is_announced_and_ends(manager, start):
    """With the time at which it began, so that systemd knows which reload it is."""
    daemon = start()
    manager.wait("READY", "1")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    daemon.terminate(signal.SIGHUP)
    reloading = manager.wait("RELOADING", "1")
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.wait("READY", "1")


def test_a_daemon_that_cannot_start_is_never_ready(manager, start):
    with pytest.raises(AssertionError, match="nowhere"):
        start(**{"sockets.publish": "ipc:///nowhere/at/all"})
    assert not [message for message in manager.rest() if "READY" in message]


def test_an_idle_daemon_is_patted(manager, start):
    start(watchdog_us=400000)
    for _ in range(5):
        manager.wait("WATCHDOG", "1")


def test_a_worker_that_a_debugger_stopped_ends_the_pats(golden, manager, start):
    """Until it goes on: then the rows come, and the pats too."""
    daemon = start(watchdog_us=400000)
    rows, peer = golden(CASE).rows, Peer(daemon)
    want = peer.encode(rows)
    manager.wait("WATCHDOG", "1")
    with stopped(thread_of(daemon, "worker")):
        peer.open(b"stuck")
        peer.data(b"stuck", rows, flush=True)
        manager.wait("STATUS", "stuck")
        heard = len(manager.heard)
        for _ in range(2):  # time passes
            manager.wait("STATUS", "stuck")
        assert not [message for message in manager.heard[heard:] if "WATCHDOG" in message]
    manager.wait("WATCHDOG", "1")
    assert np.array_equal(peer.hidden(b"stuck", 0, len(rows)), want)


def test_a_stopped_process_is_not_patted(manager, start):
    daemon = start(watchdog_us=200000)
    manager.wait("WATCHDOG", "1")
    daemon.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, daemon.process.pid, os.WSTOPPED | os.WNOWAIT)
    manager.rest()
    manager.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        manager.hear()
    daemon.process.send_signal(signal.SIGCONT)
    manager.socket.settimeout(TIMEOUT)
    manager.wait("WATCHDOG", "1")


# A journal of our own where systemd's would be: a folder mounted there, for the daemon alone.
JOURNAL = """mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind "$0" /run/systemd/journal &&
             JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec "$@\""""


def test_the_journal_gets_fields(golden, short_path):
    """What is logged about a stream says which, and by which code, for journalctl to select by."""
    os.mkdir(short_path + "/journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(short_path + "/journal/socket")
        journal.settimeout(TIMEOUT)
        daemon = Daemon(golden(CASE).folder, window=WINDOW, start=False)
        daemon.prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", JOURNAL,
                         short_path + "/journal"]
        try:
            daemon.start()
            peer = Peer(daemon)
            peer.header(b"ward-\xff", type="flush")
            peer.refusal(b"ward-\xff", "closed")
            said = [journal.recv(4096)]
            while b"refused" not in said[-1]:
                said.append(journal.recv(4096))
        except AssertionError:
            if "unshare" not in daemon.log() and "mount" not in daemon.log():
                raise
            pytest.skip("no mount namespaces here")
        finally:
            daemon.close()
    fields = dict(line.split(b"=", 1) for line in said[-1].splitlines())
    assert fields[b"CODE"] == b"closed" and fields[b"STREAM"] == b"0x776172642dff" and fields[b"PRIORITY"] == b"6"
    assert fields[b"SYSLOG_IDENTIFIER"] == b"mamba2d" and any(b"MESSAGE=ready" in message for message in said)


def test_what_is_named_begins_no_line_of_the_log(golden, short_path):
    """A model's folder with a line break in its name would forge one."""
    folder = f"{short_path}/model\n<0>forged"
    os.symlink(golden(CASE).folder, folder)
    log = Daemon(folder, window=WINDOW).close()
    assert "model <0>forged" in log and "\n<0>" not in log


def test_a_log_that_cannot_be_written(golden):
    """A full disk behind stderr stops nothing."""
    daemon = Daemon(golden(CASE).folder, window=WINDOW, start=False)
    daemon.prefix = ["sh", "-c", 'exec "$0" "$@" 2>/dev/full']
    daemon.start()
    peer = Peer(daemon)
    peer.header(b"nobody", type="flush")  # which is logged
    peer.refusal(b"nobody", "closed")
    assert same_bytes(peer.encode(golden(CASE).rows), peer.encode(golden(CASE).rows))
    assert daemon.close() == ""


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("dropin, exposure", [(None, 12), ("gpu.conf", 16)])
def test_the_units_may_do_little(tmp_path, dropin, exposure):
    """systemd's own measure of what a service may do, in tenths."""
    for unit in ("mamba2d.service", "mamba2d@.service"):
        text = open(os.path.join(BUILD, "etc/systemd", unit)).read()
        if dropin:
            text += open(os.path.join(ROOT, "etc/systemd", dropin)).read()
        (tmp_path / unit).write_text(text)
        subprocess.run(["systemd-analyze", "security", "--offline=true", f"--threshold={exposure}",
                        tmp_path / unit], check=True, stdout=subprocess.DEVNULL)


def test_the_sample_configuration_is_one(golden):
    subprocess.run([os.path.join(BUILD, "mamba2d"), "-c", os.path.join(BUILD, "etc/mamba2d.yaml"), "-s",
                    f"model={golden(CASE).folder}", "--check"], check=True)
