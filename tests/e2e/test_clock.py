"""The wall clock jumps by years, there and back, and nothing changes: what the daemon measures is CLOCK_MONOTONIC."""
import email.utils
import random as randomness
import time
import urllib.request

import pytest
import zmq

from faults import Clock
from harness import TIMEOUT, Peer, Receiver, same_bytes
from keeper import Feed, Keeper
from test_states_killed import finish, run

pytestmark = pytest.mark.native  # sanitizers have a clock_gettime of their own
CASE, WINDOW = "seed-46032", 8
YEAR = 365 * 86400
TO_1970 = -int(time.time())
JUMPS = (YEAR, TO_1970, 0, -YEAR, 40 * YEAR, -1, 3600)


def year(daemon):
    """By the daemon's clock, as its HTTP headers tell it."""
    with urllib.request.urlopen("http://%s/healthz" % daemon.ask("status")["sockets"]["metrics"]) as answer:
        return email.utils.parsedate_to_datetime(answer.headers["Date"]).year


def test_under_load(daemons, rows, want, tmp_path):
    """While rows are computed and states saved, and across restarts; nothing is idle, and nothing is damaged."""
    daemon = daemons(CASE, start=False, window=WINDOW, **{
        "state.dir": str(tmp_path / "states"), "state.interval": 0.01, "streams.idle_timeout": 1000,
        "streams.flush_after": 0.005, "metrics.listen": "127.0.0.1:0"})
    clock = Clock(daemon, tmp_path)
    daemon.start()
    random = randomness.Random(1)
    names = iter(range(1 << 30))

    def next_feed():
        n = random.choice((3, 40, 700, len(rows)))
        return Feed(b"feed-%d" % next(names), rows[:n], want[:n])
    keepers = [Keeper(daemon, random, next_feed) for _ in range(2)]
    for keeper in keepers:
        keeper.connect()
    for seconds in JUMPS:
        Peer(daemon).open(b"quiet")
        run(keepers, 0.1)
        clock.jump(seconds)
        run(keepers, 0.2)
        assert year(daemon) == time.gmtime(time.time() + seconds).tm_year
        status = daemon.ask("status")["states"]
        assert (status["evicted"], status["errors"], status["damaged"]) == (0, 0, 0)
        daemon.kill()
        daemon.start()
        for keeper in keepers:
            keeper.connect()
    finish(keepers)
    assert sum(len(keeper.finished) for keeper in keepers) > len(JUMPS)


@pytest.fixture(params=[YEAR, TO_1970], ids=["a year forward", "to 1970"])
def jump(request):
    return request.param


def test_pauses_end(daemons, rows, want, tmp_path, jump):
    """That of an unfinished window and that of an idle stream, although the clock jumps while they last."""
    daemon = daemons(CASE, start=False, window=WINDOW, **{
        "state.dir": str(tmp_path / "states"), "streams.idle_timeout": 0.5, "streams.flush_after": 0.2})
    clock = Clock(daemon, tmp_path)
    daemon.start()
    peer = Peer(daemon)
    peer.open(b"s")
    peer.data(b"s", rows[:20])
    clock.jump(jump)
    assert same_bytes(peer.hidden(b"s", 0, 20), want[:20])
    deadline = time.monotonic() + TIMEOUT
    while daemon.ask("status")["streams"]:
        assert time.monotonic() < deadline
    assert daemon.ask("status")["states"]["evicted"] == 1


def test_a_rate_is_of_true_seconds(daemons, rows, want, tmp_path, jump):
    daemon = daemons(CASE, start=False, window=WINDOW, **{"limits.peer_messages": 20})
    clock = Clock(daemon, tmp_path)
    daemon.start()
    peer, refused, at = Peer(daemon), 0, 0
    peer.open(b"s")
    while at < 48:
        for pos in range(at, 48):
            peer.data(b"s", rows[pos:pos + 1], pos=pos)
        clock.jump(0 if refused % 2 else jump)
        left = 48 - at
        while left:  # answers: an error for each, or one ack for several
            answer = peer.take(b"s", "ack", "error")
            if answer.type == "error":
                assert answer.code in ("no_credit", "gap") and answer.expected >= at
                left, refused = left - 1, refused + (answer.code == "no_credit")
            else:
                left, at = left - (answer.next - at), answer.next
        time.sleep(0.2)
    assert refused
    assert same_bytes(peer.hidden(b"s", 0, 48), want[:48])


def test_heartbeats_go_on(daemons, tmp_path):
    """A peer that pings ten times a second, and wants to be cut off after five without a word, is left alone."""
    daemon = daemons(CASE, start=False, window=WINDOW)
    clock = Clock(daemon, tmp_path)
    daemon.start()
    peer = Receiver(daemon, zmq.DEALER)
    for option in (zmq.HEARTBEAT_TTL, zmq.HEARTBEAT_TIMEOUT):
        peer.socket.setsockopt(option, 5000)
    peer.socket.setsockopt(zmq.HEARTBEAT_IVL, 100)
    losses = peer.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    peer.socket.connect(daemon.ingest)
    for seconds in 3 * JUMPS:
        clock.jump(seconds)
        assert not losses.poll(100)
    peer.socket.disable_monitor()
