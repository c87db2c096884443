"""Streams outlive the daemon, however it ends, and its clients: nothing is lost, every hidden state is the same bytes.

MAMBA2D_KILLS sets how often the daemon is killed in each of the tests (default 15); MAMBA2D_SEED repeats a run.
"""
import itertools
import os
import time

import pytest

from harness import Peer, Subscriber, TIMEOUT, same_bytes, varied
from keeper import Feed, Keeper

CASE, WINDOW = "seed-46032", 8
KILLS = int(os.environ.get("MAMBA2D_KILLS", 15))


@pytest.fixture(scope="module")
def rows(golden):
    """[9600, hidden_size], never periodic in a stream's length."""
    return varied(golden(CASE).rows, 100)


@pytest.fixture(scope="module")
def want(shared_daemons, rows):
    """Hidden states of an uninterrupted run from any of a few starts: {start: hidden}."""
    peer = Peer(shared_daemons(CASE, window=WINDOW))
    return {start: peer.encode(rows[start:start + 5000]) for start in range(0, 4001, 500)}


@pytest.fixture
def feeds(random, rows, want):
    """A maker of feeds: streams of their own, of any length."""
    numbers = itertools.count()

    def next_feed():
        start, n = random.choice(list(want)), random.choice((3, 40, 700, 5000))
        return Feed(b"feed-%d" % next(numbers), rows[start:start + n], want[start][:n])
    return next_feed


def run(keepers, seconds):
    """Let the producers work for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any([keeper.step() for keeper in keepers]):
            time.sleep(0.001)


def finish(keepers):
    """Let them finish what they have begun."""
    deadline = time.monotonic() + TIMEOUT
    for keeper in keepers:
        keeper.draining = True
    while any(keeper.feeds for keeper in keepers):
        run(keepers, 0.01)
        left = [(feed.name, feed.have, len(feed.rows)) for keeper in keepers for feed in keeper.feeds.values()]
        assert time.monotonic() < deadline, f"no end of {left}:\n{keepers[0].daemon.log()[-3000:]}"


def check_published(consumer, finished):
    """What a subscriber saw of the streams, as far as it saw any, is the same bytes."""
    wants = {feed.name: feed.want for feed in finished}
    while consumer.socket.poll(100):
        message = consumer.receive()
        if message.type == "hidden" and message.stream in wants:
            stop = message.pos + len(message.rows)
            assert same_bytes(message.rows, wants[message.stream][message.pos:stop]), message


@pytest.mark.parametrize("settings", [
    {}, {"state.keep": 1}, {"streams.max": 4}, {"streams.flush_after": 0.005, "state.keep": 3},
], ids=lambda settings: " ".join(settings) or "defaults")
def test_killed_at_any_instant(daemons, feeds, random, settings, tmp_path):
    daemon = daemons(CASE, window=WINDOW, **{"state.dir": str(tmp_path), "state.interval": 0.01, **settings})
    keepers = [Keeper(daemon, random, feeds) for _ in range(3)]
    consumer = Subscriber(daemon, b"feed-")
    for keeper in keepers:
        keeper.connect()
    cut_writes = 0
    for kill in range(KILLS):
        run(keepers, random.uniform(0, 0.15))
        daemon.kill()
        cut_writes += sum(name.endswith(".part") for name in os.listdir(tmp_path))
        daemon.start()
        for keeper in keepers:
            if random.random() < 0.3:
                keeper.blunder()
                time.sleep(random.uniform(0, 0.05))
            keeper.connect()
    finish(keepers)
    finished = [feed for keeper in keepers for feed in keeper.finished]
    check_published(consumer, finished)
    status = daemon.ask("status")
    assert status["states"]["damaged"] == 0 and status["states"]["errors"] == 0
    print(f"{KILLS} kills, {cut_writes} in the middle of a file; {len(finished)} streams, "
          f"{sum(feed.have for feed in finished)} rows, {sum(feed.repeats for feed in finished)} came again")


def test_runs_in_which_rows_come_and_no_open(daemons, rows, want, tmp_path):
    """What they save does not push out what was promised before."""
    daemon = daemons(CASE, window=WINDOW, **{"state.dir": str(tmp_path), "state.interval": 60})
    peer = Peer(daemon)
    peer.open(b"unheard")
    peer.data(b"unheard", rows[:20], flush=True)
    assert same_bytes(peer.hidden(b"unheard", 0, 20), want[0][:20])
    peer.header(b"unheard", type="flush", got=20)
    assert daemon.ask("snapshot")["ok"]
    peer.ack(b"unheard", durable=20)
    reached = 20
    for _ in range(5):
        daemon.kill()
        daemon.start()
        peer = Peer(daemon)
        for _ in range(4):
            peer.data(b"unheard", rows[reached:reached + 20], pos=reached, flush=True)
            reached += 20
            peer.ack(b"unheard", done=reached)
            assert daemon.ask("snapshot", stream=b"unheard")["ok"]
    ack = Peer(daemon).open(b"unheard", **{"from": 30})
    assert ack.next >= 20 and ack.durable >= 20


@pytest.mark.parametrize("settings", [{}, {"streams.max": 4}], ids=lambda settings: " ".join(settings) or "defaults")
def test_terminated_at_any_instant(daemons, feeds, random, settings, tmp_path):
    """SIGTERM: what was accepted is emitted and saved, so nothing comes again, to producers or to consumers."""
    daemon = daemons(CASE, window=WINDOW, **{"state.dir": str(tmp_path), "state.interval": 0.05, **settings})
    keepers = [Keeper(daemon, random, feeds) for _ in range(3)]
    reached = {}
    for _ in range(KILLS // 3 + 1):
        consumer = Subscriber(daemon, b"feed-")
        for keeper in keepers:
            keeper.connect()
        run(keepers, random.uniform(0, 0.2))
        daemon.terminate()
        while daemon.process.poll() is None or any(keeper.socket.poll(50) for keeper in keepers):
            for keeper in keepers:
                keeper.receive()
        assert daemon.process.returncode == 0, daemon.log()
        while consumer.socket.poll(50):
            message = consumer.receive()
            if message.type == "hidden":
                assert message.pos >= reached.get(message.stream, 0), f"{message} came before"
                reached[message.stream] = message.pos + len(message.rows)
        consumer.close()
        daemon.start()
    for keeper in keepers:
        keeper.connect()
    finish(keepers)
    finished = [feed for keeper in keepers for feed in keeper.finished]
    assert sum(feed.repeats for feed in finished) == 0
