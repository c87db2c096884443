"""Streams leave memory for the disk and come back: with streams.max, with streams.idle_timeout, with a restart.

MAMBA2D_STREAMS sets how many streams the test with many of them makes (default 2000).
"""
import os
import random as randomness
import time

import numpy as np
import pytest
import zmq

from harness import Peer, Publisher, Subscriber, same_bytes

CASE, WINDOW = "seed-46032", 8
STREAMS = int(os.environ.get("MAMBA2D_STREAMS", 2000))


@pytest.fixture
def random():
    return randomness.Random(46032)


@pytest.fixture(scope="module")
def rows(golden):
    return np.tile(golden(CASE).rows, (3, 1))


@pytest.fixture(scope="module")
def want(shared_daemons, rows):
    return Peer(shared_daemons(CASE, window=WINDOW)).encode(rows)


@pytest.fixture
def start(daemons, tmp_path):
    """Start a daemon that keeps states."""
    def start(**settings):
        return daemons(CASE, window=WINDOW, **{"state.dir": str(tmp_path / "states"), "state.interval": 60, **settings})
    return start


def interleaved(random, streams, n):
    """(stream, start, stop) for n rows of each stream in pieces of any size; the streams take turns at random."""
    reached = dict.fromkeys(streams, 0)
    while reached:
        stream = random.choice(list(reached))
        first, last = reached[stream], min(n, reached[stream] + random.choice((1, 3, 10, 30)))
        yield stream, first, last
        reached[stream] = last
        if last == n:
            del reached[stream]


@pytest.mark.parametrize("reply", [True, False], ids=["reply", "publish"])
@pytest.mark.parametrize("positions", [True, False], ids=["pos", "no pos"])
def test_more_streams_than_fit(start, random, rows, want, reply, positions):
    """In any order, mostly without waiting, and without positions that would show what is out of order.

    Nothing needs to be evicted where all messages of a stream are there when its turn comes.  But of three streams
    whose rows were accepted one after the other, one has left memory, where two fit and none has ended.
    """
    daemon = start(**{"streams.max": 2})
    peer, consumer = Peer(daemon), Subscriber(daemon, b"stream-")
    streams = [b"stream-%d" % i for i in range(20)]
    for stream in streams:
        peer.header(stream, type="open", reply=reply)
    accepted, evicted = set(), 0
    for stream, first, last in interleaved(random, streams, 100):
        peer.data(stream, rows[first:last], end=last == 100, **({"pos": first} if positions else {}))
        if last == 100:
            accepted.discard(stream)
        elif random.random() < 0.3:
            peer.ack(stream, next=last)
            accepted.add(stream)
        if len(accepted) == 3:
            evicted += 1
            accepted.clear()
    for stream in streams:
        for receiver in (peer, consumer) if reply else (consumer,):
            assert same_bytes(receiver.hidden(stream, 0, 100), want[:100])
        assert consumer.take(stream, "event").event in ("evicted", "closed")
    status = daemon.ask("status")
    assert set(status["refused"]) <= {"closed"} and status["rows_in"] == 20 * 100  # the subscriber's probes
    assert status["states"]["evicted"] == status["states"]["resumed"] >= evicted > 10
    assert not peer.inbox or all(m.type == "ack" for m in peer.inbox)


@pytest.mark.parametrize("together", [True, False], ids=["together", "in turn"])
def test_no_more_leave_than_must(start, rows, together):
    """The ones that were used least recently, although several could be saved at a time."""
    daemon = start(**{"streams.max": 6})
    peer = Peer(daemon)
    for i in range(6):
        peer.open(b"old-%d" % i, reply=False)
        peer.data(b"old-%d" % i, rows[:10])
        peer.ack(b"old-%d" % i, done=8)
    for i in range(3):
        peer.header(b"new-%d" % i, type="open", reply=False)
        if not together:
            peer.take(b"new-%d" % i, "ack")
    for i in range(3 if together else 0):
        peer.take(b"new-%d" % i, "ack")
    here = {bytes(stream["stream"]) for stream in daemon.ask("streams")["streams"]}
    assert here == {b"old-3", b"old-4", b"old-5", b"new-0", b"new-1", b"new-2"}
    assert daemon.ask("status")["states"]["evicted"] == 3


def test_acks_tell_where_evicted_streams_stand(start, rows):
    daemon = start(**{"streams.max": 1})
    peer = Peer(daemon)
    for i in range(5):
        peer.open(b"ack-%d" % i, reply=False)
        peer.data(b"ack-%d" % i, rows[:10 + i])
        assert peer.ack(b"ack-%d" % i, next=10 + i, done=8).durable == 0
    for i in range(4):
        ack = peer.ack(b"ack-%d" % i, durable=10 + i)
        assert (ack.next, ack.done, ack.durable) == (10 + i, 8, 10 + i)
    assert peer.open(b"ack-2", reply=False).durable == 12


@pytest.mark.parametrize("reply", [True, False], ids=["reply", "publish"])
def test_durable_never_goes_back(start, rows, want, reply):
    """Not even while a state is replaced by a newer one."""
    peer = Peer(start(**{"state.interval": 0, "state.keep": 1}))
    told = [peer.open(b"steady", reply=reply)]
    for stop in range(8, 185, 8):
        peer.data(b"steady", rows[stop - 8:stop], got=stop - 8)
        while told[-1].done < stop:
            told.append(peer.take(b"steady", "ack"))
    peer.header(b"steady", type="flush", got=184)
    while told[-1].durable < 184:
        told.append(peer.take(b"steady", "ack"))
    assert [ack.durable for ack in told] == sorted(ack.durable for ack in told)


def test_a_stream_that_was_only_opened(start, rows, want):
    """It comes back as what it was opened as."""
    daemon = start(**{"streams.max": 1})
    peer, other = Peer(daemon), Peer(daemon)
    peer.open(b"opened")
    other.open(b"other")
    assert daemon.ask("status")["states"]["evicted"] == 1
    peer.data(b"opened", rows[:20], flush=True)
    assert same_bytes(peer.hidden(b"opened", 0, 20), want[:20])
    other.open(b"other")
    other.data(b"opened", rows[20:30])
    other.refusal(b"opened", "denied")


def test_streams_that_cannot_leave(daemons, rows, tmp_path):
    """A peer that does not read keeps more streams in memory than are looked at in one go: others make room."""
    slow, idle = 150, 30  # messages to a peer that does not read: some 4000 find room on the way
    daemon = daemons(CASE, window=1, **{"state.dir": str(tmp_path / "states"), "streams.max": slow + idle})
    deaf, peer = Peer(daemon), Peer(daemon)
    deaf.close()
    deaf.socket = daemon.context.socket(zmq.DEALER)
    deaf.socket.setsockopt(zmq.LINGER, 0)
    deaf.socket.setsockopt(zmq.SNDHWM, 0)
    deaf.socket.setsockopt(zmq.RCVHWM, 1)
    deaf.socket.setsockopt(zmq.RCVBUF, 4096)
    deaf.socket.connect(daemon.ingest)
    for i in range(slow):
        deaf.header(b"slow-%d" % i, type="open", reply=True)
        deaf.data(b"slow-%d" % i, np.resize(rows, (100, rows.shape[1])), pos=0)
    while daemon.ask("status")["streams"] < slow:
        time.sleep(0.01)
    assert sum(stream["queued_rows"] > 0 for stream in daemon.ask("streams")["streams"]) >= 70
    for i in range(idle):
        peer.open(b"idle-%d" % i, reply=False)
    for i in range(idle):
        peer.open(b"new-%d" % i, reply=False)
    assert daemon.ask("status")["states"]["evicted"] >= idle
    daemon.kill()  # there is nobody to publish to


def test_idle_streams(start, rows, want):
    daemon = start(**{"streams.idle_timeout": 0.2})
    peer, consumer = Peer(daemon), Subscriber(daemon, b"idle")
    peer.open(b"idle")
    for first in range(0, 60, 20):
        peer.data(b"idle", rows[first:first + 20])
        event = consumer.take(b"idle", "event")
        assert (event.event, event.pos) == ("evicted", first + 20)
        assert daemon.ask("status")["streams"] == 0
    peer.header(b"idle", type="flush")
    assert same_bytes(peer.hidden(b"idle", 0, 60), want[:60])


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_restart_changes_nothing(start, rows, want, end):
    daemon = start()
    peer = Peer(daemon)
    peer.open(b"restarted")
    have = 0
    for stop in range(20, 181, 20):
        peer.data(b"restarted", rows[stop - 20:stop])
        peer.ack(b"restarted", next=stop, done=stop // WINDOW * WINDOW)
        if end == "terminate":  # which flushes
            daemon.terminate()
            reached = stop
        else:
            assert daemon.ask("snapshot")["ok"]
            daemon.kill()
            reached = stop // WINDOW * WINDOW
        assert same_bytes(peer.hidden(b"restarted", have, reached), want[have:reached])
        have = reached
        daemon.wait()
        daemon.start()
        peer = Peer(daemon)
        ack = peer.open(b"restarted", **{"from": have})
        assert (ack.next, ack.done, ack.durable) == (stop, have, stop)
    assert daemon.ask("status")["rows_in"] == 0, "no row came again"


def test_rows_of_an_unfinished_window_are_flushed_after_a_restart(start, rows, want):
    daemon = start(**{"streams.flush_after": 0.5})
    peer = Peer(daemon)
    peer.open(b"late")
    peer.data(b"late", rows[:13])
    peer.ack(b"late", next=13, done=8)
    assert daemon.ask("snapshot")["ok"]
    daemon.kill()
    daemon.start()
    peer = Peer(daemon)
    assert peer.open(b"late", **{"from": 8}).next == 13
    assert same_bytes(peer.hidden(b"late", 8, 13), want[8:13])


# --- closed streams --------------------------------------------------------------------------------------------------

def states(tmp_path):
    return sorted(os.listdir(tmp_path / "states"))


def test_publishers_go_on_with_a_stream_that_had_replies(start, rows, want, short_path):
    """They cannot be answered, and feed it as they would any other."""
    address = f"ipc://{short_path}/pub"
    daemon = start(**{"sockets.subscribe": ">" + address})
    peer = Peer(daemon)
    peer.open(b"s", reply=True)
    peer.data(b"s", rows[:8])
    peer.hidden(b"s", 0, 8)
    assert daemon.ask("snapshot")["ok"]
    daemon.kill()
    daemon.start()
    publisher, consumer, other = Publisher(daemon, address, bind=True), Subscriber(daemon), Peer(daemon)
    publisher.data(b"s", rows[8:24], pos=8)
    assert same_bytes(consumer.hidden(b"s", 8, 24), want[8:24])
    other.data(b"s", rows[24:], pos=24)
    other.refusal(b"s", "denied")


def test_a_closed_stream_is_gone(start, rows, want, tmp_path):
    daemon = start()
    peer = Peer(daemon)
    for end in ("data", "close"):
        peer.open(b"closed", reply=False)
        peer.data(b"closed", rows[:20])
        assert peer.ack(b"closed", next=20, done=16) and daemon.ask("snapshot")["ok"] and states(tmp_path)
        if end == "data":
            peer.data(b"closed", rows[20:30], end=True)
        else:
            peer.header(b"closed", type="close")
        peer.ack(b"closed", done=30 if end == "data" else 20)
        daemon.terminate()
        daemon.wait()
        assert states(tmp_path) == []
        daemon.start()
        peer = Peer(daemon)
        assert peer.open(b"closed", reply=False).next == 0


@pytest.mark.parametrize("restart", [True, False], ids=["restart", "no restart"])
def test_a_closed_stream_whose_peer_lacks_the_end(start, rows, want, restart, tmp_path):
    daemon = start()
    peer = Peer(daemon)
    peer.open(b"closing")
    peer.data(b"closing", rows[:20], flush=True)
    peer.hidden(b"closing", 0, 20)
    peer.header(b"closing", type="open", reply=True, got=20)
    assert daemon.ask("snapshot")["ok"]
    peer.data(b"closing", rows[20:30], end=True)
    peer.ack(b"closing", done=30)
    if restart:
        daemon.kill()
        daemon.start()
    peer = Peer(daemon)
    assert peer.open(b"closing", **{"from": 25}).next == 20
    peer.data(b"closing", rows[20:30], end=True)
    assert same_bytes(peer.hidden(b"closing", 20, 30), want[20:30])
    peer.header(b"closing", type="close", got=30)
    peer.header(b"closing", type="flush")
    peer.refusal(b"closing", "closed")
    daemon.terminate()
    daemon.wait()
    assert states(tmp_path) == []
    daemon.start()
    assert Peer(daemon).open(b"closing").next == 0


def test_a_closed_id_that_is_used_anew(start, rows, want, tmp_path):
    daemon = start()
    peer = Peer(daemon)
    before = set()
    for _ in range(3):
        peer.open(b"anew")
        peer.data(b"anew", rows[:20])
        assert same_bytes(peer.hidden(b"anew", 0, 16), want[:16])
        assert daemon.ask("snapshot")["ok"]
        peer.data(b"anew", rows[20:40], end=True)
        assert same_bytes(peer.hidden(b"anew", 16, 40), want[16:40])
        assert daemon.ask("snapshot")["ok"]
        *kept, mark = states(tmp_path)
        assert mark.endswith(".closed") and kept and not before & set(kept), "nothing of the life before"
        before = set(kept)
    daemon.kill()
    daemon.start()
    assert Peer(daemon).open(b"anew").next == 0


# --- many ------------------------------------------------------------------------------------------------------------

def test_many_streams_on_disk(start, random, rows, want, tmp_path):
    """A hundred in memory.  Each has a row or more of its own history, which shows when it comes back."""
    daemon = start(**{"streams.max": 100, "log.level": "info"})
    peer = Peer(daemon)
    began = time.monotonic()
    waiting = set()
    for i in range(STREAMS):
        stream = b"many-%d" % i
        peer.data(stream, rows[:1 + i % 20], pos=0)
        waiting.add(stream)
        while len(waiting) > 50:
            waiting.discard(peer.receive().stream)
    while waiting:
        waiting.discard(peer.receive().stream)
    made = time.monotonic() - began
    assert peer.inbox == []
    status = daemon.ask("status")
    assert status["streams"] <= 100 and status["states"]["streams_on_disk"] >= STREAMS - 100
    daemon.terminate()
    assert daemon.wait() == 0
    began = time.monotonic()
    daemon.start()
    ready = time.monotonic() - began
    assert daemon.ask("status")["states"]["streams_on_disk"] == STREAMS
    peer = Peer(daemon)
    for i in random.sample(range(STREAMS), 300):
        stream, n = b"many-%d" % i, 1 + i % 20
        ack = peer.open(stream, **{"from": n})
        assert ack.next == n and ack.done in (n, n // WINDOW * WINDOW), "only what was in memory was flushed"
        peer.data(stream, rows[n:30], pos=n, flush=True)
        assert same_bytes(peer.hidden(stream, ack.done, 30), want[ack.done:30])
    assert daemon.ask("status")["streams"] <= 100
    print(f"{STREAMS} streams made in {made:.1f} s; ready with them in {ready:.2f} s")
