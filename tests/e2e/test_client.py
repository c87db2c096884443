"""The Python client: what its docstrings promise, through refusals, small credit, broken connections and restarts."""
import os
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest

from harness import ROOT, Peer, from_bfloat16, relative_error, same_bytes

sys.path.insert(0, os.path.join(ROOT, "protocol", "python"))
from mamba2d import Client, Event, Hidden, Refused, widen  # noqa: E402

CASE, WINDOW = "eight-groups", 16


@pytest.fixture(scope="module")
def rows(golden):
    return golden(CASE).rows


@pytest.fixture(scope="module")
def many_rows(golden):
    return np.tile(golden(CASE).rows, (90, 1))  # [8640, hidden_size]


@pytest.fixture(scope="module")
def daemon(shared_daemons):
    return shared_daemons(CASE, window=WINDOW)


@pytest.fixture
def connect():
    """Make a client of a daemon; closed with the test."""
    clients = []

    def make(daemon, ingest=None, **arguments):
        client = Client(ingest or daemon.ingest, daemon.publish, control=daemon.control, **{"timeout": 30, **arguments})
        clients.append(client)
        return client
    yield make
    for client in clients:
        client.close()


def one_shot(client, rows):
    """What every way of sending these rows must equal."""
    return client.encode("one shot", rows, end=True)


# --- encode ----------------------------------------------------------------------------------------------------------

def test_encode(daemon, connect, golden, rows):
    hidden = connect(daemon).encode("encode", rows)
    assert relative_error(hidden, golden(CASE).hidden["final"]) <= 1e-5


def test_calls_go_on_where_the_last_one_stopped(daemon, connect, rows):
    client = connect(daemon)
    want = one_shot(client, rows)
    parts = [client.encode("parts", part) for part in np.split(rows, [1, 2, 2, 20, 33, 64])]
    assert [len(part) for part in parts] == [1, 1, 0, 18, 13, 31, 32]
    assert same_bytes(np.concatenate(parts), want)
    assert client.position("parts") == len(rows)
    other = connect(daemon)
    assert other.position("parts") is None
    again = np.concatenate([client.encode("two clients", rows[:21]), other.encode("two clients", rows[21:])])
    assert same_bytes(again, want)


def test_long_runs_are_split(daemon, connect, many_rows):
    want = one_shot(connect(daemon), many_rows[:500])
    for message_bytes in (1, 513, 5000):
        got = connect(daemon, message_bytes=message_bytes).encode(f"split {message_bytes}", many_rows[:500])
        assert same_bytes(got, want)


def test_many_streams_at_once(daemon, connect, rows):
    client = connect(daemon)
    want = one_shot(client, rows)
    got = client.encode_many({f"many-{n}": rows[:n] for n in range(1, 60)})
    for n in range(1, 60):
        assert same_bytes(got[f"many-{n}"], want[:n])


def test_end_and_epochs_start_anew(daemon, connect, rows):
    client = connect(daemon)
    want = client.encode("anew", rows, end=True)
    for _ in range(3):
        assert same_bytes(client.encode("anew", rows[:20], end=True), want[:20])
    assert same_bytes(client.encode("anew", rows[:50], epoch=1), want[:50])
    assert same_bytes(client.encode("anew", rows, epoch=2), want)
    assert client.encode("anew", rows[:0], epoch=2, end=True).shape == (0, rows.shape[1])
    with pytest.raises(Refused, match="stale_epoch"):
        client.encode("epoch", rows, epoch=5)
        client.encode("epoch", rows, epoch=4)


def test_layers_and_dtypes(shared_daemons, connect, golden, rows):
    want = golden(CASE)
    several = connect(shared_daemons(CASE, window=WINDOW, **{"output.layers": ["final", 0, 2]}))
    hidden = several.encode("layers", rows)
    assert set(hidden) == {"final", 0, 2}
    for layer, array in hidden.items():
        assert relative_error(array, want.hidden[layer]) <= 1e-5
    narrow = connect(shared_daemons(CASE, window=WINDOW, **{"output.dtype": "bfloat16"}))
    bits = narrow.encode("bfloat16", rows)
    assert relative_error(widen(bits), want.hidden["final"]) <= 1e-2
    assert same_bytes(widen(bits), from_bfloat16(bits.view(np.uint16)))


def test_only_last_rows(shared_daemons, connect, rows):
    client = connect(shared_daemons(CASE, window=WINDOW, **{"output.rows": "last"}))
    full = connect(shared_daemons(CASE, window=WINDOW)).encode("last", rows)
    assert same_bytes(client.encode("last", rows), full[WINDOW - 1::WINDOW])


def test_rows_of_every_dtype(daemon, connect, rows):
    client = connect(daemon)
    want = one_shot(client, rows)
    assert same_bytes(client.encode("float64", rows.astype(np.float64)), want)
    assert same_bytes(client.encode("columns first", np.asfortranarray(rows)), want)
    assert same_bytes(client.encode("big-endian", rows.astype(">f4")), want)
    bits = (rows.view(np.uint32) >> 16).astype(np.uint16)
    assert same_bytes(client.encode("bfloat16", bits, dtype="bfloat16"), client.encode("widened", widen(bits)))


def test_token_ids(shared_daemons, connect, golden):
    want = golden("causal-lm-sharded")
    client = connect(shared_daemons("causal-lm-sharded", window=WINDOW))
    for dtype in (np.uint8, np.int32, np.int64):
        hidden = client.encode(f"tokens {dtype.__name__}", want.tokens.astype(dtype))
        assert relative_error(hidden, want.hidden["final"]) <= 1e-5
    with pytest.raises(Refused, match="bad_token"):
        client.encode("tokens", np.array([1, 2, 10 ** 6]))


def test_what_cannot_be_sent(daemon, connect, rows):
    client = connect(daemon)
    for bad in (rows[0], rows.astype(complex), rows > 0, rows[None], np.array(["a"]), np.array([2 ** 40])):
        with pytest.raises(ValueError):
            client.encode("bad", bad)
    for name in ("", "x" * 256):
        with pytest.raises(ValueError):
            client.encode(name, rows)
    for name in (7, 7.0, None):
        with pytest.raises(TypeError, match="a stream id is a str or bytes"):
            client.encode(name, rows)
    with pytest.raises(ValueError, match="wait: 'soon', expected"):
        client.send("bad", rows, wait="soon")
    assert client.position("bad") is None


# --- send, hidden, control -------------------------------------------------------------------------------------------

def test_send_and_hidden(daemon, connect, rows):
    client = connect(daemon)
    published = client.hidden("sent", timeout=0.5)
    client.send("not-sent", rows, end=True)
    client.send("sent", rows[:20], t=123)
    assert client.position("sent") == 20
    client.send("sent", rows[20:30], flush=True, wait="done")
    client.send("sent", rows[30:31], wait=None)
    client.send("sent", rows[31:], end=True)
    messages = list(published)
    hidden = [m for m in messages if isinstance(m, Hidden)]
    assert same_bytes(np.concatenate([m.rows for m in hidden]), one_shot(client, rows))
    assert [m.pos for m in hidden] == list(np.cumsum([0] + [len(m.rows) for m in hidden[:-1]]))
    assert hidden[-1].end and hidden[0].layer == "final" and 123 in [m.t for m in hidden]
    assert messages[-1] == Event(b"sent", 0, len(rows), "closed", messages[-1].message)


def test_encode_after_send_returns_only_its_own_rows(daemon, connect, rows):
    client = connect(daemon)
    want = one_shot(client, rows)
    client.send("both", rows[:21])
    assert same_bytes(client.encode("both", rows[21:40]), want[21:40])
    client.send("both", rows[40:50])
    assert same_bytes(client.encode("both", rows[50:]), want[50:])


def test_control(daemon, connect):
    client = connect(daemon)
    assert client.control("status")["window"] == WINDOW
    with pytest.raises(Refused, match="bad_header"):
        client.control("explode")


@pytest.mark.parametrize("address", ["localhost:5701", "tcp://localhost", "tcp://localhost:", "/run/ingest", ""])
def test_what_is_no_address(address):
    for role in "ingest", "publish", "control":
        with pytest.raises(ValueError, match=f'{role}: "{address}", expected tcp://HOST:PORT or ipc://PATH'):
            Client(**{role: address})


def test_missing_addresses():
    with Client() as client:
        for call in (lambda: client.encode("a", np.ones((1, 4))), lambda: client.control("status"), client.hidden):
            with pytest.raises(ValueError, match="address"):
                call()


# --- refusals and credit ---------------------------------------------------------------------------------------------

def test_a_refusal_is_raised_and_the_stream_goes_on(daemon, connect, rows):
    client = connect(daemon, message_bytes=10 * rows[0].nbytes)
    want = one_shot(client, rows)
    bad = rows.copy()
    bad[37, 5] = np.nan
    assert same_bytes(client.encode("bad", bad[:20]), want[:20])
    with pytest.raises(Refused) as raised:
        client.encode("bad", bad[20:])
    assert (raised.value.code, raised.value.stream) == ("non_finite", b"bad")
    assert client.position("bad") is None, "only the daemon knows how much of it was accepted"
    assert same_bytes(client.encode("bad", rows[30:40]), want[30:40])
    with pytest.raises(Refused, match="bad_shape"):
        client.encode("bad", rows[:, :-1])
    assert same_bytes(client.encode("bad", rows[40:]), want[40:])


def test_small_credit(daemons, connect, many_rows):
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 50})
    client = connect(daemon)
    want = connect(daemons(CASE, window=WINDOW)).encode("all", many_rows[:2000])
    assert same_bytes(client.encode("small", many_rows[:2000]), want)
    got = client.encode_many({f"small-{i}": many_rows[:100] for i in range(20)})
    for hidden in got.values():
        assert same_bytes(hidden, want[:100])
    assert daemon.ask("status")["refused"] == {}, "the client heeds its credit"


def test_unfinished_windows_of_many_streams_do_not_hold_all_credit_for_ever(daemons, connect, rows):
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 50})
    client = connect(daemon)
    want = client.encode("whole", rows[:30])
    for i in range(10):
        client.send(f"unfinished-{i}", rows[:10])
    for i in range(10):
        assert same_bytes(client.encode(f"unfinished-{i}", rows[10:30]), want[10:])


def test_no_credit_and_the_gaps_behind_it_are_mended(daemons, connect, many_rows):
    """A client that is wrong about its credit (it was lowered, say) goes back and sends again."""
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 64})
    client = connect(daemon, message_bytes=20 * many_rows[0].nbytes)
    want = one_shot(client, many_rows[:1000])
    client._on_ack = lambda s, header: Client._on_ack(client, s, {**header, "credit": 300})
    assert same_bytes(client.encode("wrong", many_rows[:1000]), want)
    refused = daemon.ask("status")["refused"]
    assert refused["no_credit"] > 0


def test_another_peer_takes_the_stream_over(daemon, connect, rows):
    first, second = connect(daemon), connect(daemon)
    want = one_shot(first, rows)
    first.encode("taken", rows[:20])
    assert same_bytes(second.encode("taken", rows[20:40]), want[20:40])
    with pytest.raises(Refused, match="denied"):
        first.encode("taken", rows[20:])
    assert same_bytes(first.encode("taken", rows[40:]), want[40:]), "opened anew, it goes on"


def test_a_producer_that_was_restarted_asks_for_what_it_lacks(daemon, connect, rows):
    want = one_shot(connect(daemon), rows)
    connect(daemon).encode("resumed", rows)
    assert same_bytes(connect(daemon).encode("resumed", rows, pos=0), want)
    with pytest.raises(Refused) as raised:
        connect(daemon).encode("resumed", rows[50:], pos=50)
    assert (raised.value.code, raised.value.expected) == ("gap", 0), "without a state on disk, all rows must come again"
    client = connect(daemon)
    client.encode("resumed", rows, pos=0)
    with pytest.raises(ValueError):
        client.encode("resumed", rows, pos=5)


def test_evicted_streams_are_made_again(daemons, connect, rows):
    daemon = daemons(CASE, window=WINDOW, **{"streams.idle_timeout": 0.2})
    client = connect(daemon)
    want = one_shot(client, rows)
    for start in (0, 30, 60):
        assert same_bytes(client.encode("idle", rows[start:start + 30]), want[start:start + 30])
        while daemon.ask("status")["streams"]:
            time.sleep(0.05)


# --- broken connections ----------------------------------------------------------------------------------------------

class Proxy:
    """A TCP proxy on loopback that cuts connections after so many bytes to the daemon, in the middle of a message."""

    def __init__(self, target, cuts):
        host, port = target[len("tcp://"):].rsplit(":", 1)
        self.target, self.cuts, self.connections = (host, int(port)), list(cuts), 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "tcp://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            far = socket.create_connection(self.target)
            limit = self.cuts.pop(0) if self.cuts else None
            threading.Thread(target=self._copy, args=(near, far, limit), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, None), daemon=True).start()

    @staticmethod
    def _copy(source, sink, limit):
        try:
            while limit is None or limit > 0:
                data = source.recv(65536 if limit is None else min(65536, limit))
                if not data:
                    break
                sink.sendall(data)
                limit = limit and limit - len(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.close()


@pytest.mark.parametrize("stage", ["encode", "send"])
def test_cut_connections(daemons, connect, many_rows, stage):
    """The daemon lives on; the client opens the stream again and goes on where that says."""
    daemon = daemons(CASE, window=WINDOW, **{"sockets.ingest": ["tcp://127.0.0.1:*"]})
    address = daemon.ask("status")["sockets"]["ingest"]
    want = one_shot(connect(daemon, address), many_rows[:3000])
    proxy = Proxy(address, cuts=[100_000, 700_001, 300, 400_003])
    client = connect(daemon, proxy.address, message_bytes=30_000)
    if stage == "send":
        for start in range(0, 2000, 100):
            client.send("cut", many_rows[start:start + 100])
        start = 2000
    else:
        start = 0
    assert same_bytes(client.encode("cut", many_rows[start:3000]), want[start:])
    assert proxy.connections >= 3
    proxy.close()


@pytest.mark.parametrize("calls", [1, 6])
def test_the_daemon_is_killed_and_started_again(daemons, connect, many_rows, calls):
    """Rows come again from position 0, as no state is on disk; the caller sees every hidden state once."""
    daemon = daemons(CASE, window=WINDOW)
    want = one_shot(connect(daemon), many_rows)
    client = connect(daemon, message_bytes=20_000)
    heard = 0

    def on_message(*arguments):
        nonlocal heard
        heard += 1
        if heard in (50, 200):
            daemon.kill()
            daemon.start()
        Client._on_message(client, *arguments)

    client._on_message = on_message
    parts = [client.encode("survivor", part) for part in np.array_split(many_rows, calls)]
    assert heard > 200
    assert same_bytes(np.concatenate(parts), want)


def test_killed_between_two_calls(daemons, connect, rows):
    daemon = daemons(CASE, window=WINDOW)
    client = connect(daemon)
    want = one_shot(client, rows)
    client.send("sent", rows[:40])
    first = client.encode("pieces", rows[:40])
    daemon.kill()
    daemon.start()
    assert same_bytes(np.concatenate([first, client.encode("pieces", rows[40:])]), want)
    client.send("sent", rows[40:], end=True)
    assert daemon.ask("status")["rows_in"] == 2 * len(rows), "everything came again"


def test_rows_on_disk_are_not_kept_and_do_not_come_again(daemons, connect, many_rows, tmp_path):
    """With states on disk, durable advances: the client's memory is bounded, and so is what a restart costs."""
    daemon = daemons(CASE, window=WINDOW, **{"state.dir": str(tmp_path), "state.interval": 0.02})
    client = connect(daemon)
    want = one_shot(client, many_rows)
    parts = []
    for part in np.array_split(many_rows, 60):
        parts.append(client.encode("durable", part))
        time.sleep(0.02)
        if len(parts) in (20, 40):
            daemon.kill()
            daemon.start()
    assert same_bytes(np.concatenate(parts), want)
    assert sum(len(rows) for rows, _ in client._streams[b"durable"].kept) < len(many_rows) / 2
    assert daemon.ask("status")["rows_in"] < len(many_rows) / 2 + 1000


def test_keep_nothing(daemons, connect, many_rows):
    daemon = daemons(CASE, window=WINDOW)
    client = connect(daemon, keep=False)
    want = one_shot(client, many_rows[:1000])
    got = [client.encode("endless", part) for part in np.array_split(many_rows[:1000], 50)]
    assert same_bytes(np.concatenate(got), want)
    assert len(client._streams[b"endless"].kept) <= 2
    daemon.kill()
    daemon.start()
    with pytest.raises(Refused, match="gap"):
        client.encode("endless", many_rows[1000:1010])
    assert same_bytes(client.encode("endless", many_rows[:1000]), want), "after that, the stream begins anew"


def test_streams_that_others_took_are_not_taken_back_by_a_reconnect(daemons, connect, rows):
    daemon = daemons(CASE, window=WINDOW)
    first, second = connect(daemon), connect(daemon)
    want = one_shot(first, rows)
    first.encode("given up", rows[:20])
    assert same_bytes(second.encode("given up", rows[20:40]), want[20:40])
    with pytest.raises(Refused, match="denied"):
        first.encode("given up", rows[20:])
    first.encode("another", rows)  # on a new connection
    assert same_bytes(second.encode("given up", rows[40:]), want[40:])


def test_a_daemon_that_falls_silent(daemons, connect, rows):
    """No connection breaks, but nothing is answered: the client tries a new connection, and nothing comes twice."""
    daemon = daemons(CASE, window=WINDOW)
    client = connect(daemon, silence=0.3)
    want = one_shot(client, rows)
    client.encode("silent", rows[:20])
    daemon.terminate(signal.SIGSTOP)
    threading.Timer(1.0, daemon.terminate, [signal.SIGCONT]).start()
    assert same_bytes(client.encode("silent", rows[20:]), want[20:])


def test_nobody_answers(connect, daemon, rows, short_path):
    client = connect(daemon, f"ipc://{short_path}/nobody", timeout=0.5)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        client.encode("a", rows)
    assert time.monotonic() - start >= 0.5
    with pytest.raises(TimeoutError):
        Client(publish=f"ipc://{short_path}/nobody", timeout=0.1).hidden()


def test_another_kind_of_socket_answers(connect, daemon, rows):
    client = connect(daemon, daemon.publish, timeout=0.5)
    with pytest.raises(TimeoutError):
        client.encode("a", rows)


def test_the_daemon_comes_later_than_the_client(daemons, connect, rows):
    daemon = daemons(CASE, window=WINDOW)
    want = Peer(daemon).encode(rows)
    daemon.kill()
    timer = threading.Timer(0.5, daemon.start)
    timer.start()
    assert same_bytes(connect(daemon).encode("early", rows), want)
    timer.join()
