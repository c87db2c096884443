"""A peer lacks hidden states and asks for them: what it is told, and what others see of it."""
import os
import time

import numpy as np
import pytest

from harness import Peer, Subscriber, same_bytes

CASE, WINDOW = "bfloat16", 64


def test_asked_for_while_the_end_is_on_its_way(daemons, golden, tmp_path):
    """The connection breaks, and the end of the stream was under way on it: the rest comes again from what is durable."""
    rows = np.tile(golden(CASE).rows, (100, 1))
    daemon = daemons(CASE, window=WINDOW, threads=1,
                     **{"state.dir": str(tmp_path), "state.interval": 0.01, "limits.credit_rows": 1 << 20})
    want = Peer(daemon).encode(rows)
    first, second = Peer(daemon), Peer(daemon)
    first.open(b"s")
    first.data(b"s", rows[:640])
    first.hidden(b"s", 0, 640)
    first.header(b"s", type="flush", got=640)
    first.ack(b"s", durable=640)

    first.data(b"s", rows[640:], pos=640, end=True, got=640)
    while not any(stream["state"] == "ending" for stream in daemon.ask("streams")["streams"]):
        pass
    ack = second.open(b"s", **{"from": 640})
    assert ack.next == 640
    second.data(b"s", rows[640:], pos=640, end=True, got=640)
    assert same_bytes(second.hidden(b"s", 640, len(rows)), want[640:])
    second.header(b"s", type="close", got=len(rows))


def test_to_before_every_state(daemons, golden, tmp_path):
    """The only state counts more as emitted than the peer has: its rows come again from 0."""
    rows = golden(CASE).rows[:100]
    daemon = daemons(CASE, window=WINDOW, **{"state.dir": str(tmp_path), "state.interval": 1e6})
    peer = Peer(daemon)
    want = peer.encode(rows)
    peer.open(b"s")
    peer.data(b"s", rows, flush=True)
    peer.hidden(b"s", 0, 100)
    assert daemon.ask("snapshot", stream=b"s")["ok"]
    for connection in peer, Peer(daemon):
        assert connection.open(b"s", next=0, **{"from": 3}).next == 0
        connection.data(b"s", rows, pos=0, flush=True)
        assert same_bytes(connection.hidden(b"s", 0, 100), want)


def test_after_a_gap_in_the_numbering_before_it(daemons, golden, tmp_path):
    """What the peer has (got) and lacks (from) is told in its own numbering, and understood so, also after a kill."""
    rows = golden(CASE).rows[:100]
    daemon = daemons(CASE, window=8, **{"state.dir": str(tmp_path), "state.interval": 1e6, "streams.on_gap": "reset"})
    peer = Peer(daemon)
    want = peer.encode(rows[12:30])
    peer.open(b"s")
    peer.data(b"s", rows[:10], pos=0)
    peer.data(b"s", rows[12:20], pos=12, got=8, flush=True)
    peer.hidden(b"s", 0, 10)
    peer.hidden(b"s", 0, 8, epoch=1)
    assert daemon.ask("snapshot", stream=b"s")["ok"]
    peer.header(b"s", type="flush", got=12)
    ack = peer.open(b"s", next=8, **{"from": 20, "got": 12})
    assert (ack.epoch, ack.durable) == (1, 0)
    daemon.kill()
    daemon.start()
    for got in 12, 15:
        peer = Peer(daemon)
        ack = peer.open(b"s", **{"from": got})
        assert (ack.epoch, ack.next, ack.durable) == (1, 7, 7)  # of the state with which the epoch began
        peer.data(b"s", rows[12:20], pos=12, flush=True)
        assert same_bytes(peer.hidden(b"s", 0, 8, epoch=1), want[:8])
    peer.data(b"s", rows[20:30], pos=20, got=20, end=True)
    assert same_bytes(peer.hidden(b"s", 8, 18, epoch=1), want[8:])


def test_before_the_epoch_is_on_disk(daemons, golden, tmp_path):
    """Rows come again from 0, and subscribers, who had them, get none of them twice."""
    rows = np.tile(golden(CASE).rows, (4, 1))[:1000]
    daemon = daemons(CASE, window=WINDOW, **{"state.dir": str(tmp_path), "state.interval": 1e6})
    want = Peer(daemon).encode(rows)
    subscriber, peer = Subscriber(daemon, b"s"), Peer(daemon)
    peer.open(b"s")
    peer.data(b"s", rows[:100], flush=True)
    peer.hidden(b"s", 0, 100)
    daemon.ask("snapshot")  # of epoch 0

    peer.open(b"s", epoch=1)
    peer.data(b"s", rows[:640], pos=0, epoch=1)
    peer.hidden(b"s", 0, 640, epoch=1)
    again = Peer(daemon)
    ack = again.open(b"s", epoch=1, **{"from": 64})
    assert (ack.epoch, ack.next) == (1, 0)
    again.data(b"s", rows, pos=0, epoch=1, end=True)
    assert same_bytes(again.hidden(b"s", 0, len(rows), epoch=1), want)
    assert same_bytes(subscriber.hidden(b"s", 0, 100), want[:100])
    assert same_bytes(subscriber.hidden(b"s", 0, len(rows), epoch=1), want)


def test_of_a_stream_that_waits_on_disk(daemons, golden, tmp_path):
    """Rows come again from an older state than it left memory with, and subscribers, who had them, get none twice."""
    rows = golden(CASE).rows[:64]
    daemon = daemons(CASE, window=8, **{"state.dir": str(tmp_path), "state.interval": 1e6, "streams.max": 1})
    want = Peer(daemon).encode(rows)
    subscriber, peer, again = Subscriber(daemon, b"s"), Peer(daemon), Peer(daemon)
    peer.open(b"s")
    for start, stop in (0, 16), (16, 40):
        peer.data(b"s", rows[start:stop])
        peer.hidden(b"s", start, stop)
        assert daemon.ask("snapshot")["ok"]
    peer.open(b"another")
    peer.header(b"another", type="close")

    assert again.open(b"s", **{"from": 16}).next == 16
    again.data(b"s", rows[16:], pos=16, end=True)
    assert same_bytes(again.hidden(b"s", 16, len(rows)), want[16:])
    assert same_bytes(subscriber.hidden(b"s", 0, len(rows)), want)
    assert subscriber.take(b"s", "event").event == "evicted"


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_to_before_every_state_of_its_epoch(daemons, golden, tmp_path, end):
    """There are states of the epoch before, but what comes back afterwards is the epoch that was begun anew."""
    rows = golden(CASE).rows[:100]
    daemon = daemons(CASE, window=WINDOW, **{"state.dir": str(tmp_path), "state.interval": 1e6})
    peer = Peer(daemon)
    for epoch in range(2):
        peer.open(b"s", epoch=epoch, reply=False)
        peer.data(b"s", rows, pos=0, epoch=epoch, flush=True)
        while (peer.ack(b"s", done=100).epoch or 0) != epoch:
            pass
        assert daemon.ask("snapshot", stream=b"s")["ok"]
    ack = Peer(daemon).open(b"s", epoch=1, reply=False, **{"from": 3})
    assert (ack.epoch, ack.next) == (1, 0)
    if end == "kill":
        assert daemon.ask("snapshot")["ok"]
        daemon.kill()
    else:
        daemon.terminate()
        daemon.wait()
    daemon.start()
    peer = Peer(daemon)
    peer.header(b"s", type="open", epoch=0)
    assert peer.refusal(b"s", "stale_epoch")


@pytest.mark.parametrize("how", ["gap", "command"])
def test_an_epoch_that_the_daemon_begins(daemons, golden, tmp_path, how):
    """It is saved at once: no other begins with the same number after a kill."""
    rows = golden(CASE).rows[:24]
    daemon = daemons(CASE, window=8, **{"state.dir": str(tmp_path), "state.interval": 1e6, "streams.on_gap": "reset"})
    peer = Peer(daemon)
    peer.open(b"s", reply=False)
    peer.data(b"s", rows[:8], pos=0)
    peer.ack(b"s", done=8)
    assert daemon.ask("snapshot", stream=b"s")["ok"]
    if how == "gap":
        peer.data(b"s", rows[16:], pos=16)
        while daemon.ask("status")["states"]["written"] < 2:
            time.sleep(0.01)
    else:
        assert daemon.ask("reset", stream=b"s")["epoch"] == 1
    daemon.kill()
    daemon.start()
    peer = Peer(daemon)
    peer.header(b"s", type="open")
    assert peer.take(b"s", "ack", "error").epoch == 1


def test_a_stream_on_disk_is_reset(daemons, golden, tmp_path):
    """Without a message to it, and so that a kill right behind the answer changes nothing."""
    rows = golden(CASE).rows[:24]
    daemon = daemons(CASE, window=8, **{"state.dir": str(tmp_path), "state.interval": 1e6})
    peer = Peer(daemon)
    peer.open(b"s", reply=False, epoch=5)
    peer.data(b"s", rows[:8], pos=0, epoch=5)
    peer.ack(b"s", done=8)
    assert daemon.ask("snapshot", stream=b"s")["ok"]
    for epoch in (6, 7):
        daemon.kill()
        daemon.start()
        consumer = Subscriber(daemon, b"s")
        assert daemon.ask("reset", stream=b"s")["epoch"] == epoch
        event = consumer.take(b"s", "event")
        assert (event.event, event.epoch, event.pos) == ("reset", epoch, 0)
    daemon.kill()
    daemon.start()
    peer = Peer(daemon)
    peer.header(b"s", type="open", epoch=5)
    assert peer.refusal(b"s", "stale_epoch").epoch == 7
    assert peer.open(b"s", epoch=7).next == 0


def test_a_closed_stream_that_is_opened_again(daemons, golden, tmp_path):
    """What it is told to be durable is so, whatever the next message after a kill: it counts as closed no longer."""
    rows = golden(CASE).rows[:24]
    daemon = daemons(CASE, window=8, **{"state.dir": str(tmp_path), "state.interval": 1e6})
    peer = Peer(daemon)
    peer.open(b"s")
    peer.data(b"s", rows[:20], flush=True)
    peer.hidden(b"s", 0, 20)
    assert daemon.ask("snapshot", stream=b"s")["ok"]
    peer.header(b"s", type="close")
    while not any(name.endswith(".closed") for name in os.listdir(tmp_path)):
        time.sleep(0.01)
    peer = Peer(daemon)
    ack = peer.open(b"s", **{"from": 20})
    assert ack.next == 20
    if not ack.durable:
        peer.ack(b"s", durable=20)
    daemon.kill()
    daemon.start()
    assert Peer(daemon).open(b"s").next == 20
