"""mamba2ctl: whole recordings without a daemon, and the commands that speak to one."""
import json
import subprocess

import numpy as np
import pytest

from harness import CASES, MAMBA2CTL, Peer, Relay, Subscriber, relative_error, same_bytes

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
    (tmp_path / "cut.npy").write_bytes(npy(want.rows).read_bytes()[:-5])
    bad = [npy(want.rows[:, :-1], "columns.npy"), npy(want.rows.astype(complex), "complex.npy"), npy(nan, "nan.npy"),
           npy(want.rows[None], "three.npy"), npy(np.asfortranarray(want.rows), "fortran.npy"),
           tmp_path / "text.npy", tmp_path / "cut.npy", tmp_path / "none.npy", tmp_path]
    for path in bad:
        assert path.name in ctl("encode", "--model", want.folder, path, out, status=1).stderr
        assert not out.exists()
    assert "token" in ctl("encode", "--model", want.folder, npy(np.array([want.vocab_size])), out, status=1).stderr
    assert not out.exists()
    ctl("encode", "--model", tmp_path, npy(want.rows), out, status=1)
    ctl("encode", "--model", want.folder, npy(want.rows), tmp_path / "no" / "out.npy", status=1)


def test_wrong_usage():
    for arguments in ([], ["explode"], ["encode"], ["encode", "--model", "x", "in.npy"], ["encode", "--window", "0"],
                      ["send", "stream"], ["recv", "--count", "x"], ["status", "x"], ["close"]):
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
