"""A stream has ended, and its peer lacks hidden states: it gets them, whenever it asks."""
import numpy as np

from harness import Peer, same_bytes

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
