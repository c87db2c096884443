"""mamba2ctl: whole recordings without a daemon, and the commands that speak to one."""
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import threading

import msgpack
import numpy as np
import pytest
import zmq

from faults import library
from harness import CASES, MAMBA2CTL, ROOT, Peer, Relay, Subscriber, meanwhile, pack, relative_error, same_bytes

CASE, WINDOW = "seed-46032", 8


def ctl(*arguments, status=0):
    """Run mamba2ctl, which must end with this exit status."""
    result = subprocess.run([MAMBA2CTL, *map(str, arguments)], capture_output=True, text=True, timeout=180,
                            stdin=subprocess.DEVNULL)
    assert result.returncode == status, result
    assert not status or result.stderr
    return result


@pytest.fixture(scope="module")
def daemon(shared_daemons):
    return shared_daemons(CASE, window=WINDOW)


@pytest.fixture
def npy(tmp_path):
    """Save an array, return its path."""
    def save(array, name="in.npy"):
        np.save(tmp_path / name, array)
        return tmp_path / name
    return save


# --- encode ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("window", [1, 8, 64, 256])
@pytest.mark.parametrize("case", CASES)
def test_encode(daemons, golden, npy, tmp_path, case, window):
    """Within 1e-5 of the expected hidden states, and the same bits as through the daemon."""
    want = golden(case)
    out = tmp_path / "out.npy"
    ctl("encode", "--model", want.folder, "--window", window, "--device", "cpu", "--precision", "float32",
        npy(want.rows), out)
    got = np.load(out)
    assert relative_error(got, want.hidden["final"]) <= 1e-5
    assert same_bytes(got, Peer(daemons(case, window=window)).encode(want.rows))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_encode_token_ids(golden, npy, tmp_path, dtype):
    want = golden("causal-lm-sharded")
    out = tmp_path / "out.npy"
    ctl("encode", "--model", want.folder, "--device", "cpu", "--threads", 1, npy(want.tokens.astype(dtype)), out)
    assert relative_error(np.load(out), want.hidden["final"]) <= 1e-5


def test_encode_of_nothing(golden, npy, tmp_path):
    want = golden(CASE)
    out = tmp_path / "out.npy"
    ctl("encode", "--model", want.folder, npy(want.rows[:0]), out)
    assert np.load(out).shape == (0, want.hidden_size)


def test_encode_refuses_what_it_cannot_read_and_leaves_no_file(golden, npy, tmp_path):
    want = golden(CASE)
    out = tmp_path / "out.npy"
    nan = want.rows.copy()
    nan[40, 3] = np.nan
    (tmp_path / "text.npy").write_text("rows")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\x0f{'descr': '<f4'")
    (tmp_path / "cut.npy").write_bytes(npy(want.rows).read_bytes()[:-5])
    bad = [npy(want.rows[:, :-1], "columns.npy"), npy(want.rows.astype(complex), "complex.npy"), npy(nan, "nan.npy"),
           npy(want.rows[None], "three.npy"), npy(np.asfortranarray(want.rows), "fortran.npy"),
           npy(np.zeros((3, 4), np.int32), "ids.npy"), npy(np.array([3, -1]), "below.npy"),
           tmp_path / "text.npy", tmp_path / "cut.npy", tmp_path / "none.npy", tmp_path / "empty.npy",
           tmp_path / "header.npy", tmp_path]
    for path in bad:
        assert path.name in ctl("encode", "--model", want.folder, path, out, status=1).stderr
        assert not out.exists()
    for path, words in [
            (npy(np.array([want.vocab_size]), "tokens.npy"), "token"), (tmp_path / "nan.npy", "row 40, column 3 "),
            (npy(want.rows.astype(">f4"), "big.npy"), "dtype '>f4', expected '<f4'"),
            (npy(want.rows.astype(float), "wide.npy"), "astype"), (tmp_path / "fortran.npy", "ascontiguousarray")]:
        told = ctl("encode", "--model", want.folder, path, out, status=1).stderr
        assert path.name in told and words in told
    assert not out.exists()
    ctl("encode", "--model", tmp_path, npy(want.rows), out, status=1)
    ctl("encode", "--model", want.folder, npy(want.rows), tmp_path / "no" / "out.npy", status=1)
    ctl("encode", "--model", want.folder, npy(want.rows), "x" * 5000, status=1)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_encode_reads_every_version_of_the_format(golden, tmp_path, version):
    want = golden(CASE)
    with open(tmp_path / "in.npy", "wb") as file:
        np.lib.format.write_array(file, want.rows, version)
    ctl("encode", "--model", want.folder, "--device", "cpu", tmp_path / "in.npy", tmp_path / "out.npy")
    assert relative_error(np.load(tmp_path / "out.npy"), want.hidden["final"]) <= 1e-5


def test_encode_shows_on_a_terminal_how_far_it_is(golden, npy, tmp_path):
    master, slave = pty.openpty()
    rows = golden(CASE).rows
    subprocess.run([MAMBA2CTL, "encode", "--model", golden(CASE).folder, npy(rows), tmp_path / "out.npy"],
                   stderr=slave, check=True, timeout=60)
    os.close(slave)
    assert f"{len(rows)}/{len(rows)} rows" in os.read(master, 65536).decode()
    os.close(master)


def test_wrong_usage():
    ctl("keygen", "x" * 5000, status=1)
    for arguments in ([], ["explode"], ["encode"], ["encode", "--model", "x", "in.npy"], ["encode", "--window", "0"],
                      ["send", "stream"], ["recv", "--count", "x"], ["recv", "-o", "out.npy"], ["status", "x"],
                      ["close"], ["top", "--interval", "0"], ["top", "--count", "x"], ["top", "a", "b"],
                      ["top", "x" * 256], ["recv", "x" * 256], ["recv", "a", "b"], ["send", "x" * 256, "in.npy"],
                      ["close", "x" * 256], ["keygen"], ["encode", "--threads", "2000"],
                      ["encode", "--precision", "float16"],
                      *([command, "--colour"] for command in ("encode", "keygen", "send", "recv", "top", "status"))):
        ctl(*arguments, status=2)
    assert "encode" in ctl("--help").stdout
    assert ctl("--version").stdout


# --- with a daemon ---------------------------------------------------------------------------------------------------

def test_status_and_streams(daemon, golden):
    peer = Peer(daemon)
    peer.data(b"ctl-listed", golden(CASE).rows[:11])
    peer.ack(b"ctl-listed", done=8)
    status = json.loads(ctl("status", "--control", daemon.control, "--json").stdout)
    assert status["window"] == WINDOW and status["streams"] >= 1
    assert "window" in ctl("status", "--control", daemon.control).stdout
    assert "ctl-listed" in ctl("streams", "--control", daemon.control).stdout
    listed = json.loads(ctl("streams", "--control", daemon.control, "--json", "ctl-listed").stdout)
    assert [(s["next"], s["done"]) for s in listed["streams"]] == [(11, 8)]


def test_status_without_a_daemon(short_path):
    ctl("status", "--control", f"ipc://{short_path}/nobody", status=3)


def test_send_before_the_daemon(daemons, golden, npy):
    """It says that it waits, and goes on as soon as somebody answers."""
    daemon = daemons(CASE, window=WINDOW, start=False)
    sending = subprocess.Popen([MAMBA2CTL, "send", "--ingest", daemon.ingest, "early", npy(golden(CASE).rows)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with sending:
        assert daemon.ingest in sending.stderr.readline()
        daemon.start()
        told, more = sending.communicate(timeout=60)
    assert sending.returncode == 0 and "accepted" in told and not more, more


@pytest.mark.native  # sanitizers want to be loaded first
def test_send_without_a_daemon(short_path, tmp_path, monkeypatch):
    """It waits for half a minute, and here for a hundredth of that."""
    np.save(tmp_path / "rows.npy", np.zeros((3, 4), np.float32))
    monkeypatch.setenv("LD_PRELOAD", library("impatient", tmp_path))
    told = ctl("send", "--ingest", f"ipc://{short_path}/nobody", "s", str(tmp_path / "rows.npy"), status=3).stderr
    assert f"{short_path}/nobody: no answer within 30 s" in told


def test_keygen_leaves_both_files_or_none(tmp_path):
    (tmp_path / "key.pub").symlink_to(tmp_path / "no" / "key.pub")
    assert "key.pub" in ctl("keygen", tmp_path / "key", status=1).stderr
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("text", ["", "secret-key short", "other-key " + 40 * "0", "public-key " + 40 * "0",
                                  2 * ("secret-key " + 40 * "0" + "\n"), "secret-key " + 300 * "0"])
def test_a_file_that_holds_no_key(tmp_path, short_path, text):
    key = tmp_path / "key"
    key.write_text(text)
    key.chmod(0o600)
    told = ctl("status", "--control", f"ipc://{short_path}/none", "--key", key, "--server-key", key, status=3).stderr
    assert str(key) in told and ("no key file" in told or "holds a public-key" in told)


def test_where_a_daemon_is_looked_for(tmp_path):
    """Where nobody says: in a folder of this user's, and in no other's."""
    (tmp_path / "file").touch()
    told = subprocess.run([MAMBA2CTL, "status"], env={"RUNTIME_DIRECTORY": str(tmp_path / "file")}, text=True,
                          capture_output=True)
    assert told.returncode == 3 and f"{tmp_path}/file: is not a folder of this user" in told.stderr
    for where, expected in ({"XDG_RUNTIME_DIR": str(tmp_path)}, f"{tmp_path}/mamba2d"), ({}, "/tmp/mamba2d-65534"):
        told = subprocess.run(["unshare", "--user", MAMBA2CTL, "status"], env={**where, "PATH": os.environ["PATH"]},
                              text=True, capture_output=True)
        if "unshare:" in told.stderr:
            pytest.skip("no user namespaces here")
        assert told.returncode == 3 and expected in told.stderr
    if os.geteuid() == 0:
        told = subprocess.run([MAMBA2CTL, "status"], env={}, text=True, capture_output=True)
        assert told.returncode in (0, 3) and (told.returncode == 0 or "/run/mamba2d" in told.stderr)


def test_import_of_what_is_no_file(daemon, tmp_path):
    for path in tmp_path, tmp_path / "none":
        assert str(path) in ctl("import", "--control", daemon.control, path, status=2).stderr


def test_reset_and_close(daemon, golden):
    rows = golden(CASE).rows
    peer = Peer(daemon)
    peer.open(b"ctl-reset")
    peer.data(b"ctl-reset", rows[:11])
    ctl("reset", "--control", daemon.control, "ctl-reset")
    peer.data(b"ctl-reset", rows, epoch=1)
    peer.hidden(b"ctl-reset", 0, 11)
    assert same_bytes(peer.hidden(b"ctl-reset", 0, len(rows), epoch=1), peer.encode(rows))
    ctl("close", "--control", daemon.control, "ctl-reset")
    ctl("close", "--control", daemon.control, "ctl-reset", status=4)


def test_send_goes_on_after_a_reset(daemon, golden, npy):
    rows = golden(CASE).rows
    consumer = Subscriber(daemon, b"ctl-anew")
    ctl("send", "--ingest", daemon.ingest, "ctl-anew", npy(rows[:20]))
    ctl("reset", "--control", daemon.control, "ctl-anew")
    ctl("send", "--ingest", daemon.ingest, "--end", "ctl-anew", npy(rows))
    consumer.hidden(b"ctl-anew", 0, 20)
    assert same_bytes(consumer.hidden(b"ctl-anew", 0, len(rows), epoch=1), Peer(daemon).encode(rows))


def test_send(daemon, golden, npy):
    rows = golden(CASE).rows
    consumer = Subscriber(daemon, b"ctl-sent")
    ctl("send", "--ingest", daemon.ingest, "ctl-sent", npy(rows[:20]))
    ctl("send", "--ingest", daemon.ingest, "--flush", "ctl-sent", npy(rows[20:30]))
    ctl("send", "--ingest", daemon.ingest, "--end", "ctl-sent", npy(rows[30:]))
    assert same_bytes(consumer.hidden(b"ctl-sent", 0, len(rows)), Peer(daemon).encode(rows))
    assert consumer.take(b"ctl-sent", "event").event == "closed"


def test_send_is_refused(daemon, golden, npy):
    rows = golden(CASE).rows
    assert "bad_shape" in ctl("send", "--ingest", daemon.ingest, "x", npy(rows[:, :-1]), status=4).stderr
    rows = np.where(np.arange(len(rows))[:, None] == 7, np.nan, rows).astype(np.float32)
    assert "non_finite" in ctl("send", "--ingest", daemon.ingest, "x", npy(rows), status=4).stderr


def test_send_heeds_credit(daemons, golden, npy):
    rows = np.tile(golden(CASE).rows, (100, 1))
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 50})
    ctl("send", "--ingest", daemon.ingest, "--end", "long", npy(rows))
    status = daemon.ask("status")
    assert (status["rows_in"], status["refused"]) == (len(rows), {})


@pytest.mark.parametrize("arguments", [[], ["--count", "64"]])
def test_recv(daemon, golden, short_path, tmp_path, arguments):
    rows = golden(CASE).rows
    address, out = f"ipc://{short_path}/pub", tmp_path / "out.npy"
    relay = Relay(daemon, b"relayed", address)
    peer = Peer(daemon)
    peer.data(b"relayed", rows[:11], flush=True)
    peer.data(b"relayed", rows[11:], end=True)
    process = subprocess.Popen([MAMBA2CTL, "recv", "--publish", address, *arguments, "-o", out, "relayed"])
    relay.wait()
    relay.run(until=lambda frames: b"closed" in frames[1])
    assert process.wait(60) == 0
    assert same_bytes(np.load(out), peer.encode(rows))


def test_recv_prints(daemon, golden, short_path):
    address = f"ipc://{short_path}/pub"
    relay = Relay(daemon, b"relayed", address)
    peer = Peer(daemon)
    peer.data(b"relayed\xff", golden(CASE).rows[:8], end=True)
    with subprocess.Popen([MAMBA2CTL, "recv", "--publish", address, "--count", "8"], stdout=subprocess.PIPE,
                          text=True) as process:
        relay.wait()
        relay.run(until=lambda frames: b"closed" in frames[1])
        assert process.wait(60) == 0
        line = process.stdout.readline()
    for word in ("0x72656c61796564ff", "pos 0", "rows 8", "end"):
        assert word in line


class Published:
    """A publish socket of our own, to say things that a daemon hardly would."""

    def __init__(self, short_path):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.address = f"ipc://{short_path}/pub"
        self.socket.bind(self.address)

    def hidden(self, stream, pos, rows, epoch=0, **more):
        header = {"v": 1, "type": "hidden", "epoch": epoch, "pos": pos, "shape": rows.shape, "dtype": "float32", **more}
        self.socket.send_multipart([stream, pack(header), rows.tobytes()])

    def closed(self, stream, pos):
        self.event(stream, "closed", pos)

    def event(self, stream, event, pos, **header):
        header = {"v": 1, "type": "event", "event": event, "epoch": 0, "pos": pos, **header}
        self.socket.send_multipart([stream, pack(header)])

    def recv(self, out, stream, say, status):
        """What `mamba2ctl recv -o` makes of it: stdout and stderr."""
        with subprocess.Popen([MAMBA2CTL, "recv", "--publish", self.address, "-o", out, stream], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert self.socket.poll(60000)
            self.socket.recv()
            say()
            told = process.communicate(timeout=60)
        assert process.returncode == status, told
        return told


@pytest.fixture
def published(short_path):
    published = Published(short_path)
    yield published
    published.context.destroy(0)


@pytest.fixture
def rows():
    return np.arange(400, dtype=np.float32).reshape(100, 4)


def test_recv_leaves_room_for_what_was_missed(published, rows, tmp_path):
    """Each row where its position says; those that come again count once, and other streams not at all."""
    def say():
        published.hidden(b"s", 10, rows[10:20])
        published.hidden(b"s-too", 20, rows[:30])
        published.hidden(b"s", 15, rows[15:25])
        published.hidden(b"s", 15, rows[15:18])
        published.hidden(b"s", 40, rows[40:50])
        published.closed(b"s-too", 30)
        published.closed(b"s", 50)
    told = published.recv(tmp_path / "out.npy", "s", say, status=1)
    got, want = np.load(tmp_path / "out.npy"), rows[10:50].copy()
    want[15:30] = np.nan
    assert np.array_equal(got, want, equal_nan=True)
    assert "40 rows from position 10 on" in told[0] and "15 rows were missed" in told[1]


def test_recv_of_last_rows(published, rows, tmp_path):
    """Where only the last row of each window is published, the others are not missing."""
    def say():
        for pos in (7, 15, 23, 39):
            published.hidden(b"s", pos, rows[pos:pos + 1])
        published.closed(b"s", 40)
    told = published.recv(tmp_path / "out.npy", "s", say, status=1)
    got = np.load(tmp_path / "out.npy")
    assert np.array_equal(got[[0, 1, 2, 4]], rows[[7, 15, 23, 39]]) and np.isnan(got[3]).all() and len(got) == 5
    assert "1 rows were missed" in told[1]


def test_recv_ends_where_the_stream_begins_anew(published, rows, tmp_path):
    def say():
        published.hidden(b"s", 0, rows[:30])
        published.hidden(b"s", 0, rows[50:], epoch=1)
    told = published.recv(tmp_path / "out.npy", "s", say, status=1)
    assert same_bytes(np.load(tmp_path / "out.npy"), rows[:30]) and "began anew" in told[1]


@pytest.mark.parametrize("wrong", ["columns", "frames", "name", "folder"])
def test_recv_of_what_cannot_be_kept(published, rows, tmp_path, wrong):
    """It says so, and leaves no file."""
    out = {"name": "x" * 5000, "folder": tmp_path / "no" / "out.npy"}.get(wrong, tmp_path / "out.npy")

    def say():
        published.hidden(b"s", 0, rows[:10])
        if wrong == "columns":
            published.hidden(b"s", 10, rows[10:20, :3])
        if wrong == "frames":
            published.socket.send_multipart([b"s", b"a", b"b", b"c"])
        published.closed(b"s", 10)
    assert "mamba2ctl recv: " in published.recv(out, "s", say, status=1)[1]
    assert not list(tmp_path.iterdir())


def test_recv_prints_events_and_layers(published, rows):
    with subprocess.Popen([MAMBA2CTL, "recv", "--publish", published.address, "--count", "8", "s"], text=True,
                          stdout=subprocess.PIPE) as process:
        assert published.socket.poll(60000)
        published.event(b"s", "reset", 0, message="rows 3 to 4 are missing")
        published.hidden(b"s", 0, rows[:8], layer=1)
        published.hidden(b"s", 0, rows[:8])
        lines = process.communicate(timeout=60)[0].splitlines()
    assert "pos 0 event reset rows 3 to 4 are missing" in lines[0]
    assert lines[1].endswith("pos 0 rows 8 layer 1") and lines[2].endswith("pos 0 rows 8")


# --- top, help, completion -------------------------------------------------------------------------------------------

def test_top(daemon, golden):
    """Rates of what is going on, as JSON and as text."""
    rows, started = np.tile(golden(CASE).rows, (20, 1)), threading.Event()

    def feed(stop):
        peer = Peer(daemon)
        for turn in range(10 ** 6):
            peer.data(b"busy/1", rows[:200])
            peer.data(b"busy/2", rows[:20])
            peer.ack(b"busy/2", next=20 * turn + 20)
            started.set()
            if stop.wait(0.01):
                break
        peer.close()

    with meanwhile(feed):
        assert started.wait(60)
        lines = ctl("top", "--control", daemon.control, "--json", "--count", 8, "--interval", 0.5, "busy/").stdout
        text = ctl("top", "--control", daemon.control, "--count", 1, "--interval", 0.5, "busy/").stdout
    shown = [json.loads(line) for line in lines.splitlines()]
    assert len(shown) == 8
    moving = [now for now in shown if now["latency_p50_s"] and now["batch_fill"]]  # a busy machine may pause
    assert moving
    for now in moving:
        assert now["state"] == "serving" and now["rows_out_per_s"] > 0
        assert 0 < now["latency_p50_s"] <= now["latency_p90_s"] <= now["latency_p99_s"]
        assert 0 < now["batch_fill"] <= 1 and now["streams_on_device"] >= 2 and now["resident_bytes"] > 1 << 20
        assert {s["stream"] for s in now["busiest"]} == {"busy/1", "busy/2"}
    first, second = max((now["busiest"] for now in shown[1:]), key=lambda busiest: busiest[1]["rows_per_s"] or 0)
    assert first["stream"] == "busy/1" and first["rows_per_s"] > second["rows_per_s"] > 0
    for word in ("rows/s", "latency", "batches", "memory", "for credit", "busy/1"):
        assert word in text


def test_top_on_a_terminal_leaves_it_as_it_was(daemon):
    """An interrupt ends it well, and the cursor and the screen come back."""
    master, slave = pty.openpty()
    with subprocess.Popen([MAMBA2CTL, "top", "--control", daemon.control, "--interval", "0.1"], stdin=slave,
                          stdout=slave, stderr=slave) as process:
        os.close(slave)
        seen = b""
        while b"rows/s" not in seen:
            seen += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(master, 65536):
                seen += part
        assert process.wait(60) == 0
    os.close(master)
    assert seen.startswith(b"\x1b[?1049h") and seen.endswith(b"\x1b[?25h\x1b[?1049l")


def test_top_goes_on_after_a_restart(daemons):
    """Whoever watches a screen while the daemon is started anew sees it come back."""
    daemon = daemons(CASE, window=WINDOW)
    master, slave = pty.openpty()
    command = [MAMBA2CTL, "top", "--control", daemon.control, "--interval", "0.1"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)

        def wait(word):
            seen = b""
            while word not in seen:
                seen += os.read(master, 65536)

        wait(b"rows/s")
        daemon.terminate()
        assert daemon.wait() == 0
        wait(b"no answer")
        daemon.start()
        wait(b"rows/s")
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while os.read(master, 65536):
                pass
        assert process.wait(60) == 0
    os.close(master)


OTHERS = {
    # what another program than this version's daemon may answer: (command, key, value)
    "no uptime": ("metrics", "mamba2d_uptime_seconds", "long"),
    "no latencies": ("metrics", "mamba2d_window_latency_seconds", "low"),
    "no buckets": ("metrics", "mamba2d_window_latency_seconds", {"le": [], "count": []}),
    "no window": ("status", "window", b"x"),
    "no streams": ("streams", "streams", "many"),
    "other streams": ("streams", "streams", [{"stream": b"s", "next": "soon"}]),
    "refused": ("status", "ok", False),
}


@pytest.mark.parametrize("other", OTHERS)
def test_top_of_another_daemon(daemon, golden, short_path, other):
    """What cannot be read is said or left out."""
    Peer(daemon).encode(golden(CASE).rows)
    command, key, value = OTHERS[other]
    answers = {cmd: daemon.ask(cmd) for cmd in ("metrics", "status", "streams")}
    answers["metrics"]["mamba2d_uptime_seconds"] = 0
    answers[command][key] = value

    def serve(stop):
        with daemon.context.socket(zmq.ROUTER) as socket:
            socket.bind(f"ipc://{short_path}/control")
            while not stop.is_set():
                if socket.poll(10):
                    *identity, request = socket.recv_multipart()
                    answer = answers[msgpack.unpackb(request)["cmd"]]
                    if other == "no buckets":
                        answers["metrics"]["mamba2d_uptime_seconds"] += 1
                    socket.send_multipart([*identity, pack(answer)])

    with meanwhile(serve):
        told = subprocess.run([MAMBA2CTL, "top", "--control", f"ipc://{short_path}/control", "--json", "--count", "1",
                               "--interval", "0.05"], capture_output=True, text=True, timeout=60)
    if other == "no buckets":
        assert told.returncode == 0 and json.loads(told.stdout)["latency_p50_s"] is None
    else:
        assert told.returncode in (3, 4) and told.stderr, told


def test_an_answer_of_two_frames(short_path, daemon):
    def serve(stop):
        with daemon.context.socket(zmq.ROUTER) as socket:
            socket.bind(f"ipc://{short_path}/control")
            while not stop.is_set():
                if socket.poll(10):
                    socket.send_multipart([*socket.recv_multipart()[:-1], b"two", b"frames"])

    with meanwhile(serve):
        assert "2 frames" in ctl("status", "--control", f"ipc://{short_path}/control", status=3).stderr


def test_help_teaches_every_command():
    commands = re.findall(r"^  ([a-z]+)\b", ctl("--help").stdout.split("Exit status")[0], re.MULTILINE)
    assert len(commands) > 15
    for command in commands:
        text = ctl(command, "--help").stdout
        assert text.startswith(f"Usage: mamba2ctl {command}") and f"mamba2ctl {command}" in text.split("Example")[1]
        assert ctl("help", command).stdout == text


def complete(daemon, line):
    """What bash proposes behind this line."""
    script = (f"PATH={os.path.dirname(MAMBA2CTL)}:$PATH; source {ROOT}/etc/bash-completion/mamba2ctl; "
              'compopt() { :; }; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mamba2ctl; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    words = line.replace("CONTROL", daemon.control).split(" ")
    return subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True,
                          timeout=60).stdout.split()


def test_completion(daemon, golden):
    peer = Peer(daemon)
    for stream in (b"tab-one", b"tab-two", b"other"):
        peer.data(stream, golden(CASE).rows)
        peer.ack(stream, next=1)
    commands, explained = complete(daemon, "mamba2ctl "), ctl("--help").stdout.split("Exit status")[0]
    assert set(re.findall(r"^  ([a-z]+)\b", explained, re.MULTILINE)) <= set(commands)
    assert complete(daemon, "mamba2ctl sna") == ["snapshot"]
    assert sorted(complete(daemon, "mamba2ctl close --control CONTROL tab-")) == ["tab-one", "tab-two"]
    assert complete(daemon, "mamba2ctl export --json --control CONTROL tab-o") == ["tab-one"]
    assert "--interval" in complete(daemon, "mamba2ctl top --i")
    options = r"(?<![\w-])--[a-z][a-z-]*"
    for command in commands:
        if command.isalpha() and command != "help":
            want = set(re.findall(options, ctl(command, "--help").stdout.split("Example")[0]))
            assert set(complete(daemon, f"mamba2ctl {command} --")) - {"--help"} == want
