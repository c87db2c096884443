"""What only a daemon on a GPU does; MAMBA2D_DEVICE=cuda runs this file, and every other one on the GPU as well."""
import pytest

from harness import DEVICE, Peer, same_bytes

CASE, WINDOW, STREAMS, ROOM = "seed-46032", 8, 24, 8

pytestmark = pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="for a GPU")


def test_idle_caches_move_to_the_host_and_come_back(daemons, golden):
    rows = golden(CASE).rows[:5 * WINDOW]
    roomy = daemons(CASE, window=WINDOW)
    want = Peer(roomy).encode(rows)
    Peer(roomy).open(b"another")
    status = roomy.ask("status")
    caches = status["devices"][0]["caches"]
    assert caches["slots"] > STREAMS and caches["moved_out"] == 0
    daemon = daemons(CASE, window=WINDOW, **{"limits.cache_bytes": ROOM * status["cache_bytes"] // status["streams"]})
    peer = Peer(daemon)
    streams = [b"stream %d" % i for i in range(STREAMS)]
    for stream in streams:
        peer.open(stream)
    for start in range(0, len(rows), WINDOW):
        for stream in streams:
            peer.data(stream, rows[start:start + WINDOW])
    for stream in streams:
        assert same_bytes(peer.hidden(stream, 0, len(rows)), want)
    caches = daemon.ask("status")["devices"][0]["caches"]
    assert 1 <= caches["slots"] <= ROOM
    assert (caches["on_device"], caches["on_host"]) == (caches["slots"], STREAMS - caches["slots"])
    assert caches["moved_out"] >= caches["on_host"] and caches["moved_in"] > 0
