"""A fast producer against a slow model, and readers that do not read: memory stays bounded, nothing is lost."""
import numpy as np
import pytest

from harness import Peer, Publisher, Subscriber, same_bytes

CASE, WINDOW = "eight-groups", 16
MIB = 1 << 20


@pytest.fixture(scope="module")
def rows(golden):
    """[4096, hidden_size]"""
    return np.tile(golden(CASE).rows, (43, 1))[:4096]


def test_more_rows_than_the_credit_are_refused(daemons, rows):
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 64})
    peer = Peer(daemon)
    assert peer.open(b"greedy").credit == 64
    peer.data(b"greedy", rows[:5])
    peer.data(b"greedy", rows[5:65])
    assert peer.refusal(b"greedy", "no_credit").expected == 5
    peer.data(b"greedy", rows[5:64])
    peer.ack(b"greedy", done=64)
    peer.data(b"greedy", rows[64:100], end=True)
    assert same_bytes(peer.hidden(b"greedy", 0, 100), one_by_one(peer, rows[:100]))


def one_by_one(peer, rows):
    """Encode within a small credit."""
    peer.open(b"one by one")
    parts = []
    for i in range(len(rows)):
        peer.data(b"one by one", rows[i:i + 1], flush=True)
        parts.append(peer.hidden(b"one by one", i, i + 1))
    peer.header(b"one by one", type="close")
    return np.concatenate(parts)


def test_credit_is_counted_over_all_streams_of_a_peer(daemons, rows):
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 20})
    peer, other = Peer(daemon), Peer(daemon)
    for stream in (b"a", b"b"):
        peer.open(stream)
        peer.data(stream, rows[:10])
    peer.data(b"a", rows[10:11])
    assert peer.refusal(b"a", "no_credit").expected == 10
    other.data(b"c", rows[:15])
    assert other.ack(b"c", next=15).done == 0, "another peer has credit of its own"
    peer.header(b"b", type="flush")
    peer.ack(b"b", done=10)
    peer.data(b"a", rows[10:20], flush=True)
    peer.ack(b"a", done=20)


def test_refused_messages_pile_up_nowhere(daemons, rows):
    """A producer that ignores credit sends 300 MiB; those that were refused leave no trace in the hidden states."""
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 256, "log.level": "info"})
    peer = Peer(daemon)
    want = peer.encode(rows[:200])
    peer.open(b"flood")
    peer.data(b"flood", rows[:7])
    peer.ack(b"flood", next=7)
    before = daemon.memory()
    flood = rows[:2400]  # 1.2 MiB
    for _ in range(250):
        peer.data(b"flood", flood, pos=7)
    for _ in range(250):
        assert peer.refusal(b"flood", "no_credit").expected == 7
    assert daemon.memory() - before < 100 * MIB
    peer.data(b"flood", rows[7:200], pos=7, end=True)
    assert same_bytes(peer.hidden(b"flood", 0, 200), want)


def test_a_producer_that_heeds_credit_is_never_refused(daemons, rows):
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 100})
    peer = Peer(daemon)
    ack = peer.open(b"polite")
    sent = 0
    while sent < len(rows):
        n = min(len(rows) - sent, 30, ack.credit - (sent - ack.done))
        if n > 0:
            peer.data(b"polite", rows[sent:sent + n])
            sent += n
        else:
            ack = peer.ack(b"polite", done=ack.done + 1)
    peer.header(b"polite", type="close")
    peer.hidden(b"polite", 0, len(rows))
    assert daemon.ask("status")["refused"] == {}


def test_a_peer_that_does_not_read_its_replies_holds_up_nobody_else(daemons, rows):
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 65536, "output.layers": [0, 1, 2, "final"]})
    sleeper, other = Peer(daemon), Peer(daemon)
    sleeper.open(b"sleeper")
    for _ in range(8):
        sleeper.data(b"sleeper", rows)
    others = [other.encode(rows[:500], layers=(None, 0, 1, 2)) for _ in range(3)]
    assert same_bytes(others[0][None], others[2][None])
    sleeper.header(b"sleeper", type="close")
    got = sleeper.hidden(b"sleeper", 0, 8 * len(rows), layers=(None, 0, 1, 2))
    assert same_bytes(got[None][:500], others[0][None])


def test_a_consumer_that_does_not_read_loses_messages_which_are_counted(daemons, rows):
    """Its queue is bounded; a producer with replies gets everything all the same."""
    daemon = daemons(CASE, window=1, **{"limits.credit_rows": 65536})
    sleeper, reader, peer = Subscriber(daemon), Subscriber(daemon, b"busy"), Peer(daemon)
    before = daemon.memory()
    peer.open(b"busy")
    for start in range(0, 16 * len(rows), 1024):  # a quarter of a subscriber's queue: the reader keeps up
        peer.data(b"busy", rows[start % len(rows):][:1024])
        got = peer.hidden(b"busy", start, start + 1024)
        assert same_bytes(reader.hidden(b"busy", start, start + 1024), got)
    assert daemon.memory() - before < 200 * MIB
    assert sleeper.take(b"busy", "hidden").pos == 0


def test_publishers_cannot_be_refused_and_wait(daemons, rows, short_path):
    """On SUB there is no credit to tell of: the daemon stops reading, and loses nothing."""
    address = f"ipc://{short_path}/pub"
    daemon = daemons(CASE, window=WINDOW, **{"limits.credit_rows": 64, "sockets.subscribe": address})
    publisher, consumer = Publisher(daemon, address, bind=False), Subscriber(daemon)
    for start in range(0, len(rows), 32):
        publisher.data(b"pub", rows[start:start + 32], pos=start, end=start + 32 >= len(rows))
    got = consumer.hidden(b"pub", 0, len(rows))
    assert same_bytes(got[:64], Peer(daemon).encode(rows[:64]))
