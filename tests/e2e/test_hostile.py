"""Peers that are slow on purpose, never finish, never read or never stop: memory stays bounded and the others go on."""
import contextlib
import time

import numpy as np
import pytest
import zmq

from attacks import FLOODS, GREETING, Sleeper, Throttle, connect, flood_and_break, join
from harness import TIMEOUT, Peer, Receiver, Subscriber, data_frames, meanwhile, pack, same_bytes
from test_security import Secured

CASE, WINDOW = "seed-46032", 8
MIB = 1 << 20


@pytest.fixture
def rows(golden):
    return golden(CASE).rows


@pytest.fixture
def throttled():
    """What makes a Throttle; all are closed after the daemons' fixture has closed the clients' sockets."""
    with contextlib.ExitStack() as stack:
        yield lambda *limits, **pace: stack.enter_context(contextlib.closing(Throttle(*limits, **pace)))


@pytest.fixture
def secured(throttled, daemons, tmp_path):
    secured = Secured(daemons, tmp_path, **{"limits.message_bytes": MIB, "log.level": "info"})
    secured.let("peer", "write read")
    return secured


def behind(secured, throttle):
    """A client behind the throttle."""
    return Peer(secured.daemon, throttle.address, secured.keyring.keys("peer"))


def test_a_message_that_never_ends(secured, throttled, rows):
    """A third of a gigabyte in frames that are small enough by themselves: cut, long before it is in memory."""
    good = secured.peer("peer")
    want = good.encode(rows)
    before = secured.daemon.memory()
    throttle = throttled(secured.tcp["ingest"], 330 * MIB)
    bad = behind(secured, throttle)
    bad.frames(b"s", *[bytes(MIB)] * 340)
    while not throttle.closed.wait(0.01):
        assert same_bytes(good.encode(rows), want)
    assert throttle.passed < 330 * MIB
    assert secured.daemon.memory() - before < 200 * MIB
    assert "a connection is cut" in secured.daemon.log()


def test_halves_of_messages_then_silence(secured, throttled, rows):
    """Twenty of them; four messages' worth may stay, and who finishes its messages, however slowly, is left alone."""
    good = secured.peer("peer")
    want = good.encode(rows)
    silent = [throttled(secured.tcp["ingest"], 900_000) for _ in range(20)]
    bad = [behind(secured, throttle) for throttle in silent]
    for peer in bad:
        peer.frames(b"s", bytes(MIB))
    slow = throttled(secured.tcp["ingest"], 1 << 40, step=1 << 14, pause=0.01)
    patient = behind(secured, slow)
    patient.open(b"patient")
    sent = 0
    deadline = time.monotonic() + TIMEOUT
    while sum(throttle.closed.is_set() for throttle in silent) < 16 or sent < 20:
        assert time.monotonic() < deadline
        assert same_bytes(good.encode(rows), want)
        if sent < 20:
            patient.data(b"patient", np.tile(rows, (5, 1)), pos=5 * sent * len(rows))
            sent += 1
    patient.ack(b"patient", next=5 * sent * len(rows))
    assert not slow.closed.is_set()


def test_handshakes_that_never_end(daemons, rows):
    """Hundreds of connections that say nothing, or half of hello: closed after a while, and nobody waits for them."""
    daemon = daemons(CASE, window=WINDOW, **{"sockets.ingest": ["tcp://127.0.0.1:*"]})
    address = daemon.ask("status")["sockets"]["ingest"]
    peer = Peer(daemon, address)
    want = peer.encode(rows)
    loris = [connect(address) for _ in range(300)]
    for i, connection in enumerate(loris):
        connection.sendall(GREETING[:i % len(GREETING)])
    for connection in loris:
        assert same_bytes(peer.encode(rows), want)
        connection.settimeout(TIMEOUT)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1000):
                pass
        connection.close()


@pytest.mark.parametrize("where", FLOODS)
def test_connections_that_break_while_the_queue_is_full(daemons, rows, where):
    """With heartbeats among the messages, whose answers find nobody: nothing is left of them, and the others go on."""
    daemon = daemons(CASE, start=False, window=WINDOW)
    local = {"ingest": daemon.ingest, "control": daemon.control}.get(where, f"ipc://{daemon.folder}/more")
    daemon.settings[f"sockets.{where}"] = [local, "tcp://127.0.0.1:*"]
    daemon.start()
    address = daemon.ask("status")["sockets"][where]
    peer = Peer(daemon)
    want, before = peer.encode(rows), daemon.descriptors()
    for _ in range(50):
        flood_and_break(address, *FLOODS[where])
    deadline = time.monotonic() + TIMEOUT
    while daemon.descriptors() > before:
        assert time.monotonic() < deadline
        assert same_bytes(peer.encode(rows), want)
    assert same_bytes(peer.encode(rows), want)


def test_a_peer_that_never_reads_its_acks(daemons, rows):
    """Hundreds of streams owe it acks that it leaves lying: the others do not notice."""
    daemon = daemons(CASE, window=WINDOW, shutdown_timeout=10, **{"log.level": "info"})
    good, sleeper = Peer(daemon), Sleeper(daemon, 500)
    want = good.encode(rows)
    before = daemon.memory()
    for _ in range(40):
        sleeper.ask("flush")
        assert same_bytes(good.encode(rows), want)
    assert daemon.memory() - before < 50 * MIB
    sleeper.close()


def test_a_peer_that_never_reads_its_refusals(daemons, rows):
    """Some are kept for it, the others are lost to it; that is said, and nobody else waits.  Hidden states wait for it."""
    daemon = daemons(CASE, window=WINDOW, **{"log.level": "info"})
    good, sleeper = Peer(daemon), Sleeper(daemon, 1)
    want = good.encode(rows)
    before = daemon.memory()
    deadline = time.monotonic() + TIMEOUT
    while "refusals are lost to it" not in daemon.log():
        assert time.monotonic() < deadline
        for _ in range(1000):
            sleeper.socket.send_multipart([b"sleeper-0", b"nonsense"])
        assert same_bytes(good.encode(rows), want)
    sleeper.socket.send_multipart([b"late", pack({"v": 1, "type": "open", "reply": True})])
    sleeper.socket.send_multipart(data_frames(b"late", rows, end=True))
    assert same_bytes(good.encode(rows), want)
    assert daemon.memory() - before < 50 * MIB
    assert same_bytes(sleeper.hidden(b"late", 0, len(rows)), want)
    sleeper.close()


SUBSCRIPTIONS = b"".join(bytes([0, 4, what]) + b"zzz" for what in (1, 0)) * 5000  # a frame each: topic zzz, and not


@pytest.mark.native  # sanitizers keep freed memory
def test_a_subscriber_that_asks_without_end(daemons, rows):
    """Subscribing and taking it back, as fast as it can: what it asked for is not kept, and nobody waits for it."""
    daemon = daemons(CASE, window=WINDOW, **{"sockets.publish": ["tcp://127.0.0.1:*"]})
    good, before = Peer(daemon), daemon.memory()
    want = good.encode(rows)

    def ask(stop):
        with join(daemon.ask("status")["sockets"]["publish"], b"SUB") as connection:
            while not stop.is_set():
                connection.sendall(SUBSCRIPTIONS)

    with meanwhile(ask):
        for _ in range(300):
            assert same_bytes(good.encode(rows), want)
    assert daemon.memory() - before < 50 * MIB


def test_a_subscriber_that_never_reads(daemons, rows):
    """What it misses is counted, and the others miss nothing."""
    daemon = daemons(CASE, window=1, **{"log.level": "info"})
    slow = Receiver(daemon, zmq.SUB)
    for option, value in ((zmq.RCVHWM, 1), (zmq.RCVBUF, 4096), (zmq.SUBSCRIBE, b"")):
        slow.socket.setsockopt(option, value)
    slow.socket.connect(daemon.publish)
    good, subscriber = Peer(daemon), Subscriber(daemon, b"busy")
    want, many = good.encode(rows), len(rows)
    turn = 0
    while not daemon.ask("status")["dropped_messages"]:
        good.open(b"busy", epoch=turn)
        good.data(b"busy", rows, epoch=turn, end=True)
        assert same_bytes(good.hidden(b"busy", 0, many, epoch=turn), want)
        assert same_bytes(subscriber.hidden(b"busy", 0, many, epoch=turn), want)
        turn += 1
    assert "a subscriber is too slow" in daemon.log()
    slow.close()


def test_who_reads_late_is_served_beside_one_who_never_reads(daemons, rows):
    """Its replies go on as soon as it reads, although acks of the other one fail and the daemon is busy."""
    daemon = daemons(CASE, window=1, shutdown_timeout=10, **{"log.level": "info"})
    good, late, sleeper = Peer(daemon), Receiver(daemon, zmq.DEALER), Sleeper(daemon, 500)
    want = good.encode(rows)
    late.socket.setsockopt(zmq.RCVHWM, 1)
    late.socket.connect(daemon.ingest)
    many = np.tile(rows, (12000 // len(rows), 1))
    late.socket.send_multipart([b"late", pack({"v": 1, "type": "open", "reply": True})])
    late.socket.send_multipart(data_frames(b"late", many))
    deadline = time.monotonic() + TIMEOUT
    while not daemon.ask("status")["stalls"]:
        assert time.monotonic() < deadline

    def work(stop):
        while not stop.is_set():
            assert same_bytes(good.encode(rows[:8]), want[:8])
    with meanwhile(work):
        assert len(late.hidden(b"late", 0, len(many))) == len(many)
    sleeper.close()


@pytest.mark.native  # sanitizers keep freed memory
@pytest.mark.parametrize("states", [False, True], ids=["in memory", "on disk"])
def test_a_hundred_thousand_opens(daemons, rows, tmp_path, states):
    """As fast as they go: as many streams as allowed, the rest refused by name, another peer's windows in between."""
    daemon = daemons(CASE, window=WINDOW, **{"streams.max": 100, "log.level": "info", "limits.message_bytes": MIB,
                                             **({"state.dir": str(tmp_path / "states")} if states else {})})
    flood, good = Peer(daemon), Peer(daemon)
    good.open(b"good")
    header = pack({"v": 1, "type": "open"})
    before = daemon.memory()
    codes = set()
    for i in range(100_000):
        flood.socket.send_multipart([b"flood-%d" % i, header])
        if i % 1000 == 999:
            good.data(b"good", rows[:WINDOW], pos=i // 1000 * WINDOW)
            good.hidden(b"good", i // 1000 * WINDOW, i // 1000 * WINDOW + WINDOW)
            while message := flood.receive(0):
                codes.add(message.code)
    assert codes <= {None, "too_many_streams", "no_credit"} and (states or "too_many_streams" in codes)
    assert daemon.memory() - before < 50 * MIB
    assert daemon.ask("status")["streams"] <= 100
