"""The daemon takes its memory at the start and keeps it: nothing grows with windows, streams or peers that were."""
import numpy as np
import pytest

from harness import Peer

CASE = "seed-46032"
NOISE = 4 << 20  # bytes: what queues may once be longer than before

pytestmark = pytest.mark.native  # sanitizers keep freed memory


def grown(daemon, work, times):
    """
    Bytes by which memory grew while work was done so many times, after as many times to warm up.  What leaks grows each
    time; a queue that was once longer, on a busy machine, does not: then the next rounds tell.
    """
    sizes = []
    while len(sizes) < 2 or (len(sizes) < 5 and sizes[-1] - sizes[-2] >= NOISE):
        for _ in range(times):
            work()
        sizes.append(daemon.memory("VmRSS"))
    return sizes[-1] - sizes[-2]


def test_a_hundred_thousand_windows(daemons, golden):
    daemon = daemons(CASE, window=1, **{"log.level": "info"})
    rows = np.tile(golden(CASE).rows, (16, 1))  # [1024, hidden_size]
    peer = Peer(daemon)
    peer.open(b"long")

    def work():
        peer.data(b"long", rows)
        peer.hidden(b"long", work.position, work.position + len(rows))
        work.position += len(rows)
        peer.inbox.clear()
    work.position = 0

    assert grown(daemon, work, 50) < NOISE
    assert daemon.ask("status")["windows"] >= 100_000


def test_sixteen_thousand_streams_of_sixteen_hundred_peers(daemons, golden):
    daemon = daemons(CASE, window=8, **{"log.level": "info"})
    rows = golden(CASE).rows[:3]

    def work():
        for _ in range(10):
            peer = Peer(daemon)
            for i in range(10):
                peer.data(b"short-%d" % i, rows, end=True)
            for i in range(10):
                peer.ack(b"short-%d" % i, done=3)
            peer.close()
            work.peers += 1
    work.peers = 0

    assert grown(daemon, work, 80) < NOISE
    status = daemon.ask("status")
    assert (status["streams"], status["rows_in"]) == (0, 30 * work.peers)


def test_refusals(daemons, golden):
    daemon = daemons(CASE, window=8, **{"log.level": "info"})
    peer = Peer(daemon)
    nan = np.full_like(golden(CASE).rows, np.nan)

    def work():
        for i in range(100):
            peer.data(b"new-%d" % i, nan)
            peer.frames(b"new-%d" % i, b"\xc1")
        for i in range(100):
            peer.refusal(b"new-%d" % i, "non_finite")
            peer.refusal(b"new-%d" % i, "bad_header")

    assert grown(daemon, work, 50) < NOISE
